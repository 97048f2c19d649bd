//! Artifacts on disk: private, whole or not there at all.

use std::{
    fs,
    io::{self, BufWriter, Write as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use tempfile::NamedTempFile;
use tracing::debug;

use super::{FORMATS, Format, RenderOptions};
use crate::profile::Capture;

/// Why artifacts cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The directory cannot be used.
    #[error("cannot write to {}: {source}; give another directory with --out", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There are artifacts already.
    #[error("{} has the artifacts of another capture; give another directory with --out", path.display())]
    Occupied {
        /// Which.
        path: PathBuf,
    },
    /// An artifact cannot be written.
    #[error("cannot write {}: {source}; no half of it is left. Make room or give another directory with --out", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A directory for artifacts. If nothing is written to it and it was made here, it goes again.
#[derive(Debug)]
pub struct OutputDir {
    path: PathBuf,
    made: bool,
}

impl OutputDir {
    /// A directory in the current one that is named after what it holds, and when that was made.
    pub fn name_for(what: &str) -> PathBuf {
        PathBuf::from(format!("pgleak-{what}-{}", jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ")))
    }

    /// Makes a directory for a new capture, readable for its owner only, before anything else is
    /// done: a capture that cannot be written should not be made.
    ///
    /// # Errors
    /// If it cannot be written to, or holds a capture already.
    pub fn create(path: &Path) -> Result<Self, WriteError> {
        let dir = Self::reuse(path)?;
        match FORMATS.iter().filter_map(|format| format.file).find(|file| path.join(file).exists()) {
            Some(_) => Err(WriteError::Occupied { path: path.to_owned() }),
            None => Ok(dir),
        }
    }

    /// The same for a directory whose artifacts may be replaced.
    ///
    /// # Errors
    /// If it cannot be written to.
    pub fn reuse(path: &Path) -> Result<Self, WriteError> {
        let failed = |source| WriteError::Directory { path: path.to_owned(), source };
        let made = match fs::DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(failed(error)),
        };
        let dir = Self { path: path.to_owned(), made };
        tempfile::tempfile_in(path).map_err(failed)?;
        Ok(dir)
    }

    /// Its path, if it was made here and goes again when nothing is written.
    pub fn made_here(&self) -> Option<&Path> {
        self.made.then_some(&*self.path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes every artifact; returns their paths. All are written under other names before the
    /// first gets its own.
    ///
    /// # Errors
    /// If one cannot be written: then none appears.
    pub fn write_all(self, capture: &Capture, options: &RenderOptions) -> Result<Vec<PathBuf>, WriteError> {
        let artifacts = self.write_side_by_side(capture, options);
        self.name(artifacts)
    }

    /// The same for files that are made already, with their names.
    ///
    /// # Errors
    /// If one cannot be written: then none appears.
    pub fn write_files(self, files: &[(&'static str, Vec<u8>)]) -> Result<Vec<PathBuf>, WriteError> {
        let write =
            |(name, bytes): &(&'static str, Vec<u8>)| (*name, self.write_one(|out| out.write_all(bytes)));
        let artifacts = files.iter().map(write).collect();
        self.name(artifacts)
    }

    /// Gives files their names, if all of them could be written.
    fn name(
        mut self,
        artifacts: Vec<(&'static str, io::Result<NamedTempFile>)>,
    ) -> Result<Vec<PathBuf>, WriteError> {
        let mut written = Vec::new();
        for (file, temporary) in artifacts {
            let path = self.path.join(file);
            let temporary = temporary.map_err(|source| WriteError::File { path: path.clone(), source })?;
            written.push((temporary, path));
        }
        let mut paths = Vec::new();
        for (temporary, path) in written {
            temporary
                .persist(&path)
                .map_err(|error| WriteError::File { path: path.clone(), source: error.error })?;
            self.made = false;
            paths.push(path);
        }
        Ok(paths)
    }

    /// Every artifact under another name, in the order of the formats, written by two threads.
    fn write_side_by_side(
        &self,
        capture: &Capture,
        options: &RenderOptions,
    ) -> Vec<(&'static str, io::Result<NamedTempFile>)> {
        let formats: Vec<(&Format, &'static str)> =
            FORMATS.iter().filter_map(|format| Some((format, format.file?))).collect();
        let written: Vec<OnceLock<io::Result<NamedTempFile>>> =
            formats.iter().map(|_| OnceLock::new()).collect();
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some((index, (format, file))) = at(&formats, next.fetch_add(1, Ordering::Relaxed)) {
                let begun = Instant::now();
                written[index].get_or_init(|| self.write_one(|out| (format.write)(capture, options, out)));
                debug!("{file} written in {:?}", begun.elapsed());
            }
        };
        thread::scope(|scope| {
            // Without another thread, this one does all of it.
            let _ = thread::Builder::new().name("artifacts".to_owned()).spawn_scoped(scope, work);
            work();
        });
        let taken = |result: OnceLock<_>| result.into_inner().expect("every format was taken by a thread");
        formats.iter().map(|(_, file)| *file).zip(written.into_iter().map(taken)).collect()
    }

    fn write_one(
        &self,
        write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>,
    ) -> io::Result<NamedTempFile> {
        let mut temporary = tempfile::Builder::new()
            .prefix(".pgleak-")
            .permissions(fs::Permissions::from_mode(0o600))
            .tempfile_in(&self.path)?;
        let mut buffered = BufWriter::new(temporary.as_file_mut());
        write(&mut buffered)?;
        buffered.flush()?;
        drop(buffered);
        // Some file systems report a full disk only now.
        temporary.as_file().sync_all()?;
        Ok(temporary)
    }
}

fn at<T>(list: &[T], index: usize) -> Option<(usize, &T)> {
    list.get(index).map(|item| (index, item))
}

impl Drop for OutputDir {
    fn drop(&mut self) {
        if self.made {
            // Not empty means that it is not ours to remove.
            let _ = fs::remove_dir(&self.path);
        }
    }
}
