//! Resident memory of a process, read again and again through one open file: a system call each time.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use super::{
    process::{Memory, status},
    procfs::parse_memory,
};

/// As much of `status` as it has; only a process with hundreds of groups has more.
const MOST_BYTES: usize = 4096;

/// `/proc/PID/status`, open. It stays that of this very process (`proc_single_show` in fs/proc/base.c finds it by its
/// `struct pid`), so whoever gets the pid later is not taken for it.
#[derive(Debug)]
pub(super) struct ResidentMemory {
    file: File,
    pid: u32,
}

impl ResidentMemory {
    /// Opens it.
    ///
    /// # Errors
    /// If there is no such process, or there are too many open files.
    pub(super) fn open(pid: u32) -> io::Result<Self> {
        Ok(Self { file: File::open(format!("/proc/{pid}/status"))?, pid })
    }

    /// The memory now; `None` once the process has ended.
    pub(super) fn read(&self) -> Option<Memory> {
        let mut text = [0; MOST_BYTES];
        let length = self.file.read_at(&mut text, 0).ok()?;
        if length == MOST_BYTES {
            return status(self.pid).ok()?.memory;
        }
        parse_memory(&text[..length])
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn it_is_of_one_process_and_ends_with_it() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("cat");
        let memory = ResidentMemory::open(child.id()).expect("it runs");
        assert!(memory.read().is_some());
        drop(child.stdin.take());
        child.wait().expect("it ends");
        assert_eq!(memory.read(), None);
    }

    #[test]
    fn it_is_what_status_says() {
        let pid = std::process::id();
        let own = ResidentMemory::open(pid).expect("this runs").read().expect("it has memory");
        let known = status(pid).expect("this runs").memory.expect("it has memory");
        assert!(own.rss_anon.abs_diff(known.rss_anon) < 32 << 20, "{own:?} {known:?}");
    }
}
