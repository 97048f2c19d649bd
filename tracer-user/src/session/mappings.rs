//! The process's mappings with their unwind tables, and the kernel's copy of both.

use std::{
    collections::HashMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use object::{Object as _, ObjectSymbol as _};
use tracer_ebpf::{abi::MapSet, unwind::Row};

use super::CaptureError;
use crate::{
    addr::{AbsAddr, FileOffset, VirtAddr},
    bpf::{MapError, Tracer},
    elf::Image,
    target::{LoadedModules, MappingPath, ProcessError},
    unwind::{Atlas, MapSetError, MappedObject, Placement, build_mapset, build_tables, cache::TableCache},
};

/// Code outside of every known mapping is looked at this often at the most: code that was made
/// at run time never gets a mapping with a table.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Objects, their unwind tables, and what the kernel has of them.
#[derive(Debug)]
pub struct Mappings {
    modules: LoadedModules,
    atlas: Atlas,
    placements: HashMap<usize, Option<Placement>>,
    notes: Vec<String>,
    /// Number of the set of mappings that the kernel uses.
    mapset: u32,
    uploaded: (usize, usize),
    looked_at: Option<Instant>,
    cache: Option<TableCache>,
}

impl Mappings {
    /// Takes the tables of all objects from the cache, or builds them.
    ///
    /// # Errors
    /// If the program itself has no table. An object without one is a note.
    pub fn new(modules: LoadedModules, cache: Option<TableCache>) -> Result<Self, CaptureError> {
        let mut mappings = Self {
            modules,
            atlas: Atlas::new(),
            placements: HashMap::new(),
            notes: Vec::new(),
            mapset: 0,
            uploaded: (0, 0),
            looked_at: None,
            cache,
        };
        mappings.build_tables()?;
        Ok(mappings)
    }

    /// The objects.
    pub fn modules(&self) -> &LoadedModules {
        &self.modules
    }

    /// How many rows and index entries there are.
    pub fn table_sizes(&self) -> (usize, usize) {
        (self.atlas.rows().len(), self.atlas.pages().len())
    }

    /// What is missing, in sentences.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        self.notes.iter().cloned().chain(self.modules.notes().iter().map(ToString::to_string))
    }

    fn build_tables(&mut self) -> Result<(), CaptureError> {
        let modules = self.modules.modules().iter().enumerate();
        let new: Vec<_> = modules.filter(|(index, _)| !self.placements.contains_key(index)).collect();
        let images: Vec<&Image> = new.iter().map(|(_, module)| &*module.image).collect();
        let began = Instant::now();
        let tables = build_tables(&images, self.cache.as_ref());
        tracing::debug!(objects = images.len(), took = ?began.elapsed(), "unwind tables");
        for ((index, module), table) in new.into_iter().zip(tables) {
            let placement = match table {
                Ok(Some(table)) => Some(self.atlas.add(&table)?),
                Ok(None) if module.is_main => {
                    return Err(CaptureError::NoUnwindTable { path: module.path.clone() });
                }
                // Libraries of data only, such as ICU's: nothing is ever called there.
                Ok(None) => None,
                Err(source) if module.is_main => {
                    return Err(CaptureError::Table { path: module.path.clone(), source });
                }
                Err(error) => {
                    self.notes.push(format!("stacks end at {}: {error}", module.path.display()));
                    None
                }
            };
            self.placements.insert(index, placement);
        }
        Ok(())
    }

    fn mapset(&self) -> Result<Box<MapSet>, MapSetError> {
        let objects: Vec<MappedObject> = self
            .modules
            .modules()
            .iter()
            .enumerate()
            .flat_map(|(index, module)| {
                let placement = self.placements.get(&index).copied().flatten();
                let bias = module.bias;
                module.ranges.iter().map(move |(start, end)| MappedObject {
                    start: *start,
                    end: *end,
                    bias,
                    placement,
                })
            })
            .collect();
        build_mapset(&objects)
    }

    /// Gives the kernel what it does not have yet and makes it current.
    ///
    /// # Errors
    /// If the kernel refuses or the mappings cannot be described.
    pub fn upload(&mut self, tracer: &Tracer) -> Result<(), CaptureError> {
        let rows: &[Row] = self.atlas.rows();
        let pages = self.atlas.pages();
        let (row, page) = self.uploaded;
        tracer.put_tables(row as u32, &rows[row..], page as u32, &pages[page..])?;
        self.uploaded = (rows.len(), pages.len());
        let mapset = self.mapset()?;
        self.mapset += 1;
        tracer.use_mapset(self.mapset, &mapset)?;
        let maps = self.modules.maps();
        if let Some(area) = maps.mappings.iter().find(|mapping| matches!(mapping.path, MappingPath::Uprobes))
        {
            tracer.control().set_trampoline(area.start.0, area.end.0);
        }
        Ok(())
    }

    /// Where the dynamic loader calls what is there for debuggers: a link to its file as it is
    /// mapped, and the offset in it. `None` for a program without one, or without its symbol.
    pub fn loader_probe(&self, pid: u32) -> Option<(PathBuf, FileOffset)> {
        const HOOK: &str = "_dl_debug_state";
        self.modules.modules().iter().find_map(|module| {
            let elf = module.image.elf().ok()?;
            let hook =
                elf.dynamic_symbols().find(|symbol| symbol.is_definition() && symbol.name() == Ok(HOOK))?;
            let address = VirtAddr(hook.address());
            let at = address.in_process(module.bias);
            let (start, end) = module.ranges.iter().find(|(start, end)| *start <= at && at < *end)?;
            let link = format!("/proc/{pid}/map_files/{:x}-{:x}", start.0, end.0);
            Some((PathBuf::from(link), module.image.file_offset(address)?))
        })
    }

    /// Looks for objects that were loaded since, because the dynamic loader said so: at once.
    pub fn look_now(&mut self, tracer: &Tracer) {
        self.looked_at = None;
        self.look_again(tracer);
    }

    /// Looks for objects that were loaded since, because a stack led to unknown code. What goes
    /// wrong is a note and not the end of the capture: stacks are cut there, which is counted.
    /// Returns whether it looked, which it does not all the time.
    pub fn look_again(&mut self, tracer: &Tracer) -> bool {
        if self.looked_at.is_some_and(|at| at.elapsed() < LOOK_AGAIN) {
            return false;
        }
        self.looked_at = Some(Instant::now());
        let result = match self.modules.refresh() {
            // Its end is noticed elsewhere.
            Err(ProcessError::NoSuchProcess { .. } | ProcessError::Ended { .. }) => return false,
            Err(error) => Err(CaptureError::from(error)),
            Ok(_) => self.build_tables().and_then(|()| self.upload(tracer)),
        };
        let note = match result {
            Ok(()) => return true,
            Err(CaptureError::Map(MapError { map: "ROWS" | "PAGES", .. })) => {
                // What did not fit now will not fit later.
                self.uploaded = self.table_sizes();
                "stacks end at libraries that were loaded while recording: no room for their tables; give more with --map-memory".to_owned()
            }
            Err(error) => format!("stacks may end at libraries that were loaded while recording: {error}"),
        };
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
        true
    }

    /// Whether code that lies in no object was made at run time, by the mappings as last read.
    pub fn is_run_time_code(&self, address: AbsAddr) -> bool {
        let maps = self.modules.maps();
        match maps.at(address) {
            Some(mapping) => mapping.executable && mapping.path.is_written_by_process(),
            // Code for one query is gone when the query ends, and then only who compiles has any.
            None => self.modules.at(address).is_none() && self.has_compiler(),
        }
    }

    /// Whether LLVM is loaded, by which PostgreSQL compiles expressions.
    fn has_compiler(&self) -> bool {
        let mut names = self.modules.modules().iter().filter_map(|module| module.path.file_name()?.to_str());
        names.any(|name| name.starts_with("llvmjit") || name.starts_with("libLLVM"))
    }
}
