//! One process: that it is still the same, its memory, its CPU time, its binary.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read as _},
    os::{
        fd::{FromRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use super::procfs::{self, Stat, Status};

/// Why a process cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// There is none, or no longer.
    #[error("there is no process with pid {pid}")]
    NoSuchProcess {
        /// Which.
        pid: u32,
    },
    /// It has ended and waits to be collected by its parent.
    #[error("process {pid} has ended already; only its parent still has to collect it")]
    Ended {
        /// Which.
        pid: u32,
    },
    /// The number belongs to a thread.
    #[error("{pid} is a thread of process {process}, not a process; give that pid instead")]
    Thread {
        /// Which.
        pid: u32,
        /// Its process.
        process: u32,
    },
    /// It is part of the kernel and has no memory of its own.
    #[error("process {pid} is a thread of the kernel, so it is no PostgreSQL server")]
    KernelThread {
        /// Which.
        pid: u32,
    },
    /// The kernel refuses.
    #[error("cannot read {}: {source}; run pgleak as root, or with CAP_SYS_PTRACE and CAP_PERFMON", path.display())]
    NotPermitted {
        /// What was to be read.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Any other failure.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// What was to be read.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file of `/proc` without an expected field.
    #[error("{} lacks a field that Linux has there: is this /proc the kernel's?", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
    },
}

impl ProcessError {
    /// Sorts an I/O error on a file below `/proc/PID`.
    pub(super) fn from_io(pid: u32, path: PathBuf, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => Self::NoSuchProcess { pid },
            Some(libc::EACCES | libc::EPERM) => Self::NotPermitted { path, source },
            _ => Self::Read { path, source },
        }
    }
}

/// Reads `/proc/PID/NAME`.
pub(super) fn read_proc(pid: u32, name: &str) -> Result<Vec<u8>, ProcessError> {
    let path = PathBuf::from(format!("/proc/{pid}/{name}"));
    fs::read(&path).map_err(|source| ProcessError::from_io(pid, path, source))
}

/// `/proc/PID/stat`.
///
/// # Errors
/// If there is no such process.
pub fn stat(pid: u32) -> Result<Stat, ProcessError> {
    procfs::parse_stat(&read_proc(pid, "stat")?)
        .ok_or_else(|| ProcessError::Malformed { path: format!("/proc/{pid}/stat").into() })
}

/// `/proc/PID/status`.
///
/// # Errors
/// If there is no such process.
pub fn status(pid: u32) -> Result<Status, ProcessError> {
    procfs::parse_status(&String::from_utf8_lossy(&read_proc(pid, "status")?))
        .ok_or_else(|| ProcessError::Malformed { path: format!("/proc/{pid}/status").into() })
}

/// A process that cannot be mistaken for another one that got its pid later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProcessId {
    /// Its pid as pgleak sees it.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
}

impl ProcessId {
    /// The process that has this pid now.
    ///
    /// # Errors
    /// If there is none, if it has ended, or if it is a thread or a part of the kernel.
    pub fn of(pid: u32) -> Result<Self, ProcessError> {
        let stat = stat(pid)?;
        if stat.has_ended() {
            return Err(ProcessError::Ended { pid });
        }
        if stat.is_kernel_thread() {
            return Err(ProcessError::KernelThread { pid });
        }
        let process = status(pid)?.thread_group;
        if process != pid {
            return Err(ProcessError::Thread { pid, process });
        }
        Ok(Self { pid, start_ticks: stat.start_ticks })
    }

    /// Whether it still runs. An exec keeps a process the same; see [`Binary::is_same`] for that.
    pub fn is_same(self) -> bool {
        stat(self.pid).is_ok_and(|stat| stat.start_ticks == self.start_ticks && !stat.has_ended())
    }

    /// A descriptor that becomes readable when the process ends: `pidfd_open(2)`, Linux 5.3.
    ///
    /// # Errors
    /// If the process has ended, or its pid belongs to another one by now.
    pub fn open_pidfd(self) -> Result<OwnedFd, ProcessError> {
        // SAFETY: the system call takes two integers and gives a new descriptor or an error.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid, 0) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(|| {
            let path = PathBuf::from(format!("/proc/{}", self.pid));
            ProcessError::from_io(self.pid, path, io::Error::last_os_error())
        })?;
        // SAFETY: the kernel has just made this descriptor, and nothing else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // The descriptor holds on to whoever has the pid now; that it is still this process
        // is only known afterwards.
        if self.is_same() { Ok(fd) } else { Err(ProcessError::NoSuchProcess { pid: self.pid }) }
    }
}

/// Resident memory in bytes, from `/proc/PID/status`. Since Linux 6.2 these counters are kept
/// per CPU and may lag behind the truth by some dozen pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// Anonymous: what a leak makes larger.
    pub rss_anon: u64,
    /// Touched shared memory: shared buffers, mostly. It grows until all of them have been used.
    pub rss_shmem: u64,
    /// Mapped files: the binary and its libraries.
    pub rss_file: u64,
    /// Anonymous memory in swap. What leaked is never touched again, and goes there first.
    pub swap: u64,
}

impl Memory {
    /// Memory of its own, wherever it is: what a leak makes larger.
    pub fn own(self) -> u64 {
        self.rss_anon.saturating_add(self.swap)
    }
}

/// As much of a command line is read. A process may have gigabytes of it (`PR_SET_MM`), and a title has some hundred bytes.
const MOST_COMMAND_LINE: u64 = 64 << 10;

/// The process title, or the command line where no title is set, as one line; cut where it is very long.
///
/// # Errors
/// If there is no such process.
pub fn command_line(pid: u32) -> Result<String, ProcessError> {
    let path = PathBuf::from(format!("/proc/{pid}/cmdline"));
    let mut text = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(MOST_COMMAND_LINE).read_to_end(&mut text))
        .map_err(|source| ProcessError::from_io(pid, path, source))?;
    Ok(procfs::parse_cmdline(&text))
}

/// CPU time that a process has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// In all, in nanoseconds.
    pub total_ns: u64,
    /// In its own code rather than in the kernel. The kernel finds this out by looking at every
    /// timer tick, so it is right on average, to some ticks (4 ms at 250 Hz).
    pub user_ns: u64,
}

impl std::ops::AddAssign for CpuTime {
    fn add_assign(&mut self, other: Self) {
        self.total_ns += other.total_ns;
        self.user_ns += other.user_ns;
    }
}

impl CpuTime {
    /// What was used since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            total_ns: self.total_ns.saturating_sub(before.total_ns),
            user_ns: self.user_ns.saturating_sub(before.user_ns),
        }
    }
}

/// CPU time of a process: the total from `schedstat`, which is exact and counts the main thread
/// only (a server process has no other one that matters); without it, clock ticks.
///
/// # Errors
/// If there is no such process.
pub fn cpu_time(pid: u32) -> Result<CpuTime, ProcessError> {
    let stat = stat(pid)?;
    // SAFETY: sysconf takes an integer and gives one.
    let ticks_per_s = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let ticks_per_s = u64::try_from(ticks_per_s).ok().filter(|ticks| *ticks > 0).unwrap_or(100);
    let ns = |ticks: u64| ticks.saturating_mul(1_000_000_000 / ticks_per_s);
    let exact = fs::read_to_string(format!("/proc/{pid}/schedstat"))
        .ok()
        .and_then(|text| text.split_ascii_whitespace().next()?.parse::<u64>().ok())
        .filter(|ns| *ns > 0);
    let total_ns = exact.unwrap_or_else(|| ns(stat.user_ticks.saturating_add(stat.system_ticks)));
    Ok(CpuTime { total_ns, user_ns: ns(stat.user_ticks).min(total_ns) })
}

/// The program that a process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binary {
    /// Its path in the mount namespace of the process, without ` (deleted)`.
    pub path: PathBuf,
    /// Whether that path no longer leads to it: an upgrade has replaced it.
    pub deleted: bool,
    /// Device and inode, as `stat(2)` gives them.
    pub identity: (u64, u64),
}

impl Binary {
    /// What `pid` runs.
    ///
    /// # Errors
    /// If there is no such process, it is part of the kernel, or the privilege is missing.
    pub fn of(pid: u32) -> Result<Self, ProcessError> {
        let link = exe_link(pid);
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(libc::ENOENT) if stat(pid).is_ok_and(|stat| stat.is_kernel_thread()) => {
                ProcessError::KernelThread { pid }
            }
            _ => ProcessError::from_io(pid, link.clone(), source),
        };
        let target = fs::read_link(&link).map_err(failed)?;
        let metadata = fs::metadata(&link).map_err(failed)?;
        let (path, deleted) = strip_deleted(target.as_os_str().as_bytes());
        Ok(Self { path, deleted, identity: (metadata.dev(), metadata.ino()) })
    }

    /// Whether `pid` still runs this very file; false after an exec of another one.
    pub fn is_same(&self, pid: u32) -> bool {
        fs::metadata(exe_link(pid)).is_ok_and(|file| (file.dev(), file.ino()) == self.identity)
    }
}

/// Where the binary of a process can be opened, even when it was replaced or lies in another
/// mount namespace.
pub fn exe_link(pid: u32) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join("exe")
}

/// Parts a path of `/proc` from the ` (deleted)` that the kernel appends.
pub(super) fn strip_deleted(path: &[u8]) -> (PathBuf, bool) {
    match path.strip_suffix(b" (deleted)") {
        Some(path) => (OsStr::from_bytes(path).into(), true),
        None => (OsStr::from_bytes(path).into(), false),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader},
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn this_process_is_itself() -> Result<(), ProcessError> {
        let pid = std::process::id();
        let id = ProcessId::of(pid)?;
        assert!(id.is_same());
        assert!(!ProcessId { start_ticks: id.start_ticks + 1, ..id }.is_same());
        assert!(id.open_pidfd().is_ok());
        assert!(Binary::of(pid)?.is_same(pid));
        assert!(status(pid)?.memory.is_some_and(|memory| memory.rss_anon > 0));
        let cpu = cpu_time(pid)?;
        assert!(cpu.total_ns > 0 && cpu.user_ns <= cpu.total_ns);
        Ok(())
    }

    #[test]
    fn an_ended_process_is_not_the_same_and_has_no_pid() {
        let mut child =
            Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("cat");
        let id = ProcessId::of(child.id()).expect("it waits for input");
        drop(child.stdin.take());
        // The end of its output means that it is about to end; waiting for it collects it.
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a pipe");
        child.wait().expect("a child");
        assert!(!id.is_same());
        assert!(matches!(ProcessId::of(id.pid), Err(ProcessError::NoSuchProcess { .. })));
        assert!(id.open_pidfd().is_err());
    }

    #[test]
    fn kernel_threads_and_threads_are_refused() {
        let thread = std::thread::spawn(|| {
            // SAFETY: gettid takes nothing and cannot fail.
            let tid = unsafe { libc::gettid() };
            ProcessId::of(u32::try_from(tid).expect("a pid is positive"))
        });
        let refused = thread.join().expect("no panic");
        assert!(
            matches!(refused, Err(ProcessError::Thread { process, .. }) if process == std::process::id())
        );
        // kthreadd is pid 2 unless this runs in a container.
        if let Ok(stat) = stat(2)
            && stat.is_kernel_thread()
        {
            assert!(matches!(ProcessId::of(2), Err(ProcessError::KernelThread { pid: 2 })));
            assert!(Binary::of(2).is_err());
        }
    }

    #[test]
    fn deleted_is_no_part_of_a_path() {
        assert_eq!(strip_deleted(b"/bin/postgres (deleted)"), ("/bin/postgres".into(), true));
        assert_eq!(strip_deleted(b"/bin/postgres"), ("/bin/postgres".into(), false));
    }
}
