//! `profile.pb.gz`: what profilers of other languages write, for the tools that read it (`go tool pprof`, Pyroscope,
//! Parca).
//!
//! The messages are those of `proto/profile.proto` of pprof; numbers are its field numbers. Values are named as Go's
//! heap profiles name theirs, so that tools show the right one first.

use std::{
    collections::HashMap,
    io::{self, Write},
};

use flate2::{Compression, GzBuilder};
use prost::Message;

use super::{RenderOptions, folded::cut};
use crate::profile::{Capture, Frame, Group, ModuleId, Stack, What};

/// The whole file.
#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    mapping: Vec<Mapping>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    /// All texts are indices into it; the first is empty.
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
    #[prost(int64, repeated, tag = "13")]
    comment: Vec<i64>,
    #[prost(int64, tag = "14")]
    default_sample_type: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

/// A stack, leaf first, with one value for each type.
#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    str: i64,
    #[prost(int64, tag = "3")]
    num: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Mapping {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    memory_start: u64,
    #[prost(uint64, tag = "3")]
    memory_limit: u64,
    #[prost(int64, tag = "5")]
    filename: i64,
    #[prost(int64, tag = "6")]
    build_id: i64,
    #[prost(bool, tag = "7")]
    has_functions: bool,
    #[prost(bool, tag = "8")]
    has_filenames: bool,
    #[prost(bool, tag = "9")]
    has_line_numbers: bool,
    #[prost(bool, tag = "10")]
    has_inline_frames: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    mapping_id: u64,
    #[prost(uint64, tag = "3")]
    address: u64,
    /// Innermost inlined function first.
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    #[prost(int64, tag = "4")]
    filename: i64,
}

/// What each sample has: as in Go, and the bytes that were asked for.
const TYPES: [(&str, &str); 5] = [
    ("alloc_objects", "count"),
    ("alloc_space", "bytes"),
    ("inuse_objects", "count"),
    ("inuse_space", "bytes"),
    ("inuse_requested", "bytes"),
];
/// Which of them is shown first.
const SHOWN: &str = "inuse_space";

/// Writes it, compressed, the same each time.
///
/// # Errors
/// Of the writer.
pub(super) fn write(capture: &Capture, options: &RenderOptions, out: &mut dyn Write) -> io::Result<()> {
    let profile = Builder::default().profile(capture, options);
    let mut compressed = GzBuilder::new().mtime(0).write(out, Compression::default());
    compressed.write_all(&profile.encode_to_vec())?;
    compressed.finish()?.flush()
}

#[derive(Default)]
struct Builder {
    profile: Profile,
    strings: HashMap<String, i64>,
    functions: HashMap<(i64, i64), u64>,
    /// The location of each frame of the capture, once it is used.
    frames: HashMap<u32, u64>,
    /// Locations that stand for what is missing of a stack.
    cuts: HashMap<&'static str, u64>,
}

impl Builder {
    fn profile(mut self, capture: &Capture, options: &RenderOptions) -> Profile {
        self.text("");
        self.profile.sample_type = TYPES.map(|(kind, unit)| self.value_type(kind, unit)).to_vec();
        self.profile.default_sample_type = self.text(SHOWN);
        self.profile.period_type = Some(self.value_type("space", "bytes"));
        let sampled = capture.window.sampling.as_ref().map_or(0, |sampling| sampling.mean_bytes);
        self.profile.period = number(sampled.max(1));
        self.profile.time_nanos = started_ns(&capture.window.started);
        self.profile.duration_nanos = number(capture.window.record_ns);
        self.profile.comment = comments(capture).iter().map(|comment| self.text(comment)).collect();
        self.modules(capture);
        for group in capture.profile.groups.iter().filter(|group| options.shows(capture, group)) {
            if group.weight() >= options.min_bytes.max(1) {
                self.group(capture, group);
            }
        }
        // What was allocated is known of each stack, in whatever contexts and processes that was.
        if options.context.is_none() && options.pid.is_none() {
            for stack in &capture.profile.stacks {
                let allocated = stack.summary.allocated;
                if allocated.count != 0 && allocated.held >= options.min_bytes {
                    let location_id = self.stack(capture, stack);
                    let value = vec![number(allocated.count), number(allocated.held), 0, 0, 0];
                    self.profile.sample.push(Sample { location_id, value, label: Vec::new() });
                }
            }
        }
        self.profile
    }

    fn group(&mut self, capture: &Capture, group: &Group) {
        let Some(stack) = capture.profile.stacks.get(group.stack.0 as usize) else { return };
        let location_id = self.stack(capture, stack);
        let survived = group.survived;
        // Of a context itself, the stack is that which made it; its chunks have others.
        let value = vec![0, 0, number(survived.count), number(group.weight()), number(survived.requested)];
        let place = capture.profile.place(group);
        let mut label = vec![self.label("context", &place.label())];
        if let Some(path) = &place.path {
            label.push(self.label("context_path", &path.join("/")));
        }
        if group.what == What::Contexts {
            label.push(self.label("what", "context"));
        }
        if let Some(process) = capture.processes.get(group.process as usize) {
            label.push(self.label("process", &process.kind));
            let key = self.text("pid");
            label.push(Label { key, str: 0, num: i64::from(process.pid) });
        }
        self.profile.sample.push(Sample { location_id, value, label });
    }

    /// Locations of a stack, leaf first; one that was cut says so where its callers would be.
    fn stack(&mut self, capture: &Capture, stack: &Stack) -> Vec<u64> {
        let mut locations: Vec<u64> = Vec::with_capacity(stack.frames.len() + 1);
        for id in &stack.frames {
            if let Some(frame) = capture.profile.frames.get(id.0 as usize) {
                locations.push(self.frame(id.0, frame));
            }
        }
        let cut = cut(stack.end).or_else(|| locations.is_empty().then_some("[stack unknown]"));
        // The code that it was cut at may be all that is known of it.
        let outermost = stack.frames.last().and_then(|id| capture.profile.frames.get(id.0 as usize));
        let is_told =
            |cut: &&str| outermost.is_some_and(|frame| frame.names.is_empty() && frame.fallback == **cut);
        if let Some(cut) = cut.filter(|cut| !is_told(cut)) {
            locations.push(self.cut(cut));
        }
        locations
    }

    fn frame(&mut self, index: u32, frame: &Frame) -> u64 {
        if let Some(id) = self.frames.get(&index) {
            return *id;
        }
        let line = if frame.names.is_empty() {
            vec![Line { function_id: self.function(&frame.fallback, ""), line: 0 }]
        } else {
            let line = |name: &crate::profile::FrameName| Line {
                function_id: self.function(&name.function, name.file.as_deref().unwrap_or_default()),
                line: name.line.map_or(0, i64::from),
            };
            frame.names.iter().map(line).collect()
        };
        let mapping_id = frame.module.map_or(0, mapping_id);
        let id = self.location(mapping_id, frame.address.0, line);
        self.frames.insert(index, id);
        id
    }

    fn cut(&mut self, text: &'static str) -> u64 {
        if let Some(id) = self.cuts.get(text) {
            return *id;
        }
        let line = vec![Line { function_id: self.function(text, ""), line: 0 }];
        let id = self.location(0, 0, line);
        self.cuts.insert(text, id);
        id
    }

    fn location(&mut self, mapping_id: u64, address: u64, line: Vec<Line>) -> u64 {
        let id = self.profile.location.len() as u64 + 1;
        self.profile.location.push(Location { id, mapping_id, address, line });
        id
    }

    /// Addresses are those in each object, as a debugger knows them: every mapping begins at 0.
    fn modules(&mut self, capture: &Capture) {
        let mut limits = vec![1; capture.modules.len()];
        for frame in &capture.profile.frames {
            if let Some(limit) = frame.module.and_then(|id| limits.get_mut(id.0 as usize)) {
                *limit = (*limit).max(frame.address.0.saturating_add(1));
            }
        }
        for (index, (module, memory_limit)) in capture.modules.iter().zip(limits).enumerate() {
            let build_id = module.build_id.as_ref().map_or_else(String::new, ToString::to_string);
            let mapping = Mapping {
                id: index as u64 + 1,
                memory_start: 0,
                memory_limit,
                filename: self.text(&module.path),
                build_id: self.text(&build_id),
                // Names are final: what has none is not to be looked up again elsewhere.
                has_functions: true,
                has_filenames: true,
                has_line_numbers: true,
                has_inline_frames: true,
            };
            self.profile.mapping.push(mapping);
        }
    }

    fn function(&mut self, name: &str, file: &str) -> u64 {
        let (name, filename) = (self.text(name), self.text(file));
        let next = self.profile.function.len() as u64 + 1;
        let id = *self.functions.entry((name, filename)).or_insert(next);
        if id == next {
            self.profile.function.push(Function { id, name, system_name: name, filename });
        }
        id
    }

    fn label(&mut self, key: &str, text: &str) -> Label {
        Label { key: self.text(key), str: self.text(text), num: 0 }
    }

    fn value_type(&mut self, kind: &str, unit: &str) -> ValueType {
        ValueType { kind: self.text(kind), unit: self.text(unit) }
    }

    fn text(&mut self, text: &str) -> i64 {
        if let Some(index) = self.strings.get(text) {
            return *index;
        }
        let index = self.profile.string_table.len() as i64;
        self.profile.string_table.push(text.to_owned());
        self.strings.insert(text.to_owned(), index);
        index
    }
}

fn mapping_id(module: ModuleId) -> u64 {
    u64::from(module.0) + 1
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Nanoseconds since 1970.
fn started_ns(started: &str) -> i64 {
    started.parse::<jiff::Timestamp>().map_or(0, |time| number_of(time.as_nanosecond()))
}

fn number_of(ns: i128) -> i64 {
    i64::try_from(ns).unwrap_or(0)
}

/// What somebody has to know who sees nothing but this file.
fn comments(capture: &Capture) -> Vec<String> {
    let target = &capture.target;
    let mut comments = vec![format!(
        "pgleak {}: {} {} of {}, {}",
        capture.tool.version, target.kind, target.pid, target.host, target.server
    )];
    comments.push(
        "inuse: what was allocated while recording and is left; alloc: all that was allocated, by stack, in no context's name".to_owned(),
    );
    let losses = capture.counters.iter().filter(|counter| counter.loss && counter.value != 0);
    comments.extend(losses.map(|counter| format!("LOST: {} {}", counter.value, counter.meaning)));
    comments.extend(capture.notes.iter().cloned());
    comments
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::profile::testing::{Maker, SIMPLE_QUERY, every};

    fn written(options: &RenderOptions) -> Profile {
        let stack = |name: &str| format!("AllocSetAlloc < palloc < {name} < {SIMPLE_QUERY}");
        let capture = Maker::new()
            .survivors(&stack("f"), "Leaky", 64, every(3))
            .survivors(&stack("g"), "Other", 32, every(2))
            .counter("live_full", 3, true, "allocations not recorded")
            .build();
        let (mut first, mut again) = (Vec::new(), Vec::new());
        write(&capture, options, &mut first).expect("memory takes everything");
        write(&capture, options, &mut again).expect("memory takes everything");
        assert_eq!(first, again, "the same each time");
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(&*first).read_to_end(&mut bytes).expect("gzip");
        Profile::decode(&*bytes).expect("a profile")
    }

    /// Chunks and bytes that are left, by the label of their context.
    fn left(profile: &Profile) -> Vec<(&str, i64, i64)> {
        let text = |index: i64| profile.string_table[index as usize].as_str();
        let of = |sample: &Sample| {
            let label = sample.label.iter().find(|label| text(label.key) == "context")?;
            Some((label.str, sample.value[2], sample.value[3]))
        };
        profile.sample.iter().filter_map(of).map(|(label, count, held)| (text(label), count, held)).collect()
    }

    #[test]
    fn samples_lead_to_names_and_sum_up() {
        let profile = written(&RenderOptions::default());
        assert_eq!(profile.string_table[0], "");
        let slices = crate::profile::testing::SLICES as i64;
        let [leaky, other] = left(&profile)[..] else { panic!("two groups") };
        assert_eq!((leaky.0, leaky.1, other.0, other.1), ("Leaky", 3 * slices, "Other", 2 * slices));
        assert!(leaky.2 >= 64 * leaky.1 && other.2 >= 32 * other.1);
        for sample in &profile.sample {
            assert_eq!(sample.value.len(), profile.sample_type.len());
            let names: Vec<&str> = (sample.location_id.iter())
                .map(|id| {
                    let location = &profile.location[*id as usize - 1];
                    let function = &profile.function[location.line[0].function_id as usize - 1];
                    assert_eq!((location.id, function.id), (*id, location.line[0].function_id));
                    profile.string_table[function.name as usize].as_str()
                })
                .collect();
            assert_eq!(names[..2], ["AllocSetAlloc", "palloc"], "leaf first");
        }
        let comments: Vec<&str> =
            profile.comment.iter().map(|index| &*profile.string_table[*index as usize]).collect();
        assert!(comments.iter().any(|comment| comment.starts_with("LOST: 3 ")), "{comments:?}");
    }

    #[test]
    fn what_is_not_shown_is_left_out() {
        let one = RenderOptions { context: Some("Other".to_owned()), ..RenderOptions::default() };
        let profile = written(&one);
        assert_eq!(left(&profile).len(), 1);
        assert!(
            profile.sample.iter().all(|sample| sample.value[0] == 0),
            "what was allocated is of all contexts"
        );
        let none = RenderOptions { min_bytes: 1 << 30, ..RenderOptions::default() };
        assert!(written(&none).sample.is_empty());
    }
}
