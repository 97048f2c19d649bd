//! The ELF objects that a process has code of, opened as that process sees them.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use super::{
    maps::{DeviceInode, Mapping, MappingPath, Maps, read_maps},
    memory::{ProcessMemory, ReadMemory as _},
    process::{ProcessError, exe_link},
};
use crate::{
    addr::{AbsAddr, Bias},
    elf::{ElfError, FunctionRange, Image, function_ranges},
};

/// What the vDSO is called, which has no file.
pub const VDSO: &str = "[vdso]";

/// The vDSO is one to four pages; anything larger is something else.
const MOST_VDSO_BYTES: u64 = 1 << 20;

/// Something about one object that a reader of the results has to know. None of it stops a
/// capture: frames in that object have no name and stacks may end there.
#[derive(Debug, thiserror::Error)]
pub enum ModuleNote {
    /// It cannot be opened or is not ELF for x86_64.
    #[error("stacks have no names in {}, and may end there: {source}", path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: ElfError,
    },
    /// Libraries were opened by their paths, since the kernel refuses the exact way. Their inodes
    /// were compared.
    #[error(
        "libraries were opened by their paths, since the kernel refuses /proc/PID/map_files; give pgleak \
         CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE to follow libraries that an upgrade has replaced"
    )]
    ByPath,
    /// It can only be opened by its path, and another file is there now.
    #[error("stacks have no names in {}, and may end there: it was replaced after the process began, and the \
             kernel refuses /proc/PID/map_files; give pgleak CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE", path.display())]
    Replaced {
        /// Which.
        path: PathBuf,
    },
    /// What is mapped belongs to no segment of it.
    #[error("stacks have no names in {} at {start}: no segment of the file is mapped there", path.display())]
    NoSegment {
        /// Which.
        path: PathBuf,
        /// Where it is mapped.
        start: AbsAddr,
    },
    /// The vDSO cannot be read.
    #[error("stacks have no names in the vDSO, and may end there: cannot read it from the process: {source}")]
    Vdso {
        /// Why.
        source: io::Error,
    },
}

/// An object that a process has mapped code of.
#[derive(Debug)]
pub struct LoadedModule {
    /// The file. Two modules share it if the process has mapped it twice.
    pub image: Arc<Image>,
    /// Its path as the process sees it; [`VDSO`] for the vDSO.
    pub path: PathBuf,
    /// Whether it is the program that the process runs.
    pub is_main: bool,
    /// How far it is from its own addresses.
    pub bias: Bias,
    /// Its executable mappings.
    pub ranges: Vec<(AbsAddr, AbsAddr)>,
    functions: Arc<OnceLock<Vec<FunctionRange>>>,
    source: Source,
}

impl LoadedModule {
    /// The ranges of its functions, by start; read from `.eh_frame` at the first call.
    pub fn functions(&self) -> &[FunctionRange] {
        self.functions.get_or_init(|| function_ranges(&self.image))
    }

    /// Whether `address` lies in its code.
    pub fn contains(&self, address: AbsAddr) -> bool {
        self.ranges.iter().any(|(start, end)| *start <= address && address < *end)
    }
}

/// What tells objects of one process apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    File(DeviceInode),
    Vdso,
}

/// Files that were opened already, shared by the processes of a capture.
#[derive(Clone, Debug, Default)]
pub struct Images(Arc<Mutex<HashMap<Source, Opened>>>);

/// A file, and what is computed of it once.
type Opened = (Arc<Image>, Arc<OnceLock<Vec<FunctionRange>>>);

impl Images {
    fn get(&self, source: Source) -> Option<Opened> {
        // A panic elsewhere leaves a map that is whole.
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&source).map(|(image, functions)| (Arc::clone(image), Arc::clone(functions)))
    }

    fn add(&self, source: Source, image: Image) -> Opened {
        let (image, functions) = (Arc::new(image), Arc::new(OnceLock::new()));
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(source, (Arc::clone(&image), Arc::clone(&functions)));
        (image, functions)
    }
}

/// All objects that a process has mapped code of.
#[derive(Debug)]
pub struct LoadedModules {
    pid: u32,
    images: Images,
    maps: Maps,
    modules: Vec<LoadedModule>,
    notes: Vec<ModuleNote>,
    failed: HashSet<Source>,
    /// Start, end and index of the module, by start.
    ranges: Vec<(AbsAddr, AbsAddr, usize)>,
}

impl LoadedModules {
    /// Opens every object that `pid` has mapped code of. What cannot be opened is a note.
    ///
    /// # Errors
    /// If there is no such process or the privilege is missing.
    pub fn read(pid: u32) -> Result<Self, ProcessError> {
        Self::read_sharing(pid, Images::default())
    }

    /// The same; what is in `images` is not opened again.
    ///
    /// # Errors
    /// If there is no such process or the privilege is missing.
    pub fn read_sharing(pid: u32, images: Images) -> Result<Self, ProcessError> {
        let mut modules = Self {
            pid,
            images,
            maps: Maps::default(),
            modules: Vec::new(),
            notes: Vec::new(),
            failed: HashSet::new(),
            ranges: Vec::new(),
        };
        modules.refresh()?;
        Ok(modules)
    }

    /// Reads the mappings again and opens what is new. Indices of modules stay as they are, and
    /// what was unmapped stays known for stacks that were taken before. Gives the number of new
    /// modules.
    ///
    /// # Errors
    /// If the process is gone or the privilege is missing.
    pub fn refresh(&mut self) -> Result<usize, ProcessError> {
        self.maps = read_maps(self.pid)?;
        let before = self.modules.len();
        let code: Vec<Mapping> =
            self.maps.mappings.iter().filter(|mapping| mapping.executable).cloned().collect();
        let exe = fs::read_link(exe_link(self.pid)).ok();
        let mut found: Vec<Vec<(AbsAddr, AbsAddr)>> = Vec::new();
        for mapping in &code {
            if let Some(module) = self.module_of(mapping, exe.as_deref()) {
                found.resize_with(found.len().max(module + 1), Vec::new);
                found[module].push((mapping.start, mapping.end));
            }
        }
        found.resize_with(self.modules.len(), Vec::new);
        for (module, ranges) in self.modules.iter_mut().zip(found) {
            if ranges.is_empty() {
                module.ranges.retain(|(start, end)| {
                    !code.iter().any(|mapping| *start < mapping.end && mapping.start < *end)
                });
            } else {
                module.ranges = ranges;
            }
        }
        self.ranges = (self.modules.iter().enumerate())
            .flat_map(|(index, module)| module.ranges.iter().map(move |(start, end)| (*start, *end, index)))
            .collect();
        self.ranges.sort_unstable();
        Ok(self.modules.len() - before)
    }

    /// The modules; an index is good for as long as this lives.
    pub fn modules(&self) -> &[LoadedModule] {
        &self.modules
    }

    /// The program that the process runs.
    pub fn main(&self) -> Option<&LoadedModule> {
        self.modules.iter().find(|module| module.is_main)
    }

    /// Which module has its code at `address`.
    pub fn index_at(&self, address: AbsAddr) -> Option<usize> {
        let after = self.ranges.partition_point(|(start, ..)| *start <= address);
        self.ranges[..after].last().filter(|(_, end, _)| address < *end).map(|(.., index)| *index)
    }

    /// The module that has its code at `address`.
    pub fn at(&self, address: AbsAddr) -> Option<&LoadedModule> {
        self.index_at(address).map(|index| &self.modules[index])
    }

    /// What was opened, to be shared.
    pub fn images(&self) -> Images {
        self.images.clone()
    }

    /// The mappings, as last read.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// What went wrong with single objects.
    pub fn notes(&self) -> &[ModuleNote] {
        &self.notes
    }

    /// The module that a mapping belongs to; opened, if it is new.
    fn module_of(&mut self, mapping: &Mapping, exe: Option<&Path>) -> Option<usize> {
        let (source, path) = match &mapping.path {
            MappingPath::File { path, .. } => (Source::File(mapping.device_inode), path.clone()),
            MappingPath::Vdso => (Source::Vdso, PathBuf::from(VDSO)),
            _ => return None,
        };
        if self.failed.contains(&source) {
            return None;
        }
        let is_main = source != Source::Vdso && exe == Some(&link_text(mapping, &path));
        let (image, functions) = match self.images.get(source) {
            Some(opened) => opened,
            None => match self.open(mapping, &path, is_main) {
                Ok(image) => self.images.add(source, image),
                Err(note) => {
                    self.notes.push(note);
                    self.failed.insert(source);
                    return None;
                }
            },
        };
        let Some(bias) = image.code_bias(mapping.start, mapping.offset) else {
            self.notes.push(ModuleNote::NoSegment { path, start: mapping.start });
            return None;
        };
        let same = |module: &LoadedModule| module.source == source && module.bias == bias;
        Some(self.modules.iter().position(same).unwrap_or_else(|| {
            let ranges = Vec::new();
            self.modules.push(LoadedModule { image, path, is_main, bias, ranges, functions, source });
            self.modules.len() - 1
        }))
    }

    fn open(&mut self, mapping: &Mapping, path: &Path, is_main: bool) -> Result<Image, ModuleNote> {
        let unusable = |source| ModuleNote::Unusable { path: path.to_owned(), source };
        if mapping.path == MappingPath::Vdso {
            let bytes = read_vdso(self.pid, mapping).map_err(|source| ModuleNote::Vdso { source })?;
            return Image::from_bytes(bytes, path).map_err(unusable);
        }
        if is_main {
            return Image::open(&exe_link(self.pid), path).map_err(unusable);
        }
        let exact = format!("/proc/{}/map_files/{:x}-{:x}", self.pid, mapping.start.0, mapping.end.0);
        match Image::open(Path::new(&exact), path) {
            Err(ElfError::Open { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
                self.open_by_path(mapping, path)
            }
            result => result.map_err(unusable),
        }
    }

    /// Opens an object by its path below the root directory of the process, if the file there
    /// still has the inode of what is mapped.
    fn open_by_path(&mut self, mapping: &Mapping, path: &Path) -> Result<Image, ModuleNote> {
        let replaced = || ModuleNote::Replaced { path: path.to_owned() };
        let inside = path.strip_prefix("/").map_err(|_| replaced())?;
        let below = Path::new("/proc").join(self.pid.to_string()).join("root").join(inside);
        let inode = fs::metadata(&below).map(|file| file.ino()).map_err(|_| replaced())?;
        if inode != mapping.device_inode.inode {
            return Err(replaced());
        }
        let image = Image::open(&below, path)
            .map_err(|source| ModuleNote::Unusable { path: path.to_owned(), source })?;
        if !self.notes.iter().any(|note| matches!(note, ModuleNote::ByPath)) {
            self.notes.push(ModuleNote::ByPath);
        }
        Ok(image)
    }
}

/// A mapping's path as the link `/proc/PID/exe` would give it.
fn link_text(mapping: &Mapping, path: &Path) -> PathBuf {
    match &mapping.path {
        MappingPath::File { deleted: true, .. } => {
            let mut text = path.as_os_str().to_owned();
            text.push(" (deleted)");
            text.into()
        }
        _ => path.to_owned(),
    }
}

fn read_vdso(pid: u32, mapping: &Mapping) -> io::Result<Vec<u8>> {
    let length = mapping.end.0 - mapping.start.0;
    if length > MOST_VDSO_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is larger than any vDSO"));
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    ProcessMemory::new(pid).read(mapping.start, &mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::range_at;

    fn address_of_this_code() -> AbsAddr {
        AbsAddr(address_of_this_code as fn() -> AbsAddr as usize as u64)
    }

    #[test]
    fn own_objects_are_found_with_their_bias() -> Result<(), ProcessError> {
        let modules = LoadedModules::read(std::process::id())?;
        let here = address_of_this_code();
        let module = modules.at(here).expect("this code is mapped");
        assert!(module.is_main && module.contains(here));
        assert_eq!(modules.main().map(|main| &main.path), Some(&module.path));
        let function = range_at(module.functions(), here.in_object(module.bias)).expect("it has an FDE");
        assert_eq!(function.start.in_process(module.bias), here);
        let vdso = modules.modules().iter().find(|module| module.path == Path::new(VDSO));
        assert!(vdso.is_some_and(|vdso| !vdso.functions().is_empty()), "{:?}", modules.notes());
        assert!(modules.modules().iter().any(|module| module.path.to_string_lossy().contains("libc.so")));
        assert_eq!(modules.index_at(AbsAddr(8)), None);
        Ok(())
    }

    #[test]
    fn what_is_mapped_later_is_found_and_what_is_no_elf_is_a_note() -> Result<(), Box<dyn std::error::Error>>
    {
        use memmap2::MmapOptions;
        let mut modules = LoadedModules::read(std::process::id())?;
        let before = (modules.modules().len(), modules.notes().len());
        assert_eq!(modules.refresh()?, 0);

        let directory = tempfile::tempdir()?;
        let text = directory.path().join("no elf\n\\012.so");
        fs::write(&text, "not ELF, but mapped as code")?;
        // SAFETY: nobody changes the file while it is mapped, and nobody runs it.
        let _text = unsafe { MmapOptions::new().map_exec(&fs::File::open(&text)?)? };
        let copy = directory.path().join("copy.so");
        fs::copy("/proc/self/exe", &copy)?;
        let main = modules.main().ok_or("no main")?;
        let code = main.image.segments().iter().find(|segment| segment.executable).ok_or("no code")?;
        let (offset, length) = (code.offset.0 & !4095, usize::try_from(code.file_bytes)?);
        // SAFETY: as above.
        let map = unsafe { MmapOptions::new().offset(offset).len(length).map_exec(&fs::File::open(&copy)?)? };
        fs::remove_file(&copy)?;

        assert_eq!(modules.refresh()?, 1);
        assert_eq!(modules.refresh()?, 0, "a note is made once");
        assert_eq!((modules.modules().len(), modules.notes().len()), (before.0 + 1, before.1 + 1));
        let address = AbsAddr(map.as_ptr() as u64);
        let index = modules.index_at(address).ok_or("not found")?;
        assert_eq!(modules.modules()[index].path, copy);
        assert!(!modules.modules()[index].is_main);

        drop(map);
        modules.refresh()?;
        assert_eq!(modules.index_at(address), Some(index), "stacks from before still need it");
        Ok(())
    }

    #[test]
    fn a_program_that_was_replaced_is_still_opened() -> Result<(), Box<dyn std::error::Error>> {
        use std::{
            io::{Read as _, Write as _},
            process::{Command, Stdio},
        };
        let directory = tempfile::tempdir()?;
        let program = directory.path().join("cat");
        fs::copy("/bin/cat", &program)?;
        // It waits for input until the pipe is closed. Spawning returns before the program is
        // mapped; what comes back through it says that it runs.
        let mut child = Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (mut input, mut output) =
            (child.stdin.take().ok_or("no pipe")?, child.stdout.take().ok_or("no pipe")?);
        input.write_all(b".")?;
        output.read_exact(&mut [0])?;
        fs::remove_file(&program)?;
        fs::write(&program, "something else")?;
        let modules = LoadedModules::read(child.id());
        drop(input);
        child.wait()?;
        let modules = modules?;
        let main = modules.main().ok_or("no program")?;
        assert_eq!(main.path, program);
        assert!(!main.functions().is_empty() && !main.ranges.is_empty());
        assert!(modules.notes().is_empty(), "{:?}", modules.notes());
        Ok(())
    }
}
