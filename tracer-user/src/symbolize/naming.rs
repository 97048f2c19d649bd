//! One name for each function at an address, where symbols and DWARF may differ.

use super::{
    demangle::{demangle, split_suffix},
    dwarf::DwarfFrame,
    symbols::{Symbol, SymbolSource},
};
use crate::profile::FrameName;

/// The names at an address: inlined functions by DWARF, and the function around them by whichever
/// knows it best.
pub(super) fn names(symbol: Option<&Symbol>, mut dwarf: Vec<DwarfFrame>) -> Vec<FrameName> {
    let outer = match (symbol, dwarf.last().and_then(|frame| frame.function.as_deref())) {
        (None, function) => function.map(demangle),
        (Some(symbol), None) => Some(demangle(&symbol.name)),
        (Some(symbol), Some(function)) => {
            let (name, agrees) = agreed_name(symbol, function);
            if !agrees {
                dwarf.clear();
            }
            Some(name)
        }
    };
    let around = dwarf.pop();
    let inlined = dwarf.into_iter().filter_map(|frame| {
        let function = demangle(&frame.function?);
        Some(FrameName { function, file: frame.file, line: frame.line })
    });
    let mut names: Vec<FrameName> = inlined.collect();
    let (file, line) = around.map_or((None, None), |frame| (frame.file, frame.line));
    names.extend(outer.map(|function| FrameName { function, file, line }));
    names
}

/// The name of a function that both a symbol and DWARF name, and whether they mean the same one.
/// DWARF knows which of several names at one address was compiled; the symbol has what the
/// compiler appended (`.isra.0`), and all of the name where GCC gives DWARF only the last part of
/// it (C++ with internal linkage). If they mean different functions, the symbol is right: it is
/// the linker's, whereas the DWARF of functions that the linker discarded lies at odd places.
fn agreed_name(symbol: &Symbol, dwarf: &str) -> (String, bool) {
    let same =
        |name: &&str| name.strip_prefix(dwarf).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    let ends_with_it = |name: &str| {
        split_suffix(name)
            .0
            .strip_suffix(dwarf)
            .is_some_and(|before| before.is_empty() || before.ends_with("::"))
    };
    if symbol.source == SymbolSource::Known {
        return (demangle(&symbol.name), true);
    }
    if let Some(name) = symbol.names().find(same) {
        return (demangle(name), true);
    }
    match symbol
        .names()
        .map(demangle)
        .find(|name| ends_with_it(name) || name.contains(&format!("::{dwarf} ")))
    {
        Some(name) => (name, true),
        None => (demangle(&symbol.name), false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::VirtAddr;

    fn symbol(names: &[&str], source: SymbolSource) -> Symbol {
        let mut names = names.iter().map(|name| (*name).to_owned());
        let name = names.next().expect("one name");
        Symbol { start: VirtAddr(0x10), end: VirtAddr(0x20), name, aliases: names.collect(), source }
    }

    #[test]
    fn symbols_and_dwarf_agree_on_a_name() {
        let of = |names: &[&str], dwarf| agreed_name(&symbol(names, SymbolSource::Symtab), dwarf);
        assert_eq!(of(&["f.isra.0"], "f"), ("f.isra.0".into(), true));
        assert_eq!(of(&["bytea_catenate", "text_catenate"], "text_catenate"), ("text_catenate".into(), true));
        assert_eq!(of(&["f"], "g"), ("f".into(), false));
        assert_eq!(of(&["foo"], "f"), ("foo".into(), false));
        // As GCC 12 writes them for -O2.
        assert_eq!(of(&["_ZN12_GLOBAL__N_14anonEi"], "anon"), ("(anonymous namespace)::anon".into(), true));
        assert_eq!(
            of(&["_ZN12_GLOBAL__N_11S1mEi.constprop.0"], "m"),
            ("(anonymous namespace)::S::m.constprop.0".into(), true)
        );
        assert_eq!(
            of(&["_ZZL4statiENKUliE_clEi.isra.0"], "operator()"),
            ("stat(int)::{lambda(int)#1}::operator() const.isra.0".into(), true)
        );
        assert_eq!(of(&["_ZL4stati"], "stat"), ("stat".into(), true));
        let known = symbol(&["AllocSetAlloc"], SymbolSource::Known);
        assert_eq!(agreed_name(&known, "g"), ("AllocSetAlloc".into(), true));
    }

    #[test]
    fn inlined_functions_come_first_and_a_wrong_unit_gives_none() {
        let frame = |function: Option<&str>, line| DwarfFrame {
            function: function.map(str::to_owned),
            file: Some("mcxt.c".to_owned()),
            line: Some(line),
        };
        let dwarf = vec![frame(Some("inlined"), 7), frame(Some("palloc"), 9)];
        let of = |symbol: Option<&Symbol>, dwarf: &[DwarfFrame]| -> Vec<(String, Option<u32>)> {
            names(symbol, dwarf.to_vec()).into_iter().map(|name| (name.function, name.line)).collect()
        };
        let palloc = symbol(&["palloc.cold"], SymbolSource::Symtab);
        let other = symbol(&["other"], SymbolSource::Symtab);
        let both = [("inlined".to_owned(), Some(7)), ("palloc".to_owned(), Some(9))];
        assert_eq!(of(None, &dwarf), both);
        assert_eq!(of(Some(&palloc), &dwarf)[1], ("palloc.cold".to_owned(), Some(9)));
        assert_eq!(of(Some(&other), &dwarf), [("other".to_owned(), None)]);
        assert_eq!(of(Some(&other), &[]), [("other".to_owned(), None)]);
        assert_eq!(of(Some(&other), &[frame(None, 3)]), [("other".to_owned(), Some(3))]);
        assert_eq!(of(None, &[frame(None, 3)]), []);
    }
}
