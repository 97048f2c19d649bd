//! What is live while a capture still records: the stacks that hold most, named and told at once to whoever watches.
//!
//! A reading of the maps costs what the maps hold, so the next one waits for fifty times as long as the last one took; names are
//! another thread's business, and nothing is read while the last ones are still missing. In windows there is no reading of its
//! own: what was read at the end of each is told.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io::{self, Write as _},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    addr::AbsAddr,
    bpf::{RawSnapshot, RawStack},
    profile::wrappers::{Role, role},
    symbolize::{DebugFiles, Symbolizer},
    target::LoadedModules,
};

/// So many stacks are told.
const MOST_STACKS: usize = 20;

/// So many functions of a stack are told, and so many characters of each: a line of all has a bound.
const MOST_FUNCTIONS: usize = 16;
const MOST_CHARACTERS: usize = 100;

/// Looks are at least so far apart.
const EVERY: Duration = Duration::from_secs(1);

/// A look takes at most one part in so many of the time.
const SHARE: u32 = 50;

/// What is mapped is read again at most so often, for the sake of code that was not there before.
const MAPS_EVERY: Duration = Duration::from_secs(10);

/// The stacks that hold most at one moment, the largest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveStacks {
    /// As many as are told.
    pub stacks: Vec<LiveStack>,
}

/// One of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveStack {
    /// Bytes that were allocated there while recording and are not freed yet.
    pub held_bytes: u64,
    /// In so many chunks.
    pub chunks: u64,
    /// The context that most of them are in; empty for what is in none.
    pub context: String,
    /// Its functions, innermost first, without what only passes memory on.
    pub path: Vec<String>,
}

/// A stack before its functions have names.
struct Nameless {
    held_bytes: u64,
    chunks: u64,
    context: String,
    frames: Vec<AbsAddr>,
}

/// Takes looks, and tells them.
#[derive(Debug)]
pub struct LiveFeed {
    looks: SyncSender<Vec<Nameless>>,
    /// Whether the last look is still being named, or nobody wants another.
    is_busy: Arc<AtomicBool>,
    next: Instant,
}

impl LiveFeed {
    /// Tells what is live in a process on standard output, a line of JSON each time. `known` are functions that pgleak found out
    /// itself.
    ///
    /// # Errors
    /// If there can be no other thread.
    pub fn start(pid: u32, known: BTreeMap<AbsAddr, String>) -> io::Result<Self> {
        let (looks, received) = sync_channel(1);
        let is_busy = Arc::new(AtomicBool::new(false));
        let busy = Arc::clone(&is_busy);
        thread::Builder::new().name("live".to_owned()).spawn(move || {
            // Ends with the recording, or when nobody reads any more: then it stays busy.
            let _ = tell(pid, &known, &received, &busy);
        })?;
        Ok(Self { looks, is_busy, next: Instant::now() + EVERY })
    }

    /// Whether it is time for another look.
    pub(super) fn is_due(&self) -> bool {
        Instant::now() >= self.next && !self.is_busy.load(Ordering::Acquire)
    }

    /// A look. What it was read from took its time since `begun`.
    pub(super) fn look(&mut self, snapshot: &RawSnapshot, stacks: &[RawStack], begun: Instant) {
        if !self.is_busy.swap(true, Ordering::AcqRel) {
            // Where it cannot be sent, nobody wants to know.
            let _ = self.looks.try_send(largest(snapshot, stacks));
        }
        self.next = Instant::now() + EVERY.max(begun.elapsed() * SHARE);
    }
}

/// The stacks that hold most, the largest first.
fn largest(snapshot: &RawSnapshot, stacks: &[RawStack]) -> Vec<Nameless> {
    #[derive(Default)]
    struct Sum {
        bytes: u64,
        chunks: u64,
        contexts: HashMap<u64, u64>,
    }
    let mut sums: HashMap<u32, Sum> = HashMap::new();
    for chunk in snapshot.chunks() {
        let sum = sums.entry(chunk.stack).or_default();
        let bytes = chunk.weighed(chunk.held);
        sum.bytes += bytes;
        sum.chunks += chunk.weighed(1);
        *sum.contexts.entry(chunk.context).or_default() += bytes;
    }
    let mut sums: Vec<(u32, Sum)> = sums.into_iter().collect();
    sums.sort_by(|a, b| b.1.bytes.cmp(&a.1.bytes).then(a.0.cmp(&b.0)));
    sums.truncate(MOST_STACKS);
    let wanted: HashMap<u32, &RawStack> = stacks
        .iter()
        .filter(|stack| sums.iter().any(|(id, _)| *id == stack.id))
        .map(|stack| (stack.id, stack))
        .collect();
    let contexts: HashMap<u64, u64> = snapshot
        .processes
        .values()
        .flat_map(|process| &process.contexts)
        .map(|(address, context)| (*address, context.name))
        .collect();
    let name = |contexts_of: &HashMap<u64, u64>| {
        let (address, _) = contexts_of.iter().max_by_key(|(address, bytes)| (**bytes, **address))?;
        snapshot.names.get(contexts.get(address)?).cloned()
    };
    let nameless = |(id, sum): (u32, Sum)| {
        Some(Nameless {
            held_bytes: sum.bytes,
            chunks: sum.chunks,
            context: name(&sum.contexts).unwrap_or_default(),
            frames: wanted.get(&id)?.frames.clone(),
        })
    };
    sums.into_iter().filter_map(nameless).collect()
}

/// Names looks and prints them, until there are no more.
fn tell(
    pid: u32,
    known: &BTreeMap<AbsAddr, String>,
    looks: &Receiver<Vec<Nameless>>,
    is_busy: &AtomicBool,
) -> io::Result<()> {
    let Ok(mut look) = looks.recv() else { return Ok(()) };
    // Code that is in no object, however often it is looked for: compiled at run time, mostly.
    let mut nowhere = HashSet::new();
    loop {
        // A process that has ended has nothing that is live.
        let Ok(modules) = LoadedModules::read(pid) else { return Ok(()) };
        let read = Instant::now();
        let addresses = look.iter().flat_map(|stack| &stack.frames).copied();
        nowhere.extend(addresses.filter(|address| modules.at(*address).is_none()));
        let roots = vec![PathBuf::from(format!("/proc/{pid}/root")), PathBuf::from("/")];
        let mut symbolizer = Symbolizer::new(vec![&modules], known.clone(), DebugFiles::below(roots));
        loop {
            let stacks = look.iter().map(|stack| named(stack, &mut symbolizer)).collect();
            let line = serde_json::to_string(&LiveStacks { stacks })?;
            let mut out = io::stdout().lock();
            writeln!(out, "{line}")?;
            out.flush()?;
            drop(out);
            is_busy.store(false, Ordering::Release);
            let Ok(next) = looks.recv() else { return Ok(()) };
            look = next;
            let is_new = |address: &AbsAddr| modules.at(*address).is_none() && !nowhere.contains(address);
            let are_new = look.iter().flat_map(|stack| &stack.frames).any(is_new);
            if are_new && read.elapsed() >= MAPS_EVERY {
                break;
            }
        }
    }
}

fn named(stack: &Nameless, symbolizer: &mut Symbolizer<'_>) -> LiveStack {
    let mut path = Vec::new();
    for (index, address) in stack.frames.iter().enumerate() {
        // All but the first are return addresses.
        let frame = symbolizer.frame(0, *address, index > 0);
        if frame.names.is_empty() {
            path.push(frame.label().to_owned());
        }
        path.extend(frame.names.iter().map(|name| name.function.clone()));
    }
    let wrappers = path.iter().take_while(|function| role(function) == Role::Wrapper).count();
    // A stack of nothing else is told as it is.
    path.drain(..if wrappers < path.len() { wrappers } else { 0 });
    path.truncate(MOST_FUNCTIONS);
    let cut = |text: &String| text.chars().take(MOST_CHARACTERS).collect();
    let (context, path) = (cut(&stack.context), path.iter().map(cut).collect());
    LiveStack { held_bytes: stack.held_bytes, chunks: stack.chunks, context, path }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::{LiveChunk, ProcessSnapshot, RawContext};

    fn chunk(stack: u32, at: u64, context: u64, held: u64) -> LiveChunk {
        let weight = tracer_ebpf::sampling::ONE;
        LiveChunk { stack, chunk: at, context, requested: held, held, born_ns: 1, weight }
    }

    #[test]
    fn the_largest_come_first_with_the_context_that_has_most() {
        let context = |name| RawContext { epoch: 1, name, made_by: None, born_ns: 0 };
        let process = ProcessSnapshot {
            chunks: vec![
                chunk(1, 0x10, 0xa, 100),
                chunk(2, 0x20, 0xa, 100),
                chunk(2, 0x30, 0xb, 300),
                // Its stack has not arrived.
                chunk(3, 0x40, 0xb, 1000),
            ],
            contexts: HashMap::from([(0xa, context(1)), (0xb, context(2))]),
        };
        let snapshot = RawSnapshot {
            processes: BTreeMap::from([(0, process)]),
            names: HashMap::from([(1, "ExecutorState".to_owned()), (2, "CacheMemoryContext".to_owned())]),
            ..RawSnapshot::default()
        };
        let stack = |id: u32| RawStack { id, end: None, mapset: 0, frames: vec![AbsAddr(u64::from(id))] };
        let largest = largest(&snapshot, &[stack(1), stack(2)]);
        let told: Vec<_> = largest
            .iter()
            .map(|stack| (stack.frames[0].0, stack.held_bytes, stack.chunks, &*stack.context))
            .collect();
        assert_eq!(told, [(2, 400, 2, "CacheMemoryContext"), (1, 100, 1, "ExecutorState")]);
    }
}
