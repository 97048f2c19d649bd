//! Sections of DWARF as readers take them: shared, and decompressed if need be.

use std::{fmt, ops::Deref, sync::Arc};

use gimli::{EndianReader, LittleEndian, SectionId};
use object::{CompressionFormat, Object as _, ObjectSection as _};

use super::dwarf::DwarfError;
use crate::elf::Image;

/// A section that claims to be larger than this when decompressed is damaged or crafted.
const MOST_DECOMPRESSED_BYTES: u64 = 1 << 30;

/// Sections that functions and lines are in. Variables and macros take more room than all of these.
const NEEDED: &[SectionId] = &[
    SectionId::DebugAbbrev,
    SectionId::DebugAddr,
    SectionId::DebugAranges,
    SectionId::DebugInfo,
    SectionId::DebugLine,
    SectionId::DebugLineStr,
    SectionId::DebugRanges,
    SectionId::DebugRngLists,
    SectionId::DebugStr,
    SectionId::DebugStrOffsets,
];

/// How gimli reads them.
pub(super) type Reader = EndianReader<LittleEndian, Section>;

/// The section that gimli asks for, if it is one that is needed.
pub(super) fn read_section(image: &Arc<Image>, id: SectionId) -> Result<Reader, DwarfError> {
    read_named(image, NEEDED.contains(&id).then(|| id.name()))
}

/// The section of a `.dwo` or `.dwp` file, needed or not: a package says which part of every section
/// belongs to a unit.
pub(super) fn read_split_section(image: &Arc<Image>, id: SectionId) -> Result<Reader, DwarfError> {
    read_named(image, id.dwo_name())
}

/// No bytes.
pub(super) fn no_section() -> Reader {
    EndianReader::new(Section::none(), LittleEndian)
}

fn read_named(image: &Arc<Image>, name: Option<&'static str>) -> Result<Reader, DwarfError> {
    let section = name.map_or_else(|| Ok(Section::none()), |name| load_section(image, name))?;
    Ok(EndianReader::new(section, LittleEndian))
}

/// A section's bytes that readers can share: where they are in the file, or decompressed.
#[derive(Clone)]
pub(super) enum Section {
    Mapped { image: Arc<Image>, start: usize, end: usize },
    Owned(Arc<[u8]>),
}

impl Section {
    pub(super) fn none() -> Self {
        Self::Owned(Arc::from([]))
    }
}

impl Deref for Section {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped { image, start, end } => image.bytes().get(*start..*end).unwrap_or_default(),
            Self::Owned(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Section({} bytes)", self.len())
    }
}

// SAFETY: the bytes belong to an `Arc` in both cases and are never moved or changed: an `Image`
// has no way to replace its bytes, and a mapping or a `Vec` that nobody changes stays in place.
unsafe impl gimli::StableDeref for Section {}
// SAFETY: a clone shares the `Arc`, so it refers to the same bytes.
unsafe impl gimli::CloneStableDeref for Section {}

/// A section by its name; an empty one if the file has none of that name.
///
/// # Errors
/// If it is damaged, or too large.
pub(super) fn load_section(image: &Arc<Image>, name: &'static str) -> Result<Section, DwarfError> {
    let failed = |source| DwarfError::Section { section: name, source };
    let elf = image.elf()?;
    let Some(section) = elf.section_by_name(name) else { return Ok(Section::none()) };
    let range = section.compressed_file_range().map_err(failed)?;
    if range.format == CompressionFormat::None {
        let start = usize::try_from(range.offset).ok();
        let end = start.and_then(|start| start.checked_add(usize::try_from(range.uncompressed_size).ok()?));
        let (Some(start), Some(end)) = (start, end) else { return Ok(Section::none()) };
        return Ok(Section::Mapped { image: Arc::clone(image), start, end });
    }
    if range.uncompressed_size > MOST_DECOMPRESSED_BYTES {
        return Err(DwarfError::TooLarge { section: name, bytes: range.uncompressed_size });
    }
    let bytes = section.uncompressed_data().map_err(failed)?;
    Ok(Section::Owned(Arc::from(&*bytes)))
}
