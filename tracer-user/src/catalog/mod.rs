//! What is known beforehand of each server version: functions, arguments, offsets, tags.

mod allocset;
mod error;
mod kinds;
mod version;

pub use allocset::{ContextFields, Function, Layout, Method, MethodsAt, StaticTable, layout, layouts};
pub use error::CatalogError;
pub use kinds::{Field, ListedBlocks, OtherKinds, SLAB_PARTITIONS, SlabFields, SlabLists};
pub use version::{Product, ServerVersion, identify};
