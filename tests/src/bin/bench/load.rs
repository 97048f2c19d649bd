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
    /// A query whose chunks are too large for blocks of contexts, so that each is one malloc and one free.
    Malloc,
}

/// Sorts, aggregates and joins text: some ten thousand allocations.
const QUERY: &str = "select count(*), sum(length(t)) from (select string_agg(md5((g % 100)::text), ',' order by g) as t \
                     from generate_series(1, 400) g group by g % 40) s;";

/// Chunks of more than 8 KiB, of eight sizes and below the C library's threshold for mmap: 1,000 in a transaction.
const MALLOC: &str = "select sum(octet_length(repeat('0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
                      0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef', 72 + (g & 7)))) \
                      from generate_series(1, 1000) g;";

impl Load {
    pub(crate) const ALL: [Self; 4] = [Self::Select, Self::TpcB, Self::Query, Self::Malloc];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Select => "select",
            Self::TpcB => "tpcb",
            Self::Query => "query",
            Self::Malloc => "malloc",
        }
    }

    pub(crate) fn named(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|load| load.name() == name);
        found.with_context(|| {
            format!("no load is called {name}; there are: {}", Self::ALL.map(Self::name).join(", "))
        })
    }

    /// What a transaction is.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Select => "`pgbench --select-only`",
            Self::TpcB => "`pgbench`'s own transactions, tpcb-like",
            Self::Query => {
                "one query that sorts, aggregates and joins text: some ten thousand small allocations"
            }
            Self::Malloc => {
                "one query that makes 1,000 strings of 9 to 10 KB, each a malloc and a free of its own"
            }
        }
    }

    /// Starts it on one backend, noting in a directory when each transaction ended.
    pub(crate) fn start(self, server: &Server, seconds: u32, dir: &Path) -> Result<Pgbench> {
        let script = match self {
            Self::Select => Script::SelectOnly,
            Self::TpcB => Script::TpcB,
            Self::Query => Script::Statement(QUERY),
            Self::Malloc => Script::Statement(MALLOC),
        };
        Pgbench::start_logging(server, script, seconds, dir)
    }
}

/// A time while one rival, and nothing else, was attached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    from_us: u64,
    to_us: u64,
    /// Processor time that the backend has taken.
    cpu_us: Option<f64>,
}

impl Window {
    /// One of that length, that begins now.
    pub(crate) fn pass(length: Duration, pid: u32) -> Self {
        let (from_us, before) = (now_us(), cpu_us(pid));
        thread::sleep(length);
        let (after, to_us) = (cpu_us(pid), now_us());
        Self { from_us, to_us, cpu_us: after.zip(before).map(|(after, before)| after - before) }
    }
}

/// What a process has taken of a processor, without what the host took from that meanwhile.
fn cpu_us(pid: u32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
    Some(text.split(' ').next()?.parse::<u64>().ok()? as f64 / 1000.0)
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
    /// All up to the end of that window, as soon as pgbench has written them: it does some hundred at a time, and
    /// all when it ends with its backend.
    pub(crate) fn up_to(window: Window, dir: &Path, bench: &mut Pgbench) -> Result<Self> {
        let begun = Instant::now();
        loop {
            let has_ended = !bench.is_running();
            let ends = Self::read(dir)?;
            if has_ended || ends.0.last().is_some_and(|last| *last > window.to_us) {
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

    /// Microseconds from one end to the next, and of the processor, on average over the window.
    pub(crate) fn each_us(&self, window: Window) -> Result<(f64, Option<f64>)> {
        let first = self.0.partition_point(|end| *end < window.from_us);
        let after = self.0.partition_point(|end| *end <= window.to_us);
        let ends = &self.0[first..after];
        match ends {
            [first, .., last] if ends.len() > LEAST => Ok((
                (last - first) as f64 / (ends.len() - 1) as f64,
                window.cpu_us.map(|cpu_us| cpu_us / ends.len() as f64),
            )),
            few => bail!("{} transactions in a window are too few: make it longer", few.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_takes_from_one_end_to_the_next() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let lines = (0..100).map(|n| format!("0 {n} 900 0 7 {}\n", n * 1000)).collect::<String>();
        fs::write(dir.path().join("pgbench_log.1"), lines + "0 100 900 0 7").expect("write");
        fs::write(dir.path().join("other"), "0 1 900 0 7 1").expect("write");
        let ends = Ends::read(dir.path()).expect("it is there");
        assert_eq!(ends.0.len(), 100, "the line that is cut is none");
        let window = |from: u64, to: u64| Window {
            from_us: 7_000_000 + from,
            to_us: 7_000_000 + to,
            cpu_us: Some(3e4),
        };
        assert_eq!(ends.each_us(window(500, 60_500)).expect("enough"), (1000.0, Some(500.0)));
        assert!(ends.each_us(window(0, 5000)).is_err(), "six are too few");
    }

    #[test]
    fn loads_have_names() {
        for load in Load::ALL {
            assert_eq!(Load::named(load.name()).expect("its own name"), load);
        }
        assert!(Load::named("selekt").is_err());
    }
}
