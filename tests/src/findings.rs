//! Questions that tests ask about a capture.

use pgleak::profile::{Capture, Group, Stack, Tally, What};

/// Names along a stack, innermost first; inlined functions are not among them.
pub fn names<'c>(capture: &'c Capture, stack: &'c Stack) -> impl Iterator<Item = &'c str> {
    stack.frames.iter().filter_map(|id| capture.profile.frames.get(id.0 as usize)).map(|frame| frame.label())
}

/// The stack of a group.
pub fn stack<'c>(capture: &'c Capture, group: &Group) -> &'c Stack {
    &capture.profile.stacks[group.stack.0 as usize]
}

/// Groups of chunks in contexts of that name whose stack goes through that function.
pub fn groups<'c>(
    capture: &'c Capture,
    context: &'c str,
    function: &'c str,
) -> impl Iterator<Item = &'c Group> + 'c {
    capture.profile.groups.iter().filter(move |group| {
        group.what == What::Chunks
            && capture.profile.place(group).name == context
            && names(capture, stack(capture, group)).any(|name| name == function)
    })
}

/// What survived in contexts of that name below that function.
pub fn survived(capture: &Capture, context: &str, function: &str) -> Tally {
    groups(capture, context, function).fold(Tally::default(), |mut sum, group| {
        sum += group.survived;
        sum
    })
}

/// What was there at the end of recording, likewise.
pub fn recorded(capture: &Capture, context: &str, function: &str) -> Tally {
    groups(capture, context, function).fold(Tally::default(), |mut sum, group| {
        sum += group.recorded;
        sum
    })
}

/// A counter by its name; a name that is not there is a mistake in the test.
pub fn counter(capture: &Capture, name: &str) -> u64 {
    let counter = capture.counters.iter().find(|counter| counter.name == name);
    counter.unwrap_or_else(|| panic!("the capture has no counter {name:?}")).value
}

/// Counters that say that something was lost.
pub fn losses(capture: &Capture) -> Vec<(&str, u64)> {
    let lost = capture.counters.iter().filter(|counter| counter.loss && counter.value > 0);
    lost.map(|counter| (counter.name.as_str(), counter.value)).collect()
}

/// What stacks through that function freed one by one.
pub fn freed(capture: &Capture, function: &str) -> Tally {
    summed(capture, function, |stack| stack.summary.freed)
}

/// What stacks through that function lost by resets and deletes of their contexts.
pub fn reset(capture: &Capture, function: &str) -> Tally {
    summed(capture, function, |stack| stack.summary.reset)
}

fn summed(capture: &Capture, function: &str, of: impl Fn(&Stack) -> Tally) -> Tally {
    let stacks = capture.profile.stacks.iter();
    stacks.filter(|stack| names(capture, stack).any(|name| name == function)).fold(
        Tally::default(),
        |mut sum, stack| {
            sum += of(stack);
            sum
        },
    )
}

/// Contexts of that name that were made below that function and are still there, with their own bytes.
pub fn made(capture: &Capture, context: &str, function: &str) -> Tally {
    let mut sum = Tally::default();
    for group in &capture.profile.groups {
        let is_of_it = group.what == What::Contexts && capture.profile.place(group).name == context;
        if is_of_it && names(capture, stack(capture, group)).any(|name| name == function) {
            sum += group.survived;
        }
    }
    sum
}
