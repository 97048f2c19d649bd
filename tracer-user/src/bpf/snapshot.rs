//! What is in the maps at one moment, as plain values.

use std::collections::{BTreeMap, HashMap, HashSet};

use tracer_ebpf::{
    abi::{Context, Live, StackTotals, key_address, key_process},
    sampling::ONE,
    site::is_pool,
};

use super::{MapError, Tracer};
use crate::hash::FastMap;

/// Bytes of one chunk that one stack is answerable for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveChunk {
    /// The stack's id.
    pub stack: u32,
    /// The chunk's address.
    pub chunk: u64,
    /// The context's address, or the number of a pool.
    pub context: u64,
    /// Bytes asked for.
    pub requested: u64,
    /// Bytes taken.
    pub held: u64,
    /// `CLOCK_MONOTONIC` of the allocation, or of the last growth.
    pub born_ns: u64,
    /// What it stands for, by [`ONE`]: for itself, unless it is a sample.
    pub weight: u64,
}

impl LiveChunk {
    /// Bytes that it stands for, of so many of its own.
    pub fn weighed(&self, bytes: u64) -> u64 {
        (u128::from(bytes) * u128::from(self.weight) / u128::from(ONE)) as u64
    }
}

/// A context at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawContext {
    /// Its number: whatever happens to it raises it.
    pub epoch: u64,
    /// The key of its name in [`RawSnapshot::names`].
    pub name: u64,
    /// The stack that made it, if that was seen.
    pub made_by: Option<u32>,
    /// `CLOCK_MONOTONIC` of its making, if that was seen.
    pub born_ns: u64,
}

/// What a process holds at one moment.
#[derive(Clone, Debug, Default)]
pub struct ProcessSnapshot {
    /// Chunks, and growths of chunks, that were neither freed nor reset.
    pub chunks: Vec<LiveChunk>,
    /// Contexts that these are in, or that were made, by their address.
    pub contexts: HashMap<u64, RawContext>,
}

/// The maps at one moment.
#[derive(Clone, Debug, Default)]
pub struct RawSnapshot {
    /// What each process holds, by its number; 0 for that of a capture of one.
    pub processes: BTreeMap<u32, ProcessSnapshot>,
    /// Names of contexts by their key.
    pub names: HashMap<u64, String>,
    /// What became of the chunks of each stack, by its id, and all of it by [`ONE`]; stacks without any are left out.
    pub totals: HashMap<u32, StackTotals>,
    /// Records in the map of live chunks, dead ones included; those of the youngest are not among them.
    pub records: usize,
}

impl RawSnapshot {
    /// Chunks of all processes.
    pub fn chunks(&self) -> impl Iterator<Item = &LiveChunk> {
        self.processes.values().flat_map(|process| &process.chunks)
    }
}

/// Takes a snapshot of all processes but those in `gone`. Exact once the probes are off or the process is idle; while it works, chunks
/// that come and go during the few milliseconds of reading may be on either side.
/// `sign_of_life` is called all along.
///
/// # Errors
/// What the kernel says.
pub fn take(tracer: &Tracer, gone: &HashSet<u32>, sign_of_life: &dyn Fn()) -> Result<RawSnapshot, MapError> {
    let parts: FastMap<u64, _> = tracer.parts.all()?.into_iter().collect();
    let raw = |context: Context| RawContext {
        epoch: context.epoch,
        name: context.name,
        // One that was made without a stack of its own has its time all the same.
        made_by: (context.born_ns != 0 && context.left_out == 0).then_some(context.stack),
        born_ns: context.born_ns,
    };
    let mut processes: BTreeMap<u32, ProcessSnapshot> = BTreeMap::new();
    let mut epochs: FastMap<u64, u64> = FastMap::default();
    // Before the chunks: of those that are recorded meanwhile, none can be in a context that is not here yet, since
    // nothing new is recorded in contexts that are made while settling.
    tracer.contexts.for_each(|key, context| {
        epochs.insert(key, context.epoch);
        let contexts = &mut processes.entry(key_process(key)).or_default().contexts;
        contexts.insert(key_address(key), raw(context));
    })?;
    let mut add = |key, chunk: Live| {
        // The same test as in the kernel: alive means the context has kept its epoch.
        if !is_pool(chunk.context) && epochs.get(&chunk.context) != Some(&chunk.epoch) {
            return;
        }
        let process = processes.entry(key_process(key)).or_default();
        let context = if is_pool(chunk.context) { chunk.context } else { key_address(chunk.context) };
        let of = |stack, requested, held, born_ns, weight| LiveChunk {
            stack,
            chunk: key_address(key),
            context,
            requested,
            held,
            born_ns,
            weight,
        };
        let weight = tracer.weights.as_ref().map_or(ONE, |weights| weights.of(chunk.sampled));
        let chunks = &mut process.chunks;
        chunks.push(of(chunk.stack, chunk.requested, chunk.held, chunk.born_ns, weight));
        if chunk.has_parts != 0
            && let Some(parts) = parts.get(&key)
        {
            let used = parts.parts.iter().take(parts.count as usize);
            chunks.extend(used.map(|part| of(part.stack, part.requested, part.held, part.born_ns, ONE)));
        }
    };
    // First: records go from the nursery into the map, and what is seen twice is known by its key.
    let mut young: FastMap<u64, Live> = tracer.nursery.records().into_iter().collect();
    // A dead one may have the address of memory that is in no context now.
    young.retain(|_, chunk| epochs.get(&chunk.context) == Some(&chunk.epoch));
    young.iter().for_each(|(key, chunk)| add(*key, *chunk));
    let mut records = 0;
    tracer.live.for_each_with(sign_of_life, |key, chunk| {
        records += 1;
        if !young.contains_key(&key) {
            add(key, chunk);
        }
    })?;
    processes.retain(|number, _| !gone.contains(number));
    let names = tracer.names.all()?.into_iter().map(|(address, name)| {
        let end = name.bytes.iter().position(|byte| *byte == 0).unwrap_or(name.bytes.len());
        (address, String::from_utf8_lossy(&name.bytes[..end]).into_owned())
    });
    let names = names.collect();
    let totals = tracer
        .used_stack_totals()?
        .into_iter()
        .filter(|(_, totals)| totals.requested != 0 || totals.count != 0)
        // With samples, the programs have done that.
        .map(|(stack, totals)| (stack, if tracer.weights.is_some() { totals } else { by_one(&totals) }));
    Ok(RawSnapshot { processes, names, totals: totals.collect(), records })
}

fn by_one(totals: &StackTotals) -> StackTotals {
    StackTotals {
        count: totals.count * ONE,
        requested: totals.requested.saturating_mul(ONE),
        held: totals.held.saturating_mul(ONE),
        freed_count: totals.freed_count * ONE,
        freed_requested: totals.freed_requested.saturating_mul(ONE),
        freed_held: totals.freed_held.saturating_mul(ONE),
    }
}
