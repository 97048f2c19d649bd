//! What is known beforehand of each server version: functions, arguments, offsets, tags.

mod allocset;
mod error;
mod version;

pub use allocset::{
    ContextFields, Function, Layout, Method, MethodsAt, OtherTags, StaticTable, layout, layouts,
};
pub use error::CatalogError;
pub use version::{Product, ServerVersion, identify};
