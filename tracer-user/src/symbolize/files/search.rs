//! The order in which debug files are looked for.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Debuginfod, FileNote, SymbolIndex,
    locate::{Candidates, below, debug_link, name_below_root, places_of_link, supplementary_link},
};
use crate::{addr::BuildId, elf::Image};

/// Where debug files are looked for, in this order: below each root directory by build ID, then by
/// `.gnu_debuglink`; in the directories that the user gave; at debuginfod. Nothing is taken that
/// does not belong to the object.
#[derive(Debug, Default)]
pub struct DebugFiles {
    roots: Vec<PathBuf>,
    given: Arc<SymbolIndex>,
    debuginfod: Option<Debuginfod>,
}

impl DebugFiles {
    /// Looks below root directories: `/proc/PID/root` and `/`, say.
    pub fn below(roots: Vec<PathBuf>) -> Self {
        Self { roots, ..Self::default() }
    }

    /// Looks in directories that the user gave, too.
    pub fn with_given(self, given: SymbolIndex) -> Self {
        Self { given: Arc::new(given), ..self }
    }

    /// Asks debuginfod for what is nowhere else.
    pub fn with_debuginfod(self, debuginfod: Option<Debuginfod>) -> Self {
        Self { debuginfod, ..self }
    }

    /// The debug file of an object that is at hand. `path` is the object's as its process sees it.
    pub(in crate::symbolize) fn of_object(
        &mut self,
        image: &Image,
        path: &Path,
        notes: &mut Vec<FileNote>,
    ) -> Vec<Arc<Image>> {
        let mut found = self.local(image, path, &mut Candidates::default(), notes);
        // The vDSO is the kernel's, whose debug file is no small one.
        if path.is_absolute()
            && let Some(id) = image.build_id()
            && !has_dwarf(image)
            && !found.iter().any(|file| has_dwarf(file))
        {
            found.extend(self.fetch(id, notes));
        }
        found
    }

    /// All files of a build, where the object itself is not at hand.
    pub(in crate::symbolize) fn of_build(
        &mut self,
        id: &BuildId,
        notes: &mut Vec<FileNote>,
    ) -> Vec<Arc<Image>> {
        let mut seen = Candidates::default();
        let mut found = self.in_given(id, &mut seen, notes);
        if !found.iter().any(|file| has_dwarf(file)) {
            found.extend(self.fetch(id, notes));
        }
        found
    }

    /// The file that dwz moved shared debug information of `image` to.
    pub(in crate::symbolize) fn supplementary(
        &mut self,
        image: &Image,
        notes: &mut Vec<FileNote>,
    ) -> Option<Arc<Image>> {
        let (name, id) = supplementary_link(image)?;
        let mut seen = Candidates::default();
        let beside = image.path().parent().map(|directory| directory.join(name));
        let places = self.roots.iter().flat_map(|root| {
            let by_id = name_below_root(&id).map(|name| root.join(name));
            let by_path = name.is_absolute().then(|| below(root, name));
            // The path of an object is that of its process, whose root this may be.
            let below_root = beside.as_deref().map(|beside| below(root, beside));
            [by_id, by_path, below_root].into_iter().flatten()
        });
        let places: Vec<PathBuf> = places.chain(beside.clone()).collect();
        let found = places.iter().find_map(|place| seen.open_build(place, &id, notes)).map(Arc::new);
        let found = found
            .or_else(|| self.in_given(&id, &mut seen, notes).into_iter().next())
            .or_else(|| self.fetch(&id, notes));
        if found.is_none() {
            notes.push(FileNote::NoSupplementary { name: name.to_owned(), id });
        }
        found
    }

    /// Where packages of split DWARF of an object, or of its debug file, may be.
    pub(in crate::symbolize) fn packages(&self, object: &Path) -> Vec<PathBuf> {
        let mut name = object.as_os_str().to_owned();
        name.push(".dwp");
        let beside = Path::new(&name);
        let below_roots = self.roots.iter().map(|root| below(root, beside));
        below_roots.chain([beside.to_owned()]).chain(self.given.packages().iter().cloned()).collect()
    }

    /// Where single units of split DWARF may be.
    pub(in crate::symbolize) fn units(&self) -> Places {
        Places { roots: self.roots.clone(), given: Arc::clone(&self.given) }
    }

    fn local(
        &self,
        image: &Image,
        path: &Path,
        seen: &mut Candidates,
        notes: &mut Vec<FileNote>,
    ) -> Vec<Arc<Image>> {
        let id = image.build_id();
        if let Some(id) = id
            && let Some(name) = name_below_root(id)
        {
            let places = self.roots.iter().map(|root| root.join(&name));
            if let Some(found) = places.into_iter().find_map(|place| seen.open_build(&place, id, notes)) {
                return vec![Arc::new(found)];
            }
        }
        if let Some((name, crc)) = debug_link(image) {
            let places = self.roots.iter().flat_map(|root| places_of_link(root, path, name));
            if let Some(found) = places.into_iter().find_map(|place| seen.open_linked(&place, crc, id, notes))
            {
                return vec![Arc::new(found)];
            }
        }
        id.map(|id| self.in_given(id, seen, notes)).unwrap_or_default()
    }

    fn in_given(&self, id: &BuildId, seen: &mut Candidates, notes: &mut Vec<FileNote>) -> Vec<Arc<Image>> {
        // A file may have been replaced since it was indexed.
        let open = |place: &PathBuf| seen.open_build(place, id, notes).map(Arc::new);
        self.given.of_build(id).iter().filter_map(open).collect()
    }

    fn fetch(&mut self, id: &BuildId, notes: &mut Vec<FileNote>) -> Option<Arc<Image>> {
        let debuginfod = self.debuginfod.as_mut()?;
        let mut failures = Vec::new();
        let found = debuginfod.find(id, &mut failures);
        notes.extend(failures.into_iter().map(FileNote::from));
        found.map(Arc::new)
    }
}

fn has_dwarf(image: &Image) -> bool {
    [".debug_info", ".zdebug_info"].iter().any(|name| image.section(name).is_some())
}

/// Where single files of split DWARF (`.dwo`) may be.
#[derive(Debug)]
pub(in crate::symbolize) struct Places {
    roots: Vec<PathBuf>,
    given: Arc<SymbolIndex>,
}

impl Places {
    /// Places of a unit that was compiled in `directory`.
    pub(in crate::symbolize) fn of(&self, directory: &Path, name: &Path) -> Vec<PathBuf> {
        let path = directory.join(name);
        let below_roots = self.roots.iter().map(|root| below(root, &path));
        let given = self.given.units(name.file_name().unwrap_or(OsStr::new("")));
        below_roots.chain(given.iter().cloned()).collect()
    }
}
