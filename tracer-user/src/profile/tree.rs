//! Stacks as paths of functions, and the function to which growth belongs.
//!
//! Functions are merged over all call paths by their name without compiler suffixes, nameless ones
//! by where they start. A function that stands in a stack more than once counts once.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{
    Capture, ContextPlace, Frame, FrameId, Group, ModuleId, Profile, StackId,
    wrappers::{Role, role, strip_suffixes},
};
use crate::addr::VirtAddr;

/// A place is moved from a function to one that it calls only if the latter carries this much of
/// the growth.
///
/// The head of a suspect is where somebody starts to read code, so it must not leave out a part of
/// the leak that matters: at four fifths one branch dominates, and what branches off above it is
/// its own, smaller suspect. In the known leaks the right function carried 90 % or more of its
/// branch; in a real capture of 15.18 the wrong one below `exec_prepare_plan` carried 75 %.
const DOMINANT: f64 = 0.80;

/// The most wrappers without a name that are known to call each other.
const MOST_NESTED: usize = 3;

/// How a function without a name allocates.
#[derive(Default)]
struct Shape {
    /// Allocations that it is part of.
    all: u64,
    /// Those that it asked an allocator for by itself.
    beside: u64,
    /// What each caller got by it, and has kept.
    callers: BTreeMap<FunctionId, (u64, u64)>,
}

impl Shape {
    /// Fewer callers say nothing.
    const LEAST_CALLERS: usize = 4;
    /// A caller that keeps less than this has given back what it got, but for what is in flight.
    const HARDLY_ANY: f64 = 0.02;

    fn is_wrapper(&self) -> bool {
        let gives_back =
            |(got, kept): &&(u64, u64)| *got > 0 && *kept as f64 <= *got as f64 * Self::HARDLY_ANY;
        self.all > 0
            && self.beside as f64 >= self.all as f64 * 0.95
            && self.callers.len() >= Self::LEAST_CALLERS
            && self.callers.values().filter(gives_back).count() * 2 > self.callers.len()
    }
}

/// Index into [`Tree::functions`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FunctionId(usize);

/// A function, merged over all frames that lie in it.
#[derive(Debug)]
pub(super) struct Function<'a> {
    pub(super) label: &'a str,
    pub(super) role: Role,
    pub(super) nameless: bool,
    pub(super) module: Option<ModuleId>,
}

/// One call in a path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step<'a> {
    pub(super) function: FunctionId,
    pub(super) source: Option<(&'a str, Option<u32>)>,
}

/// All stacks of a capture as paths, innermost first, by [`StackId`].
#[derive(Debug)]
pub(super) struct Tree<'a> {
    functions: Vec<Function<'a>>,
    paths: Vec<Vec<Step<'a>>>,
    profile: &'a Profile<Frame>,
}

/// Whom the memory of each stack belongs to, by [`StackId`]: the function that asked an allocator for it.
pub fn owners(capture: &Capture) -> Vec<String> {
    Tree::new(capture).owners()
}

/// How much of the growth each stack carries, by [`StackId`]; zero takes a stack out.
pub(super) type Weights = [u64];

impl<'a> Tree<'a> {
    pub(super) fn new(capture: &'a Capture) -> Self {
        let mut functions = Functions::default();
        // A frame with inlined functions is several steps.
        let steps: Vec<Vec<Step>> =
            capture.profile.frames.iter().map(|frame| functions.steps_of(frame)).collect();
        let of = |id: &FrameId| steps.get(id.0 as usize).map_or(&[][..], Vec::as_slice);
        let paths = capture
            .profile
            .stacks
            .iter()
            .map(|stack| stack.frames.iter().flat_map(of).copied().collect())
            .collect();
        let mut tree = Self { functions: functions.list, paths, profile: &capture.profile };
        tree.learn_drivers(capture);
        tree.learn_wrappers(capture);
        tree
    }

    /// Finds the drivers among functions without a name: what runs above a known driver nearly
    /// whenever it runs is one itself. A stripped server has many; its `exec_simple_query` must
    /// not head a suspect for want of a name.
    fn learn_drivers(&mut self, capture: &Capture) {
        let (mut all, mut above) = (vec![0u64; self.functions.len()], vec![0u64; self.functions.len()]);
        for (path, stack) in self.paths.iter().zip(&capture.profile.stacks) {
            let chunks = stack.summary.allocated.count.max(1);
            let mut driven = false;
            for step in path {
                let function = &self.functions[step.function.0];
                if function.nameless {
                    all[step.function.0] = all[step.function.0].saturating_add(chunks);
                    if driven {
                        above[step.function.0] = above[step.function.0].saturating_add(chunks);
                    }
                }
                driven |= function.role == Role::Driver;
            }
        }
        for (function, (all, above)) in self.functions.iter_mut().zip(all.into_iter().zip(above)) {
            if function.nameless && all > 0 && above as f64 >= all as f64 * DOMINANT {
                function.role = Role::Driver;
            }
        }
    }

    /// Finds the wrappers among functions without a name, by their shape: one that allocates for many
    /// callers, most of which give back what they got. A leak in it would show by all of them.
    fn learn_wrappers(&mut self, capture: &Capture) {
        // One may call another.
        for _ in 0..MOST_NESTED {
            let mut shapes: BTreeMap<FunctionId, Shape> = BTreeMap::new();
            for (path, stack) in self.paths.iter().zip(&capture.profile.stacks) {
                let summary = &stack.summary;
                let allocated = summary.allocated.count;
                let released = summary.freed.count + summary.reset.count + summary.exited.count;
                let is_wrapper = |step: &&Step| self.functions[step.function.0].role == Role::Wrapper;
                let inner = path.iter().take_while(is_wrapper).count();
                let mut seen = HashSet::new();
                for (at, step) in path.iter().enumerate() {
                    let function = &self.functions[step.function.0];
                    if !function.nameless || function.role != Role::Worker || !seen.insert(step.function) {
                        continue;
                    }
                    let shape = shapes.entry(step.function).or_default();
                    shape.all += allocated;
                    let caller = path[at..].iter().find(|caller| caller.function != step.function);
                    if let (true, Some(caller)) = (at == inner, caller) {
                        shape.beside += allocated;
                        let of_caller = shape.callers.entry(caller.function).or_default();
                        of_caller.0 += allocated;
                        of_caller.1 += allocated.saturating_sub(released);
                    }
                }
            }
            let found: Vec<FunctionId> =
                shapes.into_iter().filter(|(_, shape)| shape.is_wrapper()).map(|(id, _)| id).collect();
            found.iter().for_each(|id| self.functions[id.0].role = Role::Wrapper);
            if found.is_empty() {
                return;
            }
        }
    }

    pub(super) fn function(&self, id: FunctionId) -> &Function<'a> {
        &self.functions[id.0]
    }

    /// The contexts of a group.
    pub(super) fn place_of(&self, group: &Group) -> &'a ContextPlace {
        self.profile.place(group)
    }

    /// The nearest caller with a name of the functions without one that a stack's wrappers are called
    /// by.
    pub(super) fn caller_of_nameless(&self, stack: StackId) -> Option<FunctionId> {
        let mut callers = self.path(stack).iter().map(|step| step.function);
        callers.find(|id| {
            let function = self.function(*id);
            !function.nameless && function.role != Role::Wrapper
        })
    }

    /// Every function that has a name.
    pub(super) fn named(&self) -> impl Iterator<Item = (&'a str, FunctionId)> {
        let ids = (0..self.functions.len()).map(FunctionId);
        ids.filter(|id| !self.function(*id).nameless).map(|id| (self.function(id).label, id))
    }

    /// The calls of a stack, innermost first.
    pub(super) fn path(&self, stack: StackId) -> &[Step<'a>] {
        self.paths.get(stack.0 as usize).map_or(&[], Vec::as_slice)
    }

    pub(super) fn stacks(&self) -> impl Iterator<Item = StackId> {
        (0..self.paths.len() as u32).map(StackId)
    }

    /// Where the innermost call of a function stands in a path.
    pub(super) fn position(&self, stack: StackId, function: FunctionId) -> Option<usize> {
        self.path(stack).iter().position(|step| step.function == function)
    }

    /// Whether a function can be to blame: known, and neither a wrapper nor a driver.
    pub(super) fn is_worker(&self, id: FunctionId) -> bool {
        let function = self.function(id);
        function.role == Role::Worker && (!function.nameless || function.module.is_some())
    }

    /// The innermost function of each stack that is no wrapper: by its name, or what stands for it.
    fn owners(&self) -> Vec<String> {
        let label = |stack| self.innermost(stack).map_or("[stack unknown]", |id| self.function(id).label);
        self.stacks().map(|stack| label(stack).to_owned()).collect()
    }

    /// The innermost function of a stack that is no wrapper.
    pub(super) fn innermost(&self, stack: StackId) -> Option<FunctionId> {
        let path = self.path(stack);
        let own = path.iter().find(|step| self.function(step.function).role != Role::Wrapper);
        own.or(path.last()).map(|step| step.function)
    }

    /// The heaviest place among functions that `eligible` admits, with its weight: the function
    /// that most of the growth runs through, moved to the deepest one that still dominates it.
    pub(super) fn place(
        &self,
        weights: &Weights,
        eligible: impl Fn(FunctionId) -> bool,
    ) -> Option<(FunctionId, u64)> {
        let inclusive = self.inclusive(weights, |_| usize::MAX);
        let (seed, weight) = inclusive
            .iter()
            .enumerate()
            .map(|(index, weight)| (FunctionId(index), *weight))
            .filter(|(id, weight)| *weight > 0 && eligible(*id))
            .max_by(|(a, weight_a), (b, weight_b)| {
                let (a, b) = (self.function(*a), self.function(*b));
                // A named one where equal, and always the same one.
                weight_a.cmp(weight_b).then(b.nameless.cmp(&a.nameless)).then(b.label.cmp(a.label))
            })?;
        let head = self.descend(seed, weight, weights, eligible);
        Some((head, inclusive[head.0]))
    }

    /// The deepest function below `seed` that carries [`DOMINANT`] of its weight; a named one,
    /// if any does.
    fn descend(
        &self,
        seed: FunctionId,
        weight: u64,
        weights: &Weights,
        eligible: impl Fn(FunctionId) -> bool,
    ) -> FunctionId {
        let below = self.inclusive(weights, |stack| self.position(stack, seed).unwrap_or(0));
        let enough = (weight as f64 * DOMINANT).ceil() as u64;
        let mut candidates: Vec<FunctionId> = (0..below.len())
            .map(FunctionId)
            .filter(|id| *id != seed && below[id.0] >= enough.max(1) && eligible(*id))
            .collect();
        candidates.push(seed);
        if candidates.iter().any(|id| !self.function(*id).nameless) {
            candidates.retain(|id| !self.function(*id).nameless);
        }
        let members: Vec<(StackId, u64)> = self
            .stacks()
            .zip(weights)
            .filter(|(stack, weight)| **weight > 0 && self.position(*stack, seed).is_some())
            .map(|(stack, weight)| (stack, *weight))
            .collect();
        let mut deepest = candidates[0];
        for candidate in &candidates[1..] {
            if self.is_deeper(*candidate, deepest, &members) {
                deepest = *candidate;
            }
        }
        deepest
    }

    /// Whether `a` is called below `b` in most of what runs through both.
    fn is_deeper(&self, a: FunctionId, b: FunctionId, members: &[(StackId, u64)]) -> bool {
        let (mut inside, mut outside) = (0u64, 0u64);
        for (stack, weight) in members {
            match (self.position(*stack, a), self.position(*stack, b)) {
                (Some(a), Some(b)) if a < b => inside += weight,
                (Some(_), Some(_)) => outside += weight,
                _ => {}
            }
        }
        inside > outside
    }

    /// For each function the weight of all stacks in whose innermost `depth` calls it stands.
    fn inclusive(&self, weights: &Weights, depth: impl Fn(StackId) -> usize) -> Vec<u64> {
        let mut sums = vec![0u64; self.functions.len()];
        let mut seen_in = vec![None; self.functions.len()];
        for (stack, weight) in self.stacks().zip(weights).filter(|(_, weight)| **weight > 0) {
            for step in self.path(stack).iter().take(depth(stack)) {
                let index = step.function.0;
                if seen_in[index] != Some(stack) {
                    seen_in[index] = Some(stack);
                    sums[index] = sums[index].saturating_add(*weight);
                }
            }
        }
        sums
    }

    /// The callers of `function` as long as one of them dominates, nearest first, without drivers.
    pub(super) fn callers(
        &self,
        function: FunctionId,
        stacks: &[(StackId, u64)],
        most: usize,
    ) -> Vec<&'a str> {
        let total: u64 = stacks.iter().map(|(_, weight)| weight).sum();
        let mut here: Vec<(StackId, usize, u64)> = stacks
            .iter()
            .filter_map(|(stack, weight)| Some((*stack, self.position(*stack, function)?, *weight)))
            .collect();
        let mut callers = Vec::new();
        while callers.len() < most {
            let mut by_caller: HashMap<FunctionId, u64> = HashMap::new();
            for (stack, position, weight) in &mut here {
                // Past drivers and recursion.
                let path = self.path(*stack);
                let previous = path.get(*position).map(|step| step.function);
                *position += 1;
                while path.get(*position).is_some_and(|step| {
                    Some(step.function) == previous || self.function(step.function).role == Role::Driver
                }) {
                    *position += 1;
                }
                if let Some(step) = path.get(*position) {
                    *by_caller.entry(step.function).or_default() += *weight;
                }
            }
            let Some((caller, weight)) =
                by_caller.into_iter().max_by_key(|(id, weight)| (*weight, std::cmp::Reverse(*id)))
            else {
                break;
            };
            if (weight as f64) < total as f64 * DOMINANT {
                break;
            }
            here.retain(|(stack, position, _)| {
                self.path(*stack).get(*position).is_some_and(|step| step.function == caller)
            });
            callers.push(self.function(caller).label);
        }
        callers
    }
}

/// Functions while they are collected.
#[derive(Default)]
struct Functions<'a> {
    list: Vec<Function<'a>>,
    ids: HashMap<Key<'a>, FunctionId>,
}

#[derive(PartialEq, Eq, Hash)]
enum Key<'a> {
    Named(&'a str),
    Start(Option<ModuleId>, VirtAddr),
    Fallback(&'a str),
}

impl<'a> Functions<'a> {
    fn steps_of(&mut self, frame: &'a Frame) -> Vec<Step<'a>> {
        if frame.is_nameless() {
            let key = match frame.function_start {
                Some(start) => Key::Start(frame.module, start),
                None => Key::Fallback(&frame.fallback),
            };
            let function = self.intern(key, &frame.fallback, true, frame.module);
            return vec![Step { function, source: None }];
        }
        frame
            .names
            .iter()
            .map(|name| {
                let label = strip_suffixes(&name.function);
                let function = self.intern(Key::Named(label), label, false, frame.module);
                Step { function, source: name.file.as_deref().map(|file| (file, name.line)) }
            })
            .collect()
    }

    fn intern(
        &mut self,
        key: Key<'a>,
        label: &'a str,
        nameless: bool,
        module: Option<ModuleId>,
    ) -> FunctionId {
        let list = &mut self.list;
        *self.ids.entry(key).or_insert_with(|| {
            let role = if nameless { Role::Worker } else { role(label) };
            list.push(Function { label, role, nameless, module });
            FunctionId(list.len() - 1)
        })
    }
}
