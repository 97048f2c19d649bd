//! Code addresses to names: symbols, DWARF, separate debug files, and what to do without them.

mod advice;
mod debug_file;
mod demangle;
mod dwarf;
mod naming;
mod symbolizer;
mod symbols;

pub use advice::{OsRelease, symbol_advice};
pub use debug_file::{DebugFileError, find_debug_file};
pub use demangle::demangle;
pub use dwarf::{DebugInfo, DwarfError, DwarfFrame};
pub use symbolizer::{SymbolNote, Symbolizer};
pub use symbols::{Symbol, SymbolSource, SymbolTable};
