//! One ELF file in memory: where its addresses are in the file and in a process.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use memmap2::Mmap;
use object::{
    Endianness, Object as _, ObjectSection as _, ObjectSegment as _,
    read::elf::{ElfFile64, FileHeader as _},
};

use crate::addr::{AbsAddr, Bias, BuildId, FileOffset, VirtAddr};

const PAGE: u64 = 4096;

/// Why a file cannot be used as an ELF image.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// The file cannot be opened or mapped.
    #[error("cannot open {path}: {source}")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not a 64-bit little-endian ELF file, or a damaged one.
    #[error("{path} is not a readable 64-bit ELF file: {source}")]
    Parse {
        /// Which.
        path: PathBuf,
        /// Why.
        source: object::Error,
    },
    /// An architecture other than x86_64.
    #[error("{path} is not built for x86_64 (ELF machine {machine}); pgleak traces x86_64 only")]
    Machine {
        /// Which.
        path: PathBuf,
        /// `e_machine`.
        machine: u16,
    },
}

enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

/// A loadable segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First virtual address.
    pub address: VirtAddr,
    /// Bytes in memory.
    pub memory_bytes: u64,
    /// Where it begins in the file.
    pub offset: FileOffset,
    /// Bytes in the file.
    pub file_bytes: u64,
    /// Whether it is executable.
    pub executable: bool,
}

/// An x86_64 ELF file.
pub struct Image {
    bytes: Bytes,
    path: PathBuf,
    segments: Vec<Segment>,
    build_id: Option<BuildId>,
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Image").field("path", &self.path).field("build_id", &self.build_id).finish()
    }
}

impl Image {
    /// Maps the file at `open_at`, which may be a link in `/proc`; `path` is what messages and
    /// reports call it.
    ///
    /// # Errors
    /// If the file cannot be opened or is not ELF for x86_64.
    pub fn open(open_at: &Path, path: &Path) -> Result<Self, ElfError> {
        let open = || {
            let file = File::open(open_at)?;
            // SAFETY: the mapping is private and read-only. A file that is truncated below it
            // would end pgleak by SIGBUS, which takes its probes with it and leaves the traced
            // process alone; package managers replace libraries by rename and never truncate.
            unsafe { Mmap::map(&file) }
        };
        let map = open().map_err(|source| ElfError::Open { path: path.to_owned(), source })?;
        Self::new(Bytes::Mapped(map), path)
    }

    /// An image that was read from memory, such as the vDSO.
    ///
    /// # Errors
    /// If the bytes are not ELF for x86_64.
    pub fn from_bytes(bytes: Vec<u8>, path: &Path) -> Result<Self, ElfError> {
        Self::new(Bytes::Owned(bytes), path)
    }

    fn new(bytes: Bytes, path: &Path) -> Result<Self, ElfError> {
        let mut image = Self { bytes, path: path.to_owned(), segments: Vec::new(), build_id: None };
        let elf = image.elf()?;
        let machine = elf.elf_header().e_machine(elf.endian());
        if machine != object::elf::EM_X86_64 {
            return Err(ElfError::Machine { path: path.to_owned(), machine });
        }
        let segments = elf
            .segments()
            .map(|segment| {
                let (offset, file_bytes) = segment.file_range();
                Segment {
                    address: VirtAddr(segment.address()),
                    memory_bytes: segment.size(),
                    offset: FileOffset(offset),
                    file_bytes,
                    executable: matches!(
                        segment.flags(),
                        object::SegmentFlags::Elf { p_flags } if p_flags & object::elf::PF_X != 0
                    ),
                }
            })
            .collect();
        let build_id = elf.build_id().ok().flatten().map(|id| BuildId(id.to_owned()));
        image.segments = segments;
        image.build_id = build_id;
        Ok(image)
    }

    /// The parsed file. Parsing reads the headers only, so this is cheap.
    ///
    /// # Errors
    /// If the file is not ELF.
    pub fn elf(&self) -> Result<ElfFile64<'_, Endianness>, ElfError> {
        ElfFile64::parse(self.bytes()).map_err(|source| ElfError::Parse { path: self.path.clone(), source })
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }

    /// What the file is called in messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its GNU build ID, if it has one.
    pub fn build_id(&self) -> Option<&BuildId> {
        self.build_id.as_ref()
    }

    /// Its loadable segments.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Where a virtual address is in the file; `None` outside of what the file holds.
    pub fn file_offset(&self, address: VirtAddr) -> Option<FileOffset> {
        self.segments.iter().find_map(|segment| {
            let at = address.0.checked_sub(segment.address.0)?;
            (at < segment.file_bytes).then(|| segment.offset.offset(at))
        })
    }

    /// Whether an address lies in an executable segment.
    pub fn is_code(&self, address: VirtAddr) -> bool {
        self.segments.iter().any(|segment| {
            segment.executable
                && address.0.checked_sub(segment.address.0).is_some_and(|at| at < segment.memory_bytes)
        })
    }

    /// Up to `len` bytes of the file from a virtual address, fewer at the end of its segment.
    pub fn bytes_at(&self, address: VirtAddr, len: usize) -> Option<&[u8]> {
        self.segments.iter().find_map(|segment| {
            let at = address.0.checked_sub(segment.address.0)?;
            let left = segment.file_bytes.checked_sub(at).filter(|left| *left > 0)?;
            let start = usize::try_from(segment.offset.0.checked_add(at)?).ok()?;
            let end = start.checked_add(len.min(usize::try_from(left).ok()?))?;
            self.bytes().get(start..end.min(self.bytes().len()))
        })
    }

    /// The 8 bytes in the file at a virtual address.
    pub fn word_at(&self, address: VirtAddr) -> Option<u64> {
        self.bytes_at(address, 8)?.try_into().ok().map(u64::from_le_bytes)
    }

    /// The bias of a process that has code of file offset `offset` mapped at `start`; `None` if no
    /// executable segment covers that offset. Only code: neighbouring segments share a page of
    /// the file and are mapped with it twice, so that the offset alone would not tell them apart.
    pub fn code_bias(&self, start: AbsAddr, offset: FileOffset) -> Option<Bias> {
        self.segments.iter().filter(|segment| segment.executable).find_map(|segment| {
            let page_offset = segment.offset.0 & !(PAGE - 1);
            let end = segment.offset.0.checked_add(segment.file_bytes)?;
            (offset.0 >= page_offset && offset.0 < end).then(|| {
                let page_address = segment.address.0 & !(PAGE - 1);
                Bias(start.0.wrapping_sub(page_address.wrapping_add(offset.0 - page_offset)))
            })
        })
    }

    /// A section's virtual address and bytes as they are in the file (not for compressed ones).
    pub fn section(&self, name: &str) -> Option<(VirtAddr, &[u8])> {
        let elf = self.elf().ok()?;
        let section = elf.section_by_name(name)?;
        let address = VirtAddr(section.address());
        let (offset, size) = section.file_range()?;
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(size).ok()?)?;
        self.bytes().get(start..end).map(|bytes| (address, bytes))
    }
}
