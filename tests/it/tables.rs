//! Unwind tables of real servers against gimli's own evaluation of every row.

use pgleak::{
    elf::Image,
    unwind::{Atlas, UnwindTable, check},
};
use pgleak_tests::{Build, pgleak::run};

#[test]
fn every_row_of_every_server_is_what_gimli_says() {
    for build in Build::all().unwrap() {
        let binary = build.postgres();
        let image = Image::open(&binary, &binary).unwrap();
        let table = UnwindTable::build(&image).unwrap().unwrap();
        assert!(table.stats.fdes > 10_000 && table.stats.broken_fdes == 0, "{:?}", table.stats);
        let mut atlas = Atlas::new();
        let placement = atlas.add(&table).unwrap();
        let comparison = check::compare(&image, &atlas, placement).unwrap();
        println!("{}: {comparison:?}", build.name);
        assert!(comparison.steps > 100_000, "{}: {comparison:?}", build.name);
        assert_eq!((comparison.wrong_rows, comparison.wrong_steps), (vec![], vec![]), "{}", build.name);
    }
}

#[test]
fn unwind_check_says_what_a_table_holds_and_what_is_no_table() {
    let postgres = Build::all().unwrap().remove(0).postgres();
    let libc = "/lib/x86_64-linux-gnu/libc.so.6";
    let checked = run(["unwind-check".as_ref(), postgres.as_os_str(), libc.as_ref()]).unwrap();
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    for says in [postgres.to_str().unwrap(), libc, "distinct rules", "CFA from DWARF register", "first at 0x"]
    {
        assert!(checked.stdout.contains(says), "{says}: {checked:?}");
    }
    assert_eq!(checked.stdout.matches("gimli agrees with all").count(), 2);

    let dir = tempfile::tempdir().unwrap();
    let mut foreign = std::fs::read(libc).unwrap();
    // e_machine of AArch64.
    foreign[18] = 183;
    std::fs::write(dir.path().join("foreign"), foreign).unwrap();
    std::fs::write(dir.path().join("text"), "INPUT(-lc)").unwrap();
    for (name, says) in [
        ("foreign", "not built for x86_64 (ELF machine 183)"),
        ("text", "not a readable 64-bit ELF file"),
        ("absent", "cannot open"),
    ] {
        let path = dir.path().join(name);
        // The one that is sound is checked nevertheless.
        let checked = run(["unwind-check".as_ref(), path.as_os_str(), libc.as_ref()]).unwrap();
        assert_eq!(checked.status.code(), Some(2), "{name}: {checked:?}");
        assert!(
            checked.stderr.contains(says) && checked.stderr.contains(path.to_str().unwrap()),
            "{checked:?}"
        );
        assert!(checked.stderr.contains("1 of 2 files cannot be checked"), "{checked:?}");
        assert!(checked.stdout.contains("gimli agrees with all"), "{checked:?}");
    }
    assert_eq!(run(["unwind-check"]).unwrap().status.code(), Some(2));
}
