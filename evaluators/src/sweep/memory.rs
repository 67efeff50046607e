//! How much memory is free.

use std::path::{Path, PathBuf};

/// Bytes that this process can still take without swapping; `None` where the system does not tell.
///
/// Linux's `MemAvailable`, or less where a control group allows less: its own, or one of those around it.
pub(crate) fn available() -> Option<u64> {
    available_in(Path::new("/"))
}

/// [`available`] on a machine whose files lie under `root`.
fn available_in(root: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let kilobytes = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.split_whitespace().next());
    let machine = kilobytes?.parse::<u64>().ok()?.saturating_mul(1024);
    Some(groups(root).iter().filter_map(|group| group.room()).fold(machine, u64::min))
}

/// A control group's folder, and the names of its files.
struct Group {
    folder: PathBuf,
    files: &'static Files,
}

struct Files {
    most: &'static str,
    used: &'static str,
    /// The line of `memory.stat` with the bytes that the system can reclaim.
    cache: &'static str,
}

const V1: Files = Files {
    most: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cache: "total_inactive_file", // with that of the groups inside, as the usage is
};
const V2: Files = Files { most: "memory.max", used: "memory.current", cache: "inactive_file" };

impl Group {
    /// The bytes it still allows; `None` where it sets no limit, or does not exist.
    fn room(&self) -> Option<u64> {
        let text = |file: &str| std::fs::read_to_string(self.folder.join(file)).ok();
        let number = |file: &str| text(file)?.trim().parse::<u64>().ok(); // `max` is none
        let stat = text("memory.stat").unwrap_or_default();
        let cache = stat.lines().find_map(|line| line.strip_prefix(self.files.cache)?.strip_prefix(' ')?.parse().ok());
        let used = number(self.files.used)?.saturating_sub(cache.unwrap_or(0));
        Some(number(self.files.most)?.saturating_sub(used))
    }
}

/// The control groups that this process is in. `/proc/self/cgroup` has a line for each hierarchy,
/// `number:controllers:path`; that of version 2 is `0::path`. In a container the path can be one of the host, of which
/// the container sees only the innermost group, at the top; so every group on the way is looked at, and those that are
/// not there are none.
fn groups(root: &Path) -> Vec<Group> {
    let mounted = root.join("sys/fs/cgroup");
    let text = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut found = Vec::new();
    let mut around = |mount: PathBuf, path: &str, files| {
        let steps: Vec<&str> = path.split('/').filter(|step| !matches!(*step, "" | "." | "..")).collect();
        for depth in 0..=steps.len() {
            found.push(Group { folder: steps[..depth].iter().fold(mount.clone(), |at, step| at.join(step)), files });
        }
    };
    // The top is always checked: there may be no /proc/self/cgroup, or a path that is not of this container.
    around(mounted.clone(), "", &V2);
    around(mounted.join("memory"), "", &V1);
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        if controllers.split(',').any(|controller| controller == "memory") {
            around(mounted.join("memory"), path, &V1);
            around(mounted.join(controllers), path, &V1); // mounted under the names of all its controllers
        } else if number == "0" && controllers.is_empty() {
            around(mounted.clone(), path, &V2);
            around(mounted.join("unified"), path, &V2); // beside version 1
        }
    }
    found
}

/// A number of bytes for a person: `1.4 GiB`, `12 MiB`.
pub(crate) fn human(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let unit = UNITS.iter().find(|(_, size)| bytes >= *size);
    match unit {
        None => format!("{bytes} B"),
        Some((name, size)) => {
            let value = bytes as f64 / *size as f64;
            let digits = usize::from(value < 9.95);
            format!("{value:.digits$} {name}")
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GIB: u64 = 1 << 30;

    /// A machine with 8 GiB free and these files.
    fn machine(files: &[(&str, &str)]) -> Option<u64> {
        let dir = tempfile::tempdir().unwrap();
        let meminfo = [("proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable:    8388608 kB\n")];
        for (name, content) in meminfo.iter().chain(files) {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        available_in(dir.path())
    }

    #[test]
    fn a_machine_without_groups_has_what_meminfo_says() {
        assert_eq!(machine(&[]), Some(8 * GIB));
        assert_eq!(available_in(Path::new("/nonexistent")), None);
        let unlimited = [("sys/fs/cgroup/memory.max", "max\n"), ("sys/fs/cgroup/memory.current", "5000000000\n")];
        assert_eq!(machine(&unlimited), Some(8 * GIB));
    }

    #[test]
    fn the_page_cache_of_a_group_is_free() {
        let files = [
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "4294967296\n"),
            ("sys/fs/cgroup/memory.current", "4000000000\n"),
            ("sys/fs/cgroup/memory.stat", "anon 7\nfile 3100000000\ninactive_file 3000000000\nactive_file 100000000\n"),
        ];
        assert_eq!(machine(&files), Some(4 * GIB - 1_000_000_000));
        assert_eq!(machine(&files[..3]), Some(4 * GIB - 4_000_000_000), "nothing says what is cache");
    }

    #[test]
    fn the_own_group_and_those_around_it_count() {
        let own = "sys/fs/cgroup/user.slice/job_1.scope";
        let (most, used) = (format!("{own}/memory.max"), format!("{own}/memory.current"));
        let group = [
            ("proc/self/cgroup", "0::/user.slice/job_1.scope/step\n"),
            (most.as_str(), "2147483648\n"),
            (used.as_str(), "1073741824\n"),
        ];
        assert_eq!(machine(&group), Some(GIB));
        let outer =
            [("sys/fs/cgroup/user.slice/memory.max", "1000\n"), ("sys/fs/cgroup/user.slice/memory.current", "400\n")];
        assert_eq!(machine(&[&group[..], &outer].concat()), Some(600), "the tightest of all");
        let other = ("proc/self/cgroup", "0::/elsewhere\n");
        assert_eq!(machine(&[&[other], &group[1..]].concat()), Some(8 * GIB), "another group's limit is not ours");
    }

    #[test]
    fn version_1_counts_with_its_cache_and_inside_a_container() {
        let files = |folder: &str| {
            let name = |file: &str| format!("sys/fs/cgroup/{folder}/{file}");
            [
                (name("memory.limit_in_bytes"), "3221225472\n"),
                (name("memory.usage_in_bytes"), "3000000000\n"),
                (name("memory.stat"), "cache 1\ninactive_file 5\ntotal_inactive_file 2000000000\n"),
            ]
        };
        let lines = "12:cpu,cpuacct:/docker/abc\n5:memory:/docker/abc\n0::/system.slice\n";
        for folder in ["memory/docker/abc", "memory"] {
            let files = files(folder);
            let mut files: Vec<(&str, &str)> = files.iter().map(|(name, content)| (name.as_str(), *content)).collect();
            files.push(("proc/self/cgroup", lines));
            assert_eq!(machine(&files), Some(3 * GIB - 1_000_000_000), "{folder}");
        }
        let unlimited = [
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "5"),
        ];
        assert_eq!(machine(&unlimited), Some(8 * GIB));
    }

    #[test]
    fn sizes_are_read_by_people() {
        let sizes = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (12 << 20, "12 MiB"),
            (3 * GIB / 2, "1.5 GiB"),
            (5 << 40, "5.0 TiB"),
        ];
        for (bytes, text) in sizes {
            assert_eq!(human(bytes), text);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn linux_tells() {
        assert!(available().is_some_and(|bytes| bytes > 1 << 20));
    }
}
