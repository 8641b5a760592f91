//! What the machine has left: disk, memory, cores; and bytes as people write them.

use std::fs;
use std::path::Path;

use crate::KitError;

/// Bytes this user may still write where `path` is or, if it does not exist, where it would be made.
///
/// # Errors
/// When the file system does not say.
pub fn free_disk(path: &Path) -> Result<u64, KitError> {
    let absolute = std::path::absolute(path).map_err(KitError::io("find", path))?;
    let mut place = absolute.as_path();
    loop {
        match rustix::fs::statvfs(place) {
            Ok(stat) => return Ok(stat.f_bavail.saturating_mul(stat.f_frsize)),
            Err(error) => match place.parent() {
                Some(parent) if error == rustix::io::Errno::NOENT => place = parent,
                _ => return Err(KitError::io("ask for the free space at", path)(error.into())),
            },
        }
    }
}

/// The memory of the machine, or of the container if that is less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostMemory {
    /// All there is, in bytes.
    pub total: u64,
    /// What can be had without swapping, in bytes: free pages and caches that can be dropped.
    pub available: u64,
}

impl std::fmt::Display for HostMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", format_bytes(self.available), format_bytes(self.total))
    }
}

impl HostMemory {
    /// Asks the system now; `None` where there is no `/proc/meminfo` (outside Linux).
    ///
    /// The least of the machine's own and of every control group this process is in, version 1 or 2.
    pub fn now() -> Option<Self> {
        Self::below(Path::new("/"))
    }

    fn below(root: &Path) -> Option<Self> {
        let meminfo = fs::read_to_string(root.join("proc/meminfo")).ok()?;
        let kibibytes = |name: &str| Some(number_after(&meminfo, name)?.saturating_mul(1024));
        let mut memory = Self { total: kibibytes("MemTotal:")?, available: kibibytes("MemAvailable:")? };
        let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
        for line in groups.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
            let files = if controllers.is_empty() {
                &VERSION_2
            } else if controllers.split(',').any(|controller| controller == "memory") {
                &VERSION_1
            } else {
                continue;
            };
            let mount = root.join(files.mount);
            // In a container the group's own path may not be mounted; its root is then the container's group.
            for folder in Path::new(group.trim_start_matches('/')).ancestors() {
                memory = memory.within(&mount.join(folder), files);
            }
        }
        Some(memory)
    }

    /// No more than a control group leaves.
    fn within(self, group: &Path, files: &GroupFiles) -> Self {
        let read = |name: &str| fs::read_to_string(group.join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        // No limit is the word max, or in version 1 a number beyond any machine's memory.
        let Some(limit) = number(files.limit) else { return self };
        let usage = number(files.usage).unwrap_or(0);
        let droppable = read(files.stat).and_then(|stat| number_after(&stat, files.inactive)).unwrap_or(0);
        let left = limit.saturating_sub(usage.saturating_sub(droppable));
        Self { total: self.total.min(limit), available: self.available.min(left) }
    }
}

/// Where a version of control groups keeps its numbers.
struct GroupFiles {
    mount: &'static str,
    limit: &'static str,
    usage: &'static str,
    stat: &'static str,
    inactive: &'static str,
}

const VERSION_1: GroupFiles = GroupFiles {
    mount: "sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    stat: "memory.stat",
    inactive: "total_inactive_file",
};

const VERSION_2: GroupFiles = GroupFiles {
    mount: "sys/fs/cgroup",
    limit: "memory.max",
    usage: "memory.current",
    stat: "memory.stat",
    inactive: "inactive_file",
};

/// The number that follows a word at the start of a line.
fn number_after(text: &str, word: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        if words.next() == Some(word) { words.next()?.parse().ok() } else { None }
    })
}

/// How many threads can run at once, as affinity and control groups allow; 1 if the system does not say.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Bytes in decimal units, with one digit after the point: `512 B`, `4.3 GB`.
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    // 999 950 is 1000.0 kB to one digit, which is 1.0 MB.
    while value >= 999.95 {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// The machine's name, with what could part words or folders replaced.
pub fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    name.replace(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'), "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (999_949, "999.9 kB"),
            (999_950, "1.0 MB"),
            (4_300_000_000, "4.3 GB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(format_bytes(bytes), text);
        }
    }

    #[test]
    fn disk_where_a_folder_is_or_would_be() {
        let folder = tempfile::tempdir().unwrap();
        let here = free_disk(folder.path()).unwrap();
        assert!(here > 0);
        let there = free_disk(&folder.path().join("not/yet")).unwrap();
        assert!(here.abs_diff(there) < 1 << 30, "{here} {there}");
        assert!(free_disk(Path::new("relative")).unwrap() > 0);
        let file = folder.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(free_disk(&file.join("below a file")).is_err());
    }

    fn machine(groups: &str, files: &[(&str, &str)]) -> HostMemory {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/meminfo", "MemTotal:  1000 kB\nMemFree: 100 kB\nMemAvailable:  800 kB\n");
        write("proc/self/cgroup", groups);
        for (path, text) in files {
            write(&format!("sys/fs/cgroup/{path}"), text);
        }
        HostMemory::below(root.path()).unwrap()
    }

    #[test]
    fn a_container_has_what_its_group_leaves() {
        let memory = |total: u64, available: u64| HostMemory { total, available };
        let alone = memory(1000 * 1024, 800 * 1024);
        assert_eq!(machine("", &[]), alone);
        assert_eq!(machine("0::/\n", &[("memory.max", "max\n"), ("memory.current", "5000\n")]), alone);
        let limit = [
            ("a/memory.max", "500000\n"),
            ("a/memory.current", "300000\n"),
            ("a/memory.stat", "anon 7\ninactive_file 100000\nslab 3\n"),
            ("a/b/memory.max", "max\n"),
        ];
        assert_eq!(machine("0::/a/b\n", &limit), memory(500_000, 300_000), "an outer group's");
        let first = [
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/memory.usage_in_bytes", "1\n"),
            ("memory/x/memory.limit_in_bytes", "400000\n"),
            ("memory/x/memory.usage_in_bytes", "500000\n"),
            ("memory/x/memory.stat", "inactive_file 9\ntotal_inactive_file 200000\n"),
            ("memory.max", "1\n"),
        ];
        assert_eq!(machine("9:name=systemd:/\n4:cpu,memory:/x\n", &first), memory(400_000, 100_000));
        let unmounted = [("memory/memory.limit_in_bytes", "1000\n")];
        assert_eq!(machine("4:memory:/docker/abc\n", &unmounted), memory(1000, 1000));
    }

    #[test]
    fn this_machine_has_some() {
        let memory = HostMemory::now().unwrap();
        assert!(0 < memory.available && memory.available <= memory.total, "{memory:?}");
        assert!(cores() > 0);
        assert!(!host_name().is_empty() && !host_name().contains(['.', '/', ' ']));
    }
}
