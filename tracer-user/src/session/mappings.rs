//! The mappings of the processes with their unwind tables, and the kernel's copy of both.
//!
//! Processes that a server forks have the same objects at the same addresses, until one loads a library. So
//! there are a few different *spaces*, each described to the kernel by a set of mappings; every object has
//! one table, wherever it is mapped.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use object::{Object as _, ObjectSymbol as _};
use tracer_ebpf::{
    abi::{MAPSET_SLOTS, MapSet},
    unwind::Row,
};

use super::{CaptureError, RawFrame, urgency::unhurried};
use crate::{
    addr::{AbsAddr, Bias, FileOffset, VirtAddr},
    bpf::{MapError, Walks},
    elf::{FunctionRange, Image},
    probe::main_loop,
    target::{LoadedModules, MappingPath, ProcessError},
    unwind::{Atlas, MapSetError, MappedObject, Placement, build_mapset, build_tables, cache::TableCache},
};

/// Code outside of every known mapping is looked at this often at the most: code that was made
/// at run time never gets a mapping with a table.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// The number that the one process of a capture has.
pub(super) const ONLY_PROCESS: u32 = 0;

/// An object, by the address of what is known of its file, which lives as long as [`Mappings`].
type ObjectKey = usize;

/// What one or more processes have mapped.
#[derive(Debug)]
struct Space {
    modules: LoadedModules,
    /// What the kernel has of it, and its number there; 0 for nothing yet.
    set: Option<Box<MapSet>>,
    number: u32,
}

/// Objects, their unwind tables, and what the kernel has of them.
#[derive(Debug)]
pub struct Mappings {
    /// The first is that of the process that was looked at first.
    spaces: Vec<Space>,
    /// The space that each number of a set of mappings was given to.
    numbers: HashMap<u32, usize>,
    last_number: u32,
    kept: HashSet<u32>,
    atlas: Atlas,
    placements: HashMap<ObjectKey, Option<Placement>>,
    /// The main loops of servers.
    loops: HashMap<ObjectKey, FunctionRange>,
    notes: Vec<String>,
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
        let mut mappings = Self { cache, ..Self::none() };
        mappings.build_tables(&modules)?;
        mappings.spaces.push(Space { modules, set: None, number: 0 });
        Ok(mappings)
    }

    /// The objects of the process that was looked at first.
    pub fn modules(&self) -> &LoadedModules {
        &self.spaces[0].modules
    }

    /// The objects of every space.
    pub fn all_modules(&self) -> Vec<&LoadedModules> {
        self.spaces.iter().map(|space| &space.modules).collect()
    }

    /// How many rows and index entries there are.
    pub fn table_sizes(&self) -> (usize, usize) {
        (self.atlas.rows().len(), self.atlas.pages().len())
    }

    /// What is missing, in sentences.
    pub fn notes(&self) -> Vec<String> {
        let of_modules = self.spaces.iter().flat_map(|space| space.modules.notes());
        let mut seen = HashSet::new();
        let mut notes: Vec<String> =
            self.notes.iter().cloned().chain(of_modules.map(ToString::to_string)).collect();
        notes.retain(|note| seen.insert(note.clone()));
        notes
    }

    fn build_tables(&mut self, modules: &LoadedModules) -> Result<(), CaptureError> {
        let mut seen = HashSet::new();
        let new = modules.modules().iter().filter(|module| {
            let key = object_key(&module.image);
            !self.placements.contains_key(&key) && seen.insert(key)
        });
        let new: Vec<_> = new.collect();
        let images: Vec<&Image> = new.iter().map(|module| &*module.image).collect();
        let began = Instant::now();
        let tables = match images.is_empty() {
            true => Vec::new(),
            false => unhurried(|| build_tables(&images, self.cache.as_ref())),
        };
        if !images.is_empty() {
            tracing::debug!(objects = images.len(), took = ?began.elapsed(), "unwind tables");
        }
        for (module, table) in new.into_iter().zip(tables) {
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
            self.placements.insert(object_key(&module.image), placement);
            if module.is_main
                && let Some(range) = main_loop(&module.image)
            {
                self.loops.insert(object_key(&module.image), range);
            }
        }
        Ok(())
    }

    fn mapset(&self, modules: &LoadedModules) -> Result<Box<MapSet>, MapSetError> {
        let objects: Vec<MappedObject> = modules
            .modules()
            .iter()
            .flat_map(|module| {
                let placement = self.placements.get(&object_key(&module.image)).copied().flatten();
                let bias = module.bias;
                module.ranges.iter().map(move |(start, end)| MappedObject {
                    start: *start,
                    end: *end,
                    bias,
                    placement,
                })
            })
            .collect();
        let mut set = build_mapset(&objects)?;
        let main = modules.modules().iter().find(|module| module.is_main);
        if let Some(main) = main
            && let Some(range) = self.loops.get(&object_key(&main.image))
        {
            set.loop_start = range.start.in_process(main.bias).0;
            set.loop_end = range.end.in_process(main.bias).0;
        }
        Ok(set)
    }

    fn put_tables(&mut self, walks: &Walks) -> Result<(), CaptureError> {
        let rows: &[Row] = self.atlas.rows();
        let pages = self.atlas.pages();
        let (row, page) = self.uploaded;
        walks.put_tables(row as u32, &rows[row..], page as u32, &pages[page..])?;
        self.uploaded = (rows.len(), pages.len());
        Ok(())
    }

    /// Gives the kernel what it does not have yet of the one process that is traced.
    ///
    /// # Errors
    /// If the kernel refuses or the mappings cannot be described.
    pub fn upload(&mut self, walks: &Walks) -> Result<(), CaptureError> {
        self.put_tables(walks)?;
        let set = self.mapset(&self.spaces[0].modules)?;
        if !self.spaces[0].set.as_ref().is_some_and(|known| known.ranges == set.ranges) {
            let number = self.last_number + 1;
            walks.put_mapset(number, &set)?;
            walks.processes().use_mapset(ONLY_PROCESS, number);
            self.last_number = number;
            self.numbers.insert(number, 0);
            (self.spaces[0].set, self.spaces[0].number) = (Some(set), number);
        }
        if let Some((start, end)) = trampoline(&self.spaces[0].modules) {
            walks.processes().set_trampoline(ONLY_PROCESS, start, end);
        }
        Ok(())
    }

    /// Has a set of mappings stay what it is: that which new processes begin with.
    pub fn keep(&mut self, number: u32) {
        self.kept.insert(number);
    }

    /// Reads the mappings of one of several processes, and gives the kernel what it does not have yet. Gives
    /// the number of their set.
    ///
    /// # Errors
    /// If the process is gone, the kernel refuses, or the mappings cannot be described.
    pub fn set_of(&mut self, walks: &Walks, pid: u32) -> Result<u32, CaptureError> {
        let modules = LoadedModules::read_sharing(pid, self.modules().images())?;
        self.build_tables(&modules)?;
        self.put_tables(walks)?;
        let set = self.mapset(&modules)?;
        let is_same = |space: &Space| space.set.as_ref().is_some_and(|known| known.ranges == set.ranges);
        if let Some(space) = self.spaces.iter_mut().find(|space| space.number != 0 && is_same(space)) {
            // With what it has mapped beside objects.
            space.modules = modules;
            return Ok(space.number);
        }
        let in_use = walks.processes().all().filter(|seen| seen.is_followed()).map(|seen| seen.mapset);
        let slots: HashSet<u32> =
            in_use.chain(self.kept.iter().copied()).map(|number| number % MAPSET_SLOTS).collect();
        let number = (self.last_number + 1..)
            .take(MAPSET_SLOTS as usize)
            .find(|number| !slots.contains(&(number % MAPSET_SLOTS)))
            .ok_or(CaptureError::TooManySpaces)?;
        walks.put_mapset(number, &set)?;
        self.last_number = number;
        // Whoever had the slot has ended; its stacks are still to be named.
        for space in &mut self.spaces {
            if space.number % MAPSET_SLOTS == number % MAPSET_SLOTS {
                space.number = 0;
            }
        }
        // The first is described to the kernel when a process is first found to be like it.
        let index = match &self.spaces[0] {
            first if first.set.is_none() => 0,
            _ => self.spaces.len(),
        };
        let space = Space { modules, set: Some(set), number };
        if index == 0 {
            self.spaces[0] = space
        } else {
            self.spaces.push(space)
        }
        self.numbers.insert(number, index);
        Ok(number)
    }

    /// Where a walk that used the set of mappings with that number has been: the frame as it is in the first
    /// space that has the object, so that one instruction is one frame.
    pub fn frame(&self, mapset: u32, address: AbsAddr, is_return: bool) -> RawFrame {
        let space = self.space(mapset);
        let modules = &self.spaces[space].modules;
        let inside = AbsAddr(address.0.wrapping_sub(u64::from(is_return)));
        let Some(module) = modules.at(inside).filter(|_| space != 0) else {
            return RawFrame { space, address, is_return };
        };
        let at_home = self.spaces.iter().enumerate().find_map(|(home, space)| {
            let mut modules = space.modules.modules().iter();
            let same = modules.find(|other| Arc::ptr_eq(&other.image, &module.image))?;
            Some((home, same.bias))
        });
        let (home, bias) = at_home.unwrap_or((space, module.bias));
        RawFrame { space: home, address: address.in_object(module.bias).in_process(bias), is_return }
    }

    /// How far the program is from its own addresses in processes with a set of mappings.
    pub fn main_bias(&self, mapset: u32) -> Bias {
        let main = self.spaces[self.space(mapset)].modules.main().or_else(|| self.modules().main());
        main.map_or(Bias(0), |main| main.bias)
    }

    /// The space of a set of mappings.
    pub fn space(&self, mapset: u32) -> usize {
        self.numbers.get(&mapset).copied().unwrap_or(0)
    }

    /// Where the dynamic loader calls what is there for debuggers: a link to its file as it is
    /// mapped, and the offset in it. `None` for a program without one, or without its symbol.
    pub fn loader_probe(&self, pid: u32) -> Option<(PathBuf, FileOffset)> {
        const HOOK: &str = "_dl_debug_state";
        self.modules().modules().iter().find_map(|module| {
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

    /// None, in the place of what is with somebody else.
    pub(super) fn none() -> Self {
        Self {
            spaces: Vec::new(),
            numbers: HashMap::new(),
            last_number: 0,
            kept: HashSet::new(),
            atlas: Atlas::new(),
            placements: HashMap::new(),
            loops: HashMap::new(),
            notes: Vec::new(),
            uploaded: (0, 0),
            looked_at: None,
            cache: None,
        }
    }

    /// Looks for objects that were loaded since, because the dynamic loader said so: at once.
    pub fn look_now(&mut self, walks: &Walks) {
        self.looked_at = None;
        self.look_again(walks);
    }

    /// Looks for objects that were loaded since, because a stack led to unknown code. What goes
    /// wrong is a note and not the end of the capture: stacks are cut there, which is counted.
    /// Returns whether it looked, which it does not all the time.
    pub fn look_again(&mut self, walks: &Walks) -> bool {
        if !self.is_due() {
            return false;
        }
        let result = self.refresh().and_then(|()| self.upload(walks));
        let note = match result {
            Ok(()) => return true,
            // Its end is noticed elsewhere.
            Err(CaptureError::Process(ProcessError::NoSuchProcess { .. } | ProcessError::Ended { .. })) => {
                return false;
            }
            Err(CaptureError::Map(MapError { map: "ROWS" | "PAGES", .. })) => {
                // What did not fit now will not fit later.
                self.uploaded = self.table_sizes();
                "stacks end at libraries that were loaded while recording: no room for their tables; give more with --map-memory".to_owned()
            }
            Err(error) => format!("stacks may end at libraries that were loaded while recording: {error}"),
        };
        self.note(note);
        true
    }

    /// Whether it is time for another look; then the next one is due later.
    pub fn is_due(&mut self) -> bool {
        let is_due = self.looked_at.is_none_or(|at| at.elapsed() >= LOOK_AGAIN);
        if is_due {
            self.looked_at = Some(Instant::now());
        }
        is_due
    }

    /// Something that a reader has to know, once.
    pub fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    fn refresh(&mut self) -> Result<(), CaptureError> {
        let mut space = self.spaces.remove(0);
        let refreshed = space.modules.refresh().map_err(CaptureError::from);
        let built = refreshed.and_then(|_| self.build_tables(&space.modules));
        self.spaces.insert(0, space);
        built
    }

    /// Whether code that lies in no object was made at run time, by the mappings as last read.
    pub fn is_run_time_code(&self, space: usize, address: AbsAddr) -> bool {
        let modules = &self.spaces[space].modules;
        match modules.maps().at(address) {
            Some(mapping) => mapping.executable && mapping.path.is_written_by_process(),
            // Code for one query is gone when the query ends, and then only who compiles has any.
            None => modules.at(address).is_none() && has_compiler(modules),
        }
    }
}

fn object_key(image: &Arc<Image>) -> ObjectKey {
    Arc::as_ptr(image) as usize
}

/// Where the kernel has its return probes return to, if the process has had one.
fn trampoline(modules: &LoadedModules) -> Option<(u64, u64)> {
    let mut mappings = modules.maps().mappings.iter();
    let area = mappings.find(|mapping| matches!(mapping.path, MappingPath::Uprobes))?;
    Some((area.start.0, area.end.0))
}

/// Whether LLVM is loaded, by which PostgreSQL compiles expressions.
fn has_compiler(modules: &LoadedModules) -> bool {
    let mut names = modules.modules().iter().filter_map(|module| module.path.file_name()?.to_str());
    names.any(|name| name.starts_with("llvmjit") || name.starts_with("libLLVM"))
}
