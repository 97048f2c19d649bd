//! Any bytes as a file of the table cache, as they are and behind a header that fits.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use pgleak::unwind::{
    TableStats, UnwindTable,
    cache::{Key, decode, encode},
};
use tracer_ebpf::{lookup::MAX_ROWS_A_PAGE, unwind::Row};

const KEY: Key = Key([0; 32]);

fuzz_target!(|bytes: &[u8]| {
    let path = Path::new("fuzzed");
    let _ = decode(bytes, &KEY, path);
    let (words, _) = bytes.as_chunks::<8>();
    let rows: Vec<Row> = words.iter().map(|word| Row(u64::from_le_bytes(*word))).collect();
    let stats = TableStats { rows: rows.len() as u32, ..TableStats::default() };
    let hostile = UnwindTable { rows, pages: Vec::new(), stats };
    let Ok(table) = decode(&encode(&hostile, &KEY), &KEY, path) else { return };
    assert_eq!(table.rows, hostile.rows);
    assert!(table.rows[0].address() == 0);
    assert!(table.rows.windows(2).all(|pair| pair[0].address() < pair[1].address()));
    assert!(table.pages.windows(2).all(|pair| pair[1] - pair[0] <= MAX_ROWS_A_PAGE));
});
