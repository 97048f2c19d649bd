//! Finding the allocator's functions: every method in turn, then the live process as a check.

use std::fmt;

use tracer_ebpf::site::Role;

use super::{
    LiveProcess, LocateError, MethodFailure, by_dynamic_symbols, by_full_symbols, by_live_process,
    by_static_table,
};
use crate::{
    addr::VirtAddr,
    catalog::{Allocator, Function, Layout},
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
    /// What the catalog says of it.
    pub function: Function,
    /// Its first instruction.
    pub address: VirtAddr,
    /// The bytes of its main part, by its FDE.
    pub size: Option<u64>,
    /// How it was found.
    pub found_by: FoundBy,
}

impl LocatedFunction {
    /// Its name in PostgreSQL's source, whether or not the binary still has it.
    pub fn name(&self) -> &'static str {
        self.function.symbol
    }

    /// What it does to memory.
    pub fn role(&self) -> Role {
        self.function.role
    }
}

/// Finds the methods of AllocSets in `image`, in the order of the catalog: `.dynsym`, then
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
    let mut tried = match by_file(image, &layout.alloc_set, ranges) {
        Ok((method, found)) => return confirm(image, layout, ranges, live, method, found),
        Err(tried) => tried,
    };
    let found = match live {
        Some(live) => by_live_process(image, layout, ranges, live),
        None => Err(MethodFailure::NoProcess),
    };
    found.map_err(|failure| {
        tried.push((FoundBy::LiveProcess, failure));
        LocateError::NotFound { path: path(), names: layout.alloc_set.names(), tried }
    })
}

/// Finds the methods of contexts of another kind, by the file alone: that it is the process's was
/// seen by those of AllocSets.
///
/// # Errors
/// If no method finds them all.
pub fn locate_others(
    image: &Image,
    allocator: &Allocator,
    ranges: &[FunctionRange],
) -> Result<Vec<LocatedFunction>, LocateError> {
    by_file(image, allocator, ranges).map(|(_, found)| found).map_err(|tried| LocateError::NotFound {
        path: image.path().to_owned(),
        names: allocator.names(),
        tried,
    })
}

type StaticMethod = fn(&Image, &Allocator, &[FunctionRange]) -> Result<Vec<LocatedFunction>, MethodFailure>;

/// The methods that need the file only, the most direct first.
const STATIC_METHODS: [(FoundBy, StaticMethod); 3] = [
    (FoundBy::DynamicSymbols, by_dynamic_symbols),
    (FoundBy::FullSymbols, by_full_symbols),
    (FoundBy::StaticTable, by_static_table),
];

type Tried = Vec<(FoundBy, MethodFailure)>;

fn by_file(
    image: &Image,
    allocator: &Allocator,
    ranges: &[FunctionRange],
) -> Result<(FoundBy, Vec<LocatedFunction>), Tried> {
    let mut tried = Vec::new();
    for (method, find) in STATIC_METHODS {
        match find(image, allocator, ranges) {
            Ok(found) => return Ok((method, found)),
            Err(failure) => tried.push((method, failure)),
        }
    }
    Err(tried)
}

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
    if found.iter().map(|one| (one.role(), one.address)).eq(live.iter().map(|one| (one.role(), one.address)))
    {
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
    Ok(LocatedFunction { function: *function, address, size, found_by })
}

/// The function that starts exactly at `address`.
pub(super) fn function_at(
    image: &Image,
    ranges: &[FunctionRange],
    address: VirtAddr,
) -> Option<FunctionRange> {
    range_at(ranges, address).filter(|range| range.start == address && image.is_code(address))
}
