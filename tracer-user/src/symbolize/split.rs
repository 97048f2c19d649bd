//! Split DWARF: units of which the object has only a skeleton, in `.dwo` files or a `.dwp` package.

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use addr2line::SplitDwarfLoad;
use gimli::{Dwarf, DwarfPackage, DwoId, Reader as _};

use super::{
    dwarf::DwarfError,
    files::{DebugFiles, Places},
    section::{Reader, no_section, read_split_section},
};
use crate::elf::Image;

/// Where the units that an object split off are. Nothing is opened before it is needed.
pub(super) struct SplitFiles {
    /// Where packages may be, until they are opened.
    places: Vec<PathBuf>,
    packages: Vec<DwarfPackage<Reader>>,
    units: Places,
    missing: Option<PathBuf>,
}

impl SplitFiles {
    /// Those of an object, whose DWARF is in the file `dwarf`: itself or its debug file.
    pub(super) fn of(dwarf: &Path, object: &Path, files: &DebugFiles) -> Self {
        let mut places = files.packages(object);
        places.extend(files.packages(dwarf));
        Self { places, packages: Vec::new(), units: files.units(), missing: None }
    }

    /// The unit that addr2line asks for; `None` if it is nowhere. What has its 64-bit id belongs
    /// to it.
    pub(super) fn unit(
        &mut self,
        load: &SplitDwarfLoad<Reader>,
    ) -> Result<Option<Arc<Dwarf<Reader>>>, DwarfError> {
        for place in std::mem::take(&mut self.places) {
            self.packages.extend(open_package(&place));
        }
        for package in &self.packages {
            if let Some(unit) = package.find_cu(load.dwo_id, &load.parent)? {
                return Ok(Some(Arc::new(unit)));
            }
        }
        let directory = path(load.comp_dir.as_ref())?.unwrap_or_default();
        let name = path(load.path.as_ref())?.unwrap_or_default();
        let places = self.units.of(&directory, &name);
        let found = places.iter().find_map(|place| open_unit(place, load.dwo_id));
        if found.is_none() && self.missing.is_none() {
            self.missing = Some(directory.join(name));
        }
        Ok(found.map(|mut unit| {
            unit.make_dwo(&load.parent);
            Arc::new(unit)
        }))
    }

    /// The first unit that was not found.
    pub(super) fn missing(&self) -> Option<&Path> {
        self.missing.as_deref()
    }
}

fn path(text: Option<&Reader>) -> Result<Option<PathBuf>, DwarfError> {
    let Some(text) = text else { return Ok(None) };
    Ok(Some(PathBuf::from(OsStr::from_bytes(&text.to_slice()?))))
}

/// A file of split DWARF. One that cannot be read is as good as none: the skeleton still has names of
/// the functions by their symbols.
fn open(path: &Path) -> Option<Arc<Image>> {
    let is_file = fs::metadata(path).is_ok_and(|file| file.is_file());
    is_file.then(|| Image::open(path, path).ok()).flatten().map(Arc::new)
}

fn open_package(path: &Path) -> Option<DwarfPackage<Reader>> {
    let image = open(path)?;
    DwarfPackage::load::<_, DwarfError>(|id| read_split_section(&image, id), no_section()).ok()
}

fn open_unit(path: &Path, id: DwoId) -> Option<Dwarf<Reader>> {
    let image = open(path)?;
    let dwarf = Dwarf::load(|id| read_split_section(&image, id)).ok()?;
    let header = dwarf.units().next().ok()??;
    let unit = dwarf.unit(header).ok()?;
    (unit.dwo_id == Some(id)).then_some(dwarf)
}
