//! Unwind tables kept on disk, for objects that were met before.

mod entry;
mod key;

mod store;

pub use entry::{EntryError, decode, encode};
pub use key::Key;
pub use store::{CacheError, TableCache};
