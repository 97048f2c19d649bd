//! Finding the allocator's functions: every method in turn, then the live process as a check.

use std::{fmt, io, path::PathBuf};

use tracer_ebpf::site::Role;

use super::{LiveProcess, by_dynamic_symbols, by_full_symbols, by_live_process, by_static_table};
use crate::{
    addr::{AbsAddr, VirtAddr},
    catalog::{Function, Layout},
    elf::{ElfError, FunctionRange, Image, range_at},
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

/// Why one method found nothing that can be trusted.
#[derive(Debug, thiserror::Error)]
pub enum MethodFailure {
    /// The file cannot be read as ELF.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// The symbol table is not there.
    #[error("the file has no {table}")]
    NoSymbolTable {
        /// Which table.
        table: FoundBy,
    },
    /// Some or all of the names are not there.
    #[error("it does not define {}", names.join(", "))]
    MissingSymbols {
        /// Which names.
        names: Vec<&'static str>,
    },
    /// One name stands for several functions.
    #[error("it defines {name} more than once, at {}", list(addresses))]
    SeveralSymbols {
        /// Which name.
        name: &'static str,
        /// Where.
        addresses: Vec<VirtAddr>,
    },
    /// What should be a function is not one.
    #[error("{what} would be at {address}, where no function starts (.eh_frame)")]
    NotAFunction {
        /// What was expected there.
        what: &'static str,
        /// Where.
        address: VirtAddr,
    },
    /// The method cannot work for this version.
    #[error("{constructor} does not hand over the method table in this version")]
    NotInThisVersion {
        /// The constructor that older versions have.
        constructor: &'static str,
    },
    /// The code of the constructor refers to no method table.
    #[error(
        "none of the {} addresses that {constructor} loads as a third argument holds {entries} functions",
        looked_at.len()
    )]
    NoTable {
        /// The constructor.
        constructor: &'static str,
        /// Entries that the table should have.
        entries: usize,
        /// The addresses it loads.
        looked_at: Vec<VirtAddr>,
    },
    /// The code of the constructor refers to several method tables.
    #[error("{constructor} refers to several method tables, at {}", list(tables))]
    SeveralTables {
        /// The constructor.
        constructor: &'static str,
        /// The tables.
        tables: Vec<VirtAddr>,
    },
    /// The constructor does not set the node tag of this major.
    #[error("{constructor} never loads {expected}, the node tag of an AllocSet in this version")]
    NoTagInCode {
        /// The constructor.
        constructor: &'static str,
        /// The tag.
        expected: u32,
    },
    /// A table entry does not do what its place says.
    #[error("what would be {caller} does not call {callee}")]
    MissingCall {
        /// Whose code was read.
        caller: &'static str,
        /// What it should call.
        callee: &'static str,
    },
    /// Nobody gave a process to look at.
    #[error("no process to look at")]
    NoProcess,
    /// The process's memory cannot be read.
    #[error("cannot read {what} at {address} of the process: {source}")]
    Read {
        /// What was wanted.
        what: &'static str,
        /// Where.
        address: AbsAddr,
        /// Why not.
        source: io::Error,
    },
    /// The process has no memory contexts yet.
    #[error("TopMemoryContext is null: the process is still starting")]
    NotStarted,
    /// What `TopMemoryContext` points to has another node tag.
    #[error("the node tag of TopMemoryContext is {seen}, not {expected} as in this version")]
    WrongTag {
        /// By the catalog.
        expected: u32,
        /// In the process.
        seen: u32,
    },
    /// What `TopMemoryContext` points to has a parent.
    #[error("TopMemoryContext has a parent ({seen}): the layout is not the one of this version")]
    HasParent {
        /// The parent.
        seen: AbsAddr,
    },
    /// What `TopMemoryContext` points to has another name.
    #[error("TopMemoryContext is named '{seen}': the layout is not the one of this version")]
    WrongName {
        /// The name.
        seen: String,
    },
    /// The method table is not where the binary keeps constants.
    #[error("the methods of TopMemoryContext at {address} are not in the server's data")]
    TableOutside {
        /// The address in the process.
        address: AbsAddr,
    },
}

/// Why the functions are not known.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// Without `.eh_frame` no candidate can be checked, and no stack be unwound.
    #[error("{path} has no .eh_frame: nothing says where its functions start, and no stack can be unwound")]
    NoFunctionRanges {
        /// Which file.
        path: PathBuf,
    },
    /// No method found them.
    #[error("cannot find {} in {path}: {}", names.join(", "), reasons(tried))]
    NotFound {
        /// Which file.
        path: PathBuf,
        /// What was looked for.
        names: Vec<&'static str>,
        /// Every method, in the order of trying, and why it failed.
        tried: Vec<(FoundBy, MethodFailure)>,
    },
    /// The live process is not what the catalog says of its version.
    #[error("{path}: found the functions by {found_by}, but the process does not confirm it: {source}")]
    NotConfirmed {
        /// Which file.
        path: PathBuf,
        /// The method that had found them.
        found_by: FoundBy,
        /// The check that failed.
        source: MethodFailure,
    },
    /// The live process uses other functions.
    #[error(
        "{path}: by {found_by} the functions are at {}, but the process uses those at {}",
        places(found),
        places(live)
    )]
    Disagreement {
        /// Which file.
        path: PathBuf,
        /// The method.
        found_by: FoundBy,
        /// What it found.
        found: Vec<LocatedFunction>,
        /// What the method table in the process says.
        live: Vec<LocatedFunction>,
    },
}

/// Finds the functions of `layout` in `image`, in the order of [`Role::ALL`]: `.dynsym`, then
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
        let names = layout.functions.iter().map(|function| function.symbol).collect();
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

fn list(addresses: &[VirtAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn places(functions: &[LocatedFunction]) -> String {
    functions
        .iter()
        .map(|function| format!("{} {}", function.name, function.address))
        .collect::<Vec<_>>()
        .join(", ")
}

fn reasons(tried: &[(FoundBy, MethodFailure)]) -> String {
    tried.iter().map(|(method, failure)| format!("{method}: {failure}")).collect::<Vec<_>>().join("; ")
}
