//! What the files of one object say about its functions.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    demangle::demangle,
    dwarf::{DebugInfo, DwarfError},
    files::{DebugFiles, FileNote, mini_debug_info},
    naming::names,
    symbols::{Symbol, SymbolSource, SymbolTable},
};
use crate::{
    addr::VirtAddr,
    elf::{FunctionRange, Image},
    profile::FrameName,
};

/// More names of one function tell nobody anything: linkers fold hundreds of empty functions.
const MOST_ALIASES: usize = 16;

/// What a reader of the names has to know about one object.
#[derive(Debug, thiserror::Error)]
pub enum SymbolNote {
    /// Its debug information is left aside.
    #[error("{} is shown without inlined functions and lines: {source}", path.display())]
    Dwarf {
        /// Which object.
        path: PathBuf,
        /// Why.
        source: DwarfError,
    },
    /// A part of its debug information is not there.
    #[error("{} is shown partly without inlined functions and lines: {} is not there, nor a .dwp file; give it \
             with pgleak render --symbols", path.display(), unit.display())]
    Split {
        /// Which object.
        path: PathBuf,
        /// The first unit that was looked for.
        unit: PathBuf,
    },
    /// A separate debug file is left aside, or missing.
    #[error("looking for debug files of {}: {source}", path.display())]
    DebugFile {
        /// Which object.
        path: PathBuf,
        /// Why.
        source: FileNote,
    },
}

/// What is known of one address.
#[derive(Debug, Default)]
pub(super) struct Naming {
    /// As [`crate::profile::Frame::names`].
    pub(super) names: Vec<FrameName>,
    /// As [`crate::profile::Frame::aliases`].
    pub(super) aliases: Vec<String>,
    /// Where the function begins, if a symbol says so.
    pub(super) start: Option<VirtAddr>,
}

/// The symbols and the DWARF of one object.
#[derive(Debug)]
pub(super) struct ObjectNames {
    path: PathBuf,
    table: SymbolTable,
    debug: Option<DebugInfo>,
    /// Addresses that were named.
    pub(super) named: u64,
    /// Addresses that were not.
    pub(super) nameless: u64,
    /// Where names came from.
    pub(super) sources: BTreeSet<&'static str>,
}

impl ObjectNames {
    /// Reads an object's files: itself, its debug files, or both. `path` is the object's as its
    /// process sees it.
    pub(super) fn read(
        path: &Path,
        images: &[Arc<Image>],
        functions: &[FunctionRange],
        known: &BTreeMap<VirtAddr, String>,
        files: &mut DebugFiles,
        notes: &mut Vec<SymbolNote>,
    ) -> Self {
        let mut file_notes = Vec::new();
        let mut mini = Vec::new();
        for image in images {
            match mini_debug_info(image) {
                Ok(found) => mini.extend(found),
                Err(note) => file_notes.push(note),
            }
        }
        let borrowed: Vec<&Image> = images.iter().map(Arc::as_ref).collect();
        let table = SymbolTable::build(&borrowed, &mini, functions, known);
        let debug = debug_info(path, images, files, &mut file_notes, notes);
        notes.extend(about(path, file_notes));
        let path = path.to_owned();
        Self { path, table, debug, named: 0, nameless: 0, sources: BTreeSet::new() }
    }

    /// Whether it has all symbols that it was built with.
    pub(super) fn is_complete(&self) -> bool {
        self.table.symbols().iter().any(|symbol| symbol.source == SymbolSource::Symtab)
    }

    /// Names an address, and counts it.
    pub(super) fn name(&mut self, address: VirtAddr, notes: &mut Vec<SymbolNote>) -> Naming {
        let dwarf = match self.debug.as_mut().map(|debug| debug.frames(address)) {
            Some(Ok(frames)) => frames,
            Some(Err(source)) => {
                self.note_once(SymbolNote::Dwarf { path: self.path.clone(), source }, notes);
                Vec::new()
            }
            None => Vec::new(),
        };
        if let Some(unit) = self.debug.as_ref().and_then(DebugInfo::missing_unit) {
            self.note_once(SymbolNote::Split { path: self.path.clone(), unit: unit.to_owned() }, notes);
        }
        let symbol = self.table.at(address);
        let names = names(symbol, dwarf);
        if names.is_empty() {
            self.nameless += 1;
        } else {
            self.named += 1;
        }
        if names.iter().any(|name| name.file.is_some()) || (symbol.is_none() && !names.is_empty()) {
            self.sources.insert("DWARF");
        }
        if let Some(symbol) = symbol {
            self.sources.insert(symbol.source.label());
        }
        let shown = names.last().map(|name| name.function.as_str());
        let aliases = symbol.map(|symbol| aliases(symbol, shown)).unwrap_or_default();
        Naming { aliases, start: symbol.map(|symbol| symbol.start), names }
    }

    /// One note of a kind for an object; its other units may be sound.
    fn note_once(&self, note: SymbolNote, notes: &mut Vec<SymbolNote>) {
        let same = |other: &SymbolNote| match (other, &note) {
            (SymbolNote::Dwarf { path, .. }, SymbolNote::Dwarf { .. })
            | (SymbolNote::Split { path, .. }, SymbolNote::Split { .. }) => *path == self.path,
            _ => false,
        };
        if !notes.iter().any(same) {
            notes.push(note);
        }
    }
}

/// The first DWARF in the files.
fn debug_info(
    path: &Path,
    images: &[Arc<Image>],
    files: &mut DebugFiles,
    file_notes: &mut Vec<FileNote>,
    notes: &mut Vec<SymbolNote>,
) -> Option<DebugInfo> {
    for image in images {
        match DebugInfo::read(image, path, files, file_notes) {
            Ok(Some(debug)) => return Some(debug),
            Ok(None) => {}
            Err(source) => notes.push(SymbolNote::Dwarf { path: path.to_owned(), source }),
        }
    }
    None
}

/// What was found out about the debug files of an object.
pub(super) fn about(path: &Path, notes: Vec<FileNote>) -> impl Iterator<Item = SymbolNote> {
    notes.into_iter().map(|source| SymbolNote::DebugFile { path: path.to_owned(), source })
}

/// All names of a function but the one that is shown.
fn aliases(symbol: &Symbol, shown: Option<&str>) -> Vec<String> {
    let mut aliases: Vec<String> = Vec::new();
    for name in symbol.names().map(demangle) {
        if Some(name.as_str()) != shown && !aliases.contains(&name) {
            aliases.push(name);
            if aliases.len() == MOST_ALIASES {
                break;
            }
        }
    }
    aliases
}
