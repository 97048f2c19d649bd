//! From ELF images to the unwind tables that the walk in the kernel searches, and the same walk
//! in user space.

mod error;
mod rules;
mod unsupported;

mod entries;

mod table;

pub mod cache;

mod batch;

mod atlas;
mod mapset;
mod walk;

pub mod check;
mod inspect;

#[cfg(test)]
mod damage;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod linker;
#[cfg(test)]
mod tests;

pub use atlas::{Appended, Atlas, AtlasError, Mark, Placement};
pub use batch::build_tables;
pub use error::TableError;
pub use inspect::{Gaps, InspectError, Inspection};
pub use mapset::{MapSetError, MappedObject, build_mapset};
pub use rules::{row_info, row_rule};
pub use table::{TableStats, UnwindTable};
pub use unsupported::Unsupported;
pub use walk::{OpenCall, ReturnProbes, StackMemory, Walked, walk, walk_above};
