//! Functions, inlined functions and lines from DWARF.

use std::{fmt, path::Path, sync::Arc};

use addr2line::{Context, LookupContinuation as _, LookupResult};

use super::{
    files::{DebugFiles, FileNote},
    section::{Reader, load_section, read_section},
    split::SplitFiles,
};
use crate::{addr::VirtAddr, elf::Image};

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

/// The DWARF of one file.
pub struct DebugInfo {
    context: Context<Reader>,
    split: SplitFiles,
}

impl fmt::Debug for DebugInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DebugInfo").finish_non_exhaustive()
    }
}

impl DebugInfo {
    /// Reads the headers of the units; `None` if the file has no `.debug_info`. `object` is the path
    /// of the object that it is of, as its process sees it. What dwz moved to another file is looked
    /// for in `files`.
    ///
    /// # Errors
    /// If the sections are damaged.
    pub fn read(
        image: &Arc<Image>,
        object: &Path,
        files: &mut DebugFiles,
        notes: &mut Vec<FileNote>,
    ) -> Result<Option<Self>, DwarfError> {
        if load_section(image, ".debug_info")?.is_empty() {
            return Ok(None);
        }
        let mut dwarf = gimli::Dwarf::load(|id| read_section(image, id))?;
        if let Some(shared) = files.supplementary(image, notes) {
            dwarf.load_sup(|id| read_section(&shared, id))?;
        }
        let split = SplitFiles::of(image.path(), object, files);
        Ok(Some(Self { context: Context::from_dwarf(dwarf)?, split }))
    }

    /// The functions at an address, innermost inlined one first, the one that is really called
    /// last; empty where DWARF says nothing. Units that are split off are looked for when they are
    /// needed first.
    ///
    /// # Errors
    /// If the unit of that address is damaged, or refers to a file that is not there.
    pub fn frames(&mut self, address: VirtAddr) -> Result<Vec<DwarfFrame>, DwarfError> {
        // addr2line computes the address behind this one.
        if address.0 == u64::MAX {
            return Ok(Vec::new());
        }
        let mut looked_up = self.context.find_frames(address.0);
        let mut found = loop {
            looked_up = match looked_up {
                LookupResult::Output(found) => break found?,
                LookupResult::Load { load, continuation } => continuation.resume(self.split.unit(&load)?),
            };
        };
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

    /// A unit that was split off, was needed, and is not there.
    pub(super) fn missing_unit(&self) -> Option<&Path> {
        self.split.missing()
    }
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
        let mut files = DebugFiles::default();
        let info = DebugInfo::read(&module.image, &module.path, &mut files, &mut Vec::new())?;
        let mut info = info.ok_or("tests are built with DWARF")?;
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
        let vdso = vdso.ok_or("no vDSO")?;
        let mut files = DebugFiles::default();
        assert!(DebugInfo::read(&vdso.image, &vdso.path, &mut files, &mut Vec::new())?.is_none());
        Ok(())
    }
}
