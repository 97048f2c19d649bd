//! Unwind tables of real servers against gimli's own evaluation of every row.

use pgleak::{
    elf::Image,
    unwind::{Atlas, UnwindTable, check},
};
use pgleak_tests::Build;

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
