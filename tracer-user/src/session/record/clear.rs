//! When a recording says enough: `--longer`.

use std::collections::HashMap;

use crate::{
    bpf::RawSnapshot,
    profile::{Class, Tally, firm_class},
    session::{Timeline, record::SLICES},
};

/// What holds less than this part of everything is not waited for.
const NEGLIGIBLE: f64 = 0.02;

/// Whether it is clear how the contexts grow that hold what is left, by name: one of them leaks for sure,
/// or each of them surely does something else.
pub(super) fn is_clear(snapshot: &RawSnapshot, start_ns: u64, elapsed_ns: u64) -> bool {
    let timeline = Timeline::whole(start_ns, elapsed_ns);
    let slices = timeline.slices(SLICES);
    let mut held: HashMap<u64, Vec<Tally>> = HashMap::new();
    let all = snapshot
        .processes
        .values()
        .flat_map(|process| process.chunks.iter().map(|chunk| (chunk, process.contexts.get(&chunk.context))));
    for (chunk, context) in all {
        let name = context.map_or(0, |context| context.name);
        let of_name = held.entry(name).or_insert_with(|| vec![Tally::default(); slices.len()]);
        if let Some(slice) = timeline.slice_of(chunk.born_ns, &slices) {
            let (requested, held) = (chunk.weighed(chunk.requested), chunk.weighed(chunk.held));
            of_name[slice] += Tally { count: 1, requested, held };
        }
    }
    let courses: Vec<Vec<Tally>> = held.into_values().collect();
    are_clear(&courses, elapsed_ns)
}

fn are_clear(courses: &[Vec<Tally>], elapsed_ns: u64) -> bool {
    let bytes = |slices: &[Tally]| slices.iter().map(|slice| slice.held).sum::<u64>();
    let all: u64 = courses.iter().map(|slices| bytes(slices)).sum();
    let matters = |slices: &&Vec<Tally>| bytes(slices) as f64 >= all as f64 * NEGLIGIBLE;
    let classes: Vec<Option<Class>> =
        courses.iter().filter(matters).map(|slices| firm_class(slices, elapsed_ns)).collect();
    classes.contains(&Some(Class::Leak)) || (all > 0 && classes.iter().all(Option::is_some))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECONDS_10: u64 = 10_000_000_000;

    fn course(counts: [u64; 10], bytes: u64) -> Vec<Tally> {
        let of = |count| Tally { count, requested: count * bytes, held: count * bytes };
        counts.map(of).to_vec()
    }

    #[test]
    fn one_sure_leak_is_enough_and_what_is_unclear_is_waited_for() {
        let leak = course([20; 10], 100);
        let cache = course([500, 90, 0, 0, 0, 0, 0, 0, 0, 0], 100);
        let begun = course([0, 0, 0, 1, 0, 1, 0, 1, 0, 1], 900);
        assert!(are_clear(&[leak.clone(), begun.clone()], SECONDS_10));
        assert!(are_clear(std::slice::from_ref(&cache), SECONDS_10));
        assert!(!are_clear(&[cache, begun.clone()], SECONDS_10), "it may be a leak");
        let large = course([0, 0, 0, 0, 0, 0, 0, 0, 0, 400], 10_000);
        assert!(are_clear(&[large, begun], SECONDS_10), "it is nothing beside this");
        assert!(!are_clear(&[], SECONDS_10));
    }
}
