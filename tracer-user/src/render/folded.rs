//! `stacks.folded`: one line a stack, root first, with the bytes that it still holds.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use super::RenderOptions;
use crate::profile::{Capture, Frame, Stack, StackEnd};

/// Writes Brendan Gregg's format.
///
/// # Errors
/// Of the writer.
pub(super) fn write(capture: &Capture, options: &RenderOptions, out: &mut dyn Write) -> io::Result<()> {
    for line in lines(capture, options) {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// The lines, sorted; stacks that read the same are one.
pub(super) fn lines(capture: &Capture, options: &RenderOptions) -> Vec<String> {
    let mut held: BTreeMap<String, u64> = BTreeMap::new();
    for group in &capture.profile.groups {
        if options.context.as_ref().is_some_and(|name| *name != group.context) || group.survived.held == 0 {
            continue;
        }
        let Some(stack) = capture.profile.stacks.get(group.stack.0 as usize) else { continue };
        *held.entry(path(capture, stack, options.reverse)).or_default() += group.survived.held;
    }
    held.into_iter()
        .filter(|(_, bytes)| *bytes >= options.min_bytes)
        .map(|(path, bytes)| format!("{path} {bytes}"))
        .collect()
}

fn path(capture: &Capture, stack: &Stack, reverse: bool) -> String {
    let mut names: Vec<String> = Vec::new();
    // A stack that was cut says so where its callers would be.
    names.extend(cut(stack.end).map(str::to_owned));
    for frame in stack.frames.iter().rev().filter_map(|id| capture.profile.frames.get(id.0 as usize)) {
        push_names(frame, &mut names);
    }
    if reverse {
        names.reverse();
    }
    names.join(";")
}

/// A frame's names, outermost first: the function that is really called, then what was inlined.
fn push_names(frame: &Frame, names: &mut Vec<String>) {
    if frame.names.is_empty() {
        names.push(clean(&frame.fallback));
    }
    names.extend(frame.names.iter().rev().map(|name| clean(&name.function)));
}

/// A name without what the format gives a meaning: `;` parts frames, a line ends a stack.
fn clean(name: &str) -> String {
    let clean: String = name.chars().map(|c| if c == ';' || c.is_control() { ':' } else { c }).collect();
    // The count is what follows the last blank, so blanks inside of a name are no harm.
    let clean = clean.trim();
    if clean.is_empty() { "[no name]".to_owned() } else { clean.to_owned() }
}

/// The root frame of a stack that does not reach the bottom.
pub(super) fn cut(end: StackEnd) -> Option<&'static str> {
    match end {
        StackEnd::Bottom => None,
        StackEnd::UnknownMapping => Some("[unknown mapping]"),
        StackEnd::NoRow => Some("[stack cut: no unwind information]"),
        StackEnd::Unsupported => Some("[stack cut: unsupported unwind rule]"),
        StackEnd::Read => Some("[stack cut: unreadable memory]"),
        StackEnd::Truncated => Some("[stack cut: too deep]"),
        StackEnd::BadSp => Some("[stack cut: bad stack pointer]"),
        StackEnd::LostReturn => Some("[stack cut: return address hidden by another tracer]"),
        StackEnd::Unknown => Some("[stack unknown]"),
    }
}
