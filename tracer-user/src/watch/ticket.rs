//! A capture as Markdown, to be pasted into a ticket.

use std::fmt::Write as _;

use super::record::Record;
use crate::render::units::{bytes, rate};

/// Suspects that are described.
const MOST_SUSPECTS: usize = 3;

/// The capture in short: what, where, how fast, and by which path.
pub(super) fn ticket(record: &Record) -> String {
    let mut text = String::new();
    let subject = &record.subject;
    let Some(findings) = &record.findings else {
        let why = record.error.as_deref().unwrap_or("it is still being made");
        return format!("**pgleak, capture {}**: process {}: {}\n", record.number, subject.pid, escaped(why));
    };
    let _ = writeln!(text, "**{}**\n", escaped(&findings.answer));
    let target = &findings.target;
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "- {name}: {value}");
    };
    row("host", code(&target.host));
    row("server", format!("{}, {}", escaped(&target.server), code(&subject.server)));
    let of = |name: &Option<String>, what: &str| {
        name.as_ref().map_or_else(String::new, |name| format!(", {what} {}", code(name)))
    };
    row(
        "process",
        format!(
            "{} ({}{}{})",
            target.pid,
            escaped(&target.kind),
            of(&subject.database, "database"),
            of(&subject.user, "user")
        ),
    );
    row("captured", format!("{}, because {}", findings.window.started, escaped(&record.why)));
    if let (Some(before), Some(after)) = (target.rss_anon_start, target.rss_anon_end) {
        row("anonymous memory", format!("{} before, {} after", bytes(before), bytes(after)));
    }
    if let Some(build_id) = &target.build_id {
        row("build ID", code(build_id));
    }
    for (index, suspect) in findings.suspects.iter().take(MOST_SUSPECTS).enumerate() {
        let contexts: Vec<String> =
            suspect.contexts.iter().take(3).map(|context| code(&context.name)).collect();
        let _ = writeln!(
            text,
            "\n{}. {} ({}): {}, {} in {} chunks still held, in {}; confidence {:.2}. {}.",
            index + 1,
            code(&suspect.function),
            escaped(&suspect.class.replace('_', " ")),
            rate(suspect.bytes_per_second),
            bytes(suspect.held_bytes),
            suspect.chunks,
            if contexts.is_empty() { "no known context".to_owned() } else { contexts.join(", ") },
            suspect.confidence.min(0.99),
            escaped(&suspect.reason),
        );
        if let Some(statement) = &suspect.statement {
            let _ = writeln!(text, "\n   while running {}", code(statement));
        }
        if !suspect.path.is_empty() {
            let _ = writeln!(text, "\n   ```text");
            suspect.path.iter().for_each(|step| {
                let _ = writeln!(text, "   {}", step.replace(['`', '\n', '\r'], "'"));
            });
            let _ = writeln!(text, "   ```");
        }
    }
    for loss in &findings.losses {
        let _ = writeln!(text, "\nLOST: {} {}", loss.count, escaped(&loss.meaning));
    }
    let _ = writeln!(text, "\n(pgleak {}, capture {})", findings.pgleak, record.number);
    text
}

/// Text of others, so that it formats nothing.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '#' | '|' | '~' => out.extend(['\\', c]),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

fn code(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("`{}`", plain.replace('`', "'"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::testing::record;

    #[test]
    fn a_ticket_has_what_somebody_has_to_know() {
        let text = ticket(&record(7, Some("Leaky")));
        for part in [
            "**LEAK: f ",
            "1. `f` (leak): ",
            "in `Leaky`",
            "   AllocSetAlloc\n   palloc\n   f\n",
            "capture 7",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn names_of_others_format_nothing() {
        let mut hostile = record(7, Some("x`**y"));
        hostile.why = "<script>[x](y)\nz".to_owned();
        let text = ticket(&hostile);
        assert!(text.contains("\\<script\\>\\[x\\](y) z") && text.contains("`x'**y`"), "{text}");
        let failed = Record { findings: None, error: Some("*no*".to_owned()), ..hostile };
        assert!(ticket(&failed).contains("\\*no\\*"));
    }
}
