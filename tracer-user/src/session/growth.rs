//! The contexts before and after, beside what was traced.

use std::collections::{BTreeMap, HashMap};

use super::{Looks, Timeline};
use crate::{
    bpf::{LiveChunk, ProcessSnapshot},
    census::{Kind, MemoryContext, Usage, UsedChunk},
    hash::FastMap,
    profile::{ContextGrowth, MemoryGrowth, Slice},
};

/// Smaller changes are no line of a report.
const NOTABLE: u64 = 1 << 10;

/// What all contexts have gained while recording; `None` unless they were read before and after it.
/// What was allocated while settling is no part of it, since it was not recorded. `by_use`: contexts that grow in the
/// blocks that they have are part of it; where chunks are traced, these tell of that.
pub fn memory_growth(
    looks: &Looks,
    recorded: &ProcessSnapshot,
    anon: [Option<u64>; 2],
    by_use: bool,
) -> Option<MemoryGrowth> {
    let (before, after) = (looks.before.as_ref()?, looks.recorded.as_ref()?);
    let mut traced: FastMap<u64, FastMap<u64, [u64; 2]>> = FastMap::default();
    // What was allocated during the first look is taken to be in it, but for contexts that it has not seen.
    let looked_ns = before.taken_ns + u64::try_from(before.census.took.as_nanos()).unwrap_or(0);
    let was_there = |address: u64| {
        let born_ns = recorded.contexts.get(&address).map_or(0, |context| context.born_ns);
        before.at(address).is_some() && born_ns < looked_ns
    };
    let is_new = |chunk: &&LiveChunk| chunk.born_ns >= looked_ns || !was_there(chunk.context);
    for chunk in recorded.chunks.iter().filter(is_new) {
        let sums = traced.entry(chunk.context).or_default().entry(chunk.chunk).or_default();
        sums[0] += chunk.requested;
        sums[1] += chunk.held;
    }
    let mut by_label: BTreeMap<String, ContextGrowth> = BTreeMap::new();
    let used = [before, after].map(|look| used_by_label(&look.census.contexts));
    let of = |used: &HashMap<String, u64>, label: &str| used.get(label).copied().unwrap_or(0);
    let changes_use = |label: &str| of(&used[0], label).abs_diff(of(&used[1], label)) >= NOTABLE;
    for context in &before.census.contexts {
        let growth = by_label.entry(context.label()).or_default();
        growth.contexts_before += 1;
        growth.before += context.total.unwrap_or(0);
        growth.overhead -= overhead(context);
        match (&mut growth.untraced, &context.usage) {
            (Some(untraced), Some(usage)) => *untraced -= usage.used() as i64,
            (none @ None, Some(usage)) if growth.contexts_before == 1 => *none = Some(-(usage.used() as i64)),
            (untraced, _) => *untraced = None,
        }
    }
    for context in &after.census.contexts {
        let growth = by_label.entry(context.label()).or_default();
        if growth.contexts_before + growth.contexts_after == 0 {
            growth.untraced = Some(0);
        }
        growth.contexts_after += 1;
        growth.after += context.total.unwrap_or(0);
        growth.overhead += overhead(context);
        let of_context = traced.get(&context.address.0);
        for [requested, held] in of_context.into_iter().flat_map(FastMap::values) {
            growth.requested += requested;
            growth.traced += held;
        }
        let others = others(context, after.chunks.get(&context.address.0), of_context);
        growth.untraced = growth.untraced.zip(others).map(|(sum, others)| sum + others as i64);
    }
    let mut by_label: Vec<ContextGrowth> =
        by_label.into_iter().map(|(label, growth)| ContextGrowth { label, ..growth }).collect();
    by_label.retain(|growth| {
        growth.before.abs_diff(growth.after) >= NOTABLE
            || growth.traced >= NOTABLE
            || (by_use && changes_use(&growth.label))
    });
    sort_by_gain(&mut by_label);
    let troubles = [before, after].map(|look| look.census.troubles.to_string());
    Some(MemoryGrowth {
        rss_anon_before: anon[0],
        rss_anon_after: anon[1],
        contexts_before: before.census.total(),
        contexts_after: after.census.total(),
        by_label,
        troubles: troubles.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; "),
    })
}

/// Bytes of used chunks in the contexts of each label.
pub fn used_by_label(contexts: &[MemoryContext]) -> HashMap<String, u64> {
    let mut used: HashMap<String, u64> = HashMap::new();
    for context in contexts {
        *used.entry(context.label()).or_default() += context.usage.as_ref().map_or(0, Usage::used);
    }
    used
}

/// What was used of the contexts of each label at one moment, by the number of the process.
pub type Used = BTreeMap<u32, HashMap<String, u64>>;

/// How much of the contexts of each label was used at the beginning and at the end of each slice: by the first look of
/// all, and by the last in each slice. Nothing is said where a slice has none. Of processes that were there all the time
/// only: one that comes with its contexts is no growth of theirs.
pub fn add_used(memory: &mut MemoryGrowth, looks: &[(u64, Used)], timeline: &Timeline, slices: &[Slice]) {
    let mut last: Vec<Option<&Used>> = vec![None; slices.len()];
    for (ns, used) in looks {
        if let Some(slice) = timeline.slice_of(*ns, slices) {
            last[slice] = Some(used);
        }
    }
    let Some((_, first)) = looks.first() else { return };
    let Some(last) = last.into_iter().collect::<Option<Vec<_>>>() else { return };
    let always = first.keys().filter(|number| last.iter().all(|used| used.contains_key(number)));
    let always: Vec<u32> = always.copied().collect();
    if always.is_empty() {
        return;
    }
    for growth in &mut memory.by_label {
        let of = |used: &Used| {
            let of_process = always.iter().filter_map(|number| used.get(number)?.get(&growth.label));
            of_process.sum::<u64>()
        };
        growth.used_over_time = std::iter::once(of(first)).chain(last.iter().map(|used| of(used))).collect();
    }
}

/// What several processes have gained.
pub fn sum_of_growths(growths: impl IntoIterator<Item = MemoryGrowth>) -> Option<MemoryGrowth> {
    let add = |sum: Option<u64>, more: Option<u64>| Some(sum.unwrap_or(0) + more?);
    let mut growths = growths.into_iter();
    let mut sum = growths.next()?;
    let mut by_label: BTreeMap<String, ContextGrowth> =
        sum.by_label.drain(..).map(|growth| (growth.label.clone(), growth)).collect();
    for growth in growths {
        sum.rss_anon_before = add(sum.rss_anon_before, growth.rss_anon_before).or(sum.rss_anon_before);
        sum.rss_anon_after = add(sum.rss_anon_after, growth.rss_anon_after).or(sum.rss_anon_after);
        sum.contexts_before += growth.contexts_before;
        sum.contexts_after += growth.contexts_after;
        if sum.troubles.is_empty() {
            sum.troubles = growth.troubles;
        }
        for more in growth.by_label {
            let Some(of_label) = by_label.get_mut(&more.label) else {
                by_label.insert(more.label.clone(), more);
                continue;
            };
            of_label.contexts_before += more.contexts_before;
            of_label.contexts_after += more.contexts_after;
            of_label.before += more.before;
            of_label.after += more.after;
            of_label.requested += more.requested;
            of_label.traced += more.traced;
            of_label.overhead += more.overhead;
            of_label.untraced = of_label.untraced.zip(more.untraced).map(|(one, other)| one + other);
        }
    }
    sum.by_label = by_label.into_values().collect();
    sort_by_gain(&mut sum.by_label);
    Some(sum)
}

fn sort_by_gain(by_label: &mut [ContextGrowth]) {
    by_label.sort_by(|a, b| {
        let gained = |growth: &ContextGrowth| growth.after as i64 - growth.before as i64;
        gained(b).cmp(&gained(a)).then_with(|| a.label.cmp(&b.label))
    });
}

/// Bytes that are in no used chunk.
fn overhead(context: &MemoryContext) -> i64 {
    context.usage.as_ref().map_or(0, |usage| usage.total().saturating_sub(usage.used())) as i64
}

/// Bytes of used chunks that were not traced: by walking them; of a context that has not changed and
/// holds nothing that was traced, and of contexts whose chunks do not tell which of them are used, as
/// the blocks say.
fn others(
    context: &MemoryContext,
    chunks: Option<&Vec<UsedChunk>>,
    traced: Option<&FastMap<u64, [u64; 2]>>,
) -> Option<u64> {
    let usage = context.usage.as_ref();
    match (chunks, traced) {
        (Some(chunks), traced) => {
            let of = |chunk: &UsedChunk| {
                let traced = traced.and_then(|traced| traced.get(&chunk.pointer.0));
                chunk.held.saturating_sub(traced.map_or(0, |[_, held]| *held))
            };
            Some(chunks.iter().map(of).sum())
        }
        (None, None) => usage.map(Usage::used),
        (None, Some(traced)) => {
            let traced: u64 = traced.values().map(|[_, held]| held).sum();
            let is_exact = match context.kind {
                Kind::AllocSet => false,
                // The freed chunks of a Generation's blocks count as used.
                Kind::Generation => usage.is_some_and(|usage| usage.free_chunks == 0),
                Kind::Slab | Kind::Bump => true,
            };
            usage.filter(|_| is_exact).map(|usage| usage.used().saturating_sub(traced))
        }
    }
}
