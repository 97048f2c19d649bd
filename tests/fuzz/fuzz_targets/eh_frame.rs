//! Any bytes as the `.eh_frame` of a file that is sound otherwise: the table is one that the
//! kernel can search, and the comparison with gimli comes to an end.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use pgleak::{
    addr::VirtAddr,
    elf::Image,
    unwind::{Atlas, UnwindTable, check::compare},
};
use tracer_ebpf::lookup::MAX_ROWS_A_PAGE;

/// Zeros between the headers and the section, for FDEs to be about.
const CODE: usize = 0x4000;

const NAMES: &[u8] = b"\0.eh_frame\0";

fuzz_target!(|section: &[u8]| {
    let image = Image::from_bytes(file_with(section), Path::new("fuzzed")).expect("a sound file");
    let Ok(Some(table)) = UnwindTable::build(&image) else { return };
    assert!(table.rows.windows(2).all(|pair| pair[0].address() < pair[1].address()));
    assert!(table.pages.windows(2).all(|pair| pair[1] - pair[0] <= MAX_ROWS_A_PAGE));
    // An instruction of one byte cannot make a row, and rows that follow an FDE are one each.
    assert!(table.rows.len() <= section.len() + 2);
    let mut atlas = Atlas::new();
    let placement = atlas.add(&table).expect("it is the only one");
    for row in &table.rows {
        assert_eq!(atlas.find(placement, VirtAddr(row.address())), Some(*row));
    }
    compare(&image, &atlas, placement).expect("it was found for the table");
});

/// An ELF file with one executable segment of everything, and the section at its end.
fn file_with(section: &[u8]) -> Vec<u8> {
    const HEADER: usize = 64;
    const PROGRAM_HEADER: usize = 56;
    const SECTION_HEADER: usize = 64;
    let start = HEADER + PROGRAM_HEADER + CODE;
    let names = start + section.len();
    let headers = names + NAMES.len();
    let len = headers + 3 * SECTION_HEADER;
    let mut file = Vec::with_capacity(len);
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for (value, bytes) in [
        (3, 2), // ET_DYN
        (62, 2), // EM_X86_64
        (1, 4),
        (0, 8),
        (HEADER, 8),
        (headers, 8),
        (0, 4),
        (HEADER, 2),
        (PROGRAM_HEADER, 2),
        (1, 2),
        (SECTION_HEADER, 2),
        (3, 2),
        (2, 2),
        // PT_LOAD, readable and executable, everything at 0.
        (1, 4),
        (5, 4),
        (0, 8),
        (0, 8),
        (0, 8),
        (len, 8),
        (len, 8),
        (0x1000, 8),
    ] {
        file.extend(&value.to_le_bytes()[..bytes]);
    }
    file.resize(start, 0);
    file.extend(section);
    file.extend(NAMES);
    // Name, kind, flags, address, offset, size; link, info, alignment, entry size.
    for (name, kind, offset, size) in
        [(0, 0, 0, 0), (1, 1, start, section.len()), (0, 3, names, NAMES.len())]
    {
        for (value, bytes) in [(name, 4), (kind, 4), (2, 8), (offset, 8), (offset, 8), (size, 8)] {
            file.extend(&value.to_le_bytes()[..bytes]);
        }
        file.extend([0; 24]);
    }
    file
}
