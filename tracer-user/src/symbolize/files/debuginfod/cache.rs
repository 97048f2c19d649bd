//! Files that debuginfod sent, by build ID, laid out as elfutils does.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Seek as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use super::{DebuginfodError, FetchError};
use crate::{addr::BuildId, elf::Image};

/// A directory of `BUILDID/debuginfo`.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    path: PathBuf,
}

impl Cache {
    /// Makes the directory, for its owner only.
    pub(super) fn at(path: &Path) -> Result<Self, DebuginfodError> {
        let failed = |source| DebuginfodError::Cache { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        tempfile::tempfile_in(path).map_err(failed)?;
        Ok(Self { path: path.to_owned() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file of a build. What else lies there, such as the empty files by which elfutils remembers
    /// what no server has, is no file of it.
    pub(super) fn get(&self, id: &BuildId) -> Option<Image> {
        let path = self.place(id);
        let is_file = fs::metadata(&path).is_ok_and(|file| file.is_file());
        let image = is_file.then(|| Image::open(&path, &path).ok()).flatten()?;
        (image.build_id() == Some(id)).then_some(image)
    }

    /// Keeps a file that was verified. It appears whole or not at all.
    pub(super) fn put(&self, id: &BuildId, file: &mut File) -> Result<(), FetchError> {
        let place = self.place(id);
        self.write(&place, file).map_err(|source| FetchError::Cache { path: place, source })
    }

    fn write(&self, place: &Path, file: &mut File) -> io::Result<()> {
        if let Some(directory) = place.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let mut temporary = tempfile::Builder::new().prefix(".pgleak-").tempfile_in(&self.path)?;
        file.rewind()?;
        io::copy(file, temporary.as_file_mut())?;
        temporary.persist(place).map_err(|error| error.error)?;
        Ok(())
    }

    fn place(&self, id: &BuildId) -> PathBuf {
        self.path.join(id.to_string()).join("debuginfo")
    }
}
