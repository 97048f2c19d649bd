//! Finding the allocator's functions: every method in turn, then the live process as a check.

use std::fmt;

use tracer_ebpf::site::Role;

use super::{
    LiveProcess, LocateError, MethodFailure, by_dynamic_symbols, by_full_symbols, by_live_process,
    by_static_table,
};
use crate::{
    addr::VirtAddr,
    catalog::{Function, Layout},
    elf::{FunctionRange, Image, range_at},
};

/// A method of finding the functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FoundBy {
    /// The exported symbols.
    DynamicSymbols,
    /// The full symbol table, which packagers strip.
    FullSymbols,
    /// The method table that the code of the exported constructor refers to.
    StaticTable,
    /// The method table that the process's `TopMemoryContext` points to.
    LiveProcess,
}

impl fmt::Display for FoundBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DynamicSymbols => ".dynsym",
            Self::FullSymbols => ".symtab",
            Self::StaticTable => "static analysis",
            Self::LiveProcess => "live process",
        })
    }
}

/// An allocator function that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocatedFunction {
    /// Its name in PostgreSQL's source, whether or not the binary still has it.
    pub name: &'static str,
    /// What it does to memory.
    pub role: Role,
    /// Its first instruction.
    pub address: VirtAddr,
    /// The bytes of its main part, by its FDE.
    pub size: Option<u64>,
    /// How it was found.
    pub found_by: FoundBy,
}

/// Finds the functions of `layout` in `image`, in the order of [`Role::METHODS`]: `.dynsym`, then
/// `.symtab`, then static analysis, then the live process. With a process at hand, what the
/// file says must be what the process uses.
///
/// # Errors
/// If no method finds them all, or the process contradicts.
pub fn locate(
    image: &Image,
    layout: &Layout,
    ranges: &[FunctionRange],
    live: Option<LiveProcess<'_>>,
) -> Result<Vec<LocatedFunction>, LocateError> {
    let path = || image.path().to_owned();
    if ranges.is_empty() {
        return Err(LocateError::NoFunctionRanges { path: path() });
    }
    let mut tried = Vec::new();
    for (method, find) in STATIC_METHODS {
        match find(image, layout, ranges) {
            Ok(found) => return confirm(image, layout, ranges, live, method, found),
            Err(failure) => tried.push((method, failure)),
        }
    }
    let found = match live {
        Some(live) => by_live_process(image, layout, ranges, live),
        None => Err(MethodFailure::NoProcess),
    };
    found.map_err(|failure| {
        tried.push((FoundBy::LiveProcess, failure));
        let names = layout.methods.iter().map(|method| method.function.symbol).collect();
        LocateError::NotFound { path: path(), names, tried }
    })
}

type StaticMethod = fn(&Image, &Layout, &[FunctionRange]) -> Result<Vec<LocatedFunction>, MethodFailure>;

/// The methods that need the file only, the most direct first.
const STATIC_METHODS: [(FoundBy, StaticMethod); 3] = [
    (FoundBy::DynamicSymbols, by_dynamic_symbols),
    (FoundBy::FullSymbols, by_full_symbols),
    (FoundBy::StaticTable, by_static_table),
];

fn confirm(
    image: &Image,
    layout: &Layout,
    ranges: &[FunctionRange],
    live: Option<LiveProcess<'_>>,
    found_by: FoundBy,
    found: Vec<LocatedFunction>,
) -> Result<Vec<LocatedFunction>, LocateError> {
    let Some(live) = live else { return Ok(found) };
    let path = || image.path().to_owned();
    let live = by_live_process(image, layout, ranges, live).map_err(|source| LocateError::NotConfirmed {
        path: path(),
        found_by,
        source,
    })?;
    if found.iter().map(|one| (one.role, one.address)).eq(live.iter().map(|one| (one.role, one.address))) {
        Ok(found)
    } else {
        Err(LocateError::Disagreement { path: path(), found_by, found, live })
    }
}

/// A found address as a located function, if a function starts there.
pub(super) fn located(
    image: &Image,
    ranges: &[FunctionRange],
    function: &Function,
    address: VirtAddr,
    found_by: FoundBy,
) -> Result<LocatedFunction, MethodFailure> {
    let name = function.symbol;
    let range =
        function_at(image, ranges, address).ok_or(MethodFailure::NotAFunction { what: name, address })?;
    let size = Some(range.end.0 - range.start.0);
    Ok(LocatedFunction { name, role: function.role, address, size, found_by })
}

/// The function that starts exactly at `address`.
pub(super) fn function_at(
    image: &Image,
    ranges: &[FunctionRange],
    address: VirtAddr,
) -> Option<FunctionRange> {
    range_at(ranges, address).filter(|range| range.start == address && image.is_code(address))
}
