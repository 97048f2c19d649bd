//! What is known beforehand of each server version: functions, arguments, offsets, tags.

mod allocators;
mod error;
mod kinds;
mod layout;
mod outside;
mod version;

pub use allocators::{Allocator, Callee, Function, Kind, Method, NodeTag, StaticTable};
pub use error::CatalogError;
pub use kinds::{Field, ListedBlocks, OtherKinds, SLAB_PARTITIONS, SlabFields, SlabLists};
pub use layout::{ActivityFields, ContextFields, Counted, Layout, MethodsAt, layouts, layouts_of};
pub use outside::{GLIBC, MALLOC, MALLOC_OTHERS, MMAP};
pub use version::{Product, ServerVersion, identify};
