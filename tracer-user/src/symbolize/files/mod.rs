//! Debug files of an object: where they are looked for, and how it is made sure that they belong to it.

mod debuginfod;
mod index;
mod locate;
mod mini;
mod note;
mod search;

pub use debuginfod::{Debuginfod, DebuginfodError, FetchError, Settings};
pub use index::{SymbolIndex, SymbolIndexError};
pub use note::FileNote;
pub use search::DebugFiles;

pub(super) use locate::name_below_root;
pub(super) use mini::mini_debug_info;
pub(super) use search::Places;
