//! Two captures side by side: what grows faster in the second one, and what no more.
//!
//! Captures differ in length, so everything is by the second of recording. Frames are the same if module and
//! function are: addresses differ from build to build.

use std::{collections::BTreeMap, fmt::Write as _, io, path::Path};

use inferno::flamegraph::Direction;

use super::{
    RenderOptions,
    folded::folded,
    svg::{self, Picture},
    units,
};
use crate::profile::{
    Capture, What, owners,
    wrappers::{Role, role},
};

/// Rows of the table.
const MOST_ROWS: usize = 30;
/// What changes by less than this part of the largest change is left out.
const HARDLY_ANY: f64 = 0.005;
/// Counts of the pictures are whole numbers: bytes in so many seconds.
const SECONDS: f64 = 1000.0;

/// What one function holds in contexts of one name, as bytes and chunks by the second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Rate {
    bytes: f64,
    chunks: f64,
}

/// A function in contexts of one name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    function: String,
    context: String,
}

/// What two captures differ in.
#[derive(Debug)]
pub struct Difference {
    table: String,
    pictures: [Picture; 2],
}

/// Names of the files that a difference is written to, in the order of [`Difference::artifacts`].
const FILES: [&str; 3] = ["diff.txt", "diff.svg", "diff-before.svg"];

impl Difference {
    /// The table, as text.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// All that is written, with file names: the table, the picture whose widths are those of the second capture, and the
    /// one whose widths are those of the first, where what is gone is to be seen.
    ///
    /// # Errors
    /// If a picture cannot be drawn.
    pub fn artifacts(&self) -> io::Result<Vec<(&'static str, Vec<u8>)>> {
        let [after, before] = &self.pictures;
        Ok(vec![
            (FILES[0], self.table.clone().into_bytes()),
            (FILES[1], svg::paint(after)?.into_bytes()),
            (FILES[2], svg::paint(before)?.into_bytes()),
        ])
    }
}

/// Compares two captures, of which each has the name that it was given by.
pub fn difference(
    before: (&Path, &Capture),
    after: (&Path, &Capture),
    options: &RenderOptions,
) -> Difference {
    let header = [heading("before", before), heading("after ", after)];
    let mut notes = notes(before.1, after.1);
    let rows = rows(before.1, after.1, options);
    let table = table(&header, &notes, &rows);
    notes.splice(0..0, header);
    let stacks = stacks(before.1, after.1, options);
    let picture = |which: &str, swapped: bool| {
        let line = |(path, [before, after]): (&Vec<String>, &[u64; 2])| {
            let (first, second) = if swapped { (after, before) } else { (before, after) };
            // What has no width would be a frame without one.
            (*second > 0).then(|| format!("{} {first} {second}", path.join(";")))
        };
        Picture {
            title: format!(
                "pgleak: left of each second, widths of the {which} capture; red: more than before, blue: less"
            ),
            header: notes.clone(),
            lines: stacks.iter().filter_map(line).collect(),
            direction: if options.inverted { Direction::Inverted } else { Direction::Straight },
            palette: options.colours.0,
            count_name: "bytes/s",
            factor: 1.0 / SECONDS,
            is_swapped: swapped,
        }
    };
    Difference { table, pictures: [picture("second", false), picture("first", true)] }
}

fn seconds(capture: &Capture) -> f64 {
    (capture.window.record_ns as f64 / 1e9).max(f64::MIN_POSITIVE)
}

fn heading(which: &str, (path, capture): (&Path, &Capture)) -> String {
    let (target, window) = (&capture.target, &capture.window);
    // Without the compiler that made it.
    let server = target.server.split(" on ").next().unwrap_or_default();
    format!(
        "{which}  {}: {} {} on {}, {server}, recorded {} from {}",
        path.display(),
        target.kind,
        target.pid,
        target.host,
        units::seconds(window.record_ns),
        window.started
    )
}

/// What makes the two hard to compare.
fn notes(before: &Capture, after: &Capture) -> Vec<String> {
    let mut notes = Vec::new();
    if before.target.build_id != after.target.build_id {
        notes.push(
            "They are of different builds: functions are compared by name, and those without one do not match."
                .to_owned(),
        );
    }
    for (which, capture) in [("first", before), ("second", after)] {
        let lost = capture.counters.iter().filter(|counter| counter.loss && counter.value > 0);
        notes.extend(
            lost.map(|counter| format!("LOST in the {which}: {} {}", counter.value, counter.meaning)),
        );
        if capture.window.sampling.is_some() || capture.window.windows.is_some() {
            notes.push(format!("What is of the {which} is estimated from samples or windows."));
        }
    }
    notes
}

type Rows = BTreeMap<Place, [Rate; 2]>;

fn rows(before: &Capture, after: &Capture, options: &RenderOptions) -> Rows {
    let mut rows = Rows::new();
    for (side, capture) in [before, after].into_iter().enumerate() {
        let owners = owners(capture);
        let seconds = seconds(capture);
        for group in capture.profile.groups.iter().filter(|group| options.shows(capture, group)) {
            let function = owners.get(group.stack.0 as usize).cloned().unwrap_or_default();
            let context = capture.profile.place(group).label();
            let rate = &mut rows.entry(Place { function, context }).or_default()[side];
            rate.bytes += group.weight() as f64 / seconds;
            if group.what == What::Chunks {
                rate.chunks += group.survived.count as f64 / seconds;
            }
        }
    }
    let least = options.min_bytes as f64;
    rows.retain(|_, [first, second]| {
        first.bytes * seconds(before) >= least || second.bytes * seconds(after) >= least
    });
    rows
}

fn table(header: &[String], notes: &[String], rows: &Rows) -> String {
    let mut text = String::new();
    let mut line = |line: &str| {
        let _ = writeln!(text, "{line}");
    };
    line("WHAT IS LEFT OF EACH SECOND'S ALLOCATIONS");
    header.iter().for_each(|text| line(&format!("  {text}")));
    notes.iter().for_each(|text| line(&format!("  {text}")));
    line("");
    let change = |[before, after]: &[Rate; 2]| after.bytes - before.bytes;
    let most = rows.values().map(|row| change(row).abs()).fold(0.0, f64::max);
    let mut sorted: Vec<_> = rows.iter().filter(|(_, row)| change(row).abs() > most * HARDLY_ANY).collect();
    sorted.sort_by(|a, b| change(b.1).total_cmp(&change(a.1)));
    let sum = |side: usize| rows.values().map(|row| row[side].bytes).sum::<f64>();
    let row = |[before, after]: [f64; 2], what: &str| {
        format!(
            "  {:>13}  {:>13}  {:>14}  {what}",
            units::rate(before),
            units::rate(after),
            signed(after - before)
        )
    };
    line(&format!("  {:>13}  {:>13}  {:>14}  function, in its context", "before", "after", "change"));
    line(&row([sum(0), sum(1)], "all"));
    // The largest of both ends, and not only of the first.
    let (most_rows, left_out) = (MOST_ROWS.min(sorted.len()), sorted.len().saturating_sub(MOST_ROWS));
    if left_out > 0 {
        sorted.sort_by(|a, b| change(b.1).abs().total_cmp(&change(a.1).abs()));
        sorted.truncate(most_rows);
        sorted.sort_by(|a, b| change(b.1).total_cmp(&change(a.1)));
    }
    for (place, rates) in &sorted {
        let [before, after] = rates;
        let what = format!("{}, in {}", place.function, place.context);
        line(&row([before.bytes, after.bytes], &what));
    }
    if sorted.is_empty() {
        line(if rows.is_empty() { "  nothing is left in either" } else { "  nothing changes" });
    }
    if left_out > 0 {
        line(&format!("  and {left_out} more that change less"));
    }
    text
}

fn signed(bytes: f64) -> String {
    let sign = if bytes < 0.0 { '-' } else { '+' };
    format!("{sign}{}", units::rate(bytes.abs()))
}

/// Every stack with what it holds by [`SECONDS`] in each capture. Sorted by frames, as the drawing wants it.
fn stacks(before: &Capture, after: &Capture, options: &RenderOptions) -> BTreeMap<Vec<String>, [u64; 2]> {
    let mut sums: BTreeMap<Vec<String>, [u64; 2]> = BTreeMap::new();
    // What is less in one capture only is no change.
    let all = RenderOptions { min_bytes: 0, ..options.clone() };
    for (side, capture) in [before, after].into_iter().enumerate() {
        for line in folded(capture, &all).lines {
            let Some((path, bytes)) = line.rsplit_once(' ') else { continue };
            let mut path: Vec<String> = path.split(';').map(str::to_owned).collect();
            // The colour is that of the innermost frame: the function that asked for the memory, and not an allocator.
            while path.len() > 1 && path.last().is_some_and(|name| role(name) == Role::Wrapper) {
                path.pop();
            }
            let bytes = bytes.parse::<u64>().unwrap_or(0);
            let sums = sums.entry(path).or_default();
            sums[side] += bytes;
        }
    }
    sums.retain(|_, sums| sums.iter().any(|bytes| *bytes >= options.min_bytes.max(1)));
    let by_second = |bytes: u64, capture| (bytes as f64 / seconds(capture) * SECONDS) as u64;
    sums.values_mut().for_each(|[first, second]| {
        (*first, *second) = (by_second(*first, before), by_second(*second, after));
    });
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::testing::{Maker, SIMPLE_QUERY, every};

    fn captures() -> [Capture; 2] {
        let leak = |name: &str, size, each| {
            (format!("AllocSetAlloc < palloc < {name} < {SIMPLE_QUERY}"), size, every(each))
        };
        let make = |leaks: Vec<(String, u64, _)>| {
            let maker = leaks.into_iter().fold(Maker::new(), |maker, (stack, size, slices)| {
                maker.survivors(&stack, "Leaky", size, slices)
            });
            maker.build()
        };
        [
            make(vec![leak("gone", 64, 5), leak("same", 32, 2)]),
            make(vec![leak("same", 32, 2), leak("fresh", 128, 10)]),
        ]
    }

    fn compared(options: &RenderOptions) -> Difference {
        let [before, after] = captures();
        difference((Path::new("a"), &before), (Path::new("b"), &after), options)
    }

    #[test]
    fn what_grows_comes_first_and_what_is_gone_last() {
        let difference = compared(&RenderOptions::default());
        let table = difference.table();
        let at = |text: &str| table.find(text).unwrap_or_else(|| panic!("no {text} in {table}"));
        assert!(at("fresh, in Leaky") < at("gone, in Leaky"), "{table}");
        assert!(!table.contains("same, in Leaky"), "{table}");
        assert!(table.contains("0 bytes/s"), "{table}");
        let [before, after] = captures();
        let nothing = difference_of_equal(&before);
        assert!(nothing.contains("nothing changes"), "{nothing}");
        let empty = difference_of_equal(&Maker::new().build());
        assert!(empty.contains("nothing is left in either"), "{empty}");
        assert_ne!(before, after);
    }

    fn difference_of_equal(capture: &Capture) -> String {
        difference((Path::new("a"), capture), (Path::new("a"), capture), &RenderOptions::default())
            .table()
            .to_owned()
    }

    #[test]
    fn rates_do_not_depend_on_how_long_was_recorded() {
        let [before, _] = captures();
        let mut longer = before.clone();
        longer.window.record_ns *= 2;
        for group in &mut longer.profile.groups {
            group.survived.held *= 2;
            group.survived.count *= 2;
        }
        let compared =
            difference((Path::new("a"), &before), (Path::new("b"), &longer), &RenderOptions::default());
        assert!(!compared.table().contains("in Leaky"), "{}", compared.table());
    }

    #[test]
    fn both_pictures_are_drawn_and_each_shows_its_own() {
        let artifacts = compared(&RenderOptions::default()).artifacts().expect("drawn");
        let text = |index: usize| String::from_utf8_lossy(&artifacts[index].1).into_owned();
        assert_eq!(artifacts.iter().map(|(name, _)| *name).collect::<Vec<_>>(), FILES);
        assert!(text(1).contains("<title>fresh ") && !text(1).contains("<title>gone "));
        assert!(text(2).contains("<title>gone ") && !text(2).contains("<title>fresh "));
        assert!(text(1).contains("<title>same ") && text(2).contains("<title>same "));
    }

    #[test]
    fn losses_and_other_builds_are_told() {
        let [before, mut after] = captures();
        after.target.build_id = None;
        let mut lossy = before.clone();
        lossy.target.build_id = Some(crate::addr::BuildId(vec![1, 2]));
        lossy.counters.push(crate::profile::CounterValue {
            name: "live_full".to_owned(),
            value: 3,
            loss: true,
            meaning: "allocations not recorded".to_owned(),
        });
        let compared =
            difference((Path::new("a"), &lossy), (Path::new("b"), &after), &RenderOptions::default());
        assert!(compared.table().contains("different builds"), "{}", compared.table());
        assert!(compared.table().contains("LOST in the first: 3 allocations not recorded"));
    }
}
