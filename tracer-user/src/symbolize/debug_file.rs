//! Separate debug files, by build ID.

use std::path::{Path, PathBuf};

use crate::{
    addr::BuildId,
    elf::{ElfError, Image},
};

/// Why a debug file that is there cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DebugFileError {
    /// It is not readable as ELF.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// It was made for another build.
    #[error("{} has build ID {found:?}, not that of its own name; install the debug package again", path.display())]
    OtherBuild {
        /// Which.
        path: PathBuf,
        /// What it has.
        found: Option<BuildId>,
    },
}

/// Looks for the debug file of a build below each root directory, at
/// `usr/lib/debug/.build-id/xx/yyyy.debug`. The first one found counts.
///
/// # Errors
/// If one is there, but cannot be used.
pub fn find_debug_file(roots: &[PathBuf], id: &BuildId) -> Result<Option<Image>, DebugFileError> {
    let Some(name) = name_below_root(id) else { return Ok(None) };
    for root in roots {
        let path = root.join(&name);
        // A FIFO below the root of a container would block pgleak for good.
        if !path.metadata().is_ok_and(|file| file.is_file()) {
            continue;
        }
        let image = Image::open(&path, &path)?;
        if image.build_id() != Some(id) {
            return Err(DebugFileError::OtherBuild { found: image.build_id().cloned(), path });
        }
        return Ok(Some(image));
    }
    Ok(None)
}

/// `usr/lib/debug/.build-id/xx/yyyy.debug`; `None` for an ID of one byte.
pub(super) fn name_below_root(id: &BuildId) -> Option<PathBuf> {
    let text = id.to_string();
    let (first, rest) = text.split_at_checked(2).filter(|(_, rest)| !rest.is_empty())?;
    Some(Path::new("usr/lib/debug/.build-id").join(first).join(format!("{rest}.debug")))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    /// A root with this test's own binary as the debug file of `id`.
    fn root_with(id: &BuildId) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join(name_below_root(id).expect("long enough"));
        fs::create_dir_all(path.parent().expect("it has one")).expect("created");
        symlink(fs::read_link("/proc/self/exe").expect("a link"), path).expect("linked");
        root
    }

    #[test]
    fn the_file_of_another_build_is_refused() {
        let wrong = BuildId(vec![0xab, 0xcd, 0xef]);
        let root = root_with(&wrong);
        let roots = [root.path().join("nothing/here"), root.path().to_owned()];
        assert!(matches!(find_debug_file(&roots, &wrong), Err(DebugFileError::OtherBuild { .. })));
        assert!(matches!(find_debug_file(&roots, &BuildId(vec![1, 2, 3])), Ok(None)));
        assert!(matches!(find_debug_file(&roots, &BuildId(vec![1])), Ok(None)));
    }

    #[test]
    fn the_file_of_that_build_is_opened() -> Result<(), Box<dyn std::error::Error>> {
        let exe = Path::new("/proc/self/exe");
        // cc of some distributions writes no build ID; then there is nothing to look for.
        let Some(id) = Image::open(exe, exe)?.build_id().cloned() else {
            println!("not tested: this binary has no build ID");
            return Ok(());
        };
        let root = root_with(&id);
        let found = find_debug_file(&[root.path().to_owned()], &id)?.ok_or("not found")?;
        assert_eq!(found.build_id(), Some(&id));
        Ok(())
    }
}
