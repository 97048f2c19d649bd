//! What is shown of the memory contexts of a process.

use std::{collections::HashMap, time::Duration};

use super::text::harmless;
use crate::census::{Census, grown, largest};

/// More lines than any terminal has.
const MOST_LINES: usize = 300;

/// What is known of the contexts of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Contexts {
    /// They are read at this time since the program began: another look has cost too much for one at once.
    Later(Duration),
    /// They were read.
    Read(ContextsLook),
    /// They cannot be read, and why.
    Unreadable(String),
}

/// Contexts of one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ContextLine {
    /// Their name.
    pub(super) label: String,
    /// Bytes of their blocks.
    pub(super) bytes: u64,
    /// How many more bytes that is than at the first look.
    pub(super) more_bytes: i64,
    /// How many they are.
    pub(super) contexts: u64,
}

/// One look at all contexts of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ContextsLook {
    /// What grew most first, then what is largest.
    pub(super) lines: Vec<ContextLine>,
    /// All contexts.
    pub(super) contexts: usize,
    /// Bytes of all blocks.
    pub(super) bytes: u64,
    /// How long the look took.
    pub(super) took: Duration,
    /// When the next look will be, which is later than wanted where looks take long.
    pub(super) every: Duration,
    /// How long ago the first look was.
    pub(super) since: Duration,
    /// What could not be read; empty if nothing.
    pub(super) troubles: String,
}

impl ContextsLook {
    /// What has become of the contexts since the first look.
    pub(super) fn between(first: &Census, now: &Census, since: Duration) -> Self {
        Self {
            lines: lines(first, now),
            contexts: now.contexts.len(),
            bytes: now.total(),
            took: now.took,
            every: Duration::ZERO,
            since,
            troubles: now.troubles.to_string(),
        }
    }
}

fn lines(first: &Census, now: &Census) -> Vec<ContextLine> {
    let more: HashMap<String, i64> =
        grown(first, now).into_iter().map(|growth| (growth.label, growth.more_bytes)).collect();
    let mut lines: Vec<ContextLine> = largest(now, usize::MAX)
        .into_iter()
        .map(|line| ContextLine {
            bytes: line.total,
            more_bytes: more.get(&line.label).copied().unwrap_or(0),
            contexts: line.contexts,
            label: harmless(&line.label),
        })
        .collect();
    // Those that have not grown stay as they are, by size.
    lines.sort_by_key(|line| std::cmp::Reverse(line.more_bytes.max(0)));
    lines.truncate(MOST_LINES);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        addr::AbsAddr,
        census::{Kind, MemoryContext},
    };

    fn census(contexts: &[(&str, u64)]) -> Census {
        let context = |(index, (name, total)): (usize, &(&str, u64))| MemoryContext {
            address: AbsAddr(0x1000 * (index as u64 + 1)),
            parent: index.checked_sub(1).map(|_| 0),
            name: (*name).to_owned(),
            ident: None,
            kind: Kind::AllocSet,
            total: Some(*total),
            usage: None,
        };
        Census { contexts: contexts.iter().enumerate().map(context).collect(), ..Census::default() }
    }

    #[test]
    fn what_grew_comes_first_then_what_is_large() {
        let before = census(&[("TopMemoryContext", 100), ("Cache", 500), ("Shrinks", 90), ("Leak", 10)]);
        let now = census(&[
            ("TopMemoryContext", 100),
            ("Cache", 500),
            ("Shrinks", 20),
            ("Leak", 10),
            ("Leak", 30),
            ("New\u{1b}", 8),
        ]);
        let look = ContextsLook::between(&before, &now, Duration::from_secs(4));
        let shown: Vec<_> = look
            .lines
            .iter()
            .map(|line| (&*line.label, line.bytes, line.more_bytes, line.contexts))
            .collect();
        assert_eq!(
            shown,
            [
                ("Leak", 40, 30, 2),
                ("New?", 8, 8, 1),
                ("Cache", 500, 0, 1),
                ("TopMemoryContext", 100, 0, 1),
                ("Shrinks", 20, -70, 1),
            ]
        );
        assert_eq!((look.contexts, look.bytes), (6, 668));
    }
}
