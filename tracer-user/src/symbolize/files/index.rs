//! Directories full of debug files, by build ID: unpacked packages, `.build-id` trees, binaries that
//! were not stripped.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use crate::{addr::BuildId, elf::Image};

/// Deeper trees are loops of mounts, or not meant.
const MOST_LEVELS: usize = 32;

/// Why a directory cannot be searched for debug files.
#[derive(Debug, thiserror::Error)]
pub enum SymbolIndexError {
    /// It cannot be read.
    #[error("cannot read {}: {source}; give a directory with debug files or unstripped binaries", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing in it is of use.
    #[error("{} has no ELF file with a build ID; give a directory with debug files or unstripped binaries", path.display())]
    Empty {
        /// Which.
        path: PathBuf,
    },
}

/// The debug files in some directories.
#[derive(Debug, Default)]
pub struct SymbolIndex {
    builds: HashMap<BuildId, Vec<PathBuf>>,
    packages: Vec<PathBuf>,
    /// `.dwo` files by name: what is in them says to which unit they belong.
    units: HashMap<PathBuf, Vec<PathBuf>>,
}

impl SymbolIndex {
    /// Looks through each directory and all below it. A plain file is taken, too.
    ///
    /// # Errors
    /// If one of them cannot be read, or has nothing of use. Below it, what cannot be read is
    /// left out.
    pub fn read(directories: &[PathBuf]) -> Result<Self, SymbolIndexError> {
        let mut index = Self::default();
        for directory in directories {
            let before = index.files();
            let failed = |source| SymbolIndexError::Read { path: directory.clone(), source };
            if fs::metadata(directory).map_err(failed)?.is_file() {
                index.add(directory);
            } else {
                index.add_tree(directory, MOST_LEVELS).map_err(failed)?;
            }
            if index.files() == before {
                return Err(SymbolIndexError::Empty { path: directory.clone() });
            }
        }
        Ok(index)
    }

    /// Files of a build, in the order of the directories, then of their paths.
    pub(super) fn of_build(&self, id: &BuildId) -> &[PathBuf] {
        self.builds.get(id).map_or(&[], Vec::as_slice)
    }

    /// Packages of split DWARF (`.dwp`).
    pub(super) fn packages(&self) -> &[PathBuf] {
        &self.packages
    }

    /// Files of split DWARF with a name.
    pub(super) fn units(&self, name: &OsStr) -> &[PathBuf] {
        self.units.get(Path::new(name)).map_or(&[], Vec::as_slice)
    }

    fn files(&self) -> usize {
        let lists = self.builds.values().chain(self.units.values());
        lists.map(Vec::len).sum::<usize>() + self.packages.len()
    }

    fn add_tree(&mut self, directory: &Path, levels: usize) -> io::Result<()> {
        let mut entries: Vec<_> = fs::read_dir(directory)?.filter_map(Result::ok).collect();
        // The order of a directory is no order.
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            // A link to a directory may lead up again; one to a file is how Fedora names build IDs.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if levels > 0 {
                    let _unreadable_is_left_out = self.add_tree(&path, levels - 1);
                }
            } else if fs::metadata(&path).is_ok_and(|file| file.is_file()) {
                self.add(&path);
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path) {
        if !is_elf(path) {
            return;
        }
        match path.extension().and_then(OsStr::to_str) {
            Some("dwp") => self.packages.push(path.to_owned()),
            Some("dwo") => {
                let name = path.file_name().map(PathBuf::from).unwrap_or_default();
                self.units.entry(name).or_default().push(path.to_owned());
            }
            _ => {
                if let Ok(image) = Image::open(path, path)
                    && let Some(id) = image.build_id()
                {
                    self.builds.entry(id.clone()).or_default().push(path.to_owned());
                }
            }
        }
    }
}

fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF"
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_tree_is_searched_by_build_id_and_loops_end() -> Result<(), Box<dyn std::error::Error>> {
        let tree = tempfile::tempdir()?;
        let deep = tree.path().join("a/b");
        fs::create_dir_all(&deep)?;
        fs::write(tree.path().join("text"), "no ELF")?;
        let empty = SymbolIndex::read(&[tree.path().to_owned()]);
        assert!(matches!(empty, Err(SymbolIndexError::Empty { .. })));

        symlink(tree.path(), deep.join("up"))?;
        let linked = deep.join("self.debug");
        symlink(fs::read_link("/proc/self/exe")?, &linked)?;
        let id = Image::open(&linked, &linked)?.build_id().cloned().ok_or("tests have a build ID")?;
        let index = SymbolIndex::read(&[tree.path().to_owned()])?;
        assert_eq!(index.of_build(&id), [linked]);
        assert!(index.of_build(&BuildId(vec![1, 2, 3])).is_empty());
        assert!(matches!(SymbolIndex::read(&["/does/not/exist".into()]), Err(SymbolIndexError::Read { .. })));
        Ok(())
    }
}
