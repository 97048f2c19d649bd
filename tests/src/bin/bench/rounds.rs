//! Rounds: all rivals in turn on one working backend.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use pgleak_tests::{
    Build, Server, ServerOptions,
    workload::{Pgbench, init_pgbench},
};
use serde::{Deserialize, Serialize};
use xtask::process::is_running;

use crate::{
    code,
    conditions::Conditions,
    load::{Ends, Load, Window},
    options::{self, Options},
    processor::Kept,
    rivals::{self, NOTHING, Rival, Working},
};

/// The longest that a round may take.
const LONGEST: Duration = Duration::from_secs(600);
/// A rival that has crashed its backend has made the server start again, which takes a moment.
const RECOVERY: Duration = Duration::from_secs(30);

/// What one round has shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Round {
    pub(crate) build: String,
    pub(crate) load: String,
    /// When it began, in seconds since 1970.
    #[serde(default)]
    pub(crate) began: u64,
    #[serde(default)]
    pub(crate) conditions: Option<Conditions>,
    pub(crate) times: Vec<Time>,
}

/// One rival in one round.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Time {
    pub(crate) rival: String,
    /// Microseconds that a transaction took on average; `None` if the rival has failed.
    pub(crate) each_us: Option<f64>,
    /// What of it the backend has taken of its processor.
    #[serde(default)]
    pub(crate) cpu_us: Option<f64>,
    /// What it says it has lost, if it says anything.
    pub(crate) lost: Option<u64>,
    /// Why it has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// Rounds that were kept.
pub(crate) fn read(file: &Path) -> Result<Vec<Round>> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    text.lines().map(|line| serde_json::from_str(line).context("not a line of rounds")).collect()
}

/// Measures, and keeps each round when it is over.
pub(crate) fn measure(options: &Options) -> Result<()> {
    if let Some(dir) = options.file.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut file = OpenOptions::new().create(true).append(true).open(&options.file)?;
    let kept = Kept::last()?;
    let builds: Vec<Build> = options.builds.iter().map(|name| options::build(name)).collect::<Result<_>>()?;
    let servers: Vec<Server> = builds.iter().map(server).collect::<Result<_>>()?;
    let conditions = Conditions::now(&builds)?;
    // Builds and loads in turn, too: what drifts, drifts for all.
    for number in 1..=options.rounds {
        for server in &servers {
            for load in &options.loads {
                let begun = Instant::now();
                let round =
                    Round { conditions: Some(conditions.clone()), ..round(options, server, *load, kept)? };
                keep(&mut file, &round)?;
                eprintln!(
                    "round {number} of {}: {} {} in {:.0} s: {}",
                    options.rounds,
                    server.build().name,
                    load.name(),
                    begun.elapsed().as_secs_f64(),
                    said(&round)
                );
            }
        }
    }
    Ok(())
}

fn server(build: &Build) -> Result<Server> {
    let server = Server::start(build, &ServerOptions::default())?;
    init_pgbench(&server)?;
    Ok(server)
}

fn keep(file: &mut File, round: &Round) -> Result<()> {
    let line = serde_json::to_string(round)?;
    writeln!(file, "{line}").context("cannot keep a round")
}

fn said(round: &Round) -> String {
    let times = round.times.iter().map(|time| match (time.each_us, &time.error) {
        (Some(each_us), _) => format!("{} {each_us:.0}", time.rival),
        (None, error) => format!("{} FAILED ({})", time.rival, error.as_deref().unwrap_or("no reason")),
    });
    times.collect::<Vec<_>>().join(", ")
}

fn round(options: &Options, server: &Server, load: Load, kept: Kept) -> Result<Round> {
    let began = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let dir = tempfile::Builder::new().prefix("pgleak-bench-").tempdir()?;
    let mut bench = start(server, load, dir.path())?;
    let pid = bench.backend_pid();
    kept.give_to(pid)?;
    let mut looks: Vec<Look> = Vec::new();
    for name in order(&options.rivals_under(load))? {
        looks.push(Look::at(name, pid, options.window));
    }
    let last = looks.iter().filter_map(|look| look.window).next_back().context("there is always nothing")?;
    let ends = Ends::up_to(last, dir.path(), &mut bench)?;
    drop(bench);
    let times = looks.into_iter().map(|look| look.time(&ends)).collect();
    Ok(Round {
        build: server.build().name.clone(),
        load: load.name().to_owned(),
        began,
        conditions: None,
        times,
    })
}

fn start(server: &Server, load: Load, dir: &Path) -> Result<Pgbench> {
    let begun = Instant::now();
    loop {
        match load.start(server, LONGEST.as_secs() as u32, dir) {
            Err(_) if begun.elapsed() < RECOVERY => thread::sleep(Duration::from_millis(500)),
            result => return result,
        }
    }
}

/// An order by chance, with nothing at both ends and in between: it is part of every ratio. What stays in the
/// process is behind all others.
fn order(names: &[&'static str]) -> Result<Vec<&'static Rival>> {
    let all: Vec<&Rival> = names
        .iter()
        .filter(|name| **name != NOTHING)
        .map(|name| rivals::named(name))
        .collect::<Result<_>>()?;
    let nothing = rivals::named(NOTHING)?;
    let (staying, mut order): (Vec<&Rival>, Vec<&Rival>) = all.into_iter().partition(|rival| rival.stays());
    fastrand::shuffle(&mut order);
    order.insert(order.len() / 2, nothing);
    order.insert(0, nothing);
    order.push(nothing);
    order.extend(staying);
    Ok(order)
}

/// What was seen of one rival.
struct Look {
    rival: &'static str,
    window: Option<Window>,
    lost: Option<u64>,
    error: Option<String>,
    /// What ends only with the process.
    staying: Option<Box<dyn Working>>,
}

impl Look {
    fn at(rival: &'static Rival, pid: u32, length: Duration) -> Self {
        let mut look = Self { rival: rival.name, window: None, lost: None, error: None, staying: None };
        match rival.begin(pid) {
            Ok(working) => {
                let (warm_up, length) = rival.times(length);
                thread::sleep(warm_up);
                look.window = Some(Window::pass(length, pid));
                if !is_running(pid) {
                    look.error = Some("the backend has ended while it was looked at".into());
                    return look;
                }
                if rival.stays() {
                    look.staying = Some(working);
                    return look;
                }
                look.ended(working.end());
            }
            Err(error) => look.error = Some(format!("{error:#}")),
        }
        // The next one would be slowed down, too.
        if let Err(error) = code::wait_until_untouched(pid) {
            look.error.get_or_insert(format!("{error:#}"));
        }
        look
    }

    fn ended(&mut self, end: Result<Option<u64>>) {
        match end {
            Ok(lost) => self.lost = lost,
            Err(error) => self.error = Some(format!("{error:#}")),
        }
    }

    /// The process has ended by now.
    fn time(mut self, ends: &Ends) -> Time {
        if let Some(working) = self.staying.take() {
            self.ended(working.end());
        }
        let (each_us, cpu_us) = match (self.window, &self.error) {
            (Some(window), None) => match ends.each_us(window) {
                Ok((each_us, cpu_us)) => (Some(each_us), cpu_us),
                Err(error) => {
                    self.error = Some(format!("{error:#}"));
                    (None, None)
                }
            },
            _ => (None, None),
        };
        Time { rival: self.rival.to_owned(), each_us, cpu_us, lost: self.lost, error: self.error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_that_were_kept_before_are_understood() {
        let old =
            r#"{"build":"debian-15","load":"select","times":[{"rival":"floor","each_us":52.5,"lost":null}]}"#;
        let round: Round = serde_json::from_str(old).expect("the first format");
        assert_eq!(round.times[0].each_us, Some(52.5));
        assert_eq!((round.began, &round.conditions, &round.times[0].error), (0, &None, &None));
    }

    #[test]
    fn nothing_is_at_both_ends_and_what_stays_is_the_last() {
        for _ in 0..20 {
            let order = order(&["heaptrack", "floor", "pgleak", NOTHING, "bpftrace"]).expect("known");
            let names: Vec<&str> = order.iter().map(|rival| rival.name).collect();
            assert_eq!(names.len(), 7);
            assert_eq!((names[0], names[5], names[6]), (NOTHING, NOTHING, "heaptrack"));
            assert_eq!(names.iter().filter(|name| **name == NOTHING).count(), 3);
        }
    }
}
