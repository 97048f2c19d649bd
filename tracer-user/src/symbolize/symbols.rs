//! Which function an address belongs to, by `.symtab` and `.dynsym`: a symbol holds only inside
//! its size.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet},
};

use object::{Object as _, ObjectSymbol, SymbolKind};

use crate::{
    addr::VirtAddr,
    elf::{FunctionRange, Image},
};

/// Where a name comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SymbolSource {
    /// pgleak found the function out itself.
    Known,
    /// The full symbol table, of the file or of its separate debug file.
    Symtab,
    /// What Fedora and its relatives leave of the full table in a stripped file.
    MiniDebugInfo,
    /// The symbols for dynamic linking, which are left in a stripped file.
    Dynsym,
}

impl SymbolSource {
    /// Its name in reports.
    pub fn label(self) -> &'static str {
        match self {
            Self::Known => "found by pgleak",
            Self::Symtab => ".symtab",
            Self::MiniDebugInfo => ".gnu_debugdata",
            Self::Dynsym => ".dynsym",
        }
    }
}

/// A function with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// First instruction.
    pub start: VirtAddr,
    /// One past the last byte.
    pub end: VirtAddr,
    /// Its name as the file has it, mangled.
    pub name: String,
    /// Other names of the same code: aliases, or functions that the compiler found equal.
    pub aliases: Vec<String>,
    /// Where `name` comes from.
    pub source: SymbolSource,
}

impl Symbol {
    /// All its names, the best one first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.name.as_str()).chain(self.aliases.iter().map(String::as_str))
    }
}

/// A symbol as a table has it.
#[derive(Clone, Debug)]
struct RawSymbol {
    start: VirtAddr,
    size: u64,
    name: String,
    binding: Binding,
    source: SymbolSource,
}

/// Who sees a symbol, most public first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Binding {
    Global,
    Weak,
    Local,
}

/// The functions of one object by address.
#[derive(Clone, Debug, Default)]
pub struct SymbolTable {
    /// By start, the longest first among those with one start.
    symbols: Vec<Symbol>,
    /// For each symbol, the highest end of it and of all before it.
    highest_end: Vec<VirtAddr>,
}

impl SymbolTable {
    /// Reads the symbols of an object's `files`: itself, its debug file, or both. `mini` are the
    /// files that were packed into them. `known` are names that were found out otherwise, by the
    /// first instruction of their function; they take precedence.
    pub fn build(
        files: &[&Image],
        mini: &[Image],
        functions: &[FunctionRange],
        known: &BTreeMap<VirtAddr, String>,
    ) -> Self {
        let mut raw = Vec::new();
        let is_code = |address| files.iter().any(|file| file.is_code(address));
        let full = files.iter().map(|file| (*file, SymbolSource::Symtab));
        let packed = mini.iter().map(|file| (file, SymbolSource::MiniDebugInfo));
        for (file, source) in full.chain(packed) {
            // An image was parsed before; one that does not parse again has no symbols.
            let Ok(elf) = file.elf() else { continue };
            raw.extend(elf.symbols().filter_map(|symbol| read_symbol(&symbol, is_code, source)));
            let dynamic = elf.dynamic_symbols();
            raw.extend(dynamic.filter_map(|symbol| read_symbol(&symbol, is_code, SymbolSource::Dynsym)));
        }
        Self::from_raw(raw, functions, known)
    }

    fn from_raw(
        mut raw: Vec<RawSymbol>,
        functions: &[FunctionRange],
        known: &BTreeMap<VirtAddr, String>,
    ) -> Self {
        let function_end = |start: VirtAddr| {
            let after = functions.partition_point(|function| function.start <= start);
            functions[..after].last().filter(|function| function.start == start).map(|function| function.end)
        };
        // Best name first: this order decides which of several names one address gets.
        raw.sort_by(|a, b| preference(a).cmp(&preference(b)));
        let mut by_range: BTreeMap<(VirtAddr, Reverse<VirtAddr>), Symbol> = BTreeMap::new();
        let mut seen: HashSet<(VirtAddr, String)> = HashSet::new();
        for symbol in raw {
            let RawSymbol { start, size, name, source, .. } = symbol;
            let end = match size {
                0 => function_end(start),
                size => start.0.checked_add(size).map(VirtAddr),
            };
            let Some(end) = end else { continue };
            if !seen.insert((start, name.clone())) {
                continue;
            }
            match by_range.entry((start, Reverse(end))) {
                std::collections::btree_map::Entry::Occupied(mut entry) => entry.get_mut().aliases.push(name),
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(Symbol { start, end, name, aliases: Vec::new(), source });
                }
            }
        }
        for (start, name) in known {
            add_known(&mut by_range, *start, name, function_end(*start));
        }
        let symbols: Vec<Symbol> = by_range.into_values().collect();
        let mut highest = VirtAddr(0);
        let highest_end = symbols
            .iter()
            .map(|symbol| {
                highest = highest.max(symbol.end);
                highest
            })
            .collect();
        Self { symbols, highest_end }
    }

    /// The innermost symbol that `address` lies in.
    pub fn at(&self, address: VirtAddr) -> Option<&Symbol> {
        let after = self.symbols.partition_point(|symbol| symbol.start <= address);
        // Symbols may lie within others, so the one that begins last need not be the one; but
        // as soon as nothing before reaches the address, nothing will.
        (0..after)
            .rev()
            .take_while(|index| self.highest_end[*index] > address)
            .map(|index| &self.symbols[index])
            .find(|symbol| address < symbol.end)
    }

    /// All symbols, by start.
    pub fn symbols(&self) -> &[Symbol] {
        &self.symbols
    }
}

fn read_symbol<'data>(
    symbol: &impl ObjectSymbol<'data>,
    is_code: impl Fn(VirtAddr) -> bool,
    source: SymbolSource,
) -> Option<RawSymbol> {
    // Hand-written assembly often leaves the type out, which makes it `Unknown` or a label.
    let may_be_code = matches!(symbol.kind(), SymbolKind::Text | SymbolKind::Unknown | SymbolKind::Label);
    let start = VirtAddr(symbol.address());
    if !may_be_code || !symbol.is_definition() || !is_code(start) {
        return None;
    }
    // Linkers append the version to names in .symtab: memcpy@@GLIBC_2.14.
    let name = symbol.name().ok()?.split('@').next()?;
    // Names with a leading dot or dollar are marks for tools, such as annobin's.
    if name.is_empty() || name.starts_with(['.', '$']) {
        return None;
    }
    let binding = match (symbol.is_local(), symbol.is_weak()) {
        (true, _) => Binding::Local,
        (false, true) => Binding::Weak,
        (false, false) => Binding::Global,
    };
    Some(RawSymbol { start, size: symbol.size(), name: name.to_owned(), binding, source })
}

/// Which of several names of one address is shown: one that other objects see before a local one;
/// one without a leading underscore before one with it; global before weak; the shortest; the first
/// by the alphabet. So every run picks the same. The underscore counts more than the binding
/// because the C library's public names are weak (`poll`) and its private ones global (`__poll`).
/// Of one name in two tables, the fuller table counts.
fn preference(symbol: &RawSymbol) -> impl Ord + '_ {
    let name = symbol.name.as_str();
    let is_local = symbol.binding == Binding::Local;
    (is_local, name.starts_with('_'), symbol.binding, name.len(), name, symbol.source)
}

/// Names the function at `start`; the names that the tables have for that start become aliases.
fn add_known(
    by_range: &mut BTreeMap<(VirtAddr, Reverse<VirtAddr>), Symbol>,
    start: VirtAddr,
    name: &str,
    function_end: Option<VirtAddr>,
) {
    let same_start = (start, Reverse(VirtAddr(u64::MAX)))..=(start, Reverse(VirtAddr(0)));
    let keys: Vec<_> = by_range.range(same_start).map(|(key, _)| *key).collect();
    let mut end = function_end;
    let mut aliases = Vec::new();
    for key in keys {
        if let Some(symbol) = by_range.remove(&key) {
            end = end.max(Some(symbol.end));
            aliases.extend(std::iter::once(symbol.name).chain(symbol.aliases).filter(|alias| alias != name));
        }
    }
    // Without an FDE and a symbol, nothing but its first instruction is certain.
    let end = end.unwrap_or(start.offset(1));
    let symbol = Symbol { start, end, name: name.to_owned(), aliases, source: SymbolSource::Known };
    by_range.insert((start, Reverse(end)), symbol);
}

#[cfg(test)]
#[path = "symbols_tests.rs"]
mod tests;
