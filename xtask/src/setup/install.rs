//! Downloads the pinned wheels and unpacks them into place.
//!
//! Everything happens in a sibling folder, `<folder>.work`; the finished tree is renamed to `<folder>` at the end.
//! An interrupted run therefore leaves `<folder>` as it was, and the wheels it had finished are not fetched again.

use std::ffi::OsString;
use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::{Flavour, WANTED};

pub(super) const CPU_WHEELS: &str = include_str!("../../libtorch/cpu.txt");
const CUDA_WHEELS: &str = include_str!("../../libtorch/cuda.txt");
const UNPACK: &str = include_str!("unpack.py");

/// The parts of the torch wheel that a CPU build links. On aarch64 `libtorch_cpu.so` also needs the ARM compute,
/// NVPL and Fortran libraries beside it.
const CPU_LIBRARIES: &str =
    r"flat:torch/lib/lib(torch_cpu|c10|gomp|arm_compute(_graph)?|nvpl_\w+|gfortran)\.so[.0-9]*";
/// Everything but what only Python loads.
const ALL_LIBRARIES: &str = r"flat:torch/lib/lib(?!torch_python|shm)[^/]*\.so[.0-9]*";
const HEADERS: &str = "tree:torch/include/";

pub(super) struct Installer {
    folder: PathBuf,
    work: PathBuf,
    flavour: Flavour,
    python: OsString,
    compiler: OsString,
}

impl Installer {
    pub(super) fn new(folder: &Path, flavour: Flavour) -> Self {
        let mut work = folder.as_os_str().to_owned();
        work.push(".work");
        Self {
            folder: folder.to_path_buf(),
            work: work.into(),
            flavour,
            python: "python3".into(),
            compiler: std::env::var_os("CC").unwrap_or_else(|| "cc".into()),
        }
    }

    pub(super) fn install(&self) -> Result<()> {
        let platforms = platforms()?;
        self.check_tools()?;
        let wheels_folder = self.work.join("wheels");
        fs::create_dir_all(&wheels_folder)
            .with_context(|| format!("cannot create {}", wheels_folder.display()))?;
        let _lock = self.lock()?;

        let tree = self.work.join("tree");
        remove(&tree)?;
        for requirement in self.requirements() {
            let wheel = self.download(requirement, &wheels_folder, &platforms)?;
            self.unpack(&wheel, requirement, &tree)?;
        }
        if self.flavour == Flavour::Cpu {
            self.make_empty_libtorch(&tree.join("lib/libtorch.so"))?;
        }
        let marker = tree.join("build-version");
        fs::write(&marker, self.flavour.build_version())
            .with_context(|| format!("cannot write {}", marker.display()))?;

        let old = self.work.join("old");
        remove(&old)?;
        if self.folder.symlink_metadata().is_ok() {
            rename(&self.folder, &old)?;
        }
        rename(&tree, &self.folder)?;
        remove(&self.work)
    }

    fn requirements(&self) -> impl Iterator<Item = &'static str> {
        let cuda = if self.flavour == Flavour::Cuda { CUDA_WHEELS } else { "" };
        CPU_WHEELS
            .lines()
            .chain(cuda.lines())
            .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
    }

    /// Says what is missing before hundreds of megabytes are fetched.
    fn check_tools(&self) -> Result<()> {
        let works = |program: &OsString, arguments: &[&str]| {
            Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
        };
        ensure!(
            works(&self.python, &["-m", "pip", "--version"]),
            "`{} -m pip` does not work: install Python 3 with pip (Debian: apt install python3-pip), or set \
             LIBTORCH to a libtorch {WANTED} you have",
            self.python.to_string_lossy()
        );
        ensure!(
            works(&self.compiler, &["--version"]),
            "the C compiler `{}` does not work: install one with its C++ part (Debian: apt install g++), or name \
             yours in CC",
            self.compiler.to_string_lossy()
        );
        Ok(())
    }

    /// Held while the work folder is in use, so that two runs at once do not mix.
    fn lock(&self) -> Result<fs::File> {
        let path = self.work.join("lock");
        let file = fs::File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        if file.try_lock().is_err() {
            bail!("another `cargo xtask setup` is at work in {}: wait for it", self.work.display());
        }
        Ok(file)
    }

    /// Fetches one wheel unless it is there already; pip checks the hash either way.
    fn download(&self, requirement: &str, wheels: &Path, platforms: &[String]) -> Result<PathBuf> {
        let wanted = requirement.split(' ').next().unwrap_or(requirement);
        println!("    {wanted}");
        let list = self.work.join("requirement.txt");
        fs::write(&list, requirement).with_context(|| format!("cannot write {}", list.display()))?;
        let mut pip = Command::new(&self.python);
        pip.args(["-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]);
        // One wheel for every Python: only its C++ part is used.
        pip.args(["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"]);
        for platform in platforms {
            pip.args(["--platform", platform]);
        }
        pip.args(["--disable-pip-version-check", "--require-hashes"]);
        if !std::io::stderr().is_terminal() {
            pip.args(["--quiet", "--progress-bar", "off"]);
        }
        pip.arg("--requirement").arg(&list).arg("--dest").arg(wheels);
        let status = pip.status().context("cannot start pip")?;
        ensure!(
            status.success(),
            "pip could not download {wanted} (its message stands above); run this again"
        );

        let (name, version) = wanted.split_once("==").with_context(|| format!("`{wanted}` is not pinned"))?;
        let start = format!("{}-{version}-", name.replace('-', "_"));
        let entries = fs::read_dir(wheels).with_context(|| format!("cannot list {}", wheels.display()))?;
        entries
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&start)))
            .with_context(|| format!("pip left no {start}*.whl in {}", wheels.display()))
    }

    fn unpack(&self, wheel: &Path, requirement: &str, tree: &Path) -> Result<()> {
        let mut python = Command::new(&self.python);
        python.args(["-c", UNPACK]).arg(wheel).arg(tree).args(self.rules(requirement));
        let status = python.status().context("cannot start python3")?;
        ensure!(status.success(), "cannot unpack {} into {}", wheel.display(), tree.display());
        Ok(())
    }

    /// What of a wheel goes into the tree.
    fn rules(&self, requirement: &str) -> &'static [&'static str] {
        let is = |name: &str| requirement.starts_with(name);
        match self.flavour {
            Flavour::Cpu if is("torch==") => &[CPU_LIBRARIES, HEADERS],
            Flavour::Cpu if is("nvidia-cuda-runtime==") => &[r"flat:nvidia/\w+/lib/libcudart\.so\.13"],
            Flavour::Cpu => &[r"flat:nvidia/\w+/lib/libcupti\.so\.13"],
            Flavour::Cuda if is("torch==") => &[ALL_LIBRARIES, HEADERS],
            // Beside the torch libraries, whose search path ends with their own folder.
            Flavour::Cuda => &[r"flat:nvidia/\w+/lib/[^/]+\.so[.0-9]*"],
        }
    }

    /// torch-sys links `-ltorch`. The wheel's own libtorch.so only draws in CUDA; on a CPU an empty one will do.
    fn make_empty_libtorch(&self, path: &Path) -> Result<()> {
        let mut compiler = Command::new(&self.compiler);
        compiler.args(["-shared", "-fPIC", "-o"]).arg(path).args(["-x", "c", "/dev/null"]);
        let status = compiler.status().context("cannot start the C compiler")?;
        ensure!(status.success(), "the C compiler could not make an empty {}", path.display());
        Ok(())
    }
}

/// The wheel platforms that fit this machine, newest first: torch asks for 2.28, some CUDA wheels for less.
fn platforms() -> Result<Vec<String>> {
    let (system, machine) = (std::env::consts::OS, std::env::consts::ARCH);
    ensure!(
        system == "linux" && ["x86_64", "aarch64"].contains(&machine),
        "there is no pinned libtorch for {system} on {machine}: set LIBTORCH to a libtorch {WANTED}"
    );
    let numbered = (12..=28).rev().map(|minor| format!("manylinux_2_{minor}_{machine}"));
    let named = ["manylinux2014", "manylinux2010", "manylinux1"].map(|name| format!("{name}_{machine}"));
    Ok(numbered.chain(named).collect())
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))
}

/// Removes a folder, or a link to one, if it is there.
fn remove(path: &Path) -> Result<()> {
    let Ok(kind) = path.symlink_metadata() else { return Ok(()) };
    let removed = if kind.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A stand-in for python3: `-m pip download` leaves an empty wheel, `-c <unpack>` makes the libraries.
    const FAKE_PYTHON: &str = r#"#!/bin/sh
case "$1 $3" in
"-m --version") exit 0 ;;
"-m download")
    while [ "$1" != --requirement ]; do shift; done
    name=$(cut -d' ' -f1 "$2" | sed 's/-/_/g; s/==/-/')
    [ -e "$4/$name-any.whl" ] || echo "$name" >> "$(dirname "$0")/fetched"
    : > "$4/$name-any.whl" ;;
*)
    [ -e "$(dirname "$0")/fail" ] && exit 1
    mkdir -p "$4/lib" "$4/include"
    touch "$4/lib/libtorch_cpu.so" "$4/lib/libc10.so" ;;
esac
"#;

    fn installer(bench: &Path) -> Installer {
        let python = bench.join("python3");
        fs::write(&python, FAKE_PYTHON).unwrap();
        fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
        Installer { python: python.into(), ..Installer::new(&bench.join("libtorch"), Flavour::Cpu) }
    }

    #[test]
    fn an_interrupted_run_leaves_nothing_and_the_next_one_fetches_nothing_again() {
        let bench = tempfile::tempdir().unwrap();
        let installer = installer(bench.path());
        let fetched = || fs::read_to_string(bench.path().join("fetched")).unwrap().lines().count();

        fs::write(bench.path().join("fail"), "").unwrap();
        let error = installer.install().unwrap_err().to_string();
        assert!(error.contains("cannot unpack") && error.contains("torch-2.11.0"), "{error}");
        assert!(!installer.folder.exists());
        assert_eq!(fetched(), 1);

        fs::remove_file(bench.path().join("fail")).unwrap();
        installer.install().unwrap();
        assert_eq!(super::super::version::installed(&installer.folder).as_deref(), Some("2.11.0+cpu"));
        assert_eq!(fetched(), 3, "torch once, and the two wheels the failed run did not reach");
        assert!(!installer.work.exists());
    }

    #[test]
    fn a_failing_run_keeps_the_installation_that_was_there() {
        let bench = tempfile::tempdir().unwrap();
        let installer = installer(bench.path());
        fs::create_dir(&installer.folder).unwrap();
        fs::write(installer.folder.join("build-version"), "2.10.0").unwrap();
        fs::write(bench.path().join("fail"), "").unwrap();
        installer.install().unwrap_err();
        assert_eq!(fs::read_to_string(installer.folder.join("build-version")).unwrap(), "2.10.0");
        fs::remove_file(bench.path().join("fail")).unwrap();
        installer.install().unwrap();
        assert_eq!(fs::read_to_string(installer.folder.join("build-version")).unwrap(), "2.11.0+cpu");
    }

    #[test]
    fn two_runs_do_not_mix() {
        let bench = tempfile::tempdir().unwrap();
        let installer = installer(bench.path());
        fs::create_dir_all(&installer.work).unwrap();
        let _first = installer.lock().unwrap();
        assert!(installer.install().unwrap_err().to_string().contains("another"));
    }

    #[test]
    fn missing_tools_are_named_before_anything_is_fetched() {
        let bench = tempfile::tempdir().unwrap();
        let without_pip = Installer { python: "no-such-python".into(), ..installer(bench.path()) };
        assert!(without_pip.install().unwrap_err().to_string().contains("no-such-python"));
        let without_compiler = Installer { compiler: "no-such-cc".into(), ..installer(bench.path()) };
        assert!(without_compiler.install().unwrap_err().to_string().contains("no-such-cc"));
        assert!(!without_pip.work.exists());
    }

    #[test]
    fn every_wheel_is_pinned_to_one_hash_per_machine() {
        for line in CPU_WHEELS.lines().chain(CUDA_WHEELS.lines()).filter(|line| !line.starts_with('#')) {
            let mut words = line.split(' ');
            assert!(words.next().unwrap().contains("=="), "{line}");
            let hashes: Vec<_> = words.map(|word| word.strip_prefix("--hash=sha256:").unwrap()).collect();
            assert_eq!(hashes.len(), 2, "{line}");
            assert!(hashes.iter().all(|hash| hash.len() == 64), "{line}");
        }
    }
}
