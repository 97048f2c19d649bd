//! The allocator functions of each build, found without a process, and the instruction to probe.

use std::collections::HashMap;

use pgleak::{
    elf::{Image, function_ranges},
    probe::{CostClass, by_static_table, main_loop, plan, static_functions},
};
use pgleak_tests::{Build, BuildKind};

/// Build, function, address, size, skew, instruction and method, as read from disassemblies.
const SITES: &str = include_str!("../fixtures/sites.tsv");

#[test]
fn every_build_has_the_sites_that_were_read_from_its_disassembly() {
    let mut expected: HashMap<&str, Vec<Vec<&str>>> = HashMap::new();
    for line in SITES.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        let fields: Vec<&str> = line.split('\t').collect();
        expected.entry(fields[0]).or_default().push(fields);
    }
    for build in Build::all().unwrap() {
        let binary = build.postgres();
        let image = Image::open(&binary, &binary).unwrap();
        let plan = plan(&image, &function_ranges(&image), None).unwrap();
        assert_eq!(plan.version.major, build.major, "{}", build.name);
        assert!(plan.not_followed.is_empty(), "{}: {:?}", build.name, plan.not_followed);
        // AllocSet and Generation 5, Slab 4, Bump 3, and what makes contexts.
        assert_eq!(plan.sites.len(), if build.major < 17 { 15 } else { 18 }, "{}", build.name);
        let dear = plan.sites.iter().filter(|site| site.cost != CostClass::Emulated);
        let dear: Vec<&str> = dear.map(|site| site.function.name()).collect();
        // `mov rax,rdi; mov edi,[rdi+0x5c]`, and no cheap instruction before.
        let entry_only: &[&str] = if build.major >= 17 { &["GenerationAlloc"] } else { &[] };
        assert_eq!(dear, entry_only, "{}", build.name);
        // Distributions move on to the next minor version, whose addresses nobody has read yet.
        let name = match build.kind {
            BuildKind::Npm => build.name.clone(),
            BuildKind::Package => format!("debian-{}", plan.version.number),
        };
        // Its frames, and what is further out, are taken for what stays as it is.
        assert!(main_loop(&image).is_some(), "{}: PostgresMain", build.name);
        // From 12 on, whatever the compiler: 11 and older have one function instead.
        let statics = static_functions(&image, &function_ranges(&image));
        assert_eq!(statics.len(), 1, "{}: {statics:x?}", build.name);
        if build.kind == BuildKind::Npm {
            let symbols = xtask::process::output(std::process::Command::new("nm").arg(&binary)).unwrap();
            let agrees = |name: &str, address: u64| {
                let line = symbols.lines().find(|line| line.ends_with(&format!(" {name}"))).unwrap();
                assert_eq!(
                    format!("{address:016x}"),
                    line.split(' ').next().unwrap(),
                    "{} {name}",
                    build.name
                );
            };
            agrees("SearchCatCacheInternal", statics[0].0.0);
            plan.sites.iter().for_each(|site| agrees(site.function.name(), site.function.address.0));
            // Without symbols, the table of each allocator leads to the same functions.
            for allocator in plan.layout.allocators().filter(|allocator| allocator.static_table.is_some()) {
                let found = by_static_table(&image, allocator, &function_ranges(&image)).unwrap();
                found.iter().for_each(|function| agrees(function.name(), function.address.0));
            }
        }
        let Some(rows) = expected.get(name.as_str()) else {
            assert_eq!(build.kind, BuildKind::Package, "no rows for {name}");
            continue;
        };
        for row in rows {
            let site = plan.sites.iter().find(|site| format!("{:?}", site.site.role) == row[1]);
            let site = site.unwrap_or_else(|| panic!("{row:?}"));
            assert_eq!(format!("{:x}", site.function.address.0), row[2], "{row:?}");
            assert_eq!(site.function.size.unwrap().to_string(), row[3], "{row:?}");
            assert_eq!(site.site.skew.to_string(), row[4], "{row:?}");
            assert_eq!(site.instruction, row[5], "{row:?}");
            assert_eq!(site.function.found_by.to_string(), row[6], "{row:?}");
        }
    }
}
