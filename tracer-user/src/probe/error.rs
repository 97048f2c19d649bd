//! Why the allocator's functions are not known.

use std::{io, path::PathBuf};

use super::{FoundBy, LocatedFunction};
use crate::{
    addr::{AbsAddr, VirtAddr},
    catalog::Kind,
    elf::ElfError,
};

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
    #[error("constructors do not hand over the method table in this version")]
    NotInThisVersion,
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
    #[error("{constructor} never loads {expected}, the node tag of {kind} contexts in this version")]
    NoTagInCode {
        /// The constructor.
        constructor: &'static str,
        /// The tag.
        expected: u32,
        /// Of what.
        kind: Kind,
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
    /// The process runs other code than the file holds.
    #[error("the code of {what} at {address} in the process differs from the file's: not the same build?")]
    CodeDiffers {
        /// Which function.
        what: &'static str,
        /// The first address in the process that differs.
        address: AbsAddr,
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
    /// What every constructor of a context calls is not there.
    #[error("cannot find what makes memory contexts: {0}")]
    Constructor(#[source] MethodFailure),
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

fn list(addresses: &[VirtAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn places(functions: &[LocatedFunction]) -> String {
    functions
        .iter()
        .map(|function| format!("{} {}", function.name(), function.address))
        .collect::<Vec<_>>()
        .join(", ")
}

fn reasons(tried: &[(FoundBy, MethodFailure)]) -> String {
    tried.iter().map(|(method, failure)| format!("{method}: {failure}")).collect::<Vec<_>>().join("; ")
}
