//! Names of frames: of this program's own functions, which has a symbol table and no DWARF.

use std::collections::BTreeMap;

use divan::{Bencher, black_box};
use pgleak::{
    addr::AbsAddr,
    symbolize::{DebugFiles, Symbolizer},
    target::LoadedModules,
};

/// So many frames, or as many as this program has functions.
const FRAMES: [usize; 3] = [100, 1_000, 10_000];

/// Addresses inside of functions.
fn addresses(modules: &LoadedModules, count: usize) -> Vec<AbsAddr> {
    let main = modules.main().expect("a process has a program");
    let starts = main.functions().iter().map(|range| range.start.in_process(main.bias));
    starts.take(count).map(|start| AbsAddr(start.0 + 1)).collect()
}

fn modules() -> LoadedModules {
    LoadedModules::read(std::process::id()).expect("its own process may be read")
}

fn symbolizer(modules: &LoadedModules) -> Symbolizer<'_> {
    Symbolizer::new(vec![modules], BTreeMap::new(), DebugFiles::default())
}

/// With the symbol table to be read first.
#[divan::bench(sample_count = 20, args = FRAMES)]
fn cold(bencher: Bencher<'_, '_>, count: usize) {
    let modules = modules();
    let addresses = addresses(&modules, count);
    bencher.bench_local(|| name_all(&mut symbolizer(&modules), &addresses));
}

/// With the table read, of frames that were never asked for.
#[divan::bench(sample_count = 20, sample_size = 1, args = FRAMES)]
fn warm(bencher: Bencher<'_, '_>, count: usize) {
    let modules = modules();
    let mut addresses = addresses(&modules, count + 1);
    let first = addresses.pop().expect("this program has functions");
    bencher
        .with_inputs(|| {
            let mut symbolizer = symbolizer(&modules);
            symbolizer.frame(0, first, false);
            symbolizer
        })
        .bench_local_refs(|symbolizer| name_all(symbolizer, &addresses));
}

/// Of frames that were asked for before.
#[divan::bench(sample_count = 20, args = FRAMES)]
fn again(bencher: Bencher<'_, '_>, count: usize) {
    let modules = modules();
    let addresses = addresses(&modules, count);
    let mut symbolizer = symbolizer(&modules);
    name_all(&mut symbolizer, &addresses);
    bencher.bench_local(|| name_all(&mut symbolizer, &addresses));
}

/// So that the names are not left out: their length.
fn name_all(symbolizer: &mut Symbolizer<'_>, addresses: &[AbsAddr]) -> usize {
    addresses.iter().map(|address| black_box(symbolizer.frame(0, *address, false)).label().len()).sum()
}
