//! The functions that allocate outside of contexts: those of the allocator that the process really uses,
//! and the mappings of its C library.

use std::{path::PathBuf, sync::Arc};

use object::{Object as _, ObjectSymbol as _, RelocationFlags, RelocationTarget, elf};
use tracer_ebpf::site::{ChunkHeader, Tags};

use super::{
    FoundBy, Library, LocatedFunction, MethodFailure, ProbeSite, choose_site, locate::located,
    symbols::exported,
};
use crate::{
    addr::{AbsAddr, VirtAddr},
    catalog::{Function, GLIBC, MALLOC, MALLOC_OTHERS, MMAP},
    target::{LoadedModule, LoadedModules, ReadMemory},
};

/// Why memory outside of contexts cannot be traced.
#[derive(Debug, thiserror::Error)]
pub enum OutsideError {
    /// Nothing defines it.
    #[error("no object of the process defines {name}")]
    NoAllocator {
        /// What was looked for.
        name: &'static str,
    },
    /// One of its functions is missing.
    #[error("the process has its malloc from {path}: {source}")]
    Incomplete {
        /// The object.
        path: PathBuf,
        /// Which function.
        source: MethodFailure,
    },
}

/// The probes of malloc and mmap. `first` is the index of the first in the plan.
///
/// # Errors
/// If the process has no allocator that can be found, or one without a function that all have.
pub fn outside(
    modules: &LoadedModules,
    memory: &dyn ReadMemory,
    pid: u32,
    first: u8,
) -> Result<Vec<ProbeSite>, OutsideError> {
    let allocator = in_use(modules, memory, "malloc").ok_or(OutsideError::NoAllocator { name: "malloc" })?;
    // The C library's own, whoever else offers one: what it maps is what counts.
    let libc = modules
        .modules()
        .iter()
        .find(|module| defines(module, "__libc_start_main") && defines(module, "mmap"))
        .ok_or(OutsideError::NoAllocator { name: "mmap" })?;
    let header = if defines(allocator, GLIBC) { ChunkHeader::Glibc } else { ChunkHeader::None };
    let wanted = (MALLOC.iter().map(|function| (allocator, Function { header, ..*function }, true)))
        .chain(MALLOC_OTHERS.iter().map(|function| (allocator, Function { header, ..*function }, false)))
        .chain(MMAP.iter().map(|function| (libc, *function, true)));
    let mut sites: Vec<ProbeSite> = Vec::new();
    for (module, function, is_needed) in wanted {
        let incomplete = |source| OutsideError::Incomplete { path: module.path.clone(), source };
        let found = match find(module, &function) {
            Ok(found) => found,
            Err(failure) if is_needed => return Err(incomplete(failure)),
            Err(_) => continue,
        };
        // One function may have several names.
        let is_same = |site: &ProbeSite| site.function.address == found.address && has(site, module);
        if sites.iter().any(is_same) {
            continue;
        }
        let index = first + sites.len() as u8;
        let no_code = MethodFailure::NotAFunction { what: function.symbol, address: found.address };
        let site = choose_site(&module.image, module.functions(), found, Tags::NONE, index)
            .ok_or(incomplete(no_code))?;
        sites.push(ProbeSite { library: library(module, pid), ..site });
    }
    Ok(sites)
}

fn has(site: &ProbeSite, module: &LoadedModule) -> bool {
    match &site.library {
        Some(library) => library.bias == module.bias && library.path == module.path,
        None => module.is_main,
    }
}

fn library(module: &LoadedModule, pid: u32) -> Option<Arc<Library>> {
    let (start, end) = module.ranges.first().filter(|_| !module.is_main)?;
    let link = PathBuf::from(format!("/proc/{pid}/map_files/{:x}-{:x}", start.0, end.0));
    Some(Arc::new(Library { path: module.path.clone(), link, bias: module.bias }))
}

fn find(module: &LoadedModule, function: &Function) -> Result<LocatedFunction, MethodFailure> {
    let address = exported(&module.image, function.symbol)?;
    located(&module.image, module.functions(), function, address, FoundBy::DynamicSymbols)
}

fn defines(module: &LoadedModule, name: &'static str) -> bool {
    exported(&module.image, name).is_ok()
}

/// The object whose `name` the program calls: what the dynamic loader has resolved it to; otherwise the
/// program itself, or any other object before the C library, which all others stand in for.
fn in_use<'a>(
    modules: &'a LoadedModules,
    memory: &dyn ReadMemory,
    name: &'static str,
) -> Option<&'a LoadedModule> {
    let main = modules.main()?;
    let resolved = slots(main, name).into_iter().find_map(|slot| {
        let address = AbsAddr(memory.word(slot.in_process(main.bias)).ok()?);
        // A slot that was never used leads back into the program.
        modules.at(address).filter(|module| !module.is_main && defines(module, name))
    });
    let by_order = || {
        let mut all: Vec<_> = modules.modules().iter().filter(|module| defines(module, name)).collect();
        all.sort_by_key(|module| (!module.is_main, defines(module, "__libc_start_main")));
        all.first().copied()
    };
    resolved.or_else(by_order)
}

/// Where a program has the address of a function of another object.
fn slots(module: &LoadedModule, name: &str) -> Vec<VirtAddr> {
    let Ok(elf) = module.image.elf() else { return Vec::new() };
    let Some(symbol) = elf.dynamic_symbols().find(|symbol| symbol.name_bytes() == Ok(name.as_bytes())) else {
        return Vec::new();
    };
    let Some(relocations) = elf.dynamic_relocations() else { return Vec::new() };
    relocations
        .filter(|(_, relocation)| {
            let RelocationFlags::Elf { r_type } = relocation.flags() else { return false };
            relocation.target() == RelocationTarget::Symbol(symbol.index())
                && matches!(r_type, elf::R_X86_64_JUMP_SLOT | elf::R_X86_64_GLOB_DAT)
        })
        .map(|(place, _)| VirtAddr(place))
        .collect()
}
