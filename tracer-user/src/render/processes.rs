//! The processes of a capture of several, in the report.

use std::cmp::Reverse;

use super::{
    page::Page,
    units::{bytes, count, counted, rate},
};
use crate::profile::{Capture, Class, Tally, TracedProcess, judge};

/// How many processes get a line.
const MOST_PROCESSES: usize = 12;

/// A name with what is known beside it.
pub(super) fn labelled<const N: usize>(name: &str, more: [(&str, &Option<String>); N]) -> String {
    let mut text = name.to_owned();
    for (what, value) in more {
        if let Some(value) = value {
            text += &format!(", {what} {value}");
        }
    }
    text
}

/// Each with what is left of its allocations and its own first suspect; and those that have ended.
pub(super) fn list(page: &mut Page, capture: &Capture) {
    let mut held = vec![Tally::default(); capture.processes.len()];
    for group in &capture.profile.groups {
        if let Some(tally) = held.get_mut(group.process as usize) {
            *tally += group.survived;
        }
    }
    let mut order: Vec<usize> = (0..held.len()).collect();
    order.sort_by_key(|index| (Reverse(held[*index].held), *index));
    for index in order.iter().copied().take(MOST_PROCESSES) {
        line(page, capture, index, held[index]);
    }
    let others = order.get(MOST_PROCESSES..).unwrap_or(&[]);
    if !others.is_empty() {
        let bytes_of_others = others.iter().map(|index| held[*index].held).sum();
        let others = counted(others.len() as u64, "other process");
        page.line(&format!("  {:>11}  and {others}", bytes(bytes_of_others)));
    }
    for ended in &capture.ended {
        page.hang(
            "  ",
            &format!(
                "{} {} ended meanwhile, after {} allocations of {} that were recorded: all of it went with them",
                count(ended.count),
                if ended.count == 1 { ended.kind.clone() } else { format!("of kind {}", ended.kind) },
                count(ended.recorded),
                bytes(ended.recorded_bytes)
            ),
        );
    }
}

fn line(page: &mut Page, capture: &Capture, index: usize, held: Tally) {
    let process = &capture.processes[index];
    let mut text = labelled(
        &format!("{} {}", process.pid, process.kind),
        [("database", &process.database), ("user", &process.user), ("application", &process.application)],
    );
    if process.born_ns.is_some() {
        text += ", born meanwhile";
    }
    if let Some(change) = rss_change(process) {
        text += &format!("; RssAnon {change}");
    }
    let verdict = judge(&capture.of_process(index as u32));
    if let Some(first) = verdict.suspects.first() {
        let lead = match first.course.class {
            Class::Held => "held until reset",
            Class::Cache => "growing cache",
            _ if first.is_context => "GROWS",
            _ => "LEAK",
        };
        text += &format!("; {lead}: {}, {}", first.head, rate(first.course.growth_per_second));
    }
    page.hang(&format!("  {:>11}  ", bytes(held.held)), &text);
}

fn rss_change(process: &TracedProcess) -> Option<String> {
    let end = process.rss_anon_end?;
    let start = match process.born_ns {
        Some(_) => 0,
        None => process.rss_anon_start?,
    };
    let sign = if end < start { '-' } else { '+' };
    Some(format!("{sign}{}", bytes(end.abs_diff(start))))
}
