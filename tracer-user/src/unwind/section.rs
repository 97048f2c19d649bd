//! Where an image has its `.eh_frame`.

use gimli::{BaseAddresses, EhFrameHdr, LittleEndian, Pointer};
use object::read::elf::ProgramHeader as _;

use super::TableError;
use crate::{
    addr::VirtAddr,
    elf::{Image, eh_frame_bases},
};

/// The `.eh_frame` of an image.
pub(super) struct FrameSection<'a> {
    /// Its bytes; without section headers, everything up to the end of the segment.
    pub(super) bytes: &'a [u8],
    /// What pointers in it are relative to.
    pub(super) bases: BaseAddresses,
    /// Whether an entry of length zero is the end. With a known size it is not: a linker that
    /// puts `crtend.o` anywhere but last leaves the terminator in the middle.
    pub(super) ends_at_zero: bool,
}

impl<'a> FrameSection<'a> {
    /// The section by its name, or else through the program header that run-time unwinders use,
    /// which a file without section headers keeps. `None` if there is neither.
    pub(super) fn of(image: &'a Image) -> Result<Option<Self>, TableError> {
        let bases = eh_frame_bases(image);
        if let Some((_, bytes)) = image.section(".eh_frame").filter(|(_, bytes)| !bytes.is_empty()) {
            return Ok(Some(Self { bytes, bases, ends_at_zero: false }));
        }
        let elf = image.elf()?;
        let endian = elf.endian();
        let Some(header) = elf
            .elf_program_headers()
            .iter()
            .find(|header| header.p_type(endian) == object::elf::PT_GNU_EH_FRAME)
        else {
            return Ok(None);
        };
        let (address, len) = (VirtAddr(header.p_vaddr(endian)), header.p_memsz(endian));
        let outside = |address| TableError::OutsideFile { path: image.path().to_owned(), address };
        let damaged = |source| TableError::Header { path: image.path().to_owned(), header: address, source };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let bytes = image.bytes_at(address, len).ok_or_else(|| outside(address))?;
        let bases = bases.set_eh_frame_hdr(address.0);
        let parsed = EhFrameHdr::new(bytes, LittleEndian).parse(&bases, 8).map_err(damaged)?;
        let Pointer::Direct(start) = parsed.eh_frame_ptr() else {
            return Err(damaged(gimli::Error::UnsupportedPointerEncoding(gimli::DW_EH_PE_indirect)));
        };
        let bytes = image.bytes_at(VirtAddr(start), usize::MAX).ok_or_else(|| outside(VirtAddr(start)))?;
        Ok(Some(Self { bytes, bases: bases.set_eh_frame(start), ends_at_zero: true }))
    }
}
