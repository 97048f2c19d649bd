//! Where an image has its `.eh_frame`, and its records one by one.

use std::path::PathBuf;

use gimli::{BaseAddresses, EhFrameHdr, LittleEndian, Pointer};
use object::read::elf::ProgramHeader as _;

use super::{ElfError, Image};
use crate::addr::VirtAddr;

/// Why an image's `.eh_frame` cannot be found though there should be one.
#[derive(Debug, thiserror::Error)]
pub enum FrameSectionError {
    /// Not a readable ELF file.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// There are no section headers, and the header that leads to `.eh_frame` is damaged.
    #[error("cannot find .eh_frame of {path} through PT_GNU_EH_FRAME at {header}: {source}")]
    Header {
        /// The file.
        path: PathBuf,
        /// Where `.eh_frame_hdr` should be.
        header: VirtAddr,
        /// Why it cannot be used.
        source: gimli::Error,
    },
    /// There are no section headers, and the header that leads to `.eh_frame` points outside of
    /// the file.
    #[error("cannot find .eh_frame of {path} through PT_GNU_EH_FRAME: {address} is not in the file")]
    OutsideFile {
        /// The file.
        path: PathBuf,
        /// The header's address, or where it says that `.eh_frame` is.
        address: VirtAddr,
    },
}

/// The `.eh_frame` of an image.
#[derive(Clone, Debug)]
pub struct FrameSection<'a> {
    /// Its bytes; of a file without section headers or search table everything up to the end of
    /// the segment.
    pub bytes: &'a [u8],
    /// What pointers in it are relative to.
    pub bases: BaseAddresses,
    /// Whether an entry of length zero is the end. With a known size it is not: a linker that
    /// puts `crtend.o` anywhere but last leaves the terminator in the middle.
    pub ends_at_zero: bool,
}

impl<'a> FrameSection<'a> {
    /// The section by its name, or else through the program header that run-time unwinders use,
    /// which a file without section headers keeps. `None` if there is neither.
    ///
    /// # Errors
    /// If there is a program header and it leads nowhere.
    pub fn of(image: &'a Image) -> Result<Option<Self>, FrameSectionError> {
        let mut bases = BaseAddresses::default();
        if let Some((address, _)) = image.section(".text") {
            bases = bases.set_text(address.0);
        }
        if let Some((address, _)) = image.section(".got") {
            bases = bases.set_got(address.0);
        }
        match image.section(".eh_frame").filter(|(_, bytes)| !bytes.is_empty()) {
            Some((address, bytes)) => {
                Ok(Some(Self { bytes, bases: bases.set_eh_frame(address.0), ends_at_zero: false }))
            }
            None => Self::by_program_header(image, bases),
        }
    }

    fn by_program_header(image: &'a Image, bases: BaseAddresses) -> Result<Option<Self>, FrameSectionError> {
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
        let outside = |address| FrameSectionError::OutsideFile { path: image.path().to_owned(), address };
        let damaged =
            |source| FrameSectionError::Header { path: image.path().to_owned(), header: address, source };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let bytes = image.bytes_at(address, len).ok_or_else(|| outside(address))?;
        let bases = bases.set_eh_frame_hdr(address.0);
        let parsed = EhFrameHdr::new(bytes, LittleEndian).parse(&bases, 8).map_err(damaged)?;
        let Pointer::Direct(start) = parsed.eh_frame_ptr() else {
            return Err(damaged(gimli::Error::UnsupportedPointerEncoding(gimli::DW_EH_PE_indirect)));
        };
        let bytes = image.bytes_at(VirtAddr(start), usize::MAX).ok_or_else(|| outside(VirtAddr(start)))?;
        let bases = bases.set_eh_frame(start);
        // Neither header tells the size, and not every linker writes a terminator. The search
        // table has every FDE, so the section ends behind the last of them.
        let last = parsed.table().and_then(|table| {
            let fdes = table.iter(&bases).map_while(Result::ok);
            let offsets = fdes.filter_map(|(_, fde)| fde.direct().ok()?.checked_sub(start));
            offsets.max().and_then(|offset| usize::try_from(offset).ok())
        });
        let end = last.and_then(|at| record(bytes, at)).map(|record| record.end);
        Ok(Some(Self {
            bytes: end.and_then(|end| bytes.get(..end)).unwrap_or(bytes),
            bases,
            ends_at_zero: end.is_none(),
        }))
    }

    /// Its records, CIEs and FDEs, in their order.
    pub fn records(&self) -> Records<'a> {
        Records { bytes: self.bytes, at: 0, ends_at_zero: self.ends_at_zero, ended: false }
    }
}

/// The records of a section by their lengths alone, so that one that cannot be read does not
/// hide the others. Gives the offset of each.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
    ends_at_zero: bool,
    ended: bool,
}

impl Records<'_> {
    /// After the last one: the bytes at the end of the section that are no records, because a
    /// length leads out of it.
    pub fn unread_bytes(&self) -> usize {
        if self.ended { 0 } else { self.bytes.len() - self.at }
    }
}

impl Iterator for Records<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        while !self.ended {
            let found = record(self.bytes, self.at)?;
            if found.is_empty() && self.ends_at_zero {
                self.ended = true;
                break;
            }
            let offset = std::mem::replace(&mut self.at, found.end);
            if !found.is_empty() {
                return Some(offset);
            }
        }
        None
    }
}

/// Where the content of the record at `at` is; `None` if it leads out of the section.
fn record(bytes: &[u8], at: usize) -> Option<std::ops::Range<usize>> {
    let (short, rest) = bytes.get(at..)?.split_first_chunk::<4>()?;
    let (len, rest) = match u32::from_le_bytes(*short) {
        u32::MAX => {
            let (long, rest) = rest.split_first_chunk::<8>()?;
            (usize::try_from(u64::from_le_bytes(*long)).ok()?, rest)
        }
        len => (len as usize, rest),
    };
    let after = rest.get(len..)?;
    let end = bytes.len() - after.len();
    Some(end - len..end)
}
