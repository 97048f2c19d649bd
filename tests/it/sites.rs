//! The allocator functions of each build, found without a process, and the instruction to probe.

use std::collections::HashMap;

use pgleak::{
    elf::{Image, function_ranges},
    probe::{CostClass, plan, static_functions},
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
        assert_eq!(plan.sites.len(), 6, "{}", build.name);
        assert!(plan.sites.iter().all(|site| site.cost == CostClass::Emulated), "{}", build.name);
        // Distributions move on to the next minor version, whose addresses nobody has read yet.
        let name = match build.kind {
            BuildKind::Npm => build.name.clone(),
            BuildKind::Package => format!("debian-{}", plan.version.number),
        };
        // From 12 on, whatever the compiler: 11 and older have one function instead.
        let statics = static_functions(&image, &function_ranges(&image));
        assert_eq!(statics.len(), 1, "{}: {statics:x?}", build.name);
        if build.kind == BuildKind::Npm {
            let symbol = xtask::process::output(std::process::Command::new("nm").arg(&binary)).unwrap();
            let line = symbol.lines().find(|line| line.ends_with(" SearchCatCacheInternal")).unwrap();
            assert_eq!(format!("{:016x}", statics[0].0.0), line.split(' ').next().unwrap(), "{}", build.name);
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
