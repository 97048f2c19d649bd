//! The functions of a stripped binary, from the method table that its constructor refers to.
//!
//! `AllocSetContextCreateInternal` is exported and passes the address of the constant
//! `AllocSetMethods` to `MemoryContextCreate` (`src/backend/utils/mmgr/aset.c`, 12 to 15). The
//! table holds the functions in the order of `MemoryContextMethods`.

use std::collections::BTreeMap;

use object::{Object as _, RelocationFlags, RelocationTarget, elf::R_X86_64_RELATIVE};
use tracer_ebpf::site::Role;

use super::{
    FoundBy, LocatedFunction, MethodFailure,
    code::Code64,
    locate::{function_at, located},
    symbols::exported_function,
};
use crate::{
    addr::VirtAddr,
    catalog::{Allocator, Callee, StaticTable},
    elf::{ElfError, FunctionRange, Image},
};

const WORD: u64 = 8;

/// By the method table in the file: 12 to 15, stripped or not.
///
/// # Errors
/// If there is not exactly one table, or one of its functions does not do what its place says.
pub fn by_static_table(
    image: &Image,
    allocator: &Allocator,
    ranges: &[FunctionRange],
) -> Result<Vec<LocatedFunction>, MethodFailure> {
    let Some(StaticTable { entries, calls, loads_tag }) = allocator.static_table else {
        return Err(MethodFailure::NotInThisVersion);
    };
    let constructor = allocator.constructor;
    let range = exported_function(image, ranges, constructor)?;
    let code = code_of(image, constructor, range)?;
    let looked_at = code.third_argument_addresses();
    let relocated = relocated_words(image)?;
    let tables: Vec<(VirtAddr, Vec<VirtAddr>)> = looked_at
        .iter()
        .filter_map(|&table| Some((table, functions_in(image, ranges, &relocated, table, entries)?)))
        .collect();
    let entries = match &tables[..] {
        [] => return Err(MethodFailure::NoTable { constructor, entries, looked_at }),
        [(_, functions)] => functions,
        _ => {
            let tables = tables.iter().map(|(table, _)| *table).collect();
            return Err(MethodFailure::SeveralTables { constructor, tables });
        }
    };
    if let Some(expected) = allocator.node_tag.known().filter(|_| loads_tag)
        && !code.loads_second_argument(expected)
    {
        return Err(MethodFailure::NoTagInCode { constructor, expected, kind: allocator.kind });
    }
    let found: Vec<_> = allocator
        .methods
        .iter()
        .map(|method| {
            let address = entries[method.table_index];
            located(image, ranges, &method.function, address, FoundBy::StaticTable)
        })
        .collect::<Result<_, _>>()?;
    let method = |role: Role| {
        let row = allocator.methods.iter().find(|method| method.function.role == role);
        let symbol = row.map_or("a method", |row| row.function.symbol);
        // A table may have methods that nobody probes.
        (symbol, entries[row.map_or(role as usize, |row| row.table_index)])
    };
    for &(caller, callee) in calls {
        let (caller, address) = method(caller);
        let (callee, target) = match callee {
            Callee::Method(role) => method(role),
            Callee::Exported(name) => (name, exported_function(image, ranges, name)?.start),
        };
        let range = function_at(image, ranges, address)
            .ok_or(MethodFailure::NotAFunction { what: caller, address })?;
        if !code_of(image, caller, range)?.calls(target) {
            return Err(MethodFailure::MissingCall { caller, callee });
        }
    }
    Ok(found)
}

fn code_of<'a>(
    image: &'a Image,
    what: &'static str,
    range: FunctionRange,
) -> Result<Code64<'a>, MethodFailure> {
    Code64::of(image, range).ok_or(MethodFailure::NotAFunction { what, address: range.start })
}

/// The `entries` words at `table`, if each of them is the start of a function.
fn functions_in(
    image: &Image,
    ranges: &[FunctionRange],
    relocated: &BTreeMap<VirtAddr, VirtAddr>,
    table: VirtAddr,
    entries: usize,
) -> Option<Vec<VirtAddr>> {
    (0..entries as u64)
        .map(|at| {
            let place = table.offset(at * WORD);
            // The file's own bytes hold the value with fixed addresses and with packed relative
            // relocations (DT_RELR); with ordinary ones they may be zero.
            let word = relocated.get(&place).copied().or_else(|| image.word_at(place).map(VirtAddr))?;
            function_at(image, ranges, word).map(|range| range.start)
        })
        .collect()
}

/// What the loader writes where, relative to the load address: the addends of the RELATIVE
/// relocations.
fn relocated_words(image: &Image) -> Result<BTreeMap<VirtAddr, VirtAddr>, ElfError> {
    let elf = image.elf()?;
    let Some(relocations) = elf.dynamic_relocations() else { return Ok(BTreeMap::new()) };
    let relative = relocations.filter(|(_, relocation)| {
        relocation.target() == RelocationTarget::Absolute
            && relocation.flags() == RelocationFlags::Elf { r_type: R_X86_64_RELATIVE }
    });
    Ok(relative.map(|(place, relocation)| (VirtAddr(place), VirtAddr(relocation.addend() as u64))).collect())
}
