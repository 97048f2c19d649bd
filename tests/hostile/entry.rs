//! Damaged files of the table cache, and ones whose checksum fits.

use std::path::Path;

use pgleak::{
    elf::Image,
    unwind::{
        UnwindTable,
        cache::{Key, decode, encode},
    },
};
use tracer_ebpf::{lookup::MAX_ROWS_A_PAGE, unwind::Row};

use pgleak_tests::damage::Random;

use crate::memory::most_bytes;

const KEY: Key = Key([3; 32]);

/// The index of 4 GiB, and something for the error.
const INDEX: usize = (4 << 22) + 4096;

fn read(bytes: &[u8]) -> Option<UnwindTable> {
    let (table, taken) = most_bytes(|| decode(bytes, &KEY, Path::new("hostile")).ok());
    assert!(taken <= bytes.len() + INDEX, "{taken} bytes for {}", bytes.len());
    table
}

fn libc() -> UnwindTable {
    let path = Path::new("/lib/x86_64-linux-gnu/libc.so.6");
    UnwindTable::build(&Image::open(path, path).unwrap()).unwrap().unwrap()
}

#[test]
fn a_damaged_file_is_no_table() {
    let whole = encode(&libc(), &KEY);
    assert!(read(&whole).is_some());
    let mut random = Random::new();
    for _ in 0..1000 {
        let mut bytes = whole.clone();
        random.damage(&mut bytes, 0..whole.len());
        bytes.truncate(bytes.len() - random.below(100));
        assert!(bytes == whole || read(&bytes).is_none());
    }
}

#[test]
fn rows_with_a_fitting_checksum_are_searchable_or_refused() {
    let table = libc();
    let (mut random, mut taken) = (Random::new(), 0);
    for _ in 0..1000 {
        let mut hostile = table.clone();
        for _ in 0..random.below(3) {
            let at = random.below(hostile.rows.len());
            hostile.rows[at] = Row(random.next());
        }
        hostile.rows.truncate(hostile.rows.len() - random.below(2));
        let Some(read) = read(&encode(&hostile, &KEY)) else { continue };
        taken += 1;
        assert!(read.rows.windows(2).all(|pair| pair[0].address() < pair[1].address()));
        assert!(read.pages.windows(2).all(|pair| pair[1] - pair[0] <= MAX_ROWS_A_PAGE));
        assert_eq!(read.pages.last().copied(), Some(read.rows.len() as u32 - 1));
    }
    assert!(taken > 200 && taken < 900, "{taken}");
}
