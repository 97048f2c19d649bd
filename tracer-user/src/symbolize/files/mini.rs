//! MiniDebugInfo: a symbol table that Fedora and its relatives leave in stripped files, as an ELF
//! file packed by xz in `.gnu_debugdata`.

use std::io::{self, Read as _};

use lzma_rust2::XzReader;

use super::FileNote;
use crate::elf::Image;

/// Symbols of the largest server binaries take some MiB; what claims to be larger is crafted.
const MOST_BYTES: u64 = 64 << 20;

/// Memory for the dictionary, in KiB: that of `xz -9`.
const MOST_MEMORY_KIB: u32 = 65 << 10;

/// The file in the file, if there is one.
///
/// # Errors
/// If it is damaged, too large, or not ELF.
pub(in crate::symbolize) fn mini_debug_info(image: &Image) -> Result<Option<Image>, FileNote> {
    let Some((_, packed)) = image.section(".gnu_debugdata") else { return Ok(None) };
    let bytes = unpack(packed).map_err(FileNote::Mini)?;
    Ok(Some(Image::from_bytes(bytes, image.path())?))
}

fn unpack(packed: &[u8]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut reader = XzReader::new_mem_limit(packed, false, MOST_MEMORY_KIB).take(MOST_BYTES + 1);
    reader.read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it unpacks to more than any symbol table"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf 'symbols' | xz -9 --check=crc32`
    const PACKED: &[u8] = &[
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x00, 0x21, 0x01, 0x1c,
        0x00, 0x00, 0x00, 0x10, 0xcf, 0x58, 0xcc, 0x01, 0x00, 0x06, 0x73, 0x79, 0x6d, 0x62, 0x6f, 0x6c, 0x73,
        0x00, 0x00, 0x85, 0x4d, 0x83, 0xdf, 0x00, 0x01, 0x1b, 0x07, 0x12, 0xeb, 0xd4, 0x17, 0x90, 0x42, 0x99,
        0x0d, 0x01, 0x00, 0x00, 0x00, 0x00, 0x01, 0x59, 0x5a,
    ];

    #[test]
    fn xz_is_unpacked_and_damage_is_an_error() {
        assert_eq!(unpack(PACKED).expect("sound"), b"symbols");
        for cut in 0..PACKED.len() {
            assert!(unpack(&PACKED[..cut]).is_err(), "{cut} bytes");
        }
        for at in 0..PACKED.len() {
            let mut damaged = PACKED.to_vec();
            damaged[at] ^= 0x55;
            assert!(unpack(&damaged).is_err(), "byte {at}");
        }
    }
}
