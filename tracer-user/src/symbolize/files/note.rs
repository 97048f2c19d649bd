//! Why a debug file that is there, or should be, is not used.

use std::{io, path::PathBuf};

use super::FetchError;
use crate::{addr::BuildId, elf::ElfError};

/// Why a debug file that is there, or should be, is not used.
#[derive(Debug, thiserror::Error)]
pub enum FileNote {
    /// It is not readable as ELF.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// It was made for another build.
    #[error("{} has {}, and {wanted} was looked for; install the debug package of the same version", path.display(), id_or_none(found.as_ref()))]
    OtherBuild {
        /// Which.
        path: PathBuf,
        /// What was looked for.
        wanted: BuildId,
        /// What it has.
        found: Option<BuildId>,
    },
    /// It is not the file that the link in the object was made for.
    #[error("{} has CRC {found:08x}, and its .gnu_debuglink says {wanted:08x}; install the debug package of the same version", path.display())]
    OtherCrc {
        /// Which.
        path: PathBuf,
        /// What the link says.
        wanted: u32,
        /// The CRC-32 of its bytes.
        found: u32,
    },
    /// Debug information that several files share (dwz) is not there.
    #[error("the file that it shares debug information with ({}, build ID {id}) is not there; the debug package has it", name.display())]
    NoSupplementary {
        /// What `.gnu_debugaltlink` calls it.
        name: PathBuf,
        /// Its build ID.
        id: BuildId,
    },
    /// Its `.gnu_debugdata` is damaged.
    #[error("its .gnu_debugdata cannot be read: {0}")]
    Mini(io::Error),
    /// debuginfod had no good answer.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// No file has its build ID.
    #[error("no debug file with build ID {0} was found, so that its names are as they were captured")]
    NotFound(BuildId),
}

/// `build ID abc…`, or that there is none.
pub(super) fn id_or_none(id: Option<&BuildId>) -> String {
    id.map_or_else(|| "no build ID".to_owned(), |id| format!("build ID {id}"))
}
