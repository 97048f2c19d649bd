//! The tables of a process in user space, and the names of its code.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result};
use pgleak::addr::{AbsAddr, VirtAddr};
use pgleak::bpf::RawSample;
use pgleak::symbolize::SymbolTable;
use pgleak::target::LoadedModules;
use pgleak::unwind::{
    Atlas, MappedObject, Placement, ReturnProbes, UnwindTable, Walked, build_mapset, walk_above,
};
use tracer_ebpf::{
    abi::MapSet,
    unwind::{RowInfo, RowKind},
};

/// What the kernel's walk of one process looks into.
pub struct Tables {
    /// The rows of all objects.
    pub atlas: Atlas,
    /// Where they are mapped.
    pub set: Box<MapSet>,
    /// Where each module's rows are, by its index.
    pub placements: Vec<Option<Placement>>,
    symbols: HashMap<usize, SymbolTable>,
}

impl Tables {
    /// The tables of a process.
    pub fn of(modules: &LoadedModules) -> Result<Self> {
        let mut atlas = Atlas::new();
        let (mut objects, mut placements, mut symbols) = (Vec::new(), Vec::new(), HashMap::new());
        for (index, module) in modules.modules().iter().enumerate() {
            let table = UnwindTable::build(&module.image)?;
            let placement = table.map(|table| atlas.add(&table)).transpose()?;
            objects.extend(module.ranges.iter().map(|(start, end)| MappedObject {
                start: *start,
                end: *end,
                bias: module.bias,
                placement,
            }));
            placements.push(placement);
            symbols.insert(index, SymbolTable::build(&[&module.image], &[], &[], &BTreeMap::new()));
        }
        Ok(Self { atlas, set: build_mapset(&objects)?, placements, symbols })
    }

    /// The kernel's walk once more, in user space, from the bytes of a sample.
    pub fn walk(&self, sample: &RawSample) -> Walked {
        let mut stack = sample.stack.clone();
        let probes = ReturnProbes::default();
        let mut walked =
            walk_above(vec![sample.cookie], &self.atlas, &self.set, probes, sample.regs, &mut stack);
        walked.frames.remove(0);
        walked
    }

    /// The kinds of rows along a stack, by their codes.
    pub fn kinds(&self, modules: &LoadedModules, frames: &[u64], is_exact: bool) -> Vec<u32> {
        let mut exact = is_exact;
        let kinds = frames.iter().map(|frame| {
            let pc = frame - u64::from(!exact);
            let kind = self.row(modules, pc).kind();
            // A signal may interrupt a function at its first instruction.
            exact = kind == RowKind::SignalFrame as u32;
            kind
        });
        kinds.collect()
    }

    /// Where the program has a function.
    pub fn address_of(&self, modules: &LoadedModules, function: &str) -> Result<VirtAddr> {
        let main = modules.modules().iter().position(|module| module.is_main);
        let symbols = main.and_then(|index| self.symbols.get(&index)).map(SymbolTable::symbols);
        let mut found = symbols.unwrap_or_default().iter().filter(|symbol| symbol.name == function);
        found.next().map(|symbol| symbol.start).with_context(|| format!("the program has no {function}"))
    }

    fn row(&self, modules: &LoadedModules, pc: u64) -> RowInfo {
        let found = modules.index_at(AbsAddr(pc)).and_then(|index| {
            let placement = self.placements.get(index).copied().flatten()?;
            self.atlas.find(placement, VirtAddr(pc.wrapping_sub(modules.modules()[index].bias.0)))
        });
        found.map_or(RowInfo::NONE, |row| row.info())
    }

    /// The names of functions along a stack. Code of files without a name for it has the file's name
    /// in brackets, once for neighbours.
    pub fn names(&self, modules: &LoadedModules, frames: &[u64], is_exact: bool) -> Vec<String> {
        let kinds = self.kinds(modules, frames, is_exact);
        let mut names: Vec<String> = Vec::new();
        for (index, frame) in frames.iter().enumerate() {
            let exact = match index {
                0 => is_exact,
                _ => kinds[index - 1] == RowKind::SignalFrame as u32,
            };
            let name = self.name(modules, frame - u64::from(!exact));
            if !(name.starts_with('[') && names.last() == Some(&name)) {
                names.push(name);
            }
        }
        names
    }

    fn name(&self, modules: &LoadedModules, pc: u64) -> String {
        let Some(index) = modules.index_at(AbsAddr(pc)) else { return "[unknown]".to_owned() };
        let module = &modules.modules()[index];
        let file = module.path.file_name().unwrap_or_default().to_string_lossy();
        let symbol =
            self.symbols.get(&index).and_then(|table| table.at(VirtAddr(pc.wrapping_sub(module.bias.0))));
        match symbol {
            // What libc calls its inner functions differs from one to the next.
            Some(symbol) if !file.starts_with("libc.so") => symbol.name.clone(),
            _ => format!("[{file}]"),
        }
    }
}
