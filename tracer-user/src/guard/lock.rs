//! One capture for each process: a lock that names its holder.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, fchown},
    },
    path::{Path, PathBuf},
};

/// Where locks are: gone after a restart, like the processes.
const DIRECTORY: &str = "/run/pgleak";

/// Why a process cannot be captured now.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody does it already.
    #[error("process {pid} is being captured already by {holder}; wait for it, or end it first")]
    Held {
        /// The process.
        pid: u32,
        /// Who.
        holder: String,
    },
    /// The lock file cannot be used.
    #[error(
        "cannot take the lock {path}: {source}; run pgleak as root, or give its user the directory:          `install -d -m 700 -o USER {DIRECTORY}`"
    )]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Takes the lock of an open file, which belongs to whoever has this descriptor or inherits it; false if somebody else has it.
///
/// # Errors
/// If the file system knows no locks.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    // SAFETY: a call on an open descriptor.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EWOULDBLOCK) => Ok(false),
        error => Err(error),
    }
}

/// Held while a process is captured. The kernel gives it up when pgleak ends, however it ends.
#[derive(Debug)]
pub struct CaptureLock {
    _file: File,
}

impl CaptureLock {
    /// Takes the lock of a process.
    ///
    /// # Errors
    /// If another pgleak has it, or the file cannot be made.
    pub fn take(pid: u32) -> Result<Self, LockError> {
        Self::take_in(Path::new(DIRECTORY), pid)
    }

    fn take_in(directory: &Path, pid: u32) -> Result<Self, LockError> {
        let path = directory.join(format!("{pid}.lock"));
        let failed = |source| LockError::Io { path: path.clone(), source };
        match fs::DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(failed)?;
        give_to_owner(&file, directory);
        if !try_lock(&file).map_err(failed)? {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            let holder = holder.trim();
            let holder = if holder.is_empty() { "another pgleak" } else { holder };
            return Err(LockError::Held { pid, holder: holder.to_owned() });
        }
        // The file stays: removing it would let a third pgleak lock a new one of the same name
        // while a second waits for this.
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "pgleak with pid {} since {}", std::process::id(), jiff::Timestamp::now())
        };
        write(&mut file).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// What root leaves in the directory of another user, a service's as a rule, must not lock that user out. Who may not
/// change owners is that user. A file with a second name is somebody else's.
fn give_to_owner(file: &File, directory: &Path) {
    let (Ok(of), Ok(metadata)) = (fs::metadata(directory), file.metadata()) else { return };
    if metadata.uid() != of.uid() && metadata.nlink() == 1 {
        let _ = fchown(file, Some(of.uid()), Some(of.gid()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_capture_is_told_who_has_the_first() {
        let directory = tempfile::tempdir().expect("a directory");
        let lock = CaptureLock::take_in(directory.path(), 42).expect("the first");
        let error = CaptureLock::take_in(directory.path(), 42).expect_err("the second");
        let text = error.to_string();
        assert!(text.contains("process 42") && text.contains(&std::process::id().to_string()), "{text}");
        CaptureLock::take_in(directory.path(), 43).expect("another process");
        drop(lock);
        CaptureLock::take_in(directory.path(), 42).expect("after the first has ended");
    }
}
