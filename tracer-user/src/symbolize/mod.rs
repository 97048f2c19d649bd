//! Code addresses to names: symbols, DWARF, separate debug files, and what to do without them.

mod advice;
mod demangle;
mod dwarf;
mod files;
mod naming;
mod object;
mod rename;
mod section;
mod split;
mod symbolizer;
mod symbols;

pub use advice::{OsRelease, symbol_advice};
pub use demangle::demangle;
pub use dwarf::{DebugInfo, DwarfError, DwarfFrame};
pub use files::{
    DebugFiles, Debuginfod, DebuginfodError, FetchError, FileNote, Settings, SymbolIndex, SymbolIndexError,
};
pub use object::SymbolNote;
pub use rename::name_again;
pub use symbolizer::{Symbolizer, run_time_frame};
pub use symbols::{Symbol, SymbolSource, SymbolTable};
