//! What the process was running: its statement and query id, looked at now and then from outside.

use std::collections::HashMap;

use crate::{
    addr::AbsAddr,
    catalog::Layout,
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
    /// Address of `MyBEEntry`, and where the entry has the query id.
    entry: Option<(AbsAddr, u64)>,
    show_literals: bool,
    known: HashMap<(Option<i64>, String), u32>,
    history: History,
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Each different statement once.
    pub queries: Vec<Query>,
    /// When was looked (`CLOCK_MONOTONIC`), and which it was; `None` while idle.
    pub samples: Vec<(u64, Option<u32>)>,
}

impl Activity {
    /// Of a process; what its server does not export is not looked at.
    pub fn of(prepared: &Prepared, show_literals: bool) -> Self {
        let variable = |name| exported_variable(&prepared.image, name).map(|at| at.in_process(prepared.bias));
        let layout: &Layout = prepared.plan.layout;
        Self {
            memory: ProcessMemory::new(prepared.process.pid),
            statement: variable("debug_query_string"),
            entry: variable("MyBEEntry").zip(layout.query_id),
            show_literals,
            known: HashMap::new(),
            history: History::default(),
        }
    }

    /// Looks at what runs now.
    pub fn look(&mut self, now_ns: u64) {
        let query = self.statement().map(|statement| self.number(statement));
        self.history.samples.push((now_ns, query));
    }

    /// All that was seen.
    pub fn end(self) -> History {
        self.history
    }

    fn statement(&self) -> Option<(Option<i64>, String)> {
        // Read twice: half of one statement and half of the next could show a literal.
        let look = || {
            let at = self.memory.word(self.statement?).ok().filter(|at| *at != 0)?;
            Some((at, text(&self.memory, AbsAddr(at), MOST_BYTES)?))
        };
        let (_, text) = look().filter(|seen| look().as_ref() == Some(seen))?;
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        let text = if self.show_literals { text.chars().map(plain).collect() } else { masked(&text) };
        let id = self.entry.and_then(|(variable, offset)| {
            let entry = self.memory.word(variable).ok().filter(|at| *at != 0)?;
            let id = self.memory.word(AbsAddr(entry).offset(offset)).ok()?;
            (id != 0).then_some(id as i64)
        });
        Some((id, text))
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
    /// What ran at a moment: what was seen last before it.
    pub fn at(&self, ns: u64) -> Option<u32> {
        let after = self.samples.partition_point(|(at, _)| *at <= ns);
        self.samples.get(after.saturating_sub(1)).and_then(|(_, query)| *query)
    }
}
