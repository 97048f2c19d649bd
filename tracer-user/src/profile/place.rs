//! A place in the code that holds memory, described: contexts, callers, children, paths.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
};

use super::{
    Course, Group, Life, StackId, Tally, What, life,
    tree::{FunctionId, Tree},
    wrappers::Role,
};

/// Less than this part of what a place holds does not decide how long it lives.
const HARDLY_ANY: f64 = 0.05;

/// How many callers and children of a place are listed.
const MOST_CALLERS: usize = 6;
const MOST_CHILDREN: usize = 6;

/// A function, merged over all call paths, with what is held below it.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// Its name without compiler suffixes, or `postgres+0x5c7730`.
    pub head: String,
    /// Whether it is no function but contexts of that name, whose blocks these are, and `children` those who acquired
    /// them.
    pub is_context: bool,
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
    /// Bytes that this keeps from others beside: headers of blocks, and free chunks between its own.
    pub pinned: u64,
    /// Contexts among what it holds, and the bytes that they take themselves.
    pub made: Tally,
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
    /// How long most of it lives.
    pub life: Life,
    /// The statement during which most of it was allocated, as an index into
    /// [`super::Capture::queries`], and that part of what any statement was seen for.
    pub query: Option<(u32, f64)>,
}

impl Place {
    /// Bytes that the process would be smaller by.
    pub fn weight(&self) -> u64 {
        self.survived.held.saturating_add(self.pinned)
    }

    /// Chunks and contexts that were really seen, of survivors that may stand for others.
    pub fn seen(&self) -> u64 {
        self.slices.iter().map(|slice| slice.count).sum()
    }
}

/// What a place holds in contexts of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextShare {
    /// The contexts' name, with what they are for if the name does not tell.
    pub name: String,
    /// Names from the top to their parent, of those that hold most; `None` if they were not seen.
    pub path: Option<Vec<String>>,
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

/// What a place is called by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Head {
    Function(FunctionId),
    UnknownStack,
}

/// The stacks of a place with what counts of each.
pub(super) struct Members<'t, 'a> {
    tree: &'t Tree<'a>,
    held: Vec<(StackId, u64)>,
    parts: Vec<(&'a Group, Tally)>,
}

impl<'t, 'a> Members<'t, 'a> {
    /// `groups_of` a stack, and what `tally` counts of a group.
    pub(super) fn new(
        tree: &'t Tree<'a>,
        stacks: &[StackId],
        groups_of: impl Fn(StackId) -> &'t [&'a Group],
        tally: fn(&Group) -> Tally,
    ) -> Self {
        let (mut held, mut parts) = (Vec::new(), Vec::new());
        for stack in stacks {
            let first = parts.len();
            parts.extend(groups_of(*stack).iter().map(|group| (*group, tally(group))));
            held.push((*stack, parts[first..].iter().map(|(_, tally)| tally.held).sum()));
        }
        Self { tree, held, parts }
    }

    /// The survivors of all of them by time of birth.
    pub(super) fn slices(&self, count: usize) -> Vec<Tally> {
        let mut slices = vec![Tally::default(); count];
        for (group, _) in &self.parts {
            for (sum, slice) in slices.iter_mut().zip(&group.slices) {
                *sum += *slice;
            }
        }
        slices
    }

    /// Of samples, the variance of what survives.
    pub(super) fn variance(&self) -> u64 {
        self.parts.iter().map(|(group, _)| group.variance).fold(0, u64::saturating_add)
    }

    /// All that is to be said about the place.
    pub(super) fn describe(&self, head: Head, course: Course, slices: Vec<Tally>) -> Place {
        let contexts = self.contexts();
        let (mut survived, mut made, mut pinned) = (Tally::default(), Tally::default(), 0u64);
        for (group, part) in &self.parts {
            survived += *part;
            pinned = pinned.saturating_add(group.pinned);
            if group.what == What::Contexts {
                made += *part;
            }
        }
        let function = match head {
            Head::Function(function) => Some(function),
            Head::UnknownStack => None,
        };
        let paths = self.paths();
        let (hottest, hottest_held) = paths
            .iter()
            .copied()
            .max_by_key(|(stack, held)| (*held, Reverse(*stack)))
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
            is_context: false,
            named_caller,
            source: at.and_then(|at| path[at].source).map(|(file, line)| (file.to_owned(), line)),
            callers: function.map_or_else(Vec::new, |function| {
                let callers = self.tree.callers(function, &self.held, MOST_CALLERS);
                callers.into_iter().map(str::to_owned).collect()
            }),
            course,
            survived,
            pinned,
            made,
            slices,
            life: self.life(),
            query: self.query(),
            contexts,
            children: function.map_or_else(Vec::new, |function| self.children(function)),
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
        }
    }

    /// How long most of it lives: a place is held until an end only if hardly any of it is not.
    pub(super) fn life(&self) -> Life {
        let mut held: BTreeMap<Life, u64> = BTreeMap::new();
        for (group, part) in &self.parts {
            *held.entry(life(self.tree.place_of(group))).or_default() += part.held;
        }
        let all: u64 = held.values().sum();
        let for_good = held.remove(&Life::Process).unwrap_or(0);
        if for_good as f64 > all as f64 * HARDLY_ANY || all == 0 {
            return Life::Process;
        }
        held.into_iter().max_by_key(|(_, held)| *held).map_or(Life::Process, |(life, _)| life)
    }

    /// Labels of all contexts that it holds something in.
    pub(super) fn context_labels(&self) -> Vec<String> {
        self.contexts().into_iter().map(|share| share.name).collect()
    }

    /// The statement that most of it was allocated in.
    fn query(&self) -> Option<(u32, f64)> {
        let mut counts: BTreeMap<u32, u64> = BTreeMap::new();
        for share in self.parts.iter().flat_map(|(group, _)| &group.queries) {
            *counts.entry(share.query).or_default() += share.count;
        }
        let all: u64 = counts.values().sum();
        let (query, count) = counts.into_iter().max_by_key(|(query, count)| (*count, Reverse(*query)))?;
        Some((query, count as f64 / all.max(1) as f64))
    }

    /// What is held in contexts of each name.
    fn contexts(&self) -> Vec<ContextShare> {
        let mut contexts: HashMap<String, (ContextShare, u64)> = HashMap::new();
        for (group, part) in self.parts.iter().filter(|(_, part)| part.count > 0 || part.held > 0) {
            let place = self.tree.place_of(group);
            let label = place.label();
            let (share, most) = contexts.entry(label.clone()).or_insert_with(|| {
                (ContextShare { name: label, path: None, contexts: 0, tally: Tally::default() }, 0)
            });
            share.tally += *part;
            // Stacks share contexts, so a sum would count them again and again.
            share.contexts = share.contexts.max(group.contexts);
            if part.held >= *most {
                (share.path, *most) = (place.path.clone(), part.held);
            }
        }
        let mut contexts: Vec<ContextShare> = contexts.into_values().map(|(share, _)| share).collect();
        contexts.sort_by(|a, b| b.tally.held.cmp(&a.tally.held).then(a.name.cmp(&b.name)));
        contexts
    }

    /// Stacks that differ only in addresses within functions are one call path.
    fn paths(&self) -> Vec<(StackId, u64)> {
        let mut paths: HashMap<Vec<FunctionId>, (StackId, u64)> = HashMap::new();
        for (stack, held) in &self.held {
            let functions = self.tree.path(*stack).iter().map(|step| step.function).collect();
            paths.entry(functions).or_insert((*stack, 0)).1 += held;
        }
        paths.into_values().collect()
    }

    /// What the innermost call of `function` calls, by bytes held.
    fn children(&self, function: FunctionId) -> Vec<Child> {
        let mut children: HashMap<FunctionId, u64> = HashMap::new();
        for (stack, held) in &self.held {
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
}
