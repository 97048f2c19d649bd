//! The addresses of processes to frames with names. It never fails: what is broken is a note,
//! and what has no name shows where it is.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
};

use super::{
    advice::{OsRelease, symbol_advice},
    files::DebugFiles,
    object::{ObjectNames, SymbolNote, about},
};
use crate::{
    addr::{AbsAddr, VirtAddr},
    elf::range_at,
    profile::{Frame, Module, ModuleId},
    target::{LoadedModule, LoadedModules, MappingPath, VDSO},
};

/// Names the addresses of processes, of which those that have the same mapped are one *space*.
#[derive(Debug)]
pub struct Symbolizer<'a> {
    spaces: Vec<&'a LoadedModules>,
    /// Addresses in the first space.
    known: BTreeMap<AbsAddr, String>,
    files: DebugFiles,
    /// The objects that frames lie in, in the order of [`ModuleId`].
    used: Vec<UsedModule<'a>>,
    frames: HashMap<(usize, AbsAddr), Frame>,
    notes: Vec<SymbolNote>,
}

/// An object that frames lie in.
#[derive(Debug)]
struct UsedModule<'a> {
    /// As it is in the space that has it first.
    module: &'a LoadedModule,
    names: ObjectNames,
}

impl<'a> Symbolizer<'a> {
    /// Names by the symbols of the objects in `spaces` and their debug files. `known` are functions that
    /// pgleak found out itself, by the address of their first instruction in the first space.
    pub fn new(spaces: Vec<&'a LoadedModules>, known: BTreeMap<AbsAddr, String>, files: DebugFiles) -> Self {
        let (used, frames, notes) = (Vec::new(), HashMap::new(), Vec::new());
        Self { spaces, known, files, used, frames, notes }
    }

    /// Names one address of a space. A return address is looked up at the byte before it, which belongs to
    /// the call: behind a call that never returns begins another function, or another line.
    pub fn frame(&mut self, space: usize, address: AbsAddr, is_return_address: bool) -> Frame {
        let address = AbsAddr(address.0.wrapping_sub(u64::from(is_return_address)));
        if let Some(frame) = self.frames.get(&(space, address)) {
            return frame.clone();
        }
        let modules: &'a LoadedModules = self.spaces[space];
        let frame = match modules.at(address) {
            Some(module) => self.frame_in(module, address),
            None => frame_outside(modules.maps().at(address).map(|mapping| &mapping.path), address),
        };
        self.frames.insert((space, address), frame.clone());
        frame
    }

    /// The objects of all frames so far, in the order of their ids.
    pub fn modules(&self) -> Vec<Module> {
        self.used
            .iter()
            .map(|used| {
                let module = used.module;
                Module {
                    path: module.path.display().to_string(),
                    build_id: module.image.build_id().cloned(),
                    named: used.names.named,
                    nameless: used.names.nameless,
                    symbols: used.names.sources.iter().map(|source| (*source).to_owned()).collect(),
                }
            })
            .collect()
    }

    /// How to get the names of each object that has frames without one. What is nameless in spite
    /// of a full symbol table (hand-written assembly, say) has no name anywhere.
    pub fn advice(&self, os: &OsRelease) -> Vec<String> {
        let nameless = self.used.iter().filter(|used| used.names.nameless > 0 && !used.names.is_complete());
        nameless
            .map(|used| {
                let module = used.module;
                symbol_advice(os, &module.path, module.image.build_id())
            })
            .collect()
    }

    /// What went wrong so far.
    pub fn notes(&self) -> &[SymbolNote] {
        &self.notes
    }

    fn frame_in(&mut self, module: &'a LoadedModule, address: AbsAddr) -> Frame {
        let id = self.id_of(module);
        let used = &mut self.used[id.0 as usize];
        let address = address.in_object(module.bias);
        let function = range_at(module.functions(), address);
        let naming = used.names.name(address, &mut self.notes);
        let start = naming.start.or(function.map(|function| function.start));
        let fallback = format!("{}+{:#x}", base_name(&module.path), start.unwrap_or(address).0);
        let (names, aliases) = (naming.names, naming.aliases);
        Frame { module: Some(id), address, function_start: start, names, aliases, fallback }
    }

    /// The id of an object; its symbols are read when its first frame is.
    fn id_of(&mut self, module: &'a LoadedModule) -> ModuleId {
        let same = |used: &UsedModule<'_>| Arc::ptr_eq(&used.module.image, &module.image);
        if let Some(index) = self.used.iter().position(same) {
            return ModuleId(index as u32);
        }
        let mut file_notes = Vec::new();
        let mut images = vec![Arc::clone(&module.image)];
        images.extend(self.files.of_object(&module.image, &module.path, &mut file_notes));
        self.notes.extend(about(&module.path, file_notes));
        let known = self.known_in(module);
        let names = ObjectNames::read(
            &module.path,
            &images,
            module.functions(),
            &known,
            &mut self.files,
            &mut self.notes,
        );
        let id = ModuleId(u32::try_from(self.used.len()).expect("a process maps fewer than 2^32 objects"));
        self.used.push(UsedModule { module, names });
        id
    }

    fn known_in(&self, module: &LoadedModule) -> BTreeMap<VirtAddr, String> {
        let inside = self.known.iter().filter(|(address, _)| module.contains(**address));
        inside.map(|(address, name)| (address.in_object(module.bias), name.clone())).collect()
    }
}

/// A frame of code that the process made itself: LLVM's JIT, mostly.
pub fn run_time_frame(address: AbsAddr) -> Frame {
    frame_without_names("[jit]".to_owned(), address)
}

/// A frame that lies in no object.
fn frame_outside(path: Option<&MappingPath>, address: AbsAddr) -> Frame {
    let label = match path {
        None => "[unknown mapping]".to_owned(),
        Some(path) if path.is_written_by_process() => return run_time_frame(address),
        Some(MappingPath::Anonymous | MappingPath::Uprobes) => "[uprobes]".to_owned(),
        Some(MappingPath::Vdso) => VDSO.to_owned(),
        Some(MappingPath::Other(name)) => name.clone(),
        Some(MappingPath::File { path, .. }) => format!("[{}]", base_name(path)),
    };
    frame_without_names(label, address)
}

fn frame_without_names(fallback: String, address: AbsAddr) -> Frame {
    let (names, aliases) = (Vec::new(), Vec::new());
    Frame { module: None, address: VirtAddr(address.0), function_start: None, names, aliases, fallback }
}

fn base_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbolize::SymbolTable;

    #[test]
    fn code_outside_of_files_says_what_it_is() {
        let label = |path: Option<MappingPath>| frame_outside(path.as_ref(), AbsAddr(0x99)).fallback;
        let file = |path: &str| Some(MappingPath::File { path: path.into(), deleted: true });
        assert_eq!(label(None), "[unknown mapping]");
        assert_eq!(label(Some(MappingPath::Anonymous)), "[jit]");
        assert_eq!(label(Some(MappingPath::Other("[anon:llvm]".into()))), "[jit]");
        assert_eq!(label(Some(MappingPath::Other("[vsyscall]".into()))), "[vsyscall]");
        assert_eq!(label(file("/memfd:jit")), "[jit]");
        assert_eq!(label(file("/opt/broken.so")), "[broken.so]");
        assert_eq!(frame_outside(None, AbsAddr(0x99)).address, VirtAddr(0x99));
    }

    #[inline(never)]
    fn a_function_of_this_test(value: u32) -> u32 {
        std::hint::black_box(value) + 1
    }

    #[test]
    fn a_return_address_belongs_to_the_call_before_it() -> Result<(), Box<dyn std::error::Error>> {
        assert_eq!(a_function_of_this_test(1), 2);
        let modules = LoadedModules::read(std::process::id())?;
        let mut symbolizer = Symbolizer::new(vec![&modules], BTreeMap::new(), DebugFiles::default());
        let start = AbsAddr(a_function_of_this_test as fn(u32) -> u32 as usize as u64);
        let frame = symbolizer.frame(0, start, false);
        assert!(frame.label().ends_with("a_function_of_this_test"), "{frame:?}");
        let name = frame.names.last().ok_or("a name")?;
        assert!(name.file.as_deref().is_some_and(|file| file.ends_with("symbolize/symbolizer.rs")));
        let bias = modules.at(start).ok_or("mapped")?.bias;
        assert_eq!(frame.function_start.map(|at| at.in_process(bias)), Some(start));

        let before = symbolizer.frame(0, start, true);
        assert_eq!(before.address.0, frame.address.0 - 1);
        assert_ne!(before.function_start, frame.function_start);
        assert_eq!(symbolizer.frame(0, start, false), frame);
        let module = &symbolizer.modules()[0];
        assert_eq!(module.named + module.nameless, 2, "the second look-up is not counted again");
        assert!(module.symbols.contains(&"DWARF".to_owned()));
        assert!(symbolizer.notes().is_empty());
        Ok(())
    }

    #[test]
    fn what_pgleak_found_out_is_named() -> Result<(), Box<dyn std::error::Error>> {
        let modules = LoadedModules::read(std::process::id())?;
        // A function of a library that has no name: the first one outside of every symbol.
        let libc = modules.modules().iter().find(|module| base_name(&module.path).starts_with("libc.so"));
        let libc = libc.ok_or("the C library is mapped")?;
        let table = SymbolTable::build(&[&libc.image], &[], libc.functions(), &BTreeMap::new());
        let nameless = libc.functions().iter().find(|function| table.at(function.start).is_none());
        let nameless = nameless.ok_or("a static function")?.start;
        let address = nameless.in_process(libc.bias);

        let mut symbolizer = Symbolizer::new(vec![&modules], BTreeMap::new(), DebugFiles::default());
        let frame = symbolizer.frame(0, address.offset(1), false);
        assert!(frame.is_nameless());
        assert_eq!(frame.label(), format!("{}+{:#x}", base_name(&libc.path), nameless.0));
        let advice = symbolizer.advice(&OsRelease::default());
        assert!(advice.len() == 1 && advice[0].contains("debuginfod-find"), "{advice:?}");

        let known = BTreeMap::from([(address, "AllocSetAlloc".to_owned())]);
        let mut symbolizer = Symbolizer::new(vec![&modules], known, DebugFiles::default());
        assert_eq!(symbolizer.frame(0, address.offset(1), false).label(), "AllocSetAlloc");
        assert_eq!(symbolizer.modules()[0].symbols, ["found by pgleak"]);
        assert!(symbolizer.advice(&OsRelease::default()).is_empty());
        Ok(())
    }
}
