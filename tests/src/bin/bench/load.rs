//! Work whose transactions are timed one by one.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use pgleak_tests::{
    Server,
    workload::{Pgbench, Script},
};

/// What the backend works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// `pgbench -S`.
    Select,
    /// pgbench's own transactions.
    TpcB,
    /// A query that allocates a great many small chunks.
    Query,
}

/// Sorts, aggregates and joins text: some ten thousand allocations.
const QUERY: &str = "select count(*), sum(length(t)) from (select string_agg(md5((g % 100)::text), ',' order by g) as t \
                     from generate_series(1, 400) g group by g % 40) s;";

impl Load {
    pub(crate) const ALL: [Self; 3] = [Self::Select, Self::TpcB, Self::Query];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Select => "select",
            Self::TpcB => "tpcb",
            Self::Query => "query",
        }
    }

    pub(crate) fn named(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|load| load.name() == name);
        found.with_context(|| format!("no load is called {name}; there are: select, tpcb, query"))
    }

    /// Starts it on one backend, noting in a directory when each transaction ended.
    pub(crate) fn start(self, server: &Server, seconds: u32, dir: &Path) -> Result<Pgbench> {
        let script = match self {
            Self::Select => Script::SelectOnly,
            Self::TpcB => Script::TpcB,
            Self::Query => Script::Statement(QUERY),
        };
        Pgbench::start_logging(server, script, seconds, dir)
    }
}

/// A time while one rival, and nothing else, was attached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    from_us: u64,
    to_us: u64,
}

impl Window {
    /// One of that length, that begins now.
    pub(crate) fn pass(length: Duration) -> Self {
        let from_us = now_us();
        thread::sleep(length);
        Self { from_us, to_us: now_us() }
    }
}

fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

/// The longest that pgbench may keep what it logs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Transactions of a window, to be taken for something.
const LEAST: usize = 10;

/// When each transaction ended, from what pgbench has logged.
pub(crate) struct Ends(Vec<u64>);

impl Ends {
    /// All up to the end of that window, as soon as pgbench has written them: it does some hundred at a time.
    pub(crate) fn up_to(window: Window, dir: &Path) -> Result<Self> {
        let begun = Instant::now();
        loop {
            let ends = Self::read(dir)?;
            if ends.0.last().is_some_and(|last| *last > window.to_us) {
                return Ok(ends);
            }
            if begun.elapsed() > PATIENCE {
                bail!("pgbench has not logged what it did {PATIENCE:?} ago");
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn read(dir: &Path) -> Result<Self> {
        let mut ends = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path
                .file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with("pgbench_log"))
            {
                let text = fs::read_to_string(&path)?;
                // client, transaction, its time, script, seconds and microseconds of its end.
                let end = |line: &str| {
                    let mut words = line.split(' ').skip(4).map(str::parse::<u64>);
                    Some(words.next()?.ok()? * 1_000_000 + words.next()?.ok()?)
                };
                // The last line may be cut.
                ends.extend(text.lines().filter_map(end));
            }
        }
        ends.sort_unstable();
        Ok(Self(ends))
    }

    /// Microseconds from one end to the next, on average over the window.
    pub(crate) fn each_us(&self, window: Window) -> Result<f64> {
        let first = self.0.partition_point(|end| *end < window.from_us);
        let after = self.0.partition_point(|end| *end <= window.to_us);
        let ends = &self.0[first..after];
        match ends {
            [first, .., last] if ends.len() > LEAST => Ok((last - first) as f64 / (ends.len() - 1) as f64),
            few => bail!("{} transactions in a window are too few: make it longer", few.len()),
        }
    }
}
