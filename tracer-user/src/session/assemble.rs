//! From what was drained out of the kernel to a profile of addresses.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
};

use tracer_ebpf::{
    abi::{NO_STACK, StackTotals},
    sampling::ONE,
    site::is_pool,
    unwind::WalkEnd,
};

use super::{
    History, Stretch, Timeline, Used,
    look::{Looks, own_bytes, pinned},
};
use crate::{
    addr::AbsAddr,
    bpf::{ProcessSnapshot, RawSnapshot, RawStack},
    hash::{FastMap, FastSet},
    profile::{
        ContextId, ContextPlace, FrameId, Group, Profile, Query, QueryShare, Slice, Stack, StackEnd, StackId,
        StackSummary, Tally, What,
    },
};

/// A frame before it has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RawFrame {
    /// Which processes it is in: those that have the same mapped ([`super::Mappings`]).
    pub space: usize,
    /// The code address there.
    pub address: AbsAddr,
    /// Whether it is a return address, so that the call is in front of it.
    pub is_return: bool,
}

/// What a capture drained.
#[derive(Clone, Debug, Default)]
pub struct Drained {
    /// Every stack.
    pub stacks: Vec<RawStack>,
    /// What each stretch of recording left, oldest first.
    pub cycles: Vec<Cycle>,
    /// Whether the process ended, which ends what survives.
    pub exited: bool,
    /// Code outside of every object that was made at run time, by its space.
    pub run_time_code: HashSet<(usize, AbsAddr)>,
    /// Code of the first space that gets memory for blocks of contexts: starts and ends.
    pub block_makers: Vec<(AbsAddr, AbsAddr)>,
    /// What was seen of each process beside its allocations, by its number.
    pub processes: BTreeMap<u32, Watched>,
    /// The statements of all processes.
    pub queries: Vec<Query>,
    /// Whether of all that malloc gave only blocks of contexts are wanted, each as of its context.
    pub only_blocks: bool,
    /// Bytes of used chunks in contexts by their label, at moments while recording, where that is so.
    pub used: Vec<(u64, Used)>,
    /// Whether what was recorded are samples, which stand for others.
    pub samples: bool,
    /// Bytes allocated and not freed by the stacks that have some, at moments while recording
    /// (`CLOCK_MONOTONIC`).
    pub held: Vec<(u64, HashMap<u32, u64>)>,
}

/// What one stretch of recording left.
#[derive(Clone, Debug, Default)]
pub struct Cycle {
    /// When it was.
    pub stretch: Stretch,
    /// The maps when it ended.
    pub recorded: RawSnapshot,
    /// The maps after settling.
    pub survived: RawSnapshot,
}

impl Drained {
    /// The time that it is about.
    pub fn timeline(&self) -> Timeline {
        Timeline::new(self.cycles.iter().map(|cycle| cycle.stretch).collect())
    }

    /// The maps at the end: names and totals are of all cycles.
    fn last(&self) -> Option<&RawSnapshot> {
        self.cycles.last().map(|cycle| &cycle.survived)
    }
}

/// What was seen of a process from outside.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    /// Index in the list of processes of the capture.
    pub index: u32,
    /// The contexts before, between and after.
    pub looks: Looks,
    /// What it was running.
    pub history: History,
}

/// Puts the pieces together: stacks with equal frames become one, chunks and contexts become groups
/// by stack and by the place of the context.
///
/// `frame` says which frame an address is, for walks by one set of mappings.
pub fn assemble(
    drained: &Drained,
    slices: &[Slice],
    frame: &dyn Fn(u32, AbsAddr, bool) -> RawFrame,
) -> Profile<RawFrame> {
    let timeline = drained.timeline();
    let mut profile = Profile {
        frames: Vec::new(),
        stacks: Vec::new(),
        contexts: Vec::new(),
        groups: Vec::new(),
        no_blocks: None,
    };
    let ids = intern_stacks(drained, &mut profile, frame);
    let mut groups = Groups {
        drained,
        timeline: &timeline,
        slices,
        ids: &ids,
        of_blocks: of_blocks(drained, frame),
        places: HashMap::new(),
        groups: FastMap::default(),
        no_blocks: Tally::default(),
    };
    let snapshots =
        drained.cycles.iter().flat_map(|cycle| [(false, &cycle.recorded), (true, &cycle.survived)]);
    for (is_last, snapshot) in snapshots {
        for (number, process) in &snapshot.processes {
            // One that was not wanted.
            let Some(watched) = drained.processes.get(number) else { continue };
            groups.add(*number, watched, process, is_last);
        }
    }
    let Groups { places, groups, of_blocks, no_blocks, .. } = groups;
    // The order of a hash map is no order: an artifact must be the same each time.
    let mut sorted: Vec<(&ContextPlace, ContextId)> = places.iter().map(|(place, id)| (place, *id)).collect();
    sorted.sort();
    let mut numbers = vec![ContextId(0); sorted.len()];
    for (number, (place, id)) in (0..).zip(sorted) {
        numbers[id.0 as usize] = ContextId(number);
        profile.contexts.push(place.clone());
    }
    profile.groups = groups
        .into_values()
        .map(|making| {
            let mut group = making.made();
            group.context = numbers[group.context.0 as usize];
            group
        })
        .collect();
    profile.groups.sort_by_key(|group| {
        (Reverse(group.weight()), group.stack, group.context, group.what, group.process)
    });
    if drained.only_blocks {
        profile.no_blocks = Some(no_blocks);
    }
    let is_wanted = |stack: u32| !drained.only_blocks || of_blocks.contains(&stack);
    summarize(drained, &ids, &is_wanted, &mut profile);
    divide(&mut profile);
    add_course(drained, &timeline, &ids, slices, &mut profile);
    profile
}

/// What each stack held at the end of each slice: the last that was seen in it.
fn add_course(
    drained: &Drained,
    timeline: &Timeline,
    ids: &FastMap<u32, StackId>,
    slices: &[Slice],
    profile: &mut Profile<RawFrame>,
) {
    let mut last = vec![None; slices.len()];
    for (ns, held) in &drained.held {
        if let Some(slice) = timeline.slice_of(*ns, slices) {
            last[slice] = Some(held);
        }
    }
    if last.iter().any(Option::is_none) {
        return;
    }
    for (slice, held) in last.into_iter().flatten().enumerate() {
        for (raw, bytes) in held {
            let Some(stack) = ids.get(raw).and_then(|id| profile.stacks.get_mut(id.0 as usize)) else {
                continue;
            };
            stack.held_over_time.resize(slices.len(), 0);
            stack.held_over_time[slice] += bytes;
        }
    }
}

/// Stands for the context of blocks of contexts, where malloc alone was traced.
pub(super) const BLOCKS: u64 = 3;

/// The stacks that get memory for blocks of contexts.
fn of_blocks(drained: &Drained, frame: &dyn Fn(u32, AbsAddr, bool) -> RawFrame) -> HashSet<u32> {
    let is_maker = |stack: &RawStack, address: AbsAddr| {
        let RawFrame { space, address, .. } = frame(stack.mapset, address, false);
        space == 0 && drained.block_makers.iter().any(|(start, end)| *start <= address && address < *end)
    };
    let of = |stack: &&RawStack| {
        !drained.block_makers.is_empty() && stack.frames.iter().any(|frame| is_maker(stack, *frame))
    };
    drained.stacks.iter().filter(of).map(|stack| stack.id).collect()
}

/// Groups in the making.
struct Groups<'a> {
    drained: &'a Drained,
    timeline: &'a Timeline,
    slices: &'a [Slice],
    ids: &'a FastMap<u32, StackId>,
    /// Stacks that get memory for blocks of contexts.
    of_blocks: HashSet<u32>,
    places: HashMap<ContextPlace, ContextId>,
    /// With the contexts of each.
    groups: FastMap<GroupKey, Making>,
    /// What survives that is no block of a context, where these are all that is wanted.
    no_blocks: Tally,
}

/// Stack, place, kind and process of a group.
type GroupKey = (StackId, ContextId, What, u32);

/// A group, its contexts, and how much of it each statement allocated. All tallies are by [`ONE`] until the end.
struct Making {
    group: Group,
    contexts: FastSet<u64>,
    queries: FastMap<u32, u64>,
    /// Of the bytes that survive, by the chance of sampling.
    variance: f64,
}

/// What something stands for, by [`ONE`].
fn weighted(tally: Tally, weight: u64) -> Tally {
    let of = |value: u64| value.saturating_mul(weight);
    Tally { count: of(tally.count), requested: of(tally.requested), held: of(tally.held) }
}

/// To the nearest whole number.
fn from_ones(value: u64) -> u64 {
    value.saturating_add(ONE / 2) / ONE
}

/// Takes the factor [`ONE`] out of all that has it, once all differences are made.
fn divide(profile: &mut Profile<RawFrame>) {
    let whole = |tally: &mut Tally| {
        *tally = Tally {
            count: from_ones(tally.count),
            requested: from_ones(tally.requested),
            held: from_ones(tally.held),
        };
    };
    for group in &mut profile.groups {
        [&mut group.recorded, &mut group.survived].into_iter().chain(&mut group.slices).for_each(whole);
        group.pinned = from_ones(group.pinned);
    }
    profile.no_blocks.iter_mut().for_each(whole);
    for stack in &mut profile.stacks {
        let StackSummary { allocated, freed, reset, exited } = &mut stack.summary;
        [allocated, freed, reset, exited].into_iter().for_each(whole);
    }
}

/// The process that something is of.
struct By<'a> {
    number: u32,
    watched: &'a Watched,
}

/// The most statements of a group.
const MOST_QUERIES: usize = 3;

impl Making {
    fn made(self) -> Group {
        let mut queries: Vec<QueryShare> =
            self.queries.into_iter().map(|(query, count)| QueryShare { query, count }).collect();
        queries.sort_by_key(|share| (Reverse(share.count), share.query));
        queries.truncate(MOST_QUERIES);
        let (contexts, variance) = (self.contexts.len() as u64, self.variance.round() as u64);
        Group { contexts, queries, variance, ..self.group }
    }
}

impl Groups<'_> {
    fn add(&mut self, number: u32, watched: &Watched, snapshot: &ProcessSnapshot, is_last: bool) {
        let mut pinned = if is_last { pinned(&watched.looks, snapshot) } else { FastMap::default() };
        let by = By { number, watched };
        let mut places: FastMap<u64, ContextId> = FastMap::default();
        let mut traced: FastMap<u64, u64> = FastMap::default();
        let blocks = self.drained.only_blocks.then(|| watched.looks.of_blocks(is_last));
        for chunk in snapshot.chunks.iter().filter(|chunk| chunk.requested != 0 || chunk.held != 0) {
            let of_block = blocks.as_ref().and_then(|blocks| blocks.context(chunk.chunk));
            let is_block = is_pool(chunk.context) && self.of_blocks.contains(&chunk.stack);
            let context = match of_block {
                Some(context) => context,
                // Of a context that is kept for the next one, or was not seen.
                None if is_block => BLOCKS,
                None => chunk.context,
            };
            if of_block.is_some() {
                self.of_blocks.insert(chunk.stack);
            } else if blocks.is_some() && !is_block {
                if is_last {
                    let tally = Tally { count: 1, requested: chunk.requested, held: chunk.held };
                    self.no_blocks += weighted(tally, chunk.weight);
                }
                continue;
            }
            let place = *places.entry(context).or_insert_with(|| {
                match of_block.and_then(|context| blocks.as_ref()?.place(context)) {
                    Some(place) => intern(&mut self.places, place),
                    None => self.place(&by, context, snapshot),
                }
            });
            *traced.entry(chunk.context).or_default() += chunk.held;
            let tally =
                weighted(Tally { count: 1, requested: chunk.requested, held: chunk.held }, chunk.weight);
            let key = (self.stack(chunk.stack), place, What::Chunks, watched.index);
            let making = self.count(key, &by, context, tally, chunk.born_ns, is_last);
            // Parts of one chunk pin its block once.
            let kept = pinned.remove(&chunk.chunk).unwrap_or(0);
            making.group.pinned = making.group.pinned.saturating_add(kept.saturating_mul(chunk.weight));
            if is_last {
                let weight = chunk.weight as f64 / ONE as f64;
                making.variance += weight * (weight - 1.0) * (chunk.held as f64).powi(2);
            }
        }
        let (looks, samples) = (&watched.looks, self.drained.samples);
        let look = if is_last { looks.survived.as_ref() } else { looks.recorded.as_ref() };
        for (address, context) in &snapshot.contexts {
            let Some(stack) = context.made_by else { continue };
            let place = *places.entry(*address).or_insert_with(|| self.place(&by, *address, snapshot));
            let held = own_bytes(look, *address, traced.get(address).copied().unwrap_or(0), samples);
            let tally = weighted(Tally { count: 1, requested: 0, held }, ONE);
            let key = (self.stack(stack), place, What::Contexts, watched.index);
            self.count(key, &by, *address, tally, context.born_ns, is_last);
        }
    }

    fn stack(&self, raw: u32) -> StackId {
        self.ids.get(&raw).copied().unwrap_or(StackId(0))
    }

    fn place(&mut self, by: &By<'_>, address: u64, snapshot: &ProcessSnapshot) -> ContextId {
        let last = self.drained.last();
        let of_process = last.and_then(|last| last.processes.get(&by.number));
        // The last snapshot has every name that the earlier ones have.
        let no_names = HashMap::new();
        let names = last.map_or(&no_names, |last| &last.names);
        let place = by.watched.looks.place(address, snapshot, of_process, names);
        intern(&mut self.places, place)
    }

    fn count(
        &mut self,
        key: GroupKey,
        by: &By<'_>,
        context: u64,
        tally: Tally,
        born_ns: u64,
        is_last: bool,
    ) -> &mut Making {
        let (stack, place, what, process) = key;
        let slices = self.slices;
        let making = self.groups.entry(key).or_insert_with(|| {
            let none = Tally::default();
            let group = Group {
                stack,
                context: place,
                what,
                process,
                contexts: 0,
                recorded: none,
                survived: none,
                pinned: 0,
                variance: 0,
                queries: Vec::new(),
                slices: vec![none; slices.len()],
            };
            Making { group, contexts: FastSet::default(), queries: FastMap::default(), variance: 0.0 }
        });
        let group = &mut making.group;
        if is_last {
            group.survived += tally;
            making.contexts.insert(context);
            if let Some(query) = by.watched.history.at(born_ns) {
                *making.queries.entry(query).or_default() += 1;
            }
            if let Some(slice) = self.timeline.slice_of(born_ns, slices) {
                // What was really seen: estimates are no surer than that.
                group.slices[slice] += Tally { count: ONE, ..tally };
            }
        } else {
            group.recorded += tally;
        }
        making
    }
}

/// The id of a place of contexts.
fn intern(places: &mut HashMap<ContextPlace, ContextId>, place: ContextPlace) -> ContextId {
    let next = ContextId(places.len() as u32);
    *places.entry(place).or_insert(next)
}

/// Interns frames and stacks; the stack with id 0 is the unknown one.
fn intern_stacks(
    drained: &Drained,
    profile: &mut Profile<RawFrame>,
    frame: &dyn Fn(u32, AbsAddr, bool) -> RawFrame,
) -> FastMap<u32, StackId> {
    let mut frame_ids: FastMap<RawFrame, FrameId> = FastMap::default();
    // Most addresses stand in many stacks.
    let mut address_ids: FastMap<(u32, AbsAddr, bool), FrameId> = FastMap::default();
    let mut stack_ids: FastMap<(Vec<FrameId>, StackEnd), StackId> = FastMap::default();
    let mut ids = FastMap::from_iter([(NO_STACK, StackId(0))]);
    profile.stacks.push(Stack {
        frames: Vec::new(),
        end: StackEnd::Unknown,
        summary: StackSummary::default(),
        held_over_time: Vec::new(),
    });
    for raw in &drained.stacks {
        let frames: Vec<FrameId> = raw
            .frames
            .iter()
            .enumerate()
            .map(|(depth, address)| {
                *address_ids.entry((raw.mapset, *address, depth > 0)).or_insert_with(|| {
                    let frame = frame(raw.mapset, *address, depth > 0);
                    *frame_ids.entry(frame).or_insert_with(|| {
                        profile.frames.push(frame);
                        FrameId(profile.frames.len() as u32 - 1)
                    })
                })
            })
            .collect();
        let last = raw.frames.last().map(|last| frame(raw.mapset, *last, false));
        let end = stack_end(
            raw,
            last.is_some_and(|last| drained.run_time_code.contains(&(last.space, last.address))),
        );
        let id = *stack_ids.entry((frames, end)).or_insert_with_key(|(frames, end)| {
            profile.stacks.push(Stack {
                frames: frames.clone(),
                end: *end,
                summary: StackSummary::default(),
                held_over_time: Vec::new(),
            });
            StackId(profile.stacks.len() as u32 - 1)
        });
        ids.insert(raw.id, id);
    }
    ids
}

/// What became of each stack's chunks. What was recorded and neither freed nor still there went
/// with a reset or delete of its context.
fn summarize(
    drained: &Drained,
    ids: &FastMap<u32, StackId>,
    is_wanted: &dyn Fn(u32) -> bool,
    profile: &mut Profile<RawFrame>,
) {
    let totals = drained.last().into_iter().flat_map(|last| &last.totals);
    for (raw, totals) in totals.filter(|(raw, _)| is_wanted(**raw)) {
        let StackTotals { count, requested, held, freed_count, freed_requested, freed_held } = *totals;
        let id = ids.get(raw).copied().unwrap_or(StackId(0));
        if let Some(stack) = profile.stacks.get_mut(id.0 as usize) {
            stack.summary.allocated += Tally { count, requested, held };
            stack.summary.freed += Tally { count: freed_count, requested: freed_requested, held: freed_held };
        }
    }
    for group in &profile.groups {
        if let Some(stack) = profile.stacks.get_mut(group.stack.0 as usize) {
            // `reset` holds what survives until the end of this function. The bytes of contexts are
            // known for those only that survive.
            let Tally { count, requested, held } = group.survived;
            let held = if group.what == What::Contexts { 0 } else { held };
            stack.summary.reset += Tally { count, requested, held };
        }
    }
    for stack in &mut profile.stacks {
        let survived = stack.summary.reset;
        let StackSummary { allocated, freed, .. } = stack.summary;
        stack.summary.reset = Tally {
            count: allocated.count.saturating_sub(freed.count).saturating_sub(survived.count),
            requested: allocated.requested.saturating_sub(freed.requested).saturating_sub(survived.requested),
            held: allocated.held.saturating_sub(freed.held).saturating_sub(survived.held),
        };
        stack.summary.exited = if drained.exited { survived } else { Tally::default() };
    }
}

fn stack_end(raw: &RawStack, is_run_time_code: bool) -> StackEnd {
    match raw.end {
        Some(WalkEnd::Bottom) => StackEnd::Bottom,
        Some(WalkEnd::UnknownMapping) if is_run_time_code => StackEnd::Jit,
        Some(WalkEnd::UnknownMapping) => StackEnd::UnknownMapping,
        Some(WalkEnd::NoRow) => StackEnd::NoRow,
        Some(WalkEnd::Unsupported) => StackEnd::Unsupported,
        Some(WalkEnd::Read) => StackEnd::Read,
        Some(WalkEnd::Truncated) => StackEnd::Truncated,
        Some(WalkEnd::BadSp) => StackEnd::BadSp,
        Some(WalkEnd::LostReturn) => StackEnd::LostReturn,
        None => StackEnd::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::{LiveChunk, RawContext};

    fn stack(id: u32, frames: &[u64]) -> RawStack {
        RawStack {
            id,
            end: Some(WalkEnd::Bottom),
            mapset: 0,
            frames: frames.iter().copied().map(AbsAddr).collect(),
        }
    }

    fn chunk(stack: u32, held: u64, born_ns: u64) -> LiveChunk {
        LiveChunk { stack, chunk: born_ns, context: 0xc0, requested: held - 8, held, born_ns, weight: ONE }
    }

    /// What a process holds in its one context.
    fn holding(chunks: Vec<LiveChunk>) -> ProcessSnapshot {
        let context = RawContext { epoch: 1, name: 0xa0, made_by: None, born_ns: 0 };
        ProcessSnapshot { chunks, contexts: HashMap::from([(0xc0, context)]) }
    }

    fn watched(processes: &[u32]) -> BTreeMap<u32, Watched> {
        let of =
            |(index, number): (usize, &u32)| (*number, Watched { index: index as u32, ..Watched::default() });
        processes.iter().enumerate().map(of).collect()
    }

    /// From 100 to 400 ns.
    fn one_cycle(recorded: RawSnapshot, survived: RawSnapshot) -> Vec<Cycle> {
        let stretch = Stretch { start_ns: 100, length_ns: 300, stands_for_ns: 300 };
        vec![Cycle { stretch, recorded, survived }]
    }

    fn slices(length_ns: u64, count: u64) -> Vec<Slice> {
        Timeline::whole(0, length_ns).slices(count)
    }

    /// Every address in one space.
    fn frame(_mapset: u32, address: AbsAddr, is_return: bool) -> RawFrame {
        RawFrame { space: 0, address, is_return }
    }

    #[test]
    fn equal_stacks_are_one_and_what_is_gone_was_reset() {
        let names = HashMap::from([(0xa0, "Leaky".to_owned())]);
        let totals = |count, held| StackTotals {
            count: count * ONE,
            requested: (held - 8 * count) * ONE,
            held: held * ONE,
            freed_count: ONE,
            freed_requested: 24 * ONE,
            freed_held: 32 * ONE,
        };
        let drained = Drained {
            // Ids 1 and 2 are the same stack, seen before and after the mappings changed.
            stacks: vec![stack(1, &[0x10, 0x20]), stack(2, &[0x10, 0x20]), stack(3, &[0x10, 0x30])],
            cycles: one_cycle(
                RawSnapshot {
                    processes: BTreeMap::from([(0, holding(vec![chunk(1, 32, 100), chunk(3, 64, 150)]))]),
                    names: names.clone(),
                    ..Default::default()
                },
                RawSnapshot {
                    processes: BTreeMap::from([(0, holding(vec![chunk(1, 32, 100), chunk(2, 32, 399)]))]),
                    names,
                    totals: HashMap::from([(1, totals(4, 128)), (2, totals(2, 64))]),
                    records: 2,
                },
            ),
            processes: watched(&[0]),
            ..Drained::default()
        };
        let profile = assemble(&drained, &slices(300, 3), &frame);
        assert_eq!(profile.stacks.len(), 3);
        let group = &profile.groups[0];
        assert_eq!((group.survived.count, group.survived.held, group.contexts), (2, 64, 1));
        assert_eq!(group.slices.iter().map(|slice| slice.count).collect::<Vec<_>>(), [1, 0, 1]);
        // What settled away is known to have been there.
        assert_eq!((profile.groups[1].recorded.held, profile.groups[1].survived.held), (64, 0));
        let summary = profile.stacks[group.stack.0 as usize].summary;
        assert_eq!((summary.allocated.count, summary.freed.count, summary.reset.count), (6, 2, 2));
        assert_eq!(summary.reset.held, 192 - 64 - 64);
    }

    #[test]
    fn processes_are_apart_and_one_instruction_is_one_frame() {
        let survived = RawSnapshot {
            // The same address in two processes; the third was not asked for.
            processes: BTreeMap::from([
                (5, holding(vec![chunk(1, 32, 100)])),
                (7, holding(vec![chunk(2, 64, 100)])),
                (9, holding(vec![chunk(2, 128, 100)])),
            ]),
            ..Default::default()
        };
        let drained = Drained {
            // One has the program mapped 0x1000 further up.
            stacks: vec![
                RawStack { mapset: 1, ..stack(1, &[0x10, 0x20]) },
                RawStack { mapset: 2, ..stack(2, &[0x1010, 0x1020]) },
            ],
            cycles: one_cycle(RawSnapshot::default(), survived),
            processes: watched(&[5, 7]),
            ..Drained::default()
        };
        let frame = |mapset: u32, address: AbsAddr, is_return| RawFrame {
            space: 0,
            address: AbsAddr(address.0 - 0x1000 * u64::from(mapset - 1)),
            is_return,
        };
        let profile = assemble(&drained, &slices(300, 3), &frame);
        assert_eq!(profile.stacks.len(), 2, "the unknown one and that of both");
        let held: Vec<_> = profile.groups.iter().map(|group| (group.process, group.survived.held)).collect();
        assert_eq!(held, [(1, 64), (0, 32)]);
    }

    #[test]
    fn a_chunk_without_a_stack_is_kept_as_unknown() {
        let chunks = vec![chunk(77, 32, 0)];
        let processes = BTreeMap::from([(0, ProcessSnapshot { chunks, ..Default::default() })]);
        let drained = Drained {
            cycles: one_cycle(RawSnapshot::default(), RawSnapshot { processes, ..Default::default() }),
            processes: watched(&[0]),
            ..Default::default()
        };
        let profile = assemble(&drained, &slices(10, 1), &frame);
        assert_eq!(profile.groups[0].stack, StackId(0));
        assert_eq!(profile.stacks[0].end, StackEnd::Unknown);
        assert_eq!(profile.place(&profile.groups[0]).name, "[unreadable name]");
    }

    #[test]
    fn code_made_at_run_time_is_told_from_code_that_is_not_known() {
        let cut = |id, frames: &[u64]| RawStack { end: Some(WalkEnd::UnknownMapping), ..stack(id, frames) };
        let drained = Drained {
            stacks: vec![cut(1, &[0x10, 0x99]), cut(2, &[0x10, 0x98]), stack(3, &[0x10, 0x99])],
            run_time_code: HashSet::from([(0, AbsAddr(0x99))]),
            ..Drained::default()
        };
        let profile = assemble(&drained, &slices(300, 3), &frame);
        let ends: Vec<StackEnd> = profile.stacks.iter().map(|stack| stack.end).collect();
        assert_eq!(ends, [StackEnd::Unknown, StackEnd::Jit, StackEnd::UnknownMapping, StackEnd::Bottom]);
    }
}
