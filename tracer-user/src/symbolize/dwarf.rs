//! Functions, inlined functions and lines from DWARF.

use std::{fmt, ops::Deref, sync::Arc};

use addr2line::Context;
use gimli::{EndianReader, LittleEndian, SectionId};
use object::{CompressionFormat, Object as _, ObjectSection as _};

use crate::{addr::VirtAddr, elf::Image};

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

/// Why debug information cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DwarfError {
    /// A section cannot be read or decompressed.
    #[error("cannot read {section}: {source}")]
    Section {
        /// Which.
        section: &'static str,
        /// Why.
        source: object::Error,
    },
    /// A section that is too large.
    #[error("{section} has {bytes} bytes when decompressed, more than pgleak takes on")]
    TooLarge {
        /// Which.
        section: &'static str,
        /// How many.
        bytes: u64,
    },
    /// The ELF file cannot be read.
    #[error(transparent)]
    Elf(#[from] crate::elf::ElfError),
    /// The DWARF in it cannot be read.
    #[error("cannot read its DWARF: {0}")]
    Dwarf(#[from] gimli::Error),
}

/// A function at an address, as DWARF has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DwarfFrame {
    /// Its linkage name, mangled; without one, its plain name.
    pub function: Option<String>,
    /// Source file.
    pub file: Option<String>,
    /// Line in it.
    pub line: Option<u32>,
}

type Reader = EndianReader<LittleEndian, Section>;

/// The DWARF of one file.
pub struct DebugInfo {
    context: Context<Reader>,
}

impl fmt::Debug for DebugInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DebugInfo").finish_non_exhaustive()
    }
}

impl DebugInfo {
    /// Reads the headers of the units; `None` if the file has no `.debug_info`.
    ///
    /// # Errors
    /// If the sections are damaged.
    pub fn read(image: &Arc<Image>) -> Result<Option<Self>, DwarfError> {
        if load_section(image, SectionId::DebugInfo)?.is_empty() {
            return Ok(None);
        }
        let dwarf = gimli::Dwarf::load(|id| {
            let section = if NEEDED.contains(&id) { load_section(image, id)? } else { Section::none() };
            Ok::<_, DwarfError>(EndianReader::new(section, LittleEndian))
        })?;
        Ok(Some(Self { context: Context::from_dwarf(dwarf)? }))
    }

    /// The functions at an address, innermost inlined one first, the one that is really called
    /// last; empty where DWARF says nothing. Units that are split off into `.dwo` files are not
    /// looked into.
    ///
    /// # Errors
    /// If the unit of that address is damaged, or refers to a file that is not there.
    pub fn frames(&self, address: VirtAddr) -> Result<Vec<DwarfFrame>, DwarfError> {
        // addr2line computes the address behind this one.
        if address.0 == u64::MAX {
            return Ok(Vec::new());
        }
        let mut found = self.context.find_frames(address.0).skip_all_loads()?;
        let mut frames = Vec::new();
        while let Some(frame) = found.next()? {
            let function = match &frame.function {
                Some(function) => Some(function.raw_name()?.into_owned()),
                None => None,
            };
            let (file, line) = frame.location.map_or((None, None), |location| (location.file, location.line));
            frames.push(DwarfFrame {
                function,
                file: file.map(str::to_owned),
                // Line 0 is code that belongs to no line.
                line: line.filter(|line| *line > 0),
            });
        }
        Ok(frames)
    }
}

/// A section's bytes that readers can share: where they are in the file, or decompressed.
#[derive(Clone)]
enum Section {
    Mapped { image: Arc<Image>, start: usize, end: usize },
    Owned(Arc<[u8]>),
}

impl Section {
    fn none() -> Self {
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

fn load_section(image: &Arc<Image>, id: SectionId) -> Result<Section, DwarfError> {
    let name = id.name();
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{addr::AbsAddr, target::LoadedModules};

    #[inline(always)]
    fn inlined_into_the_test(value: u64) -> u64 {
        std::hint::black_box(value.rotate_left(3)) ^ 0x5a
    }

    #[inline(never)]
    fn calls_inlined(value: u64) -> u64 {
        inlined_into_the_test(value)
    }

    #[test]
    fn inlined_functions_of_this_test_are_found() -> Result<(), Box<dyn std::error::Error>> {
        assert_ne!(calls_inlined(1), 1);
        let modules = LoadedModules::read(std::process::id())?;
        let start = AbsAddr(calls_inlined as fn(u64) -> u64 as usize as u64);
        let module = modules.at(start).ok_or("this code is mapped")?;
        let info = DebugInfo::read(&module.image)?.ok_or("tests are built with DWARF")?;
        let start = start.in_object(module.bias);
        let function = crate::elf::range_at(module.functions(), start).ok_or("it has an FDE")?;
        let mut seen = false;
        for address in function.start.0..function.end.0 {
            let frames = info.frames(VirtAddr(address))?;
            let names: Vec<String> = frames
                .iter()
                .filter_map(|frame| frame.function.as_deref())
                .map(super::super::demangle)
                .collect();
            assert!(names.last().is_some_and(|name| name.ends_with("calls_inlined")), "{names:?}");
            if names.len() >= 2 && names[names.len() - 2].ends_with("inlined_into_the_test") {
                seen = true;
                let inlined = &frames[frames.len() - 2];
                assert!(inlined.file.as_deref().is_some_and(|file| file.ends_with("symbolize/dwarf.rs")));
                assert!(inlined.line.is_some());
            }
        }
        assert!(seen, "no address shows the inlined function");
        assert_eq!(info.frames(VirtAddr(u64::MAX))?, []);
        Ok(())
    }

    #[test]
    fn a_file_without_dwarf_has_none() -> Result<(), Box<dyn std::error::Error>> {
        let modules = LoadedModules::read(std::process::id())?;
        let vdso = modules.modules().iter().find(|module| module.path == Path::new(crate::target::VDSO));
        assert!(DebugInfo::read(&vdso.ok_or("no vDSO")?.image)?.is_none());
        Ok(())
    }
}
