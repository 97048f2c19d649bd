//! The functions by their names in `.dynsym` or `.symtab`.

use object::{Object as _, ObjectSymbol as _, SymbolKind};

use super::{
    FoundBy, LocatedFunction, MethodFailure,
    code::Code64,
    locate::{function_at, located},
};
use crate::{
    addr::VirtAddr,
    catalog::{Allocator, Function},
    elf::{FunctionRange, Image},
};

/// By the exported symbols: 16 and later.
///
/// # Errors
/// If not every name stands for exactly one function.
pub fn by_dynamic_symbols(
    image: &Image,
    allocator: &Allocator,
    ranges: &[FunctionRange],
) -> Result<Vec<LocatedFunction>, MethodFailure> {
    by_symbols(image, allocator, ranges, FoundBy::DynamicSymbols)
}

/// By the full symbol table: every version, unless it was stripped.
///
/// # Errors
/// If there is none, or not every name stands for exactly one function.
pub fn by_full_symbols(
    image: &Image,
    allocator: &Allocator,
    ranges: &[FunctionRange],
) -> Result<Vec<LocatedFunction>, MethodFailure> {
    by_symbols(image, allocator, ranges, FoundBy::FullSymbols)
}

fn by_symbols(
    image: &Image,
    allocator: &Allocator,
    ranges: &[FunctionRange],
    table: FoundBy,
) -> Result<Vec<LocatedFunction>, MethodFailure> {
    let elf = image.elf()?;
    let symbols = if table == FoundBy::DynamicSymbols { elf.dynamic_symbols() } else { elf.symbols() };
    let functions: Vec<_> = allocator.methods.iter().map(|method| method.function).collect();
    let mut addresses = vec![Vec::new(); functions.len()];
    let mut any = false;
    for symbol in symbols {
        any = true;
        if !symbol.is_definition() || symbol.kind() != SymbolKind::Text {
            continue;
        }
        // The name must be the whole one: AllocSetFree.isra.0 or .cold has another interface.
        let Ok(name) = symbol.name_bytes() else { continue };
        let wanted = functions.iter().position(|function| function.symbol.as_bytes() == name);
        if let Some(at) = wanted
            && !addresses[at].contains(&VirtAddr(symbol.address()))
        {
            addresses[at].push(VirtAddr(symbol.address()));
        }
    }
    if !any {
        return Err(MethodFailure::NoSymbolTable { table });
    }
    let named = || functions.iter().zip(&addresses);
    let names: Vec<_> =
        named().filter(|(_, found)| found.is_empty()).map(|(function, _)| function.symbol).collect();
    if !names.is_empty() {
        return Err(MethodFailure::MissingSymbols { names });
    }
    named()
        .map(|(function, found)| match found[..] {
            [address] => located(image, ranges, function, address, table),
            _ => Err(MethodFailure::SeveralSymbols { name: function.symbol, addresses: found.clone() }),
        })
        .collect()
}

/// The function that every constructor of a context calls.
///
/// # Errors
/// If it is not exported.
pub fn constructor(
    image: &Image,
    function: &Function,
    ranges: &[FunctionRange],
) -> Result<LocatedFunction, MethodFailure> {
    let address = exported(image, function.symbol)?;
    located(image, ranges, function, address, FoundBy::DynamicSymbols)
}

/// The address of an exported function that has a range of its own.
pub(super) fn exported_function(
    image: &Image,
    ranges: &[FunctionRange],
    name: &'static str,
) -> Result<FunctionRange, MethodFailure> {
    let address = exported(image, name)?;
    function_at(image, ranges, address).ok_or(MethodFailure::NotAFunction { what: name, address })
}

/// Where a server binary has a variable that it exports.
pub fn exported_variable(image: &Image, name: &'static str) -> Option<VirtAddr> {
    exported(image, name).ok()
}

/// The main loop of a server's backends, which they never leave but by their end: `PostgresMain`, which is declared so
/// (`src/include/tcop/tcopprot.h`). `None` if it is not exported, or has an instruction that returns all the same.
pub fn main_loop(image: &Image) -> Option<FunctionRange> {
    const NAME: &[u8] = b"PostgresMain";
    let elf = image.elf().ok()?;
    let symbol = elf
        .dynamic_symbols()
        .find(|symbol| symbol.is_definition() && symbol.size() > 0 && symbol.name_bytes() == Ok(NAME))?;
    let start = VirtAddr(symbol.address());
    let range = FunctionRange { start, end: start.offset(symbol.size()) };
    (!Code64::of(image, range)?.returns()).then_some(range)
}

/// The address of an exported symbol; the full table helps where the exports were trimmed.
pub(super) fn exported(image: &Image, name: &'static str) -> Result<VirtAddr, MethodFailure> {
    let elf = image.elf()?;
    elf.dynamic_symbols()
        .chain(elf.symbols())
        .find(|symbol| symbol.is_definition() && symbol.name_bytes() == Ok(name.as_bytes()))
        .map(|symbol| VirtAddr(symbol.address()))
        .ok_or(MethodFailure::MissingSymbols { names: vec![name] })
}
