//! The memory contexts of the process at the moments that count, and what they say of a snapshot.

use std::collections::{HashMap, HashSet};

use tracer_ebpf::site::{Pool, is_pool};
use tracing::debug;

use super::assemble::BLOCKS;
use crate::{
    addr::AbsAddr,
    bpf::{LiveChunk, ProcessSnapshot, RawContext},
    census::{
        BLOCK_HEADER_BYTES, Block, Census, Limits, MemoryContext, Observed, Usage, UsedChunk, used_chunks,
    },
    hash::{FastMap, FastSet},
    profile::{BLOCKS_OF_CONTEXTS, ContextPlace, OUTSIDE},
};

/// The end of a block that was never given out counts up to the end of its first page: nobody has
/// touched the others, so that they are hardly ever in memory.
const PAGE: u64 = 4096;

/// The most bytes of blocks that are walked chunk by chunk.
const MOST_WALKED: u64 = 512 << 20;

/// The same where it is done again and again.
const MOST_WALKED_OFTEN: u64 = 64 << 20;

/// A census and when it was taken.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// What was seen.
    pub census: Census,
    /// `CLOCK_MONOTONIC` before the first byte was read.
    pub taken_ns: u64,
    by_address: HashMap<AbsAddr, usize>,
    /// Used chunks of AllocSets that had changed, by the address of their context.
    pub chunks: HashMap<u64, Vec<UsedChunk>>,
}

impl Look {
    /// A process that was not there yet at that moment (`CLOCK_MONOTONIC`).
    pub fn of_nothing(taken_ns: u64) -> Self {
        Self { taken_ns, ..Self::default() }
    }

    /// Looks now; `None` if the process cannot be read, as one that has ended.
    pub fn take(observed: Option<&Observed>, now_ns: u64) -> Option<Self> {
        let census = observed?.census(Limits::default());
        let census = census.inspect_err(|error| debug!("no census: {error}")).ok()?;
        debug!("{} contexts read in {:?}", census.contexts.len(), census.took);
        let by_address = census.by_address();
        Some(Self { census, taken_ns: now_ns, by_address, chunks: HashMap::new() })
    }

    /// The context at an address.
    pub fn at(&self, address: u64) -> Option<&MemoryContext> {
        self.by_address.get(&AbsAddr(address)).map(|index| &self.census.contexts[*index])
    }

    /// Walks the chunks of every context that has changed since `before`, or that has recorded chunks.
    pub fn walk_chunks(&mut self, observed: &Observed, before: Option<&Self>, snapshot: &ProcessSnapshot) {
        let with_chunks: FastSet<u64> = snapshot.chunks.iter().map(|chunk| chunk.context).collect();
        let mut room = MOST_WALKED;
        for context in &self.census.contexts {
            let was = before.and_then(|before| before.at(context.address.0));
            let is_same = was.is_some_and(|was| was.usage == context.usage);
            let Some(usage) = context.usage.as_ref().filter(|usage| usage.total() <= room) else { continue };
            if is_same && !with_chunks.contains(&context.address.0) {
                continue;
            }
            room -= usage.total();
            let chunks = used_chunks(&observed.memory, &observed.layout, context, Limits::default());
            if let Some(chunks) = chunks {
                self.chunks.insert(context.address.0, chunks);
            }
        }
    }

    /// Looks now, and walks the chunks of these contexts.
    pub fn at_chunks(observed: &Observed, contexts: &HashSet<u64>) -> Option<Self> {
        let mut look = Self::take(Some(observed), 0)?;
        let mut room = MOST_WALKED_OFTEN;
        for context in look.census.contexts.iter().filter(|context| contexts.contains(&context.address.0)) {
            let Some(usage) = context.usage.as_ref().filter(|usage| usage.total() <= room) else { continue };
            room -= usage.total();
            if let Some(chunks) = used_chunks(&observed.memory, &observed.layout, context, Limits::default())
            {
                look.chunks.insert(context.address.0, chunks);
            }
        }
        Some(look)
    }

    /// Takes out of a snapshot what is no longer there; how many chunks.
    pub fn drop_gone(
        &self,
        snapshot: &mut ProcessSnapshot,
        of_long_life: bool,
        names: &HashMap<u64, String>,
    ) -> u64 {
        let used: FastMap<u64, FastSet<u64>> = (self.chunks.iter())
            .map(|(context, chunks)| (*context, chunks.iter().map(|chunk| chunk.pointer.0).collect()))
            .collect();
        let is_same = |address: u64| {
            let name = snapshot.contexts.get(&address).and_then(|raw| names.get(&raw.name));
            self.at(address).is_some_and(|context| name.is_none_or(|name| *name == context.name))
        };
        let before = snapshot.chunks.len();
        let is_there = |chunk: &LiveChunk| {
            if is_pool(chunk.context) {
                return true;
            }
            if !is_same(chunk.context) {
                return of_long_life;
            }
            used.get(&chunk.context).is_none_or(|used| used.contains(&chunk.chunk))
        };
        let kept: Vec<LiveChunk> = snapshot.chunks.iter().copied().filter(is_there).collect();
        snapshot.chunks = kept;
        (before - snapshot.chunks.len()) as u64
    }

    /// The addresses that malloc gave for blocks, and for contexts that lie before their first one, with the address of
    /// the context.
    fn blocks(&self) -> HashMap<u64, u64> {
        let of = |context: &MemoryContext| {
            let blocks = context.usage.iter().flat_map(|usage| &usage.blocks).map(|block| block.address.0);
            let own = context.address.0;
            blocks.chain([own]).map(|address| (address, own)).collect::<Vec<_>>()
        };
        self.census.contexts.iter().flat_map(of).collect()
    }

    /// The context at an address, if it is surely the one that the programs have seen there: it was
    /// made before this look, and its name is the same.
    fn same(&self, address: u64, raw: &RawContext, name: &str) -> Option<usize> {
        let index = *self.by_address.get(&AbsAddr(address))?;
        (raw.born_ns < self.taken_ns && self.census.contexts[index].name == name).then_some(index)
    }

    /// Where it stands.
    fn place(&self, index: usize) -> ContextPlace {
        let context = &self.census.contexts[index];
        let mut path = self.census.path(index);
        path.pop();
        let ident = context.ident.clone().filter(|_| context.name == "dynahash");
        ContextPlace { name: context.name.clone(), ident, path: Some(path) }
    }
}

/// All looks of a capture; those that failed are not there.
#[derive(Clone, Debug, Default)]
pub struct Looks {
    /// Before recording.
    pub before: Option<Look>,
    /// When recording ended.
    pub recorded: Option<Look>,
    /// At the end.
    pub survived: Option<Look>,
}

impl Looks {
    /// Of the look when recording ended or of the last one: the contexts that blocks are of ([`Look::blocks`]), and
    /// where each stands.
    pub(super) fn of_blocks(&self, is_last: bool) -> OfBlocks<'_> {
        // Of one that has ended there is no last look.
        let look = self.survived.as_ref().filter(|_| is_last).or(self.recorded.as_ref());
        OfBlocks { look, contexts: look.map(Look::blocks).unwrap_or_default() }
    }

    /// Where a context of a snapshot stands: by the last look if it is still there, since contexts
    /// are moved.
    pub fn place(
        &self,
        address: u64,
        snapshot: &ProcessSnapshot,
        last: Option<&ProcessSnapshot>,
        names: &HashMap<u64, String>,
    ) -> ContextPlace {
        if let Some(name) = outside_of_contexts(address) {
            return ContextPlace { name: name.to_owned(), ident: None, path: None };
        }
        let raw = snapshot.contexts.get(&address);
        let name = raw.and_then(|raw| names.get(&raw.name)).map_or("[unreadable name]", String::as_str);
        let is_there = |raw: &&RawContext| {
            let now = last.and_then(|last| last.contexts.get(&address));
            now.is_some_and(|now| now.born_ns == raw.born_ns && now.name == raw.name)
        };
        let in_look = |look: &Option<Look>, raw: &RawContext| {
            let look = look.as_ref()?;
            Some(look.place(look.same(address, raw, name)?))
        };
        raw.filter(is_there)
            .and_then(|raw| in_look(&self.survived, raw))
            .or_else(|| raw.and_then(|raw| in_look(&self.recorded, raw)))
            .unwrap_or_else(|| ContextPlace { name: name.to_owned(), ident: None, path: None })
    }
}

/// Which contexts blocks are of.
pub(super) struct OfBlocks<'a> {
    look: Option<&'a Look>,
    contexts: HashMap<u64, u64>,
}

impl OfBlocks<'_> {
    /// The context that the block at an address is of.
    pub(super) fn context(&self, block: u64) -> Option<u64> {
        self.contexts.get(&block).copied()
    }

    /// Where that context stands.
    pub(super) fn place(&self, context: u64) -> Option<ContextPlace> {
        let look = self.look?;
        Some(look.place(*look.by_address.get(&AbsAddr(context))?))
    }
}

/// The name of what stands for a context where there is none.
fn outside_of_contexts(context: u64) -> Option<&'static str> {
    if context == BLOCKS {
        return Some(BLOCKS_OF_CONTEXTS);
    }
    let [malloc, mmap] = OUTSIDE;
    Pool::of(context).map(|pool| match pool {
        Pool::Malloc => malloc,
        Pool::Mmap => mmap,
    })
}

/// Bytes that a context takes beside what was recorded in it: for one that was made while recording,
/// and so has no chunks but these. With `samples` it has others, which are estimated elsewhere.
pub(super) fn own_bytes(look: Option<&Look>, address: u64, traced: u64, samples: bool) -> u64 {
    let Some(context) = look.and_then(|look| look.at(address)) else { return 0 };
    let used = context.usage.as_ref().filter(|_| samples).map_or(0, Usage::used);
    let traced = traced.max(used);
    let unused = context.usage.as_ref().map_or(0, |usage| usage.blocks.iter().map(not_counted).sum());
    context.total.unwrap_or(0).saturating_sub(unused).saturating_sub(traced)
}

fn not_counted(block: &Block) -> u64 {
    let free_at = block.address.0 + block.bytes - block.unused;
    block.unused.saturating_sub(free_at.next_multiple_of(PAGE) - free_at)
}

/// Bytes that each surviving chunk keeps from all others, by its address: its part of the header and
/// of the free chunks of a block that was made since the first look. Contexts that were made while
/// recording are left out: all of theirs is [`own_bytes`].
pub(super) fn pinned(looks: &Looks, survived: &ProcessSnapshot) -> FastMap<u64, u64> {
    let mut pinned = FastMap::default();
    let (Some(before), Some(after)) = (&looks.before, &looks.survived) else { return pinned };
    let of = |look: &Look| -> FastSet<AbsAddr> {
        let usages = look.census.contexts.iter().filter_map(|context| context.usage.as_ref());
        usages.flat_map(|usage| &usage.blocks).map(|block| block.address).collect()
    };
    let old = of(before);
    let traced: FastSet<u64> = survived.chunks.iter().map(|chunk| chunk.chunk).collect();
    for (address, chunks) in &after.chunks {
        let is_made = survived.contexts.get(address).is_some_and(|context| context.made_by.is_some());
        let Some(usage) = after.at(*address).and_then(|context| context.usage.as_ref()) else { continue };
        if is_made {
            continue;
        }
        let mut used = vec![0; usage.blocks.len()];
        chunks.iter().for_each(|chunk| used[chunk.block] += chunk.held);
        for chunk in chunks {
            let block = &usage.blocks[chunk.block];
            if old.contains(&block.address) || !traced.contains(&chunk.pointer.0) {
                continue;
            }
            let free = block.bytes - block.unused - BLOCK_HEADER_BYTES.min(block.bytes - block.unused);
            let free = free.saturating_sub(used[chunk.block]);
            let share = (BLOCK_HEADER_BYTES + free) as f64 * chunk.held as f64 / used[chunk.block] as f64;
            pinned.insert(chunk.pointer.0, share as u64);
        }
    }
    pinned
}
