//! Rounds: all rivals in turn on one working backend.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pgleak_tests::{Build, Server, ServerOptions, workload::init_pgbench};
use serde::{Deserialize, Serialize};

use crate::{
    load::{Ends, Load, Window},
    options::{self, Options},
    rivals::{self, NOTHING},
};

/// The longest that a round may take.
const LONGEST: Duration = Duration::from_secs(300);

/// What one round has shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Round {
    pub(crate) build: String,
    pub(crate) load: String,
    pub(crate) times: Vec<Time>,
}

/// One rival in one round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Time {
    pub(crate) rival: String,
    /// Microseconds that a transaction took on average.
    pub(crate) each_us: f64,
    /// What it says it has lost, if it says anything.
    pub(crate) lost: Option<u64>,
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
    let builds: Vec<Build> = options.builds.iter().map(|name| options::build(name)).collect::<Result<_>>()?;
    let servers: Vec<Server> = builds.iter().map(server).collect::<Result<_>>()?;
    // Builds and loads in turn, too: what drifts, drifts for all.
    for number in 1..=options.rounds {
        for (build, server) in builds.iter().zip(&servers) {
            for load in &options.loads {
                let begun = Instant::now();
                let round = round(options, build, server, *load)?;
                keep(&mut file, &round)?;
                eprintln!(
                    "round {number} of {}: {} {} in {:.0} s: {}",
                    options.rounds,
                    build.name,
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
    let times = round.times.iter().map(|time| format!("{} {:.0}", time.rival, time.each_us));
    times.collect::<Vec<_>>().join(", ")
}

fn round(options: &Options, build: &Build, server: &Server, load: Load) -> Result<Round> {
    let dir = tempfile::Builder::new().prefix("pgleak-bench-").tempdir()?;
    let bench = load.start(server, LONGEST.as_secs() as u32, dir.path())?;
    let pid = bench.backend_pid();
    let mut order: Vec<&str> = options.rivals.iter().copied().filter(|name| *name != NOTHING).collect();
    fastrand::shuffle(&mut order);
    // Nothing at both ends and in between: it is part of every ratio.
    let middle = order.len() / 2;
    order.insert(middle, NOTHING);
    order.insert(0, NOTHING);
    order.push(NOTHING);
    let mut windows = Vec::new();
    for name in order {
        let rival = rivals::named(name)?;
        let working = rival.begin(pid).with_context(|| format!("cannot begin {name}"))?;
        let (warm_up, length) = rival.times(options.window);
        std::thread::sleep(warm_up);
        let window = Window::pass(length);
        let lost = working.end().with_context(|| format!("cannot end {name}"))?;
        windows.push((name, window, lost));
    }
    let last = windows.last().map(|(_, window, _)| *window).context("there is always nothing")?;
    let ends = Ends::up_to(last, dir.path())?;
    drop(bench);
    let times = windows.into_iter().map(|(name, window, lost)| {
        Ok(Time { rival: name.to_owned(), each_us: ends.each_us(window)?, lost })
    });
    Ok(Round {
        build: build.name.clone(),
        load: load.name().to_owned(),
        times: times.collect::<Result<_>>()?,
    })
}
