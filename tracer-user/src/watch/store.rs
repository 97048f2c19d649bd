//! The store: a directory with the artifacts of captures, each whole or not there.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use super::{
    config::StoreConfig,
    record::{CaptureNumber, Record},
};
use crate::guard::try_lock;
use crate::render::{CAPTURE_FILE, FORMATS, Findings, VERDICT_FILE};

/// What is said of a capture beside its artifacts, so that the index can be made anew.
const RECORD_FILE: &str = "record.json";

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another service has it.
    #[error("the store {} is in use by another pgleak watch; end that, or give another store.directory", path.display())]
    InUse {
        /// Where it is.
        path: PathBuf,
    },
    /// A file or directory of it cannot be used.
    #[error("cannot use {}: {source}; store.directory has to be a directory of pgleak's own", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of a capture cannot be understood.
    #[error("cannot understand {}: {source}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// The store, open.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
    _lock: File,
}

/// A capture that was found in the store.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Found {
    /// With all that is to be said of it.
    Whole(Box<Record>),
    /// Its artifacts are there, and nothing says what it was about.
    Nameless(CaptureNumber),
}

impl Store {
    /// Opens the store, or makes it. What was being thrown away goes.
    ///
    /// # Errors
    /// If another service has it, or it cannot be written to.
    pub(super) fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        let directory = config.directory.clone();
        for part in ["", "captures", "spool", "trash"] {
            let path = directory.join(part);
            let made = fs::DirBuilder::new().mode(0o700).recursive(part.is_empty()).create(&path);
            match made {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(StoreError::Io { path, source: error });
                }
                _ => {}
            }
        }
        let path = directory.join("lock");
        let failed = |source| StoreError::Io { path: path.clone(), source };
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        if !try_lock(&lock).map_err(failed)? {
            return Err(StoreError::InUse { path: directory });
        }
        let store = Self { directory, _lock: lock };
        store.empty("trash")?;
        Ok(store)
    }

    /// Where it is.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where a capture is made; the program that makes it makes the directory.
    pub(super) fn spool(&self, number: CaptureNumber) -> PathBuf {
        self.directory.join("spool").join(name_of(number))
    }

    /// Where a capture is kept.
    pub(super) fn captured(&self, number: CaptureNumber) -> PathBuf {
        captured(&self.directory, number)
    }

    /// What the capture in a directory found.
    ///
    /// # Errors
    /// If that is not there or cannot be understood.
    pub(super) fn findings(&self, directory: &Path) -> Result<Findings, StoreError> {
        read_json(&directory.join(VERDICT_FILE))
    }

    /// Bytes of the files of a capture in the spool.
    pub(super) fn spooled_bytes(&self, number: CaptureNumber) -> u64 {
        let files = fs::read_dir(self.spool(number)).into_iter().flatten().flatten();
        files.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
    }

    /// Takes a capture from the spool to where it is kept. Its files are on the disk already: whoever wrote them has
    /// seen to that.
    ///
    /// # Errors
    /// If it cannot be moved: then it stays in the spool.
    pub(super) fn keep(&self, record: &Record) -> Result<(), StoreError> {
        let (from, to) = (self.spool(record.number), self.captured(record.number));
        let path = from.join(RECORD_FILE);
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Io { path, source }
        };
        let text = serde_json::to_vec_pretty(record)
            .map_err(|source| StoreError::Content { path: path.clone(), source })?;
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed(&path))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed(&path))?;
        sync(&from).map_err(failed(&from))?;
        fs::rename(&from, &to).map_err(failed(&to))?;
        for parent in [from.parent(), to.parent()].into_iter().flatten() {
            sync(parent).map_err(failed(parent))?;
        }
        Ok(())
    }

    /// Throws away what is in the spool of a capture.
    ///
    /// # Errors
    /// If it cannot be.
    pub(super) fn drop_spool(&self, number: CaptureNumber) -> Result<(), StoreError> {
        remove(&self.spool(number))
    }

    /// Throws a capture away. It is out of the way at once, whatever happens while its files go.
    ///
    /// # Errors
    /// If it cannot be.
    pub(super) fn remove(&self, number: CaptureNumber) -> Result<(), StoreError> {
        let (from, to) = (self.captured(number), trash(&self.directory).join(name_of(number)));
        match fs::rename(&from, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(StoreError::Io { path: from, source }),
            Ok(()) => remove(&to),
        }
    }

    /// The captures that are kept and are not among those that are known.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub(super) fn unknown(&self, known: &HashSet<CaptureNumber>) -> Result<Vec<Found>, StoreError> {
        let mut found = Vec::new();
        for number in self.numbers("captures")? {
            if known.contains(&number) {
                continue;
            }
            let record = read_json::<Record>(&self.captured(number).join(RECORD_FILE));
            found.push(match record {
                Ok(record) => Found::Whole(Box::new(Record { number, ..record })),
                Err(_) => Found::Nameless(number),
            });
        }
        Ok(found)
    }

    /// The captures that are kept, by number.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub(super) fn kept(&self) -> Result<Vec<CaptureNumber>, StoreError> {
        self.numbers("captures")
    }

    /// The captures that are in the spool, by number.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub(super) fn spooled(&self) -> Result<Vec<CaptureNumber>, StoreError> {
        self.numbers("spool")
    }

    /// Whether the artifacts of a capture are there.
    pub(super) fn has(&self, number: CaptureNumber) -> bool {
        self.captured(number).is_dir()
    }

    /// Bytes that are free where the store is, for whoever is not root.
    ///
    /// # Errors
    /// If the file system does not say.
    pub(super) fn free_bytes(&self) -> Result<u64, StoreError> {
        free_bytes(&self.directory).map_err(|source| StoreError::Io { path: self.directory.clone(), source })
    }

    fn numbers(&self, part: &str) -> Result<Vec<CaptureNumber>, StoreError> {
        let path = self.directory.join(part);
        let entries = fs::read_dir(&path).map_err(|source| StoreError::Io { path: path.clone(), source })?;
        let number = |entry: fs::DirEntry| {
            let name = entry.file_name();
            let number = CaptureNumber(str::from_utf8(name.as_bytes()).ok()?.parse().ok()?);
            (name_of(number).as_bytes() == name.as_bytes()).then_some(number)
        };
        let mut numbers: Vec<CaptureNumber> = entries.flatten().filter_map(number).collect();
        numbers.sort();
        Ok(numbers)
    }

    fn empty(&self, part: &str) -> Result<(), StoreError> {
        let path = self.directory.join(part);
        let entries = fs::read_dir(&path).map_err(|source| StoreError::Io { path: path.clone(), source })?;
        entries.flatten().try_for_each(|entry| remove(&entry.path()))
    }
}

fn captured(store: &Path, number: CaptureNumber) -> PathBuf {
    store.join("captures").join(name_of(number))
}

/// Where an artifact of a capture is kept, in the store of that directory.
pub(super) fn artifact_path(store: &Path, number: CaptureNumber, file: &'static str) -> PathBuf {
    captured(store, number).join(file)
}

/// Bytes that are free where a directory is, for whoever is not root.
///
/// # Errors
/// If the file system does not say.
pub(super) fn free_bytes(directory: &Path) -> io::Result<u64> {
    let space = rustix::fs::statvfs(directory)?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

/// Whether the artifacts of a capture are in a directory, all of them.
pub(super) fn is_made(directory: &Path) -> bool {
    FORMATS.iter().filter_map(|format| format.file).all(|file| directory.join(file).is_file())
}

/// Whether what all artifacts can be made from is in a directory.
pub(super) fn is_captured(directory: &Path) -> bool {
    directory.join(CAPTURE_FILE).is_file()
}

/// Where in a store lies what goes: with the next start at the latest.
pub(super) fn trash(store: &Path) -> PathBuf {
    store.join("trash")
}

/// A directory's name, which sorts as its number.
fn name_of(number: CaptureNumber) -> String {
    format!("{:06}", number.0)
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::Io { path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, StoreError> {
    let text = fs::read(path).map_err(|source| StoreError::Io { path: path.to_owned(), source })?;
    serde_json::from_slice(&text).map_err(|source| StoreError::Content { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::testing::record;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().expect("a directory");
        let config = StoreConfig { directory: directory.path().join("store"), ..StoreConfig::default() };
        let store = Store::open(&config).expect("a new one");
        (directory, store)
    }

    fn make(store: &Store, number: i64, files: &[&str]) {
        let spool = store.spool(CaptureNumber(number));
        fs::create_dir(&spool).expect("a directory");
        files.iter().for_each(|file| fs::write(spool.join(file), "x").expect("a file"));
    }

    #[test]
    fn a_capture_is_kept_whole_and_found_again() {
        let (_directory, store) = store();
        let files: Vec<&str> = FORMATS.iter().filter_map(|format| format.file).collect();
        make(&store, 7, &files);
        assert!(is_made(&store.spool(CaptureNumber(7))) && !store.has(CaptureNumber(7)));
        store.keep(&record(7, None)).expect("it is kept");
        assert!(store.has(CaptureNumber(7)) && store.spooled().expect("read").is_empty());
        let found = store.unknown(&HashSet::new()).expect("read");
        assert_eq!(found, [Found::Whole(Box::new(record(7, None)))]);
        assert_eq!(store.unknown(&HashSet::from([CaptureNumber(7)])).expect("read"), []);
        store.remove(CaptureNumber(7)).expect("removed");
        assert!(!store.has(CaptureNumber(7)));
        store.remove(CaptureNumber(7)).expect("once more does no harm");
    }

    #[test]
    fn half_a_capture_is_none() {
        let (_directory, store) = store();
        make(&store, 8, &[CAPTURE_FILE]);
        let spool = store.spool(CaptureNumber(8));
        assert!(is_captured(&spool) && !is_made(&spool));
        make(&store, 9, &[".pgleak-abc"]);
        assert!(!is_captured(&store.spool(CaptureNumber(9))));
        store.drop_spool(CaptureNumber(9)).expect("it goes");
        assert_eq!(store.spooled().expect("read"), [CaptureNumber(8)]);
    }

    #[test]
    fn two_services_do_not_share_a_store() {
        let (_directory, store) = store();
        let config = StoreConfig { directory: store.directory().to_owned(), ..StoreConfig::default() };
        assert!(matches!(Store::open(&config), Err(StoreError::InUse { .. })));
        drop(store);
        Store::open(&config).expect("after the first has ended");
    }
}
