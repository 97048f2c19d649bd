//! From ELF images to the unwind tables that the walk in the kernel searches, and the same walk
//! in user space.

mod atlas;
pub mod check;
mod entries;
mod error;
mod mapset;
mod rules;
mod section;
mod table;
mod walk;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;

pub use atlas::{Appended, Atlas, AtlasError, Mark, Placement};
pub use error::TableError;
pub use mapset::{MapSetError, MappedObject, build_mapset};
pub use rules::row_info;
pub use table::{TableStats, UnwindTable};
pub use walk::{StackMemory, Walked, walk, walk_above};
