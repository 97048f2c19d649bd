//! What the process was running: its statement and query id, looked at now and then from outside.

use std::collections::HashMap;

use crate::{
    addr::{AbsAddr, Bias},
    catalog::ActivityFields,
    census::{masked, text},
    probe::exported_variable,
    profile::Query,
    target::{ProcessMemory, ReadMemory as _},
};

use super::Prepared;

/// The most bytes of a statement.
const MOST_BYTES: usize = 1024;
/// The most different statements that are told apart.
const MOST_QUERIES: usize = 256;

/// The statements of a process over time.
#[derive(Debug)]
pub struct Activity {
    memory: ProcessMemory,
    /// Address of `debug_query_string`.
    statement: Option<AbsAddr>,
    /// Address of `MyBEEntry`, and what is known of what it points to.
    entry: Option<(AbsAddr, ActivityFields)>,
    show_literals: bool,
    known: HashMap<(Option<i64>, String), u32>,
    history: History,
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Each different statement once.
    pub queries: Vec<Query>,
    /// Every look.
    pub looks: Vec<Running>,
}

/// What ran at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// When was looked (`CLOCK_MONOTONIC`).
    pub at_ns: u64,
    /// Since when it has run, if the server says so.
    pub since_ns: Option<u64>,
    /// Index into [`History::queries`]; `None` while idle, or if it changed while it was read.
    pub query: Option<u32>,
}

/// The process's entry for `pg_stat_activity`.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Entry {
    /// Start of the statement, microseconds since 2000 (`st_activity_start_timestamp`).
    started_us: i64,
    query_id: Option<i64>,
}

/// 2000-01-01 in seconds since 1970.
const POSTGRES_EPOCH: i64 = 946_684_800;

impl Activity {
    /// Of a process that runs the program which was looked at, with that bias; what its server does not export is not looked at.
    pub fn of(prepared: &Prepared, pid: u32, bias: Bias, show_literals: bool) -> Self {
        let variable = |name| exported_variable(&prepared.image, name).map(|at| at.in_process(bias));
        let fields = prepared.plan.layout.activity;
        Self {
            memory: ProcessMemory::new(pid),
            statement: variable("debug_query_string"),
            entry: variable("MyBEEntry").zip(fields),
            show_literals,
            known: HashMap::new(),
            history: History::default(),
        }
    }

    /// Looks at what runs now.
    pub fn look(&mut self, at_ns: u64) {
        let (entry, text) = (self.entry(), self.statement());
        // Of one and the same statement.
        let is_one = entry == self.entry();
        let query =
            text.filter(|_| is_one).map(|text| self.number((entry.and_then(|entry| entry.query_id), text)));
        let since_ns = entry.and_then(|entry| {
            let now_us = jiff::Timestamp::now().as_microsecond() - POSTGRES_EPOCH * 1_000_000;
            let ago_us = u64::try_from(now_us - entry.started_us).ok()?;
            at_ns.checked_sub(ago_us.saturating_mul(1000))
        });
        self.history.looks.push(Running { at_ns, since_ns, query });
    }

    /// All that was seen.
    pub fn end(self) -> History {
        self.history
    }

    fn statement(&self) -> Option<String> {
        // Read twice: half of one statement and half of the next could show a literal.
        let look = || {
            let at = self.memory.word(self.statement?).ok().filter(|at| *at != 0)?;
            Some((at, text(&self.memory, AbsAddr(at), MOST_BYTES)?))
        };
        let (_, text) = look().filter(|seen| look().as_ref() == Some(seen))?;
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        Some(if self.show_literals { text.chars().map(plain).collect() } else { masked(&text) })
    }

    /// `None` while it is written.
    fn entry(&self) -> Option<Entry> {
        let (entry, fields) = self.entry?;
        let entry = self.memory.word(entry).ok().filter(|at| *at != 0)?;
        let word = |offset| self.memory.word(AbsAddr(entry).offset(offset)).ok();
        let changes = word(0)? as u32;
        let started_us = word(fields.started)? as i64;
        let query_id = fields.query_id.and_then(word).filter(|id| *id != 0).map(|id| id as i64);
        let is_whole = changes.is_multiple_of(2) && word(0)? as u32 == changes && started_us > 0;
        is_whole.then_some(Entry { started_us, query_id })
    }

    fn number(&mut self, key: (Option<i64>, String)) -> u32 {
        if let Some(number) = self.known.get(&key) {
            self.history.queries[*number as usize].samples += 1;
            return *number;
        }
        let others = (None, "[other statements]".to_owned());
        let key = if self.known.len() + 1 >= MOST_QUERIES { others } else { key };
        let next = self.history.queries.len() as u32;
        let number = *self.known.entry(key.clone()).or_insert(next);
        if number == next {
            self.history.queries.push(Query { id: key.0, statement: key.1, samples: 0 });
        }
        self.history.queries[number as usize].samples += 1;
        number
    }
}

impl History {
    /// What ran at a moment, as far as it is known: what was seen next and had begun before, or, where the
    /// server does not say when it began, what was seen right before and right after.
    pub fn at(&self, ns: u64) -> Option<u32> {
        let after = self.looks.partition_point(|look| look.at_ns < ns);
        let next = self.looks.get(after)?;
        match next.since_ns {
            Some(since_ns) => next.query.filter(|_| since_ns <= ns),
            None => next.query.filter(|_| after > 0 && self.looks[after - 1].query == next.query),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_belongs_to_a_statement_that_had_begun_and_was_seen() {
        let look = |at_ns, since_ns, query| Running { at_ns, since_ns, query };
        let looks = vec![
            look(100, Some(90), Some(0)),
            look(200, Some(150), Some(1)),
            look(300, None, Some(1)),
            look(400, None, Some(2)),
            look(500, Some(450), None),
        ];
        let history = History { queries: Vec::new(), looks };
        for (ns, expected) in [
            (95, Some(0)),
            (80, None),
            // Between two that were seen there may have been others.
            (120, None),
            (150, Some(1)),
            (200, Some(1)),
            (250, Some(1)),
            (350, None),
            (470, None),
            (501, None),
        ] {
            assert_eq!(history.at(ns), expected, "{ns}");
        }
    }
}
