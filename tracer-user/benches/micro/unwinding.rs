//! Unwind tables from the `.eh_frame` of real files: this program, the C library and servers, as far as they are there.

use std::fs;
use std::path::{Path, PathBuf};

use divan::{Bencher, black_box};
use pgleak::{
    elf::{Image, function_ranges},
    target::LoadedModules,
    unwind::UnwindTable,
};

/// A file by its name alone.
struct Object(PathBuf);

impl std::fmt::Display for Object {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The name of this program ends with a hash.
        let name = self.0.file_name().unwrap_or_default().to_string_lossy();
        out.write_str(if name.starts_with("micro-") { "micro" } else { &name })
    }
}

fn objects() -> Vec<Object> {
    let modules = LoadedModules::read(std::process::id()).expect("its own process may be read");
    let own = modules.modules().iter().map(|module| module.path.clone());
    let wanted = own.filter(|path| {
        path.file_name().is_some_and(|name| {
            let name = name.to_string_lossy();
            name.starts_with("micro-") || name.starts_with("libc.so")
        })
    });
    let servers = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let servers = servers.map(|entry| entry.path().join("bin/postgres")).filter(|path| path.exists());
    wanted.chain(servers).map(Object).collect()
}

fn open(path: &Path) -> Image {
    Image::open(path, path).expect("it is there and an ELF file")
}

#[divan::bench(sample_count = 10, args = objects())]
fn table(bencher: Bencher<'_, '_>, object: &Object) {
    let image = open(&object.0);
    bencher.bench_local(|| UnwindTable::build(black_box(&image)).expect("it is not damaged"));
}

#[divan::bench(sample_count = 10, args = objects())]
fn functions(bencher: Bencher<'_, '_>, object: &Object) {
    let image = open(&object.0);
    bencher.bench_local(|| function_ranges(black_box(&image)));
}
