//! The `.eh_frame` section: where it is, also in a file without section headers, and its FDEs
//! one by one.

use gimli::{
    BaseAddresses, CommonInformationEntry, EhFrame, EhFrameHdr, EhFrameOffset, EndianSlice,
    FrameDescriptionEntry, LittleEndian, UnwindSection as _,
};
use object::{
    Endianness,
    read::elf::{ElfFile64, ProgramHeader as _},
};

use super::{FunctionRange, Image};
use crate::addr::VirtAddr;

/// Bytes of a section.
pub type Bytes<'a> = EndianSlice<'a, LittleEndian>;
/// The description of one function.
pub type Fde<'a> = FrameDescriptionEntry<Bytes<'a>>;

/// The longest CIE that is believed: real ones take less than 100 bytes. Every FDE runs its
/// CIE's program, so that a long one would cost its length times the number of FDEs.
const LONGEST_CIE: usize = 4096;

/// A length that says that the true one follows in 64 bits (LSB Core, "Exception Frames").
const EXTENDED_LENGTH: u32 = u32::MAX;

/// The `.eh_frame` of an object.
#[derive(Clone, Debug)]
pub struct FrameSection<'a> {
    bytes: &'a [u8],
    section: EhFrame<Bytes<'a>>,
    bases: BaseAddresses,
}

/// Why there is no FDE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FdeError {
    /// This one is damaged; the next may be sound.
    #[error("the entry at {at:#x} of .eh_frame cannot be read: {source}")]
    Broken {
        /// Offset in the section.
        at: usize,
        /// What is wrong.
        source: gimli::Error,
    },
    /// There is no way to the next.
    #[error("the .eh_frame is damaged at {at:#x}: the entry's length leads out of it")]
    Cut {
        /// Offset in the section.
        at: usize,
    },
}

impl<'a> FrameSection<'a> {
    /// The section of an object; `None` if it has none. Without section headers it is found as
    /// the C++ runtime finds it, from the program header `PT_GNU_EH_FRAME`.
    pub fn of(image: &'a Image) -> Option<Self> {
        let (address, bytes) = image.section(".eh_frame").or_else(|| by_program_header(image))?;
        let mut bases = BaseAddresses::default().set_eh_frame(address.0);
        if let Some((address, _)) = image.section(".text") {
            bases = bases.set_text(address.0);
        }
        if let Some((address, _)) = image.section(".got") {
            bases = bases.set_got(address.0);
        }
        Some(Self::new(bytes, bases))
    }

    /// A section from its bytes.
    pub fn new(bytes: &'a [u8], bases: BaseAddresses) -> Self {
        let mut section = EhFrame::new(bytes, LittleEndian);
        section.set_address_size(8);
        Self { bytes, section, bases }
    }

    /// As gimli knows it.
    pub fn section(&self) -> &EhFrame<Bytes<'a>> {
        &self.section
    }

    /// What its pointers may be relative to.
    pub fn bases(&self) -> &BaseAddresses {
        &self.bases
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Its FDEs in the order of the section. Steps by the lengths of the entries, so that one
    /// that cannot be read does not hide the others.
    pub fn fdes(&self) -> Fdes<'_, 'a> {
        Fdes { section: self, at: 0, cie: None }
    }
}

/// The code that an FDE describes; `None` if that is none.
pub fn described_range(fde: &Fde<'_>) -> Option<FunctionRange> {
    let start = fde.initial_address();
    let end = start.checked_add(fde.len()).filter(|end| *end > start)?;
    Some(FunctionRange { start: VirtAddr(start), end: VirtAddr(end) })
}

/// See [`FrameSection::fdes`].
#[derive(Debug)]
pub struct Fdes<'s, 'a> {
    section: &'s FrameSection<'a>,
    at: usize,
    /// The CIE that was read last: neighbours share theirs.
    cie: Option<CommonInformationEntry<Bytes<'a>>>,
}

impl<'a> Iterator for Fdes<'_, 'a> {
    type Item = Result<Fde<'a>, FdeError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let at = self.at;
            let bytes = self.section.bytes;
            if at >= bytes.len() {
                return None;
            }
            let Some((body, end)) = entry(bytes, at) else {
                self.at = bytes.len();
                return Some(Err(FdeError::Cut { at }));
            };
            if body == end {
                // An entry of no length ends the section.
                self.at = bytes.len();
                return None;
            }
            self.at = end;
            match bytes[body..end].first_chunk() {
                // A CIE; FDEs bring theirs along.
                Some([0, 0, 0, 0]) => {}
                Some(_) => {
                    return Some(self.parse(at).map_err(|source| FdeError::Broken { at, source }));
                }
                None => {
                    let source = gimli::Error::UnexpectedEof(gimli::ReaderOffsetId(at as u64));
                    return Some(Err(FdeError::Broken { at, source }));
                }
            }
        }
    }
}

impl<'a> Fdes<'_, 'a> {
    fn parse(&mut self, at: usize) -> gimli::Result<Fde<'a>> {
        let known = &mut self.cie;
        let FrameSection { section, bases, .. } = self.section;
        section.fde_from_offset(bases, EhFrameOffset(at), |section, bases, offset| {
            if let Some(cie) = known.as_ref().filter(|cie| cie.offset() == offset.0) {
                return Ok(cie.clone());
            }
            let cie = section.cie_from_offset(bases, offset)?;
            if cie.entry_len() > LONGEST_CIE {
                return Err(gimli::Error::TooManyIterations);
            }
            *known = Some(cie.clone());
            Ok(cie)
        })
    }
}

/// Where the body of the entry at `at` begins and ends; `None` if that is outside of `bytes`.
fn entry(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let short = u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?);
    let (body, length) = if short == EXTENDED_LENGTH {
        let long = u64::from_le_bytes(*bytes.get(at + 4..)?.first_chunk()?);
        (at + 12, usize::try_from(long).ok()?)
    } else {
        (at + 4, short as usize)
    };
    let end = body.checked_add(length).filter(|end| *end <= bytes.len())?;
    Some((body, end))
}

/// From `PT_GNU_EH_FRAME` to `.eh_frame_hdr` to `.eh_frame` (LSB Core, "The .eh_frame_hdr
/// section"). Neither header says how long the section is; the last entry of the search table
/// does, and without one the section goes on to an entry of no length.
fn by_program_header(image: &Image) -> Option<(VirtAddr, &[u8])> {
    let elf: ElfFile64<'_, Endianness> = image.elf().ok()?;
    let endian = elf.endian();
    let header = elf
        .elf_program_headers()
        .iter()
        .find(|header| header.p_type(endian) == object::elf::PT_GNU_EH_FRAME)?;
    let address = VirtAddr(header.p_vaddr(endian));
    let bytes = image.bytes_at(address, usize::try_from(header.p_filesz(endian)).ok()?)?;
    let bases = BaseAddresses::default().set_eh_frame_hdr(address.0);
    let parsed = EhFrameHdr::new(bytes, LittleEndian).parse(&bases, 8).ok()?;
    let start = parsed.eh_frame_ptr().direct().ok()?;
    let mut section = image.bytes_at(VirtAddr(start), usize::MAX)?;
    if let Some(table) = parsed.table() {
        let last = table
            .iter(&bases)
            .map_while(Result::ok)
            .filter_map(|(_, fde)| fde.direct().ok()?.checked_sub(start))
            .max();
        let end = last.and_then(|last| entry(section, usize::try_from(last).ok()?));
        if let Some((_, end)) = end {
            section = &section[..end];
        }
    }
    Some((VirtAddr(start), section))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{elf::function_ranges, target::LoadedModules};

    /// glibc, the dynamic linker, this program and the vDSO, as this process has them.
    fn images() -> Vec<Vec<u8>> {
        let modules = LoadedModules::read(std::process::id()).expect("own mappings");
        let wanted = |path: &Path| {
            ["libc.so", "ld-linux", "vdso"].iter().any(|name| path.to_string_lossy().contains(name))
        };
        let found = modules.modules().iter().filter(|module| module.is_main || wanted(&module.path));
        let mut found: Vec<_> = found.map(|module| module.image.bytes().to_vec()).collect();
        assert_eq!(found.len(), 4);
        found.sort_by_key(Vec::len);
        found
    }

    fn image(bytes: &[u8]) -> Image {
        Image::from_bytes(bytes.to_vec(), Path::new("test")).expect("an ELF file")
    }

    /// Zeroes `e_shoff`, `e_shnum` and `e_shstrndx` (elf(5)), as `strip --strip-section-headers`.
    fn strip(bytes: &mut [u8]) {
        bytes[0x28..0x30].fill(0);
        bytes[0x3c..0x40].fill(0);
    }

    /// Offset in the file of `PT_GNU_EH_FRAME`'s content.
    fn search_table(bytes: &[u8]) -> usize {
        let image = image(bytes);
        let (address, _) = image.section(".eh_frame_hdr").expect("a search table");
        image.file_offset(address).expect("in the file").0 as usize
    }

    #[test]
    fn is_found_without_section_headers() {
        for bytes in images() {
            let whole = image(&bytes);
            let (address, section) = whole.section(".eh_frame").expect("section headers");
            let mut stripped = bytes.clone();
            strip(&mut stripped);
            let stripped = image(&stripped);
            assert!(stripped.section(".eh_frame").is_none(), "it was stripped");

            let (found_at, found) = by_program_header(&stripped).expect("a program header");
            assert_eq!(found_at, address);
            // The section's last four bytes may be the entry of no length that ends it.
            assert!(section.starts_with(found) && section.len() - found.len() <= 4);
            let ranges = function_ranges(&whole);
            assert!(ranges.len() >= 7);
            assert_eq!(function_ranges(&stripped), ranges);
        }
    }

    #[test]
    fn is_found_without_the_search_table_too() {
        for mut bytes in images() {
            let ranges = function_ranges(&image(&bytes));
            let at = search_table(&bytes);
            // DW_EH_PE_omit for the table's encoding.
            bytes[at + 3] = 0xff;
            strip(&mut bytes);
            let mut found = function_ranges(&image(&bytes));
            // A section without an end goes on into what follows it, which is none of its own.
            found.retain(|range| ranges.binary_search(range).is_ok());
            assert_eq!(found, ranges);
        }
    }

    #[test]
    fn a_damaged_search_header_is_survived() {
        let bytes = images().swap_remove(1);
        let at = search_table(&bytes);
        let (mut found, mut refused) = (0, 0);
        for field in 0..12 {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at + field] = value;
                strip(&mut damaged);
                let damaged = image(&damaged);
                match FrameSection::of(&damaged) {
                    // Wherever it leads, reading it ends.
                    Some(section) => found += usize::from(section.fdes().count() < bytes.len()),
                    None => refused += 1,
                }
            }
        }
        assert!(found + refused == 60 && found > 0 && refused > 0, "{found} found, {refused} refused");
    }

    #[test]
    fn is_not_there_without_either_header() {
        let mut bytes = images().swap_remove(1);
        strip(&mut bytes);
        let headers = u64::from_le_bytes(bytes[0x20..0x28].try_into().expect("8 bytes")) as usize;
        let count = usize::from(u16::from_le_bytes([bytes[0x38], bytes[0x39]]));
        for header in 0..count {
            let kind = headers + header * 56;
            if bytes[kind..kind + 4] == object::elf::PT_GNU_EH_FRAME.to_le_bytes() {
                bytes[kind..kind + 4].fill(0);
            }
        }
        assert!(FrameSection::of(&image(&bytes)).is_none());
        assert!(function_ranges(&image(&bytes)).is_empty());
    }
}
