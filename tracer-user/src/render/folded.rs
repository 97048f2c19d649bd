//! `stacks.folded`: one line a stack, root first, with the bytes that it still holds.

use std::{
    collections::HashMap,
    io::{self, Write},
};

use super::RenderOptions;
use crate::profile::{Capture, ContextPlace, Frame, Group, Stack, StackEnd};

/// Writes Brendan Gregg's format.
///
/// # Errors
/// Of the writer.
pub(super) fn write(capture: &Capture, options: &RenderOptions, out: &mut dyn Write) -> io::Result<()> {
    for line in folded(capture, options).lines {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// The stacks as text.
pub(super) struct Folded {
    /// Stacks that read the same are one line. Sorted by frames and not by text, so that stacks with a common root
    /// stand together: `f.part.0` would fall between `f` and `f;g`.
    pub(super) lines: Vec<String>,
    /// Bytes of all lines.
    pub(super) bytes: u64,
}

/// Folds a capture. Names are compared by their place in the alphabet: ten thousand stacks have half a million names,
/// and only some hundred different ones.
pub(super) fn folded(capture: &Capture, options: &RenderOptions) -> Folded {
    let mut names = Names::default();
    let frames: Vec<Vec<usize>> =
        capture.profile.frames.iter().map(|frame| names.all(frame_names(frame))).collect();
    let places: Vec<Vec<usize>> = match options.by_context {
        true => capture.profile.contexts.iter().map(|place| names.all(contexts(place))).collect(),
        false => Vec::new(),
    };
    let mut stacks: Vec<(Vec<usize>, u64)> = Vec::new();
    for group in &capture.profile.groups {
        if !options.shows(capture, group) || group.weight() == 0 {
            continue;
        }
        let Some(stack) = capture.profile.stacks.get(group.stack.0 as usize) else { continue };
        let mut path = Vec::with_capacity(stack.frames.len() + 4);
        if options.by_kind {
            path.push(names.number(format!("[{}]", clean(kind(capture, group)))));
        }
        path.extend(places.get(group.context.0 as usize).into_iter().flatten());
        let start = path.len();
        add_path(capture, stack, &frames, &mut names, &mut path);
        if options.reverse {
            path[start..].reverse();
        }
        stacks.push((path, group.weight()));
    }
    let (alphabet, ranks) = names.by_alphabet();
    for (path, _) in &mut stacks {
        path.iter_mut().for_each(|name| *name = ranks[*name]);
    }
    stacks.sort_unstable();
    stacks.dedup_by(|next, first| {
        let is_same = next.0 == first.0;
        if is_same {
            first.1 += next.1;
        }
        is_same
    });
    stacks.retain(|(_, bytes)| *bytes >= options.min_bytes);
    let line = |(path, bytes): &(Vec<usize>, u64)| {
        let mut line = String::with_capacity(path.len() * 24);
        for (depth, name) in path.iter().enumerate() {
            line.push_str(if depth > 0 { ";" } else { "" });
            line.push_str(&alphabet[*name]);
        }
        line + &format!(" {bytes}")
    };
    Folded { lines: stacks.iter().map(line).collect(), bytes: stacks.iter().map(|(_, bytes)| bytes).sum() }
}

/// Different names, numbered as they come.
#[derive(Default)]
struct Names(HashMap<String, usize>);

impl Names {
    fn number(&mut self, name: String) -> usize {
        let next = self.0.len();
        *self.0.entry(name).or_insert(next)
    }

    fn all(&mut self, names: impl IntoIterator<Item = String>) -> Vec<usize> {
        names.into_iter().map(|name| self.number(name)).collect()
    }

    /// All names in order, and for each number the place in it.
    fn by_alphabet(self) -> (Vec<String>, Vec<usize>) {
        let mut sorted: Vec<(String, usize)> = self.0.into_iter().collect();
        sorted.sort_unstable();
        let mut ranks = vec![0; sorted.len()];
        for (rank, (_, number)) in sorted.iter().enumerate() {
            ranks[*number] = rank;
        }
        (sorted.into_iter().map(|(name, _)| name).collect(), ranks)
    }
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

/// Adds the frames of a stack, root first.
fn add_path(
    capture: &Capture,
    stack: &Stack,
    frames: &[Vec<usize>],
    names: &mut Names,
    path: &mut Vec<usize>,
) {
    let start = path.len();
    // A stack that was cut says so where its callers would be.
    let cut_at = cut(stack.end);
    path.extend(cut_at.map(|cut_at| names.number(cut_at.to_owned())));
    for id in stack.frames.iter().rev() {
        let index = id.0 as usize;
        let Some((frame, frame_names)) = capture.profile.frames.get(index).zip(frames.get(index)) else {
            continue;
        };
        // The code that it was cut at may be all that is known of it.
        if frame.names.is_empty() && cut_at == Some(&frame.fallback) && path.len() == start + 1 {
            continue;
        }
        path.extend(frame_names);
    }
    if path.len() == start {
        path.extend(cut(StackEnd::Unknown).map(|unknown| names.number(unknown.to_owned())));
    }
}

/// A frame's names, outermost first: the function that is really called, then what was inlined.
fn frame_names(frame: &Frame) -> Vec<String> {
    if frame.names.is_empty() {
        return vec![clean(&frame.fallback)];
    }
    frame.names.iter().rev().map(|name| clean(&name.function)).collect()
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
