//! The verdict on a capture: which places leak, which are caches, which were merely at work.
//!
//! Leaks are looked for by what survives from the middle half of the record window. A leak has its
//! share there, a cache was warm by then and work in progress came later, so that neither pulls a
//! place towards itself. What is left is then sorted into caches and work in flight.

use std::collections::{HashMap, HashSet};

use super::{
    Capture, Class, Course, EndReason, Group, StackId, Tally,
    class::{FLOOR, classify},
    tree::{FunctionId, Tree},
    wrappers::Role,
};

/// The most places of each kind that are told apart; the rest is summed up.
const MOST_PLACES: usize = 20;

/// A part of what survives that is too small to be told apart.
const NEGLIGIBLE: f64 = 0.01;

/// The most attempts to find places. Every attempt takes a function out of the search, so this
/// only bounds the time that a very large capture takes.
const MOST_ATTEMPTS: usize = 400;

/// How many callers and children of a place are listed.
const MOST_CALLERS: usize = 6;
const MOST_CHILDREN: usize = 6;

/// Contexts that belong to a statement or query, whose end takes what is in them.
const QUERY_CONTEXTS: &[&str] = &[
    "MessageContext",
    "PortalContext",
    "PortalHoldContext",
    "ExecutorState",
    "ExprContext",
    "SPI Proc",
    "SPI Exec",
    "HashTableContext",
    "HashBatchContext",
    "HashAgg hash entries",
    "HashAgg meta context",
    "TupleSort main",
    "TupleSort sort",
    "Caller tuples",
    "TupleHashTable",
    "Subplan HashTable Context",
    "Subplan HashTable Temp Context",
    "AfterTriggerEvents",
];

/// What a capture means.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Places that leak, by bytes held.
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

/// A function, merged over all call paths, with what is held below it.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// Its name without compiler suffixes, or `postgres+0x5c7730`.
    pub head: String,
    /// For a nameless head, the nearest caller with a name.
    pub named_caller: Option<String>,
    /// File and line of the hottest call in it, where known.
    pub source: Option<(String, Option<u32>)>,
    /// Callers as long as one of them dominates, nearest first, without drivers.
    pub callers: Vec<String>,
    /// What it is, why, and how fast it grows.
    pub course: Course,
    /// What it holds.
    pub survived: Tally,
    /// `survived` by time of birth.
    pub slices: Vec<Tally>,
    /// Contexts that it holds memory in, by bytes held.
    pub contexts: Vec<ContextShare>,
    /// What it calls that allocates, by bytes held.
    pub children: Vec<Child>,
    /// Different call paths.
    pub paths: usize,
    /// Bytes held by the hottest of them.
    pub hottest_held: u64,
    /// The hottest of them, innermost first.
    pub hottest: Vec<Step>,
    /// Whether all of it is in contexts that end with a statement or query.
    pub ends_with_query: bool,
}

/// What a place holds in contexts of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextShare {
    /// The contexts' name.
    pub name: String,
    /// At least so many of them.
    pub contexts: u64,
    /// What is held there.
    pub tally: Tally,
}

/// A function called by a place's head.
#[derive(Clone, Debug, PartialEq)]
pub struct Child {
    /// Its name; for an allocation of the head itself, the wrapper or allocator that it calls.
    pub label: String,
    /// Whether `label` is such a wrapper.
    pub is_wrapper: bool,
    /// Bytes held below it.
    pub held: u64,
}

/// One call of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its name or what stands for it.
    pub label: String,
    /// What its name says about it.
    pub role: Role,
    /// Whether it is the place's head.
    pub is_head: bool,
}

/// Judges a capture.
pub fn judge(capture: &Capture) -> Verdict {
    Judge::new(capture).verdict()
}

struct Judge<'a> {
    capture: &'a Capture,
    tree: Tree<'a>,
    /// Groups of each stack.
    groups: Vec<Vec<&'a Group>>,
    /// Stacks that belong to no place yet.
    free: Vec<bool>,
}

/// What a place is called by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Head {
    Function(FunctionId),
    UnknownStack,
}

impl<'a> Judge<'a> {
    fn new(capture: &'a Capture) -> Self {
        let tree = Tree::new(capture);
        let mut groups = vec![Vec::new(); capture.profile.stacks.len()];
        for group in &capture.profile.groups {
            if let Some(of_stack) = groups.get_mut(group.stack.0 as usize) {
                of_stack.push(group);
            }
        }
        let free = vec![true; groups.len()];
        Self { capture, tree, groups, free }
    }

    fn verdict(mut self) -> Verdict {
        let mut verdict = Verdict {
            suspects: self.leaks(),
            unclear: Vec::new(),
            caches: Vec::new(),
            in_flight: Vec::new(),
            settled: Vec::new(),
            rest: Tally::default(),
            totals: self.totals(),
            process_ended: matches!(self.capture.window.end, EndReason::TargetExited | EndReason::TargetExec),
            settled_at_all: self.capture.window.settle_ns > 0,
        };
        // Old survivors and young ones apart, lest a cache and a running query below the same
        // function become one place of neither kind.
        for young in [false, true] {
            for place in self.others(young) {
                match place.course.class {
                    Class::Leak => verdict.suspects.push(place),
                    Class::Cache => verdict.caches.push(place),
                    Class::InFlight => verdict.in_flight.push(place),
                    Class::Unclear => verdict.unclear.push(place),
                }
            }
        }
        for stack in self.tree.stacks().filter(|stack| self.free[stack.0 as usize]) {
            verdict.rest += self.survived(stack);
        }
        verdict.settled = self.settled();
        for list in [
            &mut verdict.suspects,
            &mut verdict.unclear,
            &mut verdict.caches,
            &mut verdict.in_flight,
            &mut verdict.settled,
        ] {
            list.sort_by(|a, b| b.survived.held.cmp(&a.survived.held).then(a.head.cmp(&b.head)));
        }
        verdict
    }

    /// Takes leaks out of the free stacks, heaviest first.
    fn leaks(&mut self) -> Vec<Place> {
        let slices = self.capture.window.slices.len();
        let middle = slices / 4..slices - slices / 4;
        let weight = |groups: &[&Group]| -> u64 {
            let slices = groups.iter().flat_map(|group| group.slices.get(middle.clone()).unwrap_or(&[]));
            slices.map(|slice| slice.held).sum()
        };
        let weights: Vec<u64> = self.groups.iter().map(|groups| weight(groups)).collect();
        // A leak at the floor has half of it in the middle; leave room for chance.
        let least = (FLOOR.bytes_per_second * self.capture.window.record_ns as f64 / 1e9 / 4.0) as u64;
        // Survivors of all ages join a leak, also on paths too rare to have some in the middle.
        self.places_by(weights, |_| true, |course| course.class == Class::Leak, survived, least)
    }

    /// Takes what else is worth a line out of the free stacks.
    fn others(&mut self, young: bool) -> Vec<Place> {
        let of_age: Vec<bool> = self.tree.stacks().map(|stack| self.is_young(stack) == young).collect();
        let held = self.tree.stacks().zip(&of_age);
        let weights =
            held.map(|(stack, of_age)| if *of_age { self.survived(stack).held } else { 0 }).collect();
        self.places_by(weights, |stack| of_age[stack.0 as usize], |_| true, survived, 1)
    }

    /// What went while settling. It is no part of what survives, so no stack is taken.
    fn settled(&mut self) -> Vec<Place> {
        let weights: Vec<u64> = self.groups.iter().map(|groups| gone(groups).held).collect();
        self.free.fill(true);
        let went: Vec<bool> = weights.iter().map(|weight| *weight > 0).collect();
        self.places_by(weights, |stack| went[stack.0 as usize], |_| true, gone, 1)
    }

    /// The heart of it: takes the heaviest place, with all free stacks that may join it, and again
    /// from the rest. A place that is not wanted leaves its stacks to functions below it.
    fn places_by(
        &mut self,
        mut weights: Vec<u64>,
        joins: impl Fn(StackId) -> bool,
        wanted: impl Fn(&Course) -> bool,
        tally: fn(&[&Group]) -> Tally,
        least: u64,
    ) -> Vec<Place> {
        for (weight, free) in weights.iter_mut().zip(&self.free) {
            *weight *= u64::from(*free);
        }
        let enough = least.max((weights.iter().sum::<u64>() as f64 * NEGLIGIBLE).ceil() as u64);
        let mut places = Vec::new();
        let mut passed_over: HashSet<FunctionId> = HashSet::new();
        for _ in 0..MOST_ATTEMPTS {
            let found = self
                .tree
                .place(&weights, |id| self.tree.is_worker(id) && !passed_over.contains(&id))
                .filter(|(_, weight)| *weight >= enough);
            let Some((function, _)) = found else { break };
            let stacks: Vec<StackId> = (self.tree.stacks())
                .filter(|stack| self.free[stack.0 as usize] && joins(*stack))
                .filter(|stack| self.tree.position(*stack, function).is_some())
                .collect();
            if !self.take(Head::Function(function), &stacks, &mut weights, &wanted, tally, &mut places) {
                passed_over.insert(function);
            }
            if places.len() >= MOST_PLACES {
                return places;
            }
        }
        // Below drivers only: each belongs to the innermost function that there is.
        let mut left: HashMap<Head, Vec<StackId>> = HashMap::new();
        for stack in self.tree.stacks().filter(|stack| self.free[stack.0 as usize] && joins(*stack)) {
            if !self.tree.path(stack).iter().any(|step| self.tree.is_worker(step.function)) {
                let head = self.tree.innermost(stack).map_or(Head::UnknownStack, Head::Function);
                left.entry(head).or_default().push(stack);
            }
        }
        let mut left: Vec<_> = left.into_iter().collect();
        left.sort_by_key(|(_, stacks)| stacks[0]);
        for (head, stacks) in left {
            let weight: u64 = stacks.iter().map(|stack| weights[stack.0 as usize]).sum();
            if weight >= enough && places.len() < MOST_PLACES {
                self.take(head, &stacks, &mut weights, &wanted, tally, &mut places);
            }
        }
        places
    }

    /// Makes a place of these stacks and takes them, if it is wanted.
    fn take(
        &mut self,
        head: Head,
        stacks: &[StackId],
        weights: &mut [u64],
        wanted: impl Fn(&Course) -> bool,
        tally: fn(&[&Group]) -> Tally,
        places: &mut Vec<Place>,
    ) -> bool {
        let mut slices = vec![Tally::default(); self.capture.window.slices.len()];
        for group in stacks.iter().flat_map(|stack| &self.groups[stack.0 as usize]) {
            for (sum, slice) in slices.iter_mut().zip(&group.slices) {
                *sum += *slice;
            }
        }
        let course = classify(&slices, self.capture.window.record_ns);
        if !wanted(&course) {
            return false;
        }
        places.push(self.describe(head, stacks, course, slices, tally));
        for stack in stacks {
            weights[stack.0 as usize] = 0;
            self.free[stack.0 as usize] = false;
        }
        true
    }

    fn describe(
        &self,
        head: Head,
        stacks: &[StackId],
        course: Course,
        slices: Vec<Tally>,
        tally: fn(&[&Group]) -> Tally,
    ) -> Place {
        let held: Vec<(StackId, u64)> =
            stacks.iter().map(|stack| (*stack, tally(&self.groups[stack.0 as usize]).held)).collect();
        let mut survived = Tally::default();
        let mut contexts: HashMap<&str, ContextShare> = HashMap::new();
        for group in stacks.iter().flat_map(|stack| &self.groups[stack.0 as usize]) {
            let part = tally(&[group]);
            if part.count == 0 && part.held == 0 {
                continue;
            }
            survived += part;
            let share = contexts.entry(&group.context).or_insert_with(|| ContextShare {
                name: group.context.clone(),
                contexts: 0,
                tally: Tally::default(),
            });
            share.tally += part;
            // Stacks share contexts, so a sum would count them again and again.
            share.contexts = share.contexts.max(group.contexts);
        }
        let ends_with_query = contexts.keys().all(|name| QUERY_CONTEXTS.contains(name));
        let mut contexts: Vec<ContextShare> = contexts.into_values().collect();
        contexts.sort_by(|a, b| b.tally.held.cmp(&a.tally.held).then(a.name.cmp(&b.name)));

        let function = match head {
            Head::Function(function) => Some(function),
            Head::UnknownStack => None,
        };
        let paths = self.merge_paths(&held);
        let (hottest, hottest_held) = paths
            .iter()
            .copied()
            .max_by_key(|(stack, held)| (*held, std::cmp::Reverse(*stack)))
            .unwrap_or((StackId(0), 0));
        let at = function.and_then(|function| self.tree.position(hottest, function));
        let path = self.tree.path(hottest);
        let label_of = |function: FunctionId| self.tree.function(function).label.to_owned();
        let is_nameless = function.is_some_and(|function| self.tree.function(function).nameless);
        let named_caller = at.filter(|_| is_nameless).and_then(|at| {
            let named = path[at..].iter().find(|step| !self.tree.function(step.function).nameless)?;
            Some(label_of(named.function))
        });
        Place {
            head: function.map_or_else(|| "[unknown stack]".to_owned(), label_of),
            named_caller,
            source: at.and_then(|at| path[at].source).map(|(file, line)| (file.to_owned(), line)),
            callers: function.map_or_else(Vec::new, |function| {
                let callers = self.tree.callers(function, &held, MOST_CALLERS);
                callers.into_iter().map(str::to_owned).collect()
            }),
            course,
            survived,
            slices,
            contexts,
            children: function.map_or_else(Vec::new, |function| self.children(function, &held)),
            paths: paths.len(),
            hottest_held,
            hottest: path
                .iter()
                .enumerate()
                .map(|(position, step)| Step {
                    label: label_of(step.function),
                    role: self.tree.function(step.function).role,
                    is_head: at == Some(position),
                })
                .collect(),
            ends_with_query,
        }
    }

    /// Stacks that differ only in addresses within functions are one call path.
    fn merge_paths(&self, held: &[(StackId, u64)]) -> Vec<(StackId, u64)> {
        let mut paths: HashMap<Vec<FunctionId>, (StackId, u64)> = HashMap::new();
        for (stack, held) in held {
            let functions = self.tree.path(*stack).iter().map(|step| step.function).collect();
            paths.entry(functions).or_insert((*stack, 0)).1 += held;
        }
        paths.into_values().collect()
    }

    /// What the innermost call of `function` calls, by bytes held.
    fn children(&self, function: FunctionId, held: &[(StackId, u64)]) -> Vec<Child> {
        let mut children: HashMap<FunctionId, u64> = HashMap::new();
        for (stack, held) in held {
            let position = self.tree.position(*stack, function).unwrap_or(0);
            if let Some(inner) = position.checked_sub(1) {
                *children.entry(self.tree.path(*stack)[inner].function).or_default() += held;
            }
        }
        let mut children: Vec<Child> = children
            .into_iter()
            .filter(|(_, held)| *held > 0)
            .map(|(function, held)| {
                let function = self.tree.function(function);
                Child { label: function.label.to_owned(), is_wrapper: function.role == Role::Wrapper, held }
            })
            .collect();
        children.sort_by(|a, b| b.held.cmp(&a.held).then(a.label.cmp(&b.label)));
        children.truncate(MOST_CHILDREN);
        children
    }

    fn survived(&self, stack: StackId) -> Tally {
        survived(&self.groups[stack.0 as usize])
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

    fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for stack in &self.capture.profile.stacks {
            totals.recorded += stack.summary.allocated;
            totals.freed += stack.summary.freed;
            totals.reset += stack.summary.reset;
            totals.exited += stack.summary.exited;
        }
        for group in &self.capture.profile.groups {
            totals.at_record_end += group.recorded;
            totals.survived += group.survived;
        }
        totals
    }
}

fn survived(groups: &[&Group]) -> Tally {
    let mut sum = Tally::default();
    groups.iter().for_each(|group| sum += group.survived);
    sum
}

/// What was there when recording ended and is no more.
fn gone(groups: &[&Group]) -> Tally {
    let mut sum = Tally::default();
    for group in groups {
        sum += Tally {
            count: group.recorded.count.saturating_sub(group.survived.count),
            requested: group.recorded.requested.saturating_sub(group.survived.requested),
            held: group.recorded.held.saturating_sub(group.survived.held),
        };
    }
    sum
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
