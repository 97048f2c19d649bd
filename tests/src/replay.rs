//! Stacks that were recorded from real servers, with all that walking them again needs: registers,
//! stack and unwind rows. No kernel, no process and no file of the server is needed for that.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use pgleak::addr::{AbsAddr, Bias};
use pgleak::bpf::{RawSample, StackBytes};
use pgleak::target::LoadedModules;
use pgleak::unwind::{
    Atlas, MappedObject, ReturnProbes, TableStats, UnwindTable, Walked, build_mapset, walk_above,
};
use serde::{Deserialize, Serialize};
use tracer_ebpf::{
    abi::MapSet,
    lookup::PAGE_BITS,
    unwind::{Registers, Row, WalkEnd},
};

use crate::tables::Tables;

/// A stack is worth recording if so many of its code addresses are in none that was recorded.
const NEW_ADDRESSES: usize = 3;
/// Stacks in one file.
const MOST: usize = 40;

/// Stacks of one process.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Recording {
    /// Which server.
    pub build: String,
    /// What it had mapped.
    pub objects: Vec<Object>,
    /// Its stacks.
    pub stacks: Vec<Stack>,
}

/// An object with the rows of those pages of code that the stacks go through.
#[derive(Debug, Serialize, Deserialize)]
pub struct Object {
    name: String,
    bias: u64,
    ranges: Vec<(u64, u64)>,
    pages: u32,
    rows: Vec<u64>,
}

/// A stack.
#[derive(Debug, Serialize, Deserialize)]
pub struct Stack {
    /// pc, sp, rbp, and 1 if pc is a return address.
    regs: [u64; 4],
    /// Where the stack's bytes begin, and how many words there are.
    base: u64,
    words: usize,
    /// Words by index that are addresses of code or of the stack. The others, which are the server's
    /// data, are zero here.
    addresses: Vec<(usize, u64)>,
    /// What the kernel found.
    pub frames: Vec<u64>,
    end: u32,
}

/// The file that a build's stacks are in.
pub fn file(build: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(format!("{build}.json"))
}

impl Recording {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("cannot understand {}", path.display()))
    }

    /// Records those of the samples that bring something new.
    pub fn of(build: &str, modules: &LoadedModules, tables: &Tables, samples: &[RawSample]) -> Self {
        let mut seen = HashSet::new();
        let mut kept = Vec::new();
        for sample in samples {
            let new = sample.frames.iter().filter(|frame| !seen.contains(*frame)).count();
            if kept.len() < MOST && new >= NEW_ADDRESSES {
                seen.extend(sample.frames.iter().copied());
                kept.push(sample);
            }
        }
        let stacks = kept.iter().map(|sample| Stack::of(sample, modules)).collect();
        let objects = modules.modules().iter().enumerate().map(|(index, module)| {
            let placement = tables.placements.get(index).copied().flatten();
            // Also one byte before each, where return addresses are looked up.
            let looked_up = seen.iter().flat_map(|pc| [*pc, pc - 1]);
            let inside = looked_up.filter(|pc| module.contains(AbsAddr(*pc)));
            let pages: BTreeSet<u64> = inside.map(|pc| pc.wrapping_sub(module.bias.0) >> PAGE_BITS).collect();
            let rows: BTreeSet<u32> =
                placement.iter().flat_map(|at| rows_of(tables, at.first_page, &pages)).collect();
            Object {
                name: module.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                bias: module.bias.0,
                ranges: module.ranges.iter().map(|(start, end)| (start.0, end.0)).collect(),
                pages: placement.map_or(0, |at| at.page_count),
                rows: rows.into_iter().map(|row| tables.atlas.rows()[row as usize].0).collect(),
            }
        });
        Self { build: build.to_owned(), objects: objects.collect(), stacks }
    }

    /// Writes the file.
    pub fn write(&self) -> Result<()> {
        let path = file(&self.build);
        fs::create_dir_all(path.parent().context("no directory")?)?;
        fs::write(&path, serde_json::to_vec(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The rows and mappings.
    pub fn tables(&self) -> Result<(Atlas, Box<MapSet>)> {
        let (mut atlas, mut mapped) = (Atlas::new(), Vec::new());
        for object in &self.objects {
            let placement = match object.rows.is_empty() {
                true => None,
                false => Some(atlas.add(&object.table())?),
            };
            mapped.extend(object.ranges.iter().map(|(start, end)| MappedObject {
                start: AbsAddr(*start),
                end: AbsAddr(*end),
                bias: Bias(object.bias),
                placement,
            }));
        }
        Ok((atlas, build_mapset(&mapped)?))
    }
}

/// Indices of the rows that hold in these pages of an object's code.
fn rows_of(tables: &Tables, first_page: u32, pages: &BTreeSet<u64>) -> Vec<u32> {
    let index = tables.atlas.pages();
    let first = index[first_page as usize];
    let held = pages.iter().filter_map(|page| {
        let at = first_page as usize + usize::try_from(*page).ok()?;
        Some(*index.get(at)?..=*index.get(at + 1)?)
    });
    std::iter::once(first).chain(held.flatten()).collect()
}

impl Object {
    fn table(&self) -> UnwindTable {
        let rows: Vec<Row> = self.rows.iter().copied().map(Row).collect();
        let last_at = |address| rows.partition_point(|row| row.address() <= address).saturating_sub(1) as u32;
        let pages = (0..=u64::from(self.pages)).map(|page| last_at(page << PAGE_BITS)).collect();
        UnwindTable { rows, pages, stats: TableStats::default() }
    }
}

impl Stack {
    fn of(sample: &RawSample, modules: &LoadedModules) -> Self {
        let Registers { pc, sp, bp, is_return } = sample.regs;
        let StackBytes { base, words } = &sample.stack;
        // Above the outermost frame's are the arguments and the environment of the process.
        let root = sample.frames.last().copied().unwrap_or_default();
        let used = words.iter().rposition(|word| *word == root).map_or(0, |last| last + 1);
        let stack = *base..*base + words.len() as u64 * 8;
        let addresses = words[..used].iter().copied().enumerate();
        let addresses =
            addresses.filter(|(_, word)| stack.contains(word) || modules.at(AbsAddr(*word)).is_some());
        Self {
            regs: [pc, sp, bp, is_return],
            base: *base,
            words: used,
            addresses: addresses.collect(),
            frames: sample.frames.clone(),
            end: sample.end.map_or(0, |end| end as u32),
        }
    }

    /// How the kernel's walk ended.
    pub fn end(&self) -> Option<WalkEnd> {
        WalkEnd::from_code(self.end)
    }

    /// The stack's bytes.
    pub fn bytes(&self) -> StackBytes {
        let mut words = vec![0; self.words];
        for (index, word) in &self.addresses {
            words[*index] = *word;
        }
        StackBytes { base: self.base, words }
    }

    /// Walks it again.
    pub fn walk(&self, atlas: &Atlas, set: &MapSet, mut bytes: StackBytes) -> Walked {
        let [pc, sp, bp, is_return] = self.regs;
        let regs = Registers { pc, sp, bp, is_return };
        walk_above(Vec::new(), atlas, set, ReturnProbes::default(), regs, &mut bytes)
    }
}
