//! The verdict where only blocks of contexts were traced: which contexts grow, and who acquired their blocks.
//!
//! A block serves many small requests, of whoever comes; who needed the next one is told, and never blamed. So a
//! place is a context here, with all stacks that acquired blocks of it. How it grows is told by what is used of it,
//! looked at in each slice: large blocks are acquired now and then, whatever goes on in them.

use std::collections::{BTreeMap, HashMap};

use super::{
    Capture, Child, Class, ContextPlace, Group, Place, StackId, Tally, Verdict,
    class::classify,
    life,
    place::{Head, Members},
    tree::Tree,
    verdict::gone,
};

/// Contexts with less than this part of all are summed up, unless they grow.
const NEGLIGIBLE: f64 = 0.01;

/// The most functions that are said to have acquired blocks of one context.
const MOST_ACQUIRERS: usize = 6;

/// What is released of a place's blocks is not known by context: neither nothing nor all of it.
const RELEASED: f64 = 0.5;

/// Sorts contexts into the lists of a verdict.
pub(super) fn add_to(verdict: &mut Verdict, capture: &Capture, tree: &Tree<'_>) {
    let mut labels: BTreeMap<String, BTreeMap<StackId, Vec<&Group>>> = BTreeMap::new();
    for group in &capture.profile.groups {
        let stacks = labels.entry(capture.profile.place(group).label()).or_default();
        stacks.entry(group.stack).or_default().push(group);
    }
    // What grows in blocks that it has had before.
    for growth in capture.memory.iter().flat_map(|memory| &memory.by_label) {
        labels.entry(growth.label.clone()).or_default();
    }
    let all: u64 = capture.profile.groups.iter().map(|group| group.survived.held).sum();
    for (label, stacks) in labels {
        let went = place(capture, tree, &label, &stacks, gone);
        if let Some(went) = went.filter(|went| went.survived.held > 0) {
            verdict.settled.push(went);
        }
        let Some(place) = place(capture, tree, &label, &stacks, |group| group.survived) else { continue };
        let is_small = (place.survived.held as f64) < all as f64 * NEGLIGIBLE;
        match place.course.class {
            Class::Leak | Class::Held => verdict.suspects.push(place),
            _ if is_small => verdict.rest += place.survived,
            Class::Cache => verdict.caches.push(place),
            Class::InFlight => verdict.in_flight.push(place),
            Class::Unclear => verdict.unclear.push(place),
        }
    }
}

/// The contexts of a label, by what `tally` counts of their groups; `None` if that is nothing.
fn place<'a>(
    capture: &'a Capture,
    tree: &Tree<'a>,
    label: &str,
    stacks: &BTreeMap<StackId, Vec<&'a Group>>,
    tally: fn(&Group) -> Tally,
) -> Option<Place> {
    let ids: Vec<StackId> = stacks.keys().copied().collect();
    let members = Members::new(tree, &ids, |stack| stacks.get(&stack).map_or(&[], Vec::as_slice), tally);
    let used = used_by_slice(capture, label);
    let slices = used.clone().unwrap_or_else(|| members.slices(capture.window.slices.len()));
    let mut course = classify(&slices, capture.window.record_ns, RELEASED);
    let grows = course.class == Class::Leak;
    if grows {
        let of_name = ContextPlace { name: label.to_owned(), ident: None, path: None };
        course.of_what_kind(if stacks.is_empty() { life(&of_name) } else { members.life() }, None);
    }
    let of_slices = (slices.iter().filter(|slice| slice.count > 0).count(), slices.len());
    course.reason = match (grows, used.is_some()) {
        (true, true) => format!(
            "more of it was used at the end of {} of {} time slices than ever before",
            of_slices.0, of_slices.1
        ),
        (false, true) => {
            format!("more of it was used at the end of {} of {} time slices only", of_slices.0, of_slices.1)
        }
        // The words are those for chunks.
        (_, false) => course.reason.replace("chunk", "block"),
    };
    let mut place = members.describe(Head::UnknownStack, course, slices);
    place.head = label.to_owned();
    place.is_context = true;
    place.children = acquirers(tree, stacks, tally);
    let is_something = place.survived.held > 0 || (grows && stacks.is_empty());
    is_something.then_some(place)
}

/// How much more of the contexts of a label was used at the end of each slice than ever before; `None` if that was not
/// seen.
fn used_by_slice(capture: &Capture, label: &str) -> Option<Vec<Tally>> {
    let growth = capture.memory.as_ref()?.by_label.iter().find(|growth| growth.label == label)?;
    let (first, slices) = growth.used_over_time.split_first()?;
    let mut most = *first;
    let of = |used: &u64| {
        let held = used.saturating_sub(most);
        most = most.max(*used);
        Tally { count: u64::from(held > 0), requested: held, held }
    };
    Some(slices.iter().map(of).collect())
}

/// The functions that acquired most of the blocks: of each stack the innermost one that is no helper.
fn acquirers(
    tree: &Tree<'_>,
    stacks: &BTreeMap<StackId, Vec<&Group>>,
    tally: fn(&Group) -> Tally,
) -> Vec<Child> {
    let mut held: HashMap<&str, u64> = HashMap::new();
    for (stack, groups) in stacks {
        let label = tree.innermost(*stack).map_or("[unknown stack]", |id| tree.function(id).label);
        *held.entry(label).or_default() += groups.iter().map(|group| tally(group).held).sum::<u64>();
    }
    let of = |(label, held): (&str, u64)| Child { label: label.to_owned(), is_wrapper: false, held };
    let mut acquirers: Vec<Child> = held.into_iter().filter(|(_, held)| *held > 0).map(of).collect();
    acquirers.sort_by(|a, b| b.held.cmp(&a.held).then(a.label.cmp(&b.label)));
    acquirers.truncate(MOST_ACQUIRERS);
    acquirers
}

#[cfg(test)]
mod tests {
    use crate::profile::{
        Class, ContextGrowth, MemoryGrowth, judge,
        testing::{Maker, SIMPLE_QUERY, SLICES, early, every},
    };

    /// It had a large block before, and each slice uses some more of it.
    #[test]
    fn a_context_grows_in_the_blocks_that_it_has() {
        let of = |label: &str, each: u64| ContextGrowth {
            label: label.to_owned(),
            used_over_time: (0..=SLICES as u64).map(|slice| 100_000 + slice * each).collect(),
            ..ContextGrowth::default()
        };
        let mut capture = Maker::new().only_blocks().build();
        let mut up_and_down = of("busy", 0);
        up_and_down.used_over_time.iter_mut().step_by(2).for_each(|used| *used += 50_000);
        let by_label = vec![of("Growing", 5000), of("same", 0), up_and_down];
        capture.memory = Some(MemoryGrowth { by_label, ..MemoryGrowth::default() });
        let verdict = judge(&capture);
        let [suspect] = &verdict.suspects[..] else { panic!("{:?}", verdict.suspects) };
        assert_eq!((suspect.head.as_str(), suspect.course.class), ("Growing", Class::Leak));
        assert_eq!(suspect.course.growth_per_second, 5000.0);
        assert!(suspect.children.is_empty());
    }

    /// Two functions take turns to need the next block: neither is blamed, the context is named.
    #[test]
    fn a_context_grows_whoever_acquires_its_blocks() {
        let path = |function: &str| format!("malloc < AllocSetAlloc < palloc < {function} < {SIMPLE_QUERY}");
        let capture = Maker::new()
            .survivors(&path("needs_much"), "TopMemoryContext > Growing", 8192, every(2))
            .survivors(&path("needs_little"), "TopMemoryContext > Growing", 8192, every(1))
            .survivors(&path("needs_much"), "Filled", 8192, early([30, 5, 0]))
            .only_blocks()
            .build();
        let verdict = judge(&capture);
        let [suspect] = &verdict.suspects[..] else { panic!("{:?}", verdict.suspects) };
        assert_eq!((suspect.head.as_str(), suspect.course.class), ("Growing", Class::Leak));
        assert!(suspect.is_context);
        let by: Vec<&str> = suspect.children.iter().map(|child| child.label.as_str()).collect();
        assert_eq!(by, ["needs_much", "needs_little"]);
        assert_eq!(verdict.caches.iter().map(|place| place.head.as_str()).collect::<Vec<_>>(), ["Filled"]);
    }
}
