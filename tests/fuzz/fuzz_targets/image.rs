//! Any bytes as an ELF file: opened, asked for everything, and its table compared.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use pgleak::{
    addr::{AbsAddr, FileOffset, VirtAddr},
    elf::{Image, function_ranges},
    unwind::Inspection,
};

fuzz_target!(|bytes: &[u8]| {
    let Ok(image) = Image::from_bytes(bytes.to_vec(), Path::new("fuzzed")) else { return };
    function_ranges(&image);
    for segment in image.segments() {
        let last = VirtAddr(segment.address.0.wrapping_add(segment.memory_bytes).wrapping_sub(1));
        for address in [segment.address, last] {
            image.file_offset(address);
            image.is_code(address);
            image.bytes_at(address, usize::MAX);
            image.word_at(address);
        }
        for offset in [segment.offset, FileOffset(segment.offset.0.wrapping_add(segment.file_bytes))] {
            image.code_bias(AbsAddr(0x7f00_0000_0000), offset);
        }
    }
    if let Ok(found) = Inspection::of(&image) {
        assert!(!found.to_string().is_empty());
    }
});
