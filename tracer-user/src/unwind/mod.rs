//! Unwind tables: from `.eh_frame` to what the walk in the kernel searches.

mod atlas;
mod mapset;
mod rules;
mod table;
mod walk;

pub use atlas::{Atlas, AtlasError, Placement};
pub use mapset::{MapSetError, MappedObject, build_mapset};
pub use table::{TableError, TableStats, UnwindTable};
pub use walk::{OpenCall, Surroundings, Walked, walk};

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod table_tests;
#[cfg(test)]
mod walk_tests;
