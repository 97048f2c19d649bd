//! Processes: one works, and ever more are there beside it.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use pgleak_tests::{
    Build, Server, ServerOptions, Session,
    pgleak::Running,
    workload::{Loop, init_pgbench},
};

use crate::{
    axis::{Axis, Unit, median},
    capture::{BEGUN, Cost, PATIENCE},
    options::Options,
    watch::{Watch, cpu_ns},
};

const POINTS: [u64; 8] = [1, 2, 5, 10, 20, 50, 100, 200];
/// How long transactions are looked at, with probes and without.
const LOOK: Duration = Duration::from_secs(2);
/// How long is recorded: more than a look, and what it takes until that begins.
const RECORD: Duration = Duration::from_millis(3000);
const WORK: &str = "select abalance from pgbench_accounts where aid = 4711";

/// One capture of a server.
struct Round {
    added_us: f64,
    cost: Cost,
}

pub(crate) fn measure(options: &Options) -> Result<Axis> {
    let mut axis = Axis::new(
        "processes",
        "processes",
        "capture --postmaster of a server with so many backends, of which one works without a pause and the others \
         wait: what is added to its transaction, and what pgleak itself takes of a processor in a second of recording.",
    );
    let server =
        Server::start(&Build::packaged(15)?, &ServerOptions::default().set("max_connections", "250"))?;
    init_pgbench(&server)?;
    let mut idle: Vec<Session> = Vec::new();
    for count in POINTS.into_iter().filter(|count| *count <= options.most) {
        while (idle.len() as u64) < count - 1 {
            idle.push(Session::open(&server)?);
        }
        let rounds: Vec<Round> = (0..options.rounds).map(|_| one(&server)).collect::<Result<_>>()?;
        let added = median(rounds.iter().map(|round| round.added_us).collect());
        let cpu = |round: &Round| round.cost.usage.cpu_ns as f64 / 1e6 / RECORD.as_secs_f64();
        let cpu_ms = median(rounds.iter().map(cpu).collect());
        let after_ms = median(rounds.iter().map(|round| round.cost.after_ms).collect());
        eprintln!("{count} processes: {added:.1} us added, {cpu_ms:.1} ms/s, {:?}", rounds[0].cost.usage);
        axis.add("added to a transaction", Unit::Milliseconds, count, added / 1e3);
        axis.add("pgleak's processor time a second", Unit::Milliseconds, count, cpu_ms);
        axis.add("all after the recording", Unit::Milliseconds, count, after_ms);
        rounds[0].cost.add_memory(&mut axis, count);
    }
    Ok(axis)
}

fn one(server: &Server) -> Result<Round> {
    let work = Loop::start(server, WORK)?;
    let before = each_us(&work);
    let running = Running::capture_of(
        &["--postmaster", &server.postmaster_pid().to_string()],
        &["-vv", "--force", "--duration", "3s", "--settle", "0s"],
    )?;
    let watch = Watch::start(running.pid());
    running.wait_for(BEGUN, PATIENCE)?;
    let cpu_before = cpu_ns(running.pid());
    let with = each_us(&work);
    running.wait_for("recording has ended", PATIENCE)?;
    let (ended, cpu_after) = (Instant::now(), cpu_ns(running.pid()));
    let finished = running.finish()?.success()?;
    let after_ms = ended.elapsed().as_secs_f64() * 1e3;
    let mut usage = watch.end();
    usage.cpu_ns = cpu_after.saturating_sub(cpu_before);
    let after = each_us(&work);
    work.stop()?;
    let json_bytes = std::fs::metadata(finished.dir()?.join("capture.json"))?.len();
    let added_us = with - (before + after) / 2.0;
    Ok(Round { added_us, cost: Cost { usage, after_ms, json_bytes, stderr: finished.stderr } })
}

/// Microseconds of a round.
fn each_us(work: &Loop) -> f64 {
    let (begun, first) = (Instant::now(), work.rounds());
    thread::sleep(LOOK);
    begun.elapsed().as_secs_f64() * 1e6 / (work.rounds() - first).max(1) as f64
}
