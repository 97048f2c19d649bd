//! The verdict on a capture: which places leak, which are caches, which were merely at work.
//!
//! Leaks are looked for by what survives from the middle half of the record window. A leak has its
//! share there, a cache was warm by then and work in progress came later, so that neither pulls a
//! place towards itself. What is left is then sorted into caches and work in flight.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use super::{
    Capture, Class, Course, EndReason, Group, Life, Place, StackId, Tally, What, blocks,
    class::{FLOOR, classify, grows_by_replacement},
    life,
    objects::ObjectCaches,
    place::{Head, Members},
    sampled::{grew_less, interval, interval_of_samples},
    tree::{FunctionId, Tree},
};

/// The most places of each kind that are told apart; the rest is summed up.
const MOST_PLACES: usize = 20;

/// A place with less than this part of those that were found is too small to be told apart.
const NEGLIGIBLE: f64 = 0.01;

/// The most attempts to find places. Every attempt takes a function out of the search, so this
/// only bounds the time that a very large capture takes.
const MOST_ATTEMPTS: usize = 400;

/// What a capture means.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Places that grow and go on growing: leaks and what is held until a reset, by bytes, then caches
    /// with an entry for each object.
    pub suspects: Vec<Place>,
    /// Places of which too little is known, by bytes held.
    pub unclear: Vec<Place>,
    /// Places that filled up.
    pub caches: Vec<Place>,
    /// Places whose work was not at its end.
    pub in_flight: Vec<Place>,
    /// Places whose memory was there when recording ended and went while settling; their tallies
    /// are of what went.
    pub settled: Vec<Place>,
    /// What survives elsewhere, in places too small to be told apart.
    pub rest: Tally,
    /// Sums over everything.
    pub totals: Totals,
    /// Whether the process ended, so that whatever was held then is no leak by itself.
    pub process_ended: bool,
    /// Whether frees were followed after recording; without that, work in flight can be among the
    /// suspects.
    pub settled_at_all: bool,
    /// Allocations that were not recorded, or have no stack, because a kernel map was full: what
    /// seems to have stopped growing then may have gone on.
    pub not_recorded: u64,
}

/// A verdict in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Something grows, steadily and for good; of blocks, a context does.
    Leak,
    /// The same, but it ends with a statement, a query or a transaction.
    HeldUntilReset,
    /// What grows is an entry for each object that was touched.
    GrowingCache,
    /// The process ended, so that what grew until then is no leak by itself.
    GrewUntilTheEnd,
    /// Nothing that surely grows, but something that might, or records are missing.
    NotProven,
    /// Nothing grows.
    NothingSeen,
}

impl Verdict {
    /// The verdict in a word.
    pub fn outcome(&self) -> Outcome {
        match self.suspects.first() {
            Some(_) if self.process_ended => Outcome::GrewUntilTheEnd,
            Some(first) => match first.course.class {
                Class::Held => Outcome::HeldUntilReset,
                Class::Cache => Outcome::GrowingCache,
                _ => Outcome::Leak,
            },
            None if self.totals.recorded.count == 0 => Outcome::NothingSeen,
            None if self.unclear_one().is_some() || self.not_recorded > 0 => Outcome::NotProven,
            None => Outcome::NothingSeen,
        }
    }

    /// The largest of what is unclear, if it matters: not every odd chunk does.
    pub fn unclear_one(&self) -> Option<&Place> {
        self.unclear.first().filter(|place| {
            place.course.growth_per_second >= FLOOR.bytes_per_second
                && place.survived.held >= self.totals.survived.held / 10
        })
    }
}

/// Sums over a capture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// All that was allocated while recording.
    pub recorded: Tally,
    /// Freed one by one.
    pub freed: Tally,
    /// Ended by a reset or delete of its context.
    pub reset: Tally,
    /// There when the process ended.
    pub exited: Tally,
    /// There when recording ended.
    pub at_record_end: Tally,
    /// There at the end.
    pub survived: Tally,
}

/// Judges a capture.
pub fn judge(capture: &Capture) -> Verdict {
    let tree = Tree::new(capture);
    let mut verdict = Verdict {
        suspects: Vec::new(),
        unclear: Vec::new(),
        caches: Vec::new(),
        in_flight: Vec::new(),
        settled: Vec::new(),
        rest: Tally::default(),
        totals: totals(capture),
        process_ended: matches!(capture.window.end, EndReason::TargetExited | EndReason::TargetExec),
        settled_at_all: capture.window.settle_ns > 0,
        not_recorded: not_recorded(capture),
    };
    let stays = |group: &Group| life(capture.profile.place(group)) == Life::Process;
    let mut kept = vec![0; capture.profile.stacks.len()];
    for group in capture.profile.groups.iter().filter(|group| group.what == What::Chunks && stays(group)) {
        if let Some(kept) = kept.get_mut(group.stack.0 as usize) {
            *kept += group.survived.count;
        }
    }
    let objects = ObjectCaches::new(&tree, |stack| kept[stack.0 as usize]);
    // What ends with a query, what is kept for objects and all other that stays are looked at apart: a
    // large sort must not become one place with a leak below the same function, nor hide it.
    let kinds: [&dyn Fn(&Group) -> bool; 3] = [
        &|group| stays(group) && !objects.has(&tree, group.stack),
        &|group| stays(group) && objects.has(&tree, group.stack),
        &|group| !stays(group),
    ];
    if capture.traces_blocks() {
        blocks::add_to(&mut verdict, capture, &tree);
    } else {
        for kind in kinds {
            Judge::new(capture, &tree, &objects, kind).add_to(&mut verdict);
        }
    }
    for list in [
        &mut verdict.suspects,
        &mut verdict.unclear,
        &mut verdict.caches,
        &mut verdict.in_flight,
        &mut verdict.settled,
    ] {
        list.sort_by(|a, b| b.weight().cmp(&a.weight()).then(a.head.cmp(&b.head)));
    }
    // What the server does by design comes behind what it should not do.
    verdict.suspects.sort_by_key(|place| place.course.class == Class::Cache);
    verdict
}

struct Judge<'a> {
    capture: &'a Capture,
    tree: &'a Tree<'a>,
    /// Groups of each stack.
    groups: Vec<Vec<&'a Group>>,
    /// Stacks that belong to no place yet.
    free: Vec<bool>,
    objects: &'a ObjectCaches,
}

/// What to look for.
struct Search {
    /// How much of the growth each stack carries.
    weights: Vec<u64>,
    /// A place with less weight is none.
    least: u64,
    /// Whether a stack can be part of a place, with weight or without.
    joins: Vec<bool>,
    wanted: fn(&Course) -> bool,
    /// What counts of a group.
    tally: fn(&Group) -> Tally,
}

impl<'a> Judge<'a> {
    /// Of the groups of one kind.
    fn new(
        capture: &'a Capture,
        tree: &'a Tree<'a>,
        objects: &'a ObjectCaches,
        is_of_kind: &dyn Fn(&Group) -> bool,
    ) -> Self {
        let mut groups = vec![Vec::new(); capture.profile.stacks.len()];
        for group in capture.profile.groups.iter().filter(|group| is_of_kind(group)) {
            if let Some(of_stack) = groups.get_mut(group.stack.0 as usize) {
                of_stack.push(group);
            }
        }
        let free = groups.iter().map(|groups| !groups.is_empty()).collect();
        Self { capture, tree, groups, free, objects }
    }

    fn add_to(mut self, verdict: &mut Verdict) {
        verdict.suspects.extend(self.leaks());
        // Old survivors and young ones apart, lest a cache and a running query below the same
        // function become one place of neither kind.
        for young in [false, true] {
            for place in self.others(young) {
                match place.course.class {
                    Class::Leak | Class::Held => verdict.suspects.push(place),
                    Class::Cache => verdict.caches.push(place),
                    Class::InFlight => verdict.in_flight.push(place),
                    Class::Unclear => verdict.unclear.push(place),
                }
            }
        }
        for stack in self.tree.stacks().filter(|stack| self.free[stack.0 as usize]) {
            verdict.rest += self.survived(stack);
        }
        verdict.settled.extend(self.settled());
    }

    /// Takes leaks out of the free stacks, heaviest first.
    fn leaks(&mut self) -> Vec<Place> {
        let slices = self.capture.window.slices.len();
        let middle = slices / 4..slices - slices / 4;
        let weight = |groups: &Vec<&Group>| -> u64 {
            let slices = groups.iter().flat_map(|group| group.slices.get(middle.clone()).unwrap_or(&[]));
            slices.map(|slice| slice.held).sum()
        };
        self.places(Search {
            weights: self.groups.iter().map(weight).collect(),
            // A leak at the floor has half of it in the middle; leave room for chance.
            least: (FLOOR.bytes_per_second * self.capture.window.record_ns as f64 / 1e9 / 4.0) as u64,
            // Survivors of all ages join it, also on paths too rare to have some in the middle.
            joins: vec![true; self.groups.len()],
            // A cache of objects that still grows is one of the suspects.
            wanted: |course| matches!(course.class, Class::Leak | Class::Held) || course.still_grows,
            tally: |group| group.survived,
        })
    }

    /// Takes what else is worth a line out of the free stacks.
    fn others(&mut self, young: bool) -> Vec<Place> {
        let joins: Vec<bool> = self.tree.stacks().map(|stack| self.is_young(stack) == young).collect();
        let held = self.tree.stacks().map(|stack| self.survived(stack).held);
        self.places(Search {
            weights: held.zip(&joins).map(|(held, joins)| held * u64::from(*joins)).collect(),
            least: 1,
            joins,
            wanted: |_| true,
            tally: |group| group.survived,
        })
    }

    /// What went while settling. It is no part of what survives, so every stack is free for it.
    fn settled(&mut self) -> Vec<Place> {
        for (free, groups) in self.free.iter_mut().zip(&self.groups) {
            *free = !groups.is_empty();
        }
        let went = |groups: &Vec<&Group>| groups.iter().map(|group| gone(group).held).sum();
        let weights: Vec<u64> = self.groups.iter().map(went).collect();
        self.places(Search {
            joins: weights.iter().map(|weight| *weight > 0).collect(),
            weights,
            least: 1,
            wanted: |_| true,
            tally: gone,
        })
    }

    /// The heart of it: takes the heaviest place, with all free stacks that may join it, and again
    /// from the rest. A place that is not wanted leaves its stacks to functions below it.
    fn places(&mut self, search: Search) -> Vec<Place> {
        let mut weights = search.weights.clone();
        for (weight, free) in weights.iter_mut().zip(&self.free) {
            *weight *= u64::from(*free);
        }
        // Measured by what was found and not by all that there is, lest some megabytes that a query
        // has in use hide a leak that has only begun.
        let enough = |found: u64| search.least.max((found as f64 * NEGLIGIBLE).ceil() as u64);
        let mut found_weight = 0;
        let mut places = Vec::new();
        let mut passed_over: HashSet<FunctionId> = HashSet::new();
        for _ in 0..MOST_ATTEMPTS {
            let found = self
                .tree
                .place(&weights, |id| self.tree.is_worker(id) && !passed_over.contains(&id))
                .filter(|(_, weight)| *weight >= enough(found_weight));
            let Some((function, _)) = found else { break };
            let runs_through = |stack: &StackId| self.tree.position(*stack, function).is_some();
            let stacks: Vec<StackId> = self.joining(&search).filter(runs_through).collect();
            match self.judge_place(Head::Function(function), &stacks, &search) {
                Some(place) => {
                    places.push(place);
                    found_weight += self.take(&stacks, &mut weights);
                }
                None => {
                    passed_over.insert(function);
                }
            }
            if places.len() >= MOST_PLACES {
                return places;
            }
        }
        // Below drivers only: each belongs to the innermost function that there is.
        let mut left: BTreeMap<Head, Vec<StackId>> = BTreeMap::new();
        for stack in self.joining(&search) {
            if !self.tree.path(stack).iter().any(|step| self.tree.is_worker(step.function)) {
                let head = self.tree.innermost(stack).map_or(Head::UnknownStack, Head::Function);
                left.entry(head).or_default().push(stack);
            }
        }
        for (head, stacks) in left {
            let weight: u64 = stacks.iter().map(|stack| weights[stack.0 as usize]).sum();
            if weight < enough(found_weight) || places.len() >= MOST_PLACES {
                continue;
            }
            if let Some(place) = self.judge_place(head, &stacks, &search) {
                places.push(place);
                found_weight += self.take(&stacks, &mut weights);
            }
        }
        places
    }

    /// Free stacks that may be part of a place.
    fn joining(&self, search: &Search) -> impl Iterator<Item = StackId> {
        let joins = self.free.iter().zip(&search.joins).map(|(free, joins)| *free && *joins);
        self.tree.stacks().zip(joins).filter(|(_, joins)| *joins).map(|(stack, _)| stack)
    }

    /// Takes stacks out of what is free; what they weighed.
    fn take(&mut self, stacks: &[StackId], weights: &mut [u64]) -> u64 {
        let mut taken = 0;
        for stack in stacks {
            taken += std::mem::take(&mut weights[stack.0 as usize]);
            self.free[stack.0 as usize] = false;
        }
        taken
    }

    /// What a place at `head` with these stacks is, and whether it is wanted.
    fn judge_place(&self, head: Head, stacks: &[StackId], search: &Search) -> Option<Place> {
        let members = Members::new(self.tree, stacks, |stack| &self.groups[stack.0 as usize], search.tally);
        let slices = members.slices(self.capture.window.slices.len());
        let mut course = classify(&slices, self.capture.window.record_ns, self.released(stacks));
        if matches!(course.class, Class::InFlight | Class::Unclear) {
            grows_by_replacement(&mut course, &self.held_over_time(stacks), self.capture.window.record_ns);
        }
        let not_recorded = not_recorded(self.capture) > 0;
        if course.class == Class::Cache && not_recorded {
            course.class = Class::Unclear;
            course.reason.push_str("; but the kernel maps were full, and then nothing more was recorded");
        }
        if course.class == Class::Leak {
            let survivors = |stack: StackId| survivors(&self.groups[stack.0 as usize]);
            let contexts = members.context_labels();
            let objects = self.objects.explains(self.tree, stacks, &contexts, survivors);
            course.of_what_kind(members.life(), objects);
        }
        if self.capture.window.windows.is_some() {
            course.interval = interval(&slices, &self.capture.window.slices);
        } else if self.capture.is_estimate() {
            let mut all = Tally::default();
            slices.iter().for_each(|slice| all += *slice);
            course.interval =
                interval_of_samples(all.count, all.held, members.variance(), self.capture.window.record_ns);
        }
        if matches!(course.class, Class::Leak | Class::Held)
            && let Some((grown, expected)) = grew_less(self.capture, &members.context_labels(), &course)
        {
            course.class = Class::Unclear;
            course.still_grows = false;
            course.reason.push_str(&format!(
                "; but its contexts grew by {:.0} KiB meanwhile, where that would be {:.0}: most of it must have \
                 gone after the windows",
                grown as f64 / 1024.0,
                expected / 1024.0
            ));
        }
        (search.wanted)(&course).then(|| members.describe(head, course, slices))
    }

    /// What these stacks held at the end of each slice; nothing if some of it went with a reset, since
    /// it is not known when.
    fn held_over_time(&self, stacks: &[StackId]) -> Vec<u64> {
        let mut sums = vec![0; self.capture.window.slices.len()];
        for stack in stacks.iter().filter_map(|stack| self.capture.profile.stacks.get(stack.0 as usize)) {
            if stack.summary.reset.held > 0 {
                return Vec::new();
            }
            for (sum, held) in sums.iter_mut().zip(&stack.held_over_time) {
                *sum += held;
            }
        }
        sums
    }

    /// The part of all allocations of these stacks that was freed, or went with a reset.
    fn released(&self, stacks: &[StackId]) -> f64 {
        let (mut allocated, mut released) = (0u64, 0u64);
        for stack in stacks.iter().filter_map(|stack| self.capture.profile.stacks.get(stack.0 as usize)) {
            allocated += stack.summary.allocated.count;
            released += stack.summary.freed.count + stack.summary.reset.count;
        }
        released as f64 / allocated.max(1) as f64
    }

    fn survived(&self, stack: StackId) -> Tally {
        let mut sum = Tally::default();
        self.groups[stack.0 as usize].iter().for_each(|group| sum += group.survived);
        sum
    }

    /// Whether most of what a stack holds is from the last quarter of the window.
    fn is_young(&self, stack: StackId) -> bool {
        let (mut young, mut all) = (0u64, 0u64);
        for group in &self.groups[stack.0 as usize] {
            let last = group.slices.len() - group.slices.len() / 4;
            all += group.slices.iter().map(|slice| slice.held).sum::<u64>();
            young += group.slices[last..].iter().map(|slice| slice.held).sum::<u64>();
        }
        young as f64 > all as f64 * 0.8
    }
}

/// Chunks, and growths of chunks, that survive.
fn survivors(groups: &[&Group]) -> u64 {
    groups.iter().filter(|group| group.what == What::Chunks).map(|group| group.survived.count).sum()
}

fn not_recorded(capture: &Capture) -> u64 {
    let full = ["live_full", "contexts_full", "stacks_full"];
    let counters = capture.counters.iter();
    counters.filter(|counter| full.contains(&&*counter.name)).map(|counter| counter.value).sum()
}

fn totals(capture: &Capture) -> Totals {
    let mut totals = Totals::default();
    for stack in &capture.profile.stacks {
        totals.recorded += stack.summary.allocated;
        totals.freed += stack.summary.freed;
        totals.reset += stack.summary.reset;
        totals.exited += stack.summary.exited;
    }
    for group in capture.profile.groups.iter().filter(|group| group.what == What::Chunks) {
        totals.at_record_end += group.recorded;
        totals.survived += group.survived;
    }
    totals
}

/// What was there when recording ended and is no more.
pub(super) fn gone(group: &Group) -> Tally {
    Tally {
        count: group.recorded.count.saturating_sub(group.survived.count),
        requested: group.recorded.requested.saturating_sub(group.survived.requested),
        held: group.recorded.held.saturating_sub(group.survived.held),
    }
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
