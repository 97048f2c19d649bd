//! `stacks.folded`: one line a stack, root first, with the bytes that it still holds.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use super::RenderOptions;
use crate::profile::{Capture, ContextPlace, Frame, Group, Stack, StackEnd};

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

/// The lines; stacks that read the same are one. Sorted by frames and not by text, so that stacks
/// with a common root stand together: `f.part.0` would fall between `f` and `f;g`.
pub(super) fn lines(capture: &Capture, options: &RenderOptions) -> Vec<String> {
    stacks(capture, options)
        .into_iter()
        .map(|(names, bytes)| format!("{} {bytes}", names.join(";")))
        .collect()
}

/// Bytes held by names, root first.
pub(super) fn stacks(capture: &Capture, options: &RenderOptions) -> BTreeMap<Vec<String>, u64> {
    let mut held: BTreeMap<Vec<String>, u64> = BTreeMap::new();
    for group in &capture.profile.groups {
        if !options.shows(capture, group) || group.weight() == 0 {
            continue;
        }
        let Some(stack) = capture.profile.stacks.get(group.stack.0 as usize) else { continue };
        let mut names = path(capture, stack, options.reverse);
        if options.by_context {
            names.splice(0..0, contexts(capture.profile.place(group)));
        }
        if options.by_kind {
            names.insert(0, format!("[{}]", clean(kind(capture, group))));
        }
        *held.entry(names).or_default() += group.weight();
    }
    held.retain(|_, bytes| *bytes >= options.min_bytes);
    held
}

/// The kind of the process of a group.
fn kind<'a>(capture: &'a Capture, group: &Group) -> &'a str {
    let process = capture.processes.get(group.process as usize);
    process.map_or(&capture.target.kind, |process| &process.kind)
}

/// Names of contexts as the root frames of a stack.
fn contexts(place: &ContextPlace) -> Vec<String> {
    let path = place.path.clone().unwrap_or_else(|| vec!["[path unknown]".to_owned()]);
    path.into_iter().chain([place.label()]).map(|name| format!("[{}]", clean(&name))).collect()
}

fn path(capture: &Capture, stack: &Stack, reverse: bool) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    // A stack that was cut says so where its callers would be.
    let cut_at = cut(stack.end);
    names.extend(cut_at.map(str::to_owned));
    for frame in stack.frames.iter().rev().filter_map(|id| capture.profile.frames.get(id.0 as usize)) {
        // The code that it was cut at may be all that is known of it.
        if frame.names.is_empty() && cut_at == Some(&frame.fallback) && names.len() == 1 {
            continue;
        }
        push_names(frame, &mut names);
    }
    if names.is_empty() {
        names.extend(cut(StackEnd::Unknown).map(str::to_owned));
    }
    if reverse {
        names.reverse();
    }
    names
}

/// A frame's names, outermost first: the function that is really called, then what was inlined.
fn push_names(frame: &Frame, names: &mut Vec<String>) {
    if frame.names.is_empty() {
        names.push(clean(&frame.fallback));
    }
    names.extend(frame.names.iter().rev().map(|name| clean(&name.function)));
}

/// A name without what the format gives a meaning: `;` parts frames, a line ends a stack, `#`
/// begins a comment, and a number behind a blank is a count. XML cannot write the last two
/// characters of the first plane at all.
fn clean(name: &str) -> String {
    let clean: String = name
        .chars()
        .map(|c| if c == ';' || c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') { ':' } else { c })
        .collect();
    let clean = clean.trim();
    if clean.is_empty() {
        return "[no name]".to_owned();
    }
    if let Some(rest) = clean.strip_prefix('#') {
        return format!("_{rest}");
    }
    match clean.rsplit_once(' ') {
        Some((before, last)) if last.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') => {
            format!("{before}_{last}")
        }
        _ => clean.to_owned(),
    }
}

/// The root frame of a stack that does not reach the bottom.
pub(super) fn cut(end: StackEnd) -> Option<&'static str> {
    match end {
        StackEnd::Bottom => None,
        StackEnd::UnknownMapping => Some("[unknown mapping]"),
        StackEnd::Jit => Some("[jit]"),
        StackEnd::NoRow => Some("[stack cut: no unwind information]"),
        StackEnd::Unsupported => Some("[stack cut: unsupported unwind rule]"),
        StackEnd::Read => Some("[stack cut: unreadable memory]"),
        StackEnd::Truncated => Some("[stack cut: too deep]"),
        StackEnd::BadSp => Some("[stack cut: bad stack pointer]"),
        StackEnd::LostReturn => Some("[stack cut: return address hidden by another tracer]"),
        StackEnd::Unknown => Some("[stack unknown]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_out_of_the_formats_way() {
        assert_eq!(clean("operator<(a; b)"), "operator<(a: b)");
        assert_eq!(clean("two\nlines"), "two:lines");
        assert_eq!(clean("# comment"), "_ comment");
        assert_eq!(clean("version 15.18"), "version_15.18");
        assert_eq!(clean("a name"), "a name");
        assert_eq!(clean(" \u{ffff} "), ":");
        assert_eq!(clean(" "), "[no name]");
    }
}
