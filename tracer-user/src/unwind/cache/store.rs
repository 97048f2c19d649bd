//! The directory of the cache: what is trusted in it, and how large it may become.

use std::{
    env,
    fs::{DirBuilder, File, Metadata, Permissions},
    io::{self, Read as _, Write as _},
    os::{
        fd::AsFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::SystemTime,
};

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, openat, renameat, statat, unlinkat};
use tracing::debug;

use super::{EntryError, Key, decode, encode};
use crate::{
    addr::BuildId,
    elf::{FrameSection, Image},
    unwind::{TableError, UnwindTable, table::code_ranges},
};

/// Where root's is. Everybody else's is below their own cache directory.
const OF_ROOT: &str = "/var/cache/pgleak";

/// How large the directory may be: the tables of some twenty servers with JIT libraries.
const MOST_BYTES: u64 = 256 << 20;

/// Build IDs have 20 bytes as a rule; a name in a directory has 255 at the most.
const LONGEST_BUILD_ID: usize = 64;

/// Why there is no cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Nobody said where.
    #[error("no directory for cached tables: neither XDG_CACHE_HOME nor HOME is an absolute path")]
    Nowhere,
    /// It cannot be made or opened.
    #[error("cannot use {path} for cached tables: {source}")]
    Directory {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else could put tables there.
    #[error("{path} is not used for cached tables: others may write there; remove it, or chown and chmod it")]
    NotOurs {
        /// Where.
        path: PathBuf,
    },
}

/// Why a table is not taken from the cache.
#[derive(Debug, thiserror::Error)]
enum Miss {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is not a file that only this user can write")]
    NotOurs,
    #[error(transparent)]
    Entry(#[from] EntryError),
}

/// A directory of tables, each under the build ID of its object.
#[derive(Debug)]
pub struct TableCache {
    directory: File,
    most_bytes: u64,
}

impl TableCache {
    /// The cache of the user that runs this program; made if it is not there.
    ///
    /// # Errors
    /// If there can be none.
    pub fn of_user() -> Result<Self, CacheError> {
        if rustix::process::geteuid().is_root() {
            return Self::at(Path::new(OF_ROOT), MOST_BYTES);
        }
        let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let caches = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
        Self::at(&caches.ok_or(CacheError::Nowhere)?.join("pgleak"), MOST_BYTES)
    }

    /// The cache in a directory, which is made if it is not there, and holds `most_bytes`.
    ///
    /// # Errors
    /// If it cannot be used, or others may write there.
    pub fn at(path: &Path, most_bytes: u64) -> Result<Self, CacheError> {
        let failed = |source| CacheError::Directory { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = openat(CWD, path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        let directory = File::from(opened);
        if !is_ours(&directory.metadata().map_err(failed)?) {
            return Err(CacheError::NotOurs { path: path.to_owned() });
        }
        Ok(Self { directory, most_bytes })
    }

    /// The table of an image: the one that is kept, or else a new one, which is kept then. What
    /// goes wrong with the cache costs time only.
    ///
    /// # Errors
    /// As [`UnwindTable::build`].
    pub fn table(&self, image: &Image) -> Result<Option<UnwindTable>, TableError> {
        let Some(section) = FrameSection::of(image)? else { return Ok(None) };
        let code = code_ranges(image);
        let Some(name) = image.build_id().and_then(name_of) else {
            return UnwindTable::of_section(&section, &code, image.path());
        };
        let key = Key::of(&section, &code);
        match self.find(&name, &key, image.path()) {
            Ok(table) => return Ok(Some(table)),
            Err(Miss::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(miss) => debug!("table of {} is made anew: {miss}", image.path().display()),
        }
        let built = UnwindTable::of_section(&section, &code, image.path())?;
        if let Some(table) = &built
            && let Err(error) = self.keep(&name, &encode(table, &key))
        {
            debug!("table of {} is not kept: {error}", image.path().display());
        }
        Ok(built)
    }

    fn find(&self, name: &str, key: &Key, path: &Path) -> Result<UnwindTable, Miss> {
        // Not blocking: a named pipe would never open.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = openat(&self.directory, name, flags, Mode::empty()).map_err(io::Error::from)?;
        let file = File::from(opened);
        let metadata = file.metadata()?;
        if !metadata.is_file() || !is_ours(&metadata) || metadata.len() > self.most_bytes {
            return Err(Miss::NotOurs);
        }
        let mut bytes = Vec::with_capacity(metadata.len() as usize);
        (&file).take(self.most_bytes).read_to_end(&mut bytes)?;
        let table = decode(&bytes, key, path)?;
        // Most file systems note a first access in a day only, or none.
        let used = std::fs::FileTimes::new().set_accessed(SystemTime::now());
        let _ = file.set_times(used);
        Ok(table)
    }

    /// Puts a file there, or nothing. Not synced: what a crash leaves is told by its checksum.
    fn keep(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if bytes.len() as u64 > self.most_bytes {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let new = format!("new-{}-{number}", std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(&self.directory, &new, flags, Mode::from_raw_mode(0o600))?);
        let mut put = || {
            // Whatever the umask says.
            file.set_permissions(Permissions::from_mode(0o600))?;
            file.write_all(bytes)?;
            renameat(&self.directory, &new, &self.directory, name).map_err(io::Error::from)
        };
        if let Err(error) = put() {
            let _ = unlinkat(&self.directory, &new, AtFlags::empty());
            return Err(error);
        }
        self.shrink()
    }

    /// Removes the files that were not used for longest, until the rest is small enough. Those
    /// that an earlier pgleak could not finish are among them.
    fn shrink(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in Dir::read_from(self.directory.as_fd())? {
            let entry = entry?;
            let Ok(stat) = statat(&self.directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile {
                files.push((
                    stat.st_atime,
                    stat.st_atime_nsec,
                    stat.st_size as u64,
                    entry.file_name().to_owned(),
                ));
            }
        }
        files.sort();
        let mut bytes: u64 = files.iter().map(|file| file.2).sum();
        for (_, _, size, name) in files {
            if bytes <= self.most_bytes {
                break;
            }
            match unlinkat(&self.directory, &name, AtFlags::empty()) {
                // Another pgleak was faster.
                Ok(()) | Err(rustix::io::Errno::NOENT) => bytes -= size,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// The file name of an object's table; `None` if its build ID is no name.
fn name_of(id: &BuildId) -> Option<String> {
    (1..=LONGEST_BUILD_ID).contains(&id.0.len()).then(|| id.to_string())
}

/// Whether nobody but this user (and root) can have written it.
fn is_ours(metadata: &Metadata) -> bool {
    metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
