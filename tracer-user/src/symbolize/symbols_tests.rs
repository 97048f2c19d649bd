//! Tests of the symbol table, on literal symbols.

use super::*;

fn raw(start: u64, size: u64, name: &str, global: bool) -> RawSymbol {
    let binding = if global { Binding::Global } else { Binding::Local };
    RawSymbol { start: VirtAddr(start), size, name: name.to_owned(), binding, source: SymbolSource::Symtab }
}

fn table(raw: Vec<RawSymbol>, functions: &[(u64, u64)], known: &[(u64, &str)]) -> SymbolTable {
    let functions: Vec<_> = functions
        .iter()
        .map(|(start, end)| FunctionRange { start: VirtAddr(*start), end: VirtAddr(*end) })
        .collect();
    let known = known.iter().map(|(start, name)| (VirtAddr(*start), (*name).to_owned())).collect();
    SymbolTable::from_raw(raw, &functions, &known)
}

fn name(table: &SymbolTable, address: u64) -> Option<&str> {
    table.at(VirtAddr(address)).map(|symbol| symbol.name.as_str())
}

#[test]
fn a_symbol_ends_with_its_size() {
    let table = table(vec![raw(0x100, 0x10, "palloc", true)], &[(0x100, 0x110), (0x110, 0x200)], &[]);
    assert_eq!(name(&table, 0xff), None);
    assert_eq!(name(&table, 0x100), Some("palloc"));
    assert_eq!(name(&table, 0x10f), Some("palloc"));
    assert_eq!(name(&table, 0x110), None, "a static neighbour without a name");
}

#[test]
fn a_symbol_without_size_needs_an_fde_at_its_start() {
    let table = table(
        vec![raw(0x100, 0, "starts_it", true), raw(0x208, 0, "inside", true), raw(0x300, 0, "none", true)],
        &[(0x100, 0x140), (0x200, 0x240)],
        &[],
    );
    assert_eq!(name(&table, 0x13f), Some("starts_it"));
    assert_eq!(name(&table, 0x140), None);
    assert_eq!(name(&table, 0x208), None);
    assert_eq!(name(&table, 0x300), None);
}

#[test]
fn of_several_names_the_same_one_is_always_picked() {
    let names =
        [("text_catenate", false), ("__libc_malloc", true), ("malloc", true), ("calloc", true), ("f", false)];
    let mut raws: Vec<_> = names.iter().map(|(name, global)| raw(0x100, 8, name, *global)).collect();
    let forward = table(raws.clone(), &[], &[]);
    raws.reverse();
    raws.extend(raws.clone());
    let backward = table(raws, &[], &[]);
    assert_eq!(forward.symbols(), backward.symbols());
    let symbol = forward.at(VirtAddr(0x104)).expect("there");
    let all: Vec<_> = symbol.names().collect();
    assert_eq!(all, ["calloc", "malloc", "__libc_malloc", "f", "text_catenate"]);
}

#[test]
fn public_names_count_more_than_private_ones_and_global_ones_more_than_weak_ones() {
    let mut raws = vec![raw(0x100, 8, "__poll", true), raw(0x100, 8, "poll", true)];
    raws[1].binding = Binding::Weak;
    raws.extend([raw(0x200, 8, "weak", true), raw(0x200, 8, "global", true)]);
    raws[2].binding = Binding::Weak;
    let table = table(raws, &[], &[]);
    let names: Vec<_> = table.symbols().iter().map(|symbol| symbol.names().collect::<Vec<_>>()).collect();
    assert_eq!(names, [["poll", "__poll"], ["global", "weak"]]);
}

#[test]
fn a_symbol_within_another_ends_before_it() {
    let table = table(
        vec![
            raw(0x100, 0x100, "outer", true),
            raw(0x120, 0x10, "inner", true),
            raw(0x140, 8, "second", true),
        ],
        &[],
        &[],
    );
    assert_eq!(name(&table, 0x11f), Some("outer"));
    assert_eq!(name(&table, 0x12f), Some("inner"));
    assert_eq!(name(&table, 0x130), Some("outer"));
    assert_eq!(name(&table, 0x1ff), Some("outer"));
    assert_eq!(name(&table, 0x200), None);
}

#[test]
fn what_is_known_counts_more_than_the_tables() {
    let table = table(
        vec![raw(0x100, 0x10, "folded", true), raw(0x100, 0x20, "folded_too", true)],
        &[(0x100, 0x140), (0x200, 0x240)],
        &[(0x100, "AllocSetReset"), (0x200, "AllocSetAlloc"), (0x300, "AllocSetFree")],
    );
    let reset = table.at(VirtAddr(0x13f)).expect("there");
    assert_eq!(reset.names().collect::<Vec<_>>(), ["AllocSetReset", "folded_too", "folded"]);
    assert_eq!(reset.source, SymbolSource::Known);
    assert_eq!(name(&table, 0x23f), Some("AllocSetAlloc"));
    assert_eq!((name(&table, 0x300), name(&table, 0x301)), (Some("AllocSetFree"), None));
}

#[test]
fn a_size_that_wraps_is_no_symbol() {
    let table = table(vec![raw(u64::MAX - 1, 0x10, "wraps", true)], &[], &[]);
    assert!(table.symbols().is_empty());
}
