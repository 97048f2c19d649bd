//! How much memory there is: the limit of a process's cgroup, and of the host.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::process::{ProcessError, read_proc};

/// Memory of the cgroup that leaves a process the least room: its own or one above it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupMemory {
    /// Its directory.
    pub directory: PathBuf,
    /// Most bytes that it may use.
    pub limit_bytes: u64,
    /// Bytes that it uses, page cache included.
    pub usage_bytes: u64,
    /// How many of these are page cache that has not been used of late, which the kernel drops
    /// before it kills anybody.
    pub inactive_file_bytes: u64,
}

impl CgroupMemory {
    /// What it can still use.
    pub fn headroom_bytes(&self) -> u64 {
        self.limit_bytes.saturating_sub(self.usage_bytes.saturating_sub(self.inactive_file_bytes))
    }
}

/// Names of the files of one version of cgroups.
struct Files {
    limit: &'static str,
    usage: &'static str,
    inactive_file: &'static str,
}

const V2: Files = Files { limit: "memory.max", usage: "memory.current", inactive_file: "inactive_file" };
const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    inactive_file: "total_inactive_file",
};

/// The tightest memory limit that `pid` is under; `None` if there is none, or none that can be
/// seen from here.
///
/// # Errors
/// If there is no such process.
pub fn cgroup_memory(pid: u32) -> Result<Option<CgroupMemory>, ProcessError> {
    let groups = String::from_utf8_lossy(&read_proc(pid, "cgroup")?).into_owned();
    let mounts = String::from_utf8_lossy(&read_proc(std::process::id(), "mountinfo")?).into_owned();
    let levels = levels(&groups, &mounts);
    Ok(levels
        .into_iter()
        .filter_map(|(directory, files)| read_level(directory, files))
        .min_by_key(CgroupMemory::headroom_bytes))
}

fn read_level(directory: PathBuf, files: &Files) -> Option<CgroupMemory> {
    let number = |name: &str| fs::read_to_string(directory.join(name)).ok()?.trim().parse::<u64>().ok();
    // No limit is "max" in version 2, and i64::MAX rounded down to a page in version 1.
    let limit_bytes = number(files.limit).filter(|limit| *limit < 1 << 62)?;
    let usage_bytes = number(files.usage)?;
    let stat = fs::read_to_string(directory.join("memory.stat")).unwrap_or_default();
    let inactive_file_bytes = stat
        .lines()
        .find_map(|line| line.strip_prefix(files.inactive_file)?.strip_prefix(' ')?.parse().ok())
        .unwrap_or(0);
    Some(CgroupMemory { directory, limit_bytes, usage_bytes, inactive_file_bytes })
}

/// The directories that limit a process, its own first, from `/proc/PID/cgroup` and
/// `/proc/self/mountinfo`.
fn levels(groups: &str, mounts: &str) -> Vec<(PathBuf, &'static Files)> {
    let mut levels = Vec::new();
    for line in groups.lines() {
        // hierarchy:controllers:path, cgroups(7).
        let mut fields = line.splitn(3, ':');
        let (Some(hierarchy), Some(controllers), Some(group)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (files, mount) = if hierarchy == "0" && controllers.is_empty() {
            (&V2, find_mount(mounts, |kind, _| kind == "cgroup2"))
        } else if controllers.split(',').any(|name| name == "memory") {
            let is_memory = |kind: &str, options: &str| {
                kind == "cgroup" && options.split(',').any(|name| name == "memory")
            };
            (&V1, find_mount(mounts, is_memory))
        } else {
            continue;
        };
        let Some((root, mounted_on)) = mount else { continue };
        // What is mounted may itself be a part of the tree, as in containers.
        let Ok(inside) = Path::new(group).strip_prefix(&root) else { continue };
        let inside: Vec<_> = inside.components().collect();
        for depth in (0..=inside.len()).rev() {
            levels.push((mounted_on.join(inside[..depth].iter().collect::<PathBuf>()), files));
        }
    }
    levels
}

/// The root within its file system and the mount point of the first mount that fits: fields 4
/// and 5 of proc_pid_mountinfo(5); type and options stand behind the lone dash.
fn find_mount(mounts: &str, fits: impl Fn(&str, &str) -> bool) -> Option<(PathBuf, PathBuf)> {
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let (kind, _, options) = (right.next()?, right.next()?, right.next()?);
        let mut left = left.split(' ').skip(3);
        let (root, mounted_on) = (left.next()?, left.next()?);
        fits(kind, options).then(|| (root.into(), mounted_on.into()))
    })
}

/// `MemAvailable` of the host in bytes: what can be used without swapping.
pub fn mem_available_bytes() -> Option<u64> {
    parse_mem_available(&fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse_mem_available(text: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(groups: &str, mounts: &str) -> Vec<String> {
        levels(groups, mounts)
            .iter()
            .map(|(path, files)| path.join(files.limit).display().to_string())
            .collect()
    }

    #[test]
    fn version_2_goes_up_to_the_mount() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(
            paths("0::/system.slice/pg@15.service\n", mounts),
            [
                "/sys/fs/cgroup/system.slice/pg@15.service/memory.max",
                "/sys/fs/cgroup/system.slice/memory.max",
                "/sys/fs/cgroup/memory.max",
            ]
        );
    }

    #[test]
    fn version_1_beside_an_empty_version_2() {
        let mounts = "25 23 0:22 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n\
                      26 23 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n";
        let groups = "12:cpu,cpuacct:/x\n9:memory:/docker/abc/child\n0::/\n";
        assert_eq!(
            paths(groups, mounts),
            [
                "/sys/fs/cgroup/memory/child/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            ]
        );
    }

    #[test]
    fn a_group_outside_of_what_is_mounted_is_not_seen() {
        let mounts = "25 23 0:22 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
        assert!(paths("0::/../other\nnonsense\n", mounts).is_empty());
    }

    #[test]
    fn limits_are_read_and_page_cache_is_room() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).expect("written");
        write("memory.max", "max\n");
        write("memory.current", "900\n");
        write("memory.stat", "anon 100\ninactive_file 700\nfile 800\n");
        assert_eq!(read_level(directory.path().into(), &V2), None);
        write("memory.max", "1000\n");
        let memory = read_level(directory.path().into(), &V2).expect("a limit");
        assert_eq!((memory.limit_bytes, memory.usage_bytes, memory.headroom_bytes()), (1000, 900, 800));
    }

    #[test]
    fn this_host_has_memory() {
        assert!(mem_available_bytes().is_some_and(|bytes| bytes > 1 << 20));
        assert_eq!(parse_mem_available("MemTotal: 9 kB\nMemAvailable:       7 kB\n"), Some(7168));
        assert!(cgroup_memory(std::process::id()).is_ok());
    }
}
