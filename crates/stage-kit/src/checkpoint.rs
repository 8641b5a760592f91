//! [`Checkpoints`]: the states a long run can go on from, of which the last good one survives whatever happens.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::KitError;
use crate::resources::host_name;

/// The file in a checkpoint folder that its holder keeps locked; it names the process and its machine.
pub const LOCK_FILE: &str = "lock";
const STEP: &str = "step-";
/// Endings of hidden names: a step in the making, one that a new one of the same number replaces, one that goes.
const PART: &str = ".part-";
const OLD: &str = ".old-";
const GONE: &str = ".gone-";

/// The checkpoint folder of one run, `<save-dir>.checkpoint`: steps in folders `step-00001234` of the caller's making.
///
/// A step is written beside its place, synchronised to the disk with every file in it, and renamed; older ones go after
/// that. So a process killed at any moment, a full disk or a power cut leave the last good step. What a dead writer left
/// half done is removed, or put back, when the folder is opened next.
///
/// A lock on the folder, which ends with the process, keeps two runs from sharing it.
#[derive(Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    keep: usize,
    /// Locked while this lives.
    _lock: File,
}

/// A whole step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its number.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
}

impl Checkpoints {
    /// Opens `folder`, made where missing with its parents, as one that keeps the newest `keep` steps (at least 1).
    ///
    /// # Errors
    /// [`KitError::InUse`] when another run has it open; when it cannot be made, read, locked or cleaned up.
    pub fn open(folder: &Path, keep: usize) -> Result<Self, KitError> {
        let checkpoints = Self { folder: folder.to_owned(), keep: keep.max(1), _lock: lock(folder)? };
        checkpoints.recover()?;
        Ok(checkpoints)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The step of the highest number; `None` when there is none.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn latest(&self) -> Result<Option<Checkpoint>, KitError> {
        Ok(self.steps()?.pop())
    }

    /// Has `fill` write a step's files into the folder it is given, then makes that the step of this number, in place of
    /// one that was there, and removes the lowest numbers beyond those to keep. Gives the step's folder.
    ///
    /// # Errors
    /// What `fill` returns, or a [`KitError`] when the step cannot be brought to the disk. The part is removed then, and
    /// the steps from before stand.
    pub fn write<E: From<KitError>>(
        &self,
        step: u64,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        let part = self.hidden(step, PART);
        // One from an earlier failure to remove it.
        remove_folder(&part)?;
        let written = fs::create_dir(&part)
            .map_err(KitError::io("make the folder", &part))
            .map_err(E::from)
            .and_then(|()| fill(&part))
            .and_then(|()| Ok(self.publish(step, &part)?));
        if written.is_err() {
            let _ = fs::remove_dir_all(&part);
        }
        let path = written?;
        let steps = self.steps()?;
        for old in &steps[..steps.len().saturating_sub(self.keep)] {
            self.drop_step(old)?;
        }
        Ok(path)
    }

    /// Removes the folder and everything in it, at the end of a run that needs it no more.
    ///
    /// # Errors
    /// When something cannot be removed; a step that is still there then is whole.
    pub fn remove(self) -> Result<(), KitError> {
        for step in self.steps()? {
            self.drop_step(&step)?;
        }
        remove_folder(&self.folder)
    }

    /// Brings a filled part to the disk and renames it to its step.
    fn publish(&self, step: u64, part: &Path) -> Result<PathBuf, KitError> {
        sync_tree(part)?;
        let path = self.folder.join(step_name(step));
        let rename = |from: &Path, to: &Path| fs::rename(from, to).map_err(KitError::io("rename", from));
        if path.exists() {
            // From here to the second renaming the step has its hidden name, from which `recover` puts it back.
            let old = self.hidden(step, OLD);
            rename(&path, &old)?;
            if let Err(error) = rename(part, &path) {
                rename(&old, &path)?;
                return Err(error);
            }
            sync(&self.folder)?;
            remove_folder(&old)?;
        } else {
            rename(part, &path)?;
            sync(&self.folder)?;
        }
        Ok(path)
    }

    /// Removes a step, hiding it first so that half of one never bears the name of a whole one.
    fn drop_step(&self, step: &Checkpoint) -> Result<(), KitError> {
        let gone = self.hidden(step.step, GONE);
        remove_folder(&gone)?;
        fs::rename(&step.path, &gone).map_err(KitError::io("rename", &step.path))?;
        remove_folder(&gone)
    }

    /// Ends what killed writers left: the lock says that none of them lives.
    fn recover(&self) -> Result<(), KitError> {
        for path in self.entries()? {
            let Some(hidden) = name(&path).strip_prefix('.') else { continue };
            if let Some((step, _)) = hidden.split_once(OLD)
                && number(step).is_some()
                && !self.folder.join(step).exists()
            {
                fs::rename(&path, self.folder.join(step)).map_err(KitError::io("rename", &path))?;
            } else if hidden.starts_with(STEP) {
                tracing::debug!(path = %path.display(), "removing what an interrupted run left");
                remove_folder(&path)?;
            }
        }
        sync(&self.folder)
    }

    /// All whole steps, in order.
    fn steps(&self) -> Result<Vec<Checkpoint>, KitError> {
        let whole = |path: PathBuf| Some(Checkpoint { step: number(name(&path))?, path });
        let mut steps: Vec<_> = self.entries()?.into_iter().filter_map(whole).collect();
        steps.sort_by_key(|checkpoint| checkpoint.step);
        Ok(steps)
    }

    fn entries(&self) -> Result<Vec<PathBuf>, KitError> {
        list(&self.folder)
    }

    fn hidden(&self, step: u64, ending: &str) -> PathBuf {
        self.folder.join(format!(".{}{ending}{}", step_name(step), std::process::id()))
    }
}

/// Locks the folder's lock file and writes into it who holds it.
fn lock(folder: &Path) -> Result<File, KitError> {
    let path = folder.join(LOCK_FILE);
    loop {
        fs::create_dir_all(folder).map_err(KitError::io("make the folder", folder))?;
        let mut file = match File::options().read(true).write(true).create(true).truncate(false).open(&path) {
            // Another run removed the folder between the two lines.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened.map_err(KitError::io("create", &path))?,
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let holder = if holder.ends_with('\n') { holder.trim() } else { "another process" };
                return Err(KitError::InUse { path: folder.to_owned(), holder: holder.to_owned() });
            }
            Err(TryLockError::Error(error)) => return Err(KitError::io("lock", &path)(error)),
        }
        // A lock on a file that its last holder has removed in the meantime locks nothing.
        let inode = |found: fs::Metadata| (found.dev(), found.ino());
        let ours = file.metadata().map(inode).map_err(KitError::io("read", &path))?;
        if fs::metadata(&path).map(inode).ok() != Some(ours) {
            continue;
        }
        let text = format!("process {} on {}\n", std::process::id(), host_name());
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(text.as_bytes()))
            .map_err(KitError::io("write", &path))?;
        return Ok(file);
    }
}

fn step_name(step: u64) -> String {
    format!("{STEP}{step:08}")
}

/// The number of a step's folder; `None` for every other name.
fn number(name: &str) -> Option<u64> {
    let step = name.strip_prefix(STEP)?.parse().ok()?;
    (step_name(step) == name).then_some(step)
}

/// A path's last part; empty where it is no UTF-8, which none of ours is.
fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, KitError> {
    let error = || KitError::io("read the folder", folder);
    let entries = fs::read_dir(folder).map_err(error())?;
    entries.map(|entry| Ok(entry.map_err(error())?.path())).collect()
}

/// Waits until everything in a folder, and the folder itself, is on the disk.
fn sync_tree(folder: &Path) -> Result<(), KitError> {
    for path in list(folder)? {
        if path.is_dir() { sync_tree(&path)? } else { sync(&path)? }
    }
    sync(folder)
}

fn sync(path: &Path) -> Result<(), KitError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(KitError::io("synchronise to the disk", path))
}

/// Removes a folder that need not be there.
fn remove_folder(path: &Path) -> Result<(), KitError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(KitError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Output, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    fn fill(step: u64, part: &Path) -> Result<(), KitError> {
        // Some files, one in a folder of its own, each saying which step it is of.
        let text = format!("{step}\n").repeat(2000);
        fs::create_dir(part.join("inner")).unwrap();
        for name in ["a", "inner/b", "c"] {
            fs::write(part.join(name), &text).map_err(KitError::io("write", part))?;
        }
        Ok(())
    }

    #[track_caller]
    fn assert_whole(checkpoint: &Checkpoint) {
        let text = format!("{}\n", checkpoint.step).repeat(2000);
        assert_eq!(names(&checkpoint.path), ["a", "c", "inner"]);
        for name in ["a", "inner/b", "c"] {
            assert!(
                fs::read_to_string(checkpoint.path.join(name)).unwrap() == text,
                "{name} of {checkpoint:?}"
            );
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = list(folder).unwrap().iter().map(|path| name(path).to_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_newest_are_kept() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("runs/out.checkpoint");
        let checkpoints = Checkpoints::open(&folder, 2).unwrap();
        assert_eq!(checkpoints.latest().unwrap(), None);
        for step in [5, 70, 123_456_789_012] {
            let path = checkpoints.write(step, |part| fill(step, part)).unwrap();
            let latest = checkpoints.latest().unwrap().unwrap();
            assert_eq!(latest, Checkpoint { step, path });
            assert_whole(&latest);
        }
        assert_eq!(names(&folder), ["lock", "step-00000070", "step-123456789012"]);
        for other in ["step-7", "step-x", "notes"] {
            fs::create_dir(folder.join(other)).unwrap();
        }
        assert_eq!(checkpoints.steps().unwrap().len(), 2, "other people's folders are no steps");
        checkpoints.remove().unwrap();
        assert_eq!(names(&root.path().join("runs")), [""; 0]);
    }

    #[test]
    fn a_step_may_be_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(folder.path(), 1).unwrap();
        checkpoints
            .write(3, |part| fs::write(part.join("first"), "x").map_err(KitError::io("write", part)))
            .unwrap();
        checkpoints.write(3, |part| fill(3, part)).unwrap();
        assert_whole(&checkpoints.latest().unwrap().unwrap());
        assert_eq!(names(folder.path()), ["lock", "step-00000003"]);
    }

    #[test]
    fn leftovers_go_and_a_step_being_replaced_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(folder.path(), 3).unwrap();
        for step in 1..=2 {
            checkpoints.write(step, |part| fill(step, part)).unwrap();
        }
        drop(checkpoints);
        let at = |name: &str| folder.path().join(name);
        fs::rename(at("step-00000002"), at(".step-00000002.old-77")).unwrap();
        for left in [".step-00000001.old-7", ".step-00000003.part-7", ".step-00000000.gone-7"] {
            fs::create_dir(at(left)).unwrap();
            fs::write(at(left).join("a"), "half").unwrap();
        }
        let latest = Checkpoints::open(folder.path(), 3).unwrap().latest().unwrap().unwrap();
        assert_eq!(latest.step, 2);
        assert_whole(&latest);
        assert_eq!(names(folder.path()), ["lock", "step-00000001", "step-00000002"]);
    }

    #[test]
    fn a_failed_write_leaves_the_last_good_one() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(folder.path(), 1).unwrap();
        checkpoints.write(1, |part| fill(1, part)).unwrap();
        let error = checkpoints.write(2, |part| {
            fill(2, part)?;
            Err(anyhow::anyhow!("no more"))
        });
        assert_eq!(error.unwrap_err().to_string(), "no more");
        assert_whole(&checkpoints.latest().unwrap().unwrap());
        assert_eq!(names(folder.path()), ["lock", "step-00000001"]);
    }

    #[test]
    fn two_runs_never_share_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = Checkpoints::open(folder.path(), 1).unwrap();
        let error = Checkpoints::open(folder.path(), 1).unwrap_err().to_string();
        assert!(error.contains(&format!("process {} on ", std::process::id())), "{error}");
        drop(first);
        Checkpoints::open(folder.path(), 1).unwrap().remove().unwrap();
        assert!(!folder.path().exists());
    }

    /// This test binary again, running one ignored test on a folder.
    fn child(test: &str, folder: &Path, wrapper: &[&str]) -> Command {
        let binary = std::env::current_exe().unwrap();
        let mut words = wrapper.iter().map(std::ffi::OsStr::new).chain([binary.as_os_str()]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).args([
            "--ignored",
            "--exact",
            "--nocapture",
            &format!("checkpoint::tests::{test}"),
        ]);
        command.env("CHECKPOINT_FOLDER", folder).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn folder_of_child() -> PathBuf {
        std::env::var_os("CHECKPOINT_FOLDER").unwrap().into()
    }

    #[test]
    #[ignore = "run by killed_at_any_moment in a process of its own, until it is killed"]
    fn child_writes_on_and_on() {
        let checkpoints = Checkpoints::open(&folder_of_child(), 2).unwrap();
        let mut step = checkpoints.latest().unwrap().map_or(0, |latest| latest.step);
        let start = Instant::now();
        while start.elapsed() < Duration::from_mins(1) {
            // Every other number twice, so that replacing is interrupted as well.
            step += 1;
            checkpoints.write(step, |part| fill(step, part)).unwrap();
            if step.is_multiple_of(2) {
                checkpoints.write(step, |part| fill(step, part)).unwrap();
            }
        }
    }

    struct Running(Child);

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn killed_at_any_moment() {
        const ROUNDS: u64 = 25;
        let folder = tempfile::tempdir().unwrap();
        let mut reached = 0;
        let mut half_done = 0;
        for round in 0..ROUNDS {
            let mut child = Running(child("child_writes_on_and_on", folder.path(), &[]).spawn().unwrap());
            // Once it is at work (its own first step is there), some microseconds more, spread over the rounds.
            let start = Instant::now();
            let first = folder.path().join(step_name(reached + 1));
            while !first.exists() && start.elapsed() < Duration::from_secs(20) {
                assert_eq!(child.0.try_wait().unwrap(), None, "the writer ended");
            }
            std::thread::sleep(Duration::from_micros(round * 7919 % 5000));
            child.0.kill().unwrap(); // SIGKILL
            child.0.wait().unwrap();
            half_done += u32::from(names(folder.path()).iter().any(|name| name.starts_with('.')));
            let checkpoints = Checkpoints::open(folder.path(), 2).unwrap();
            let latest = checkpoints.latest().unwrap().unwrap();
            assert!(latest.step > reached, "step {reached} was lost: {latest:?}");
            reached = latest.step;
            for step in checkpoints.steps().unwrap() {
                assert_whole(&step);
            }
            assert!(names(folder.path()).iter().all(|name| !name.starts_with('.')));
        }
        assert!(
            half_done >= 3,
            "only {half_done} of {ROUNDS} writers were killed in the middle of something"
        );
    }

    #[test]
    #[ignore = "run by a_disk_that_fills in a process of its own, whose files may not grow"]
    fn child_meets_a_full_disk() {
        let checkpoints = Checkpoints::open(&folder_of_child(), 1).unwrap();
        let error = checkpoints
            .write(2, |part| {
                fs::write(part.join("large"), vec![0; 1 << 20])
                    .map_err(KitError::io("write", part.join("large")))
            })
            .unwrap_err();
        assert!(matches!(error, KitError::Io { action: "write", .. }), "{error}");
        assert_eq!(checkpoints.latest().unwrap().unwrap().step, 1);
    }

    /// A file that may not grow fails to be written as on a full disk.
    #[test]
    fn a_disk_that_fills() {
        let folder = tempfile::tempdir().unwrap();
        Checkpoints::open(folder.path(), 1).unwrap().write(1, |part| fill(1, part)).unwrap();
        // Without the trap the process would die of SIGXFSZ, as it does not on a full disk.
        let limited = ["sh", "-c", "trap '' XFSZ; ulimit -f 16; exec \"$@\"", "sh"];
        let Output { status, stderr, .. } =
            child("child_meets_a_full_disk", folder.path(), &limited).output().unwrap();
        assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
        assert_eq!(names(folder.path()), ["lock", "step-00000001"]);
        assert_whole(&Checkpoints::open(folder.path(), 1).unwrap().latest().unwrap().unwrap());
    }
}
