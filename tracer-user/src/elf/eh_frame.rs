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
