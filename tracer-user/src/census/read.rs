//! From `TopMemoryContext` through the tree.

use std::{
    cell::Cell,
    collections::{HashMap, HashSet},
    io,
    time::{Duration, Instant},
};

use super::{
    Census, Kind, MOST_BYTES, MemoryContext, Troubles, Usage,
    allocset::{Torn, read_usage},
    kinds::{read_listed, read_slab},
};
use crate::{
    addr::AbsAddr,
    catalog::{Counted, Layout},
    target::ReadMemory,
};

/// A context, the fields of an AllocSet behind it, and the header of the block that was made with it,
/// of every major: most contexts are read at once.
const NEAR_BYTES: usize = 272;

/// The most bytes of a name or an ident.
const MOST_TEXT: usize = 256;

/// How often a part that changes while it is read is read again.
const TRIES: u32 = 32;

/// How much a census may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Time for all of it.
    pub time: Duration,
    /// Contexts.
    pub contexts: usize,
    /// Blocks and free chunks of one context.
    pub blocks: usize,
    /// Whether to look into blocks where the server counts their bytes itself (13 and later): without that, a
    /// census tells how large contexts are and not what is free in them, for a fraction of the reads.
    pub usage: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self { time: Duration::from_secs(2), contexts: 1 << 20, blocks: 1 << 22, usage: true }
    }
}

/// Reads the tree below `top`.
pub fn take(memory: &dyn ReadMemory, layout: &Layout, top: AbsAddr, limits: Limits) -> Census {
    let started = Instant::now();
    let memory = Counting { memory, bytes: Cell::new(0) };
    let mut census = Reader::new(&memory, layout, limits).tree(top);
    census.took = started.elapsed();
    census.read_bytes = memory.bytes.get();
    census
}

/// Memory, and how much of it was read.
struct Counting<'a> {
    memory: &'a dyn ReadMemory,
    bytes: Cell<u64>,
}

impl ReadMemory for Counting<'_> {
    fn read(&self, address: AbsAddr, into: &mut [u8]) -> io::Result<()> {
        self.bytes.set(self.bytes.get() + into.len() as u64);
        self.memory.read(address, into)
    }
}

/// What reads, and what it has met.
pub(super) struct Reader<'a> {
    pub(super) memory: &'a dyn ReadMemory,
    pub(super) layout: &'a Layout,
    pub(super) limits: Limits,
    pub(super) deadline: Instant,
    pub(super) troubles: Troubles,
    /// Constant strings of the server, by their address.
    names: HashMap<u64, String>,
    /// The context at hand.
    near: Near,
}

/// The memory that begins with a context, as it was at one moment.
#[derive(Clone, Copy)]
struct Near {
    start: u64,
    bytes: [u8; NEAR_BYTES],
    /// How many of them could be read.
    known: usize,
}

/// The words of a `MemoryContextData`.
struct Header {
    kind: Kind,
    allocated: Option<u64>,
    parent: u64,
    first_child: u64,
    next_child: u64,
    name: u64,
    ident: u64,
}

impl<'a> Reader<'a> {
    pub(super) fn new(memory: &'a dyn ReadMemory, layout: &'a Layout, limits: Limits) -> Self {
        let deadline = Instant::now() + limits.time;
        let near = Near { start: 0, bytes: [0; NEAR_BYTES], known: 0 };
        Self { memory, layout, limits, deadline, troubles: Troubles::default(), names: HashMap::new(), near }
    }

    /// Reads memory; what is near the context at hand is there already.
    pub(super) fn read(&self, address: AbsAddr, into: &mut [u8]) -> io::Result<()> {
        let from = address.0.wrapping_sub(self.near.start);
        let end = from.saturating_add(into.len() as u64);
        if end <= self.near.known as u64 {
            into.copy_from_slice(&self.near.bytes[from as usize..end as usize]);
            return Ok(());
        }
        self.memory.read(address, into)
    }

    fn tree(mut self, top: AbsAddr) -> Census {
        let mut contexts: Vec<MemoryContext> = Vec::new();
        let mut seen: HashMap<u64, usize> = HashMap::new();
        let mut to_read = vec![(top, None, None)];
        while let Some((address, parent, near)) = to_read.pop() {
            if contexts.len() >= self.limits.contexts || Instant::now() > self.deadline {
                self.troubles.cut = 1;
                break;
            }
            let above = parent.map_or(0, |parent: usize| contexts[parent].address.0);
            // One that is not there any more ended since its parent was read.
            let Some((context, children)) = self.context(address, parent, above, near) else { continue };
            // One that was deleted and made again elsewhere meanwhile stays what it was, with what is below it now.
            let index = *seen.entry(address.0).or_insert(contexts.len());
            if index == contexts.len() {
                contexts.push(context);
            }
            let children = children.into_iter().rev();
            to_read.extend(children.map(|near| (AbsAddr(near.start), Some(index), Some(near))));
        }
        Census { contexts, troubles: self.troubles, took: Duration::ZERO, read_bytes: 0 }
    }

    /// A context and where its children are; `None` if it is none, or that of another parent.
    fn context(
        &mut self,
        address: AbsAddr,
        parent: Option<usize>,
        above: u64,
        near: Option<Near>,
    ) -> Option<(MemoryContext, Vec<Near>)> {
        let mut header = match near {
            Some(near) => self.header_in(near, above)?,
            None => self.header(address, above)?,
        };
        let mut children = self.children(address, &header);
        let mut usage = self.usage(address, &header);
        for _ in 1..TRIES {
            if children.is_ok() && usage.is_ok() {
                break;
            }
            header = self.header(address, above)?;
            if children.is_err() {
                children = self.children(address, &header);
            }
            if usage.is_err() {
                usage = self.usage(address, &header);
            }
        }
        self.troubles.torn += u64::from(children.is_err());
        self.troubles.torn_blocks += u64::from(usage.is_err());
        let (Ok(children) | Err(children)) = children;
        let usage = usage.ok().flatten();
        // Others do not count themselves.
        let counted = header.allocated.filter(|_| header.kind == Kind::AllocSet || usage.is_none());
        let total = counted.or_else(|| usage.as_ref().map(Usage::total));
        let ident = (header.ident != 0).then(|| self.ident(AbsAddr(header.ident))).flatten();
        let name = self.name(header.name);
        Some((MemoryContext { address, parent, name, ident, kind: header.kind, total, usage }, children))
    }

    /// The children; an error holds those up to where the list changed while it was read.
    fn children(&mut self, of: AbsAddr, header: &Header) -> Result<Vec<Near>, Vec<Near>> {
        let own = self.near;
        let children = self.list(of, header);
        self.near = own;
        children
    }

    fn list(&mut self, of: AbsAddr, header: &Header) -> Result<Vec<Near>, Vec<Near>> {
        let mut children = Vec::new();
        let mut seen = HashSet::new();
        let mut at = header.first_child;
        while at != 0 {
            if children.len() >= self.limits.contexts || Instant::now() > self.deadline {
                self.troubles.cut = 1;
                break;
            }
            match self.header(AbsAddr(at), of.0) {
                // One that was deleted and made again meanwhile leads back to its siblings.
                Some(child) if seen.insert(at) => {
                    children.push(self.near);
                    at = child.next_child;
                }
                _ => return Err(children),
            }
        }
        Ok(children)
    }

    /// What is in a context; nothing where its kind, or this version's blocks, cannot be read.
    fn usage(&mut self, address: AbsAddr, header: &Header) -> Result<Option<Usage>, Torn> {
        if !self.limits.usage && header.allocated.is_some() {
            return Ok(None);
        }
        let others = self.layout.others.as_ref();
        let usage = match header.kind {
            Kind::AllocSet => self.layout.blocks_have_ends.then(|| read_usage(self, address)),
            Kind::Generation => others.map(|others| read_listed(self, address, &others.generation)),
            Kind::Slab => others.map(|others| read_slab(self, address, &others.slab)),
            Kind::Bump => others.and_then(|others| Some(read_listed(self, address, others.bump.as_ref()?))),
        };
        match usage.transpose()? {
            Some(usage) if !usage.is_sound() => Err(Torn),
            usage => Ok(usage),
        }
    }

    /// The header of a context whose parent is `parent`, and all that is near it, read anew.
    fn header(&mut self, address: AbsAddr, parent: u64) -> Option<Header> {
        let mut near = Near { start: address.0, bytes: [0; NEAR_BYTES], known: NEAR_BYTES };
        if !address.0.is_multiple_of(8) {
            return None;
        }
        if self.memory.read(address, &mut near.bytes).is_err() {
            // The memory may end behind a small context.
            near.known = self.layout.context.size as usize;
            self.memory.read(address, &mut near.bytes[..near.known]).ok()?;
        }
        self.header_in(near, parent)
    }

    fn header_in(&mut self, near: Near, parent: u64) -> Option<Header> {
        self.near = near;
        let fields = &self.layout.context;
        let word = |at: u64| {
            let at = at as usize;
            near.bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes)
        };
        let header = Header {
            kind: self.kind(word(0) as u32)?,
            allocated: match fields.allocated {
                Counted::Nowhere => None,
                Counted::At(at) => Some(word(at)),
                Counted::Difference(got, given_back) => Some(word(got).saturating_sub(word(given_back))),
            },
            parent: word(fields.parent),
            first_child: word(fields.first_child),
            next_child: word(fields.next_child),
            name: word(fields.name),
            ident: fields.ident.map_or(0, word),
        };
        let is_sound = header.parent == parent
            && header.name != 0
            && header.allocated.is_none_or(|bytes| bytes <= MOST_BYTES);
        is_sound.then_some(header)
    }

    fn kind(&self, tag: u32) -> Option<Kind> {
        self.layout
            .allocators()
            .find(|allocator| allocator.node_tag.known() == Some(tag))
            .map(|allocator| allocator.kind)
    }

    fn name(&mut self, address: u64) -> String {
        if let Some(name) = self.names.get(&address) {
            return name.clone();
        }
        match text(self.memory, AbsAddr(address), MOST_TEXT) {
            Some(name) => self.names.entry(address).or_insert(name).clone(),
            None => {
                self.troubles.unreadable += 1;
                "[unreadable name]".to_owned()
            }
        }
    }

    /// It may be gone, which the source says of it: no trouble of ours.
    fn ident(&self, address: AbsAddr) -> Option<String> {
        text(self.memory, address, MOST_TEXT).filter(|ident| !ident.is_empty())
    }
}

/// A string, cut at `most` bytes, with as few reads as pages allow.
pub fn text(memory: &dyn ReadMemory, address: AbsAddr, most: usize) -> Option<String> {
    let mut bytes = vec![0; most];
    let in_page = (4096 - address.0 % 4096) as usize;
    let mut known = most;
    if memory.read(address, &mut bytes).is_err() {
        // The page after it may not be there.
        known = in_page.min(most);
        memory.read(address, &mut bytes[..known]).ok()?;
    }
    let end = bytes[..known].iter().position(|byte| *byte == 0).unwrap_or(known);
    Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
}
