//! Damaged ELF files and `.eh_frame` sections: the image, function ranges, the table, the check.

use std::{ops::Range, path::Path};

use pgleak::{
    elf::{FrameSection, Image, function_ranges},
    unwind::{Inspection, Unsupported, UnwindTable},
};
use pgleak_tests::Build;

use pgleak_tests::damage::Random;

use crate::memory::most_bytes;

/// Bytes of memory for a byte of the section. An FDE of twelve bytes has a row and a span, 48
/// bytes in all; a list that grows holds its old and its new place for a moment, up to three
/// times as much; and the rows are copied once, when they are sorted.
const FOR_A_BYTE: usize = 32;

/// For gimli's registers and remembered states, whatever the section.
const AT_LEAST: usize = 128 << 10;

/// Files with a section that is small enough for thousands of tables: compiled code, and the
/// hand-written rules of libc's start files.
fn originals() -> Vec<Vec<u8>> {
    let build = Build::all().unwrap().remove(0);
    let libraries = build.postgres().parent().unwrap().join("../lib");
    let names = ["plpgsql.so", "pgoutput.so"];
    let found: Vec<_> = names.iter().filter_map(|name| std::fs::read(libraries.join(name)).ok()).collect();
    assert_eq!(found.len(), names.len(), "{} lacks some of {names:?}", libraries.display());
    found
}

fn image(bytes: &[u8]) -> Option<Image> {
    Image::from_bytes(bytes.to_vec(), Path::new("hostile")).ok()
}

/// Where the section is in the file.
fn section(original: &[u8]) -> Range<usize> {
    let image = image(original).unwrap();
    let (_, bytes) = image.section(".eh_frame").unwrap();
    let start = bytes.as_ptr() as usize - image.bytes().as_ptr() as usize;
    start..start + bytes.len()
}

/// What the index may take: one entry for each KiB up to the end of the code.
fn index_bytes(image: &Image) -> usize {
    let code = image.segments().iter().filter(|segment| segment.executable);
    let end = code.map(|segment| segment.address.0.saturating_add(segment.file_bytes)).max().unwrap_or(0);
    4 * ((end.min(1 << 32) >> 10) as usize + 2)
}

/// Everything that is made of an image, within its bounds. Whether there is a table.
fn exhaust(image: &Image) -> bool {
    let bytes = FrameSection::of(image).ok().flatten().map_or(0, |section| section.bytes.len());
    let limit = AT_LEAST + FOR_A_BYTE * bytes;
    let (_, taken) = most_bytes(|| function_ranges(image));
    assert!(taken <= limit, "function ranges: {taken} bytes for a section of {bytes}");
    let (table, taken) = most_bytes(|| UnwindTable::build(image));
    assert!(taken <= limit + index_bytes(image), "table: {taken} bytes for a section of {bytes}");
    let Ok(Some(table)) = table else { return false };
    assert!(table.rows.windows(2).all(|pair| pair[0].address() < pair[1].address()));
    assert_eq!(table.rows[0].address(), 0);
    true
}

#[test]
fn damaged_sections_cost_no_more_memory_than_their_size_allows() {
    let mut random = Random::new();
    for original in originals() {
        let range = section(&original);
        let mut tables = 0;
        for _ in 0..1500 {
            let mut bytes = original.clone();
            random.damage(&mut bytes, range.clone());
            tables += u32::from(exhaust(&image(&bytes).unwrap()));
        }
        assert!(tables > 1400, "{tables} tables of 1500");
    }
}

#[test]
fn damaged_headers_are_refused_or_give_what_the_file_holds() {
    let mut random = Random::new();
    let original = originals().remove(0);
    // The ELF header and program headers in front, the section headers behind.
    let section_headers = original.len() - 64 * 32..original.len();
    let (mut opened, mut tables) = (0, 0);
    for at in 0..3000 {
        let mut bytes = original.clone();
        random.damage(&mut bytes, if at % 2 == 0 { 0..64 + 56 * 10 } else { section_headers.clone() });
        bytes.truncate(bytes.len() - random.below(if at % 8 == 0 { bytes.len() } else { 1 }));
        let Some(image) = image(&bytes) else { continue };
        opened += 1;
        tables += u32::from(exhaust(&image));
        // Also what only counts: sizes of sections that no file has.
        let _ = Inspection::of(&image);
    }
    assert!(opened > 1000 && opened < 3000 && tables > 500, "{opened} opened, {tables} tables");
}

#[test]
fn the_check_agrees_with_gimli_on_damaged_sections_too() {
    let mut random = Random::new();
    let original = originals().remove(0);
    let range = section(&original);
    let (mut agreeing, mut overlapping) = (0, 0);
    for _ in 0..300 {
        let mut bytes = original.clone();
        random.damage(&mut bytes, range.clone());
        let Ok(found) = Inspection::of(&image(&bytes).unwrap()) else { continue };
        // Of FDEs that overlap the first one holds, so the others cannot agree.
        let refused = [Unsupported::Instructions, Unsupported::LongCie, Unsupported::ReturnColumn];
        let refused: u64 = refused
            .iter()
            .filter_map(|why| found.comparison.reasons.get(why))
            .map(|refused| refused.rows)
            .sum();
        let is_overlapping = u64::from(found.stats.broken_fdes) > found.comparison.skipped_fdes + refused;
        agreeing += u32::from(found.agrees());
        overlapping += u32::from(is_overlapping);
        assert!(found.agrees() || is_overlapping, "{found}");
    }
    assert!(agreeing > 150 && overlapping > 0, "{agreeing} agree, {overlapping} overlap");
}

/// Sections that are as expensive as their bytes can make them.
#[test]
fn sections_made_for_their_memory_keep_to_the_limit() {
    let original = originals().remove(0);
    let range = section(&original);
    let of = |bytes: &[u8]| {
        let code = image(&original).unwrap().segments().iter().find(|s| s.executable).unwrap().address.0;
        let record = |content: &[u8]| [&(content.len() as u32).to_le_bytes(), content].concat();
        let cie = record(&[0, 0, 0, 0, 1, 0, 1, 0x78, 16, 0x0c, 7, 8, 0x90, 1]);
        let mut made = cie;
        while made.len() < range.len() {
            let left = range.len() - made.len();
            let mut content = ((made.len() + 4) as u32).to_le_bytes().to_vec();
            content.extend((code + made.len() as u64 % 0x1000).to_le_bytes());
            content.extend(0x400_u64.to_le_bytes());
            content.extend(bytes);
            content.truncate(left.saturating_sub(4));
            made.extend(record(&content));
        }
        let mut file = original.clone();
        file[range.clone()].copy_from_slice(&made[..range.len()]);
        exhaust(&image(&file).unwrap())
    };
    assert!(of(&[]), "the shortest FDEs");
    let rows: Vec<u8> = (0..600_u32).flat_map(|at| [0x41, 0x0e, 8 + 8 * (at % 8) as u8]).collect();
    // More rows in a page than the search reaches: refused, and only after they were made.
    assert!(!of(&rows), "as many rows as bytes allow");
    assert!(of(&[0x0a; 200]), "states without end");
    let states: Vec<u8> = [0x41, 0x0a, 0x0e, 16, 0x41, 0x0b].repeat(100);
    assert!(of(&states), "remembered states");
}
