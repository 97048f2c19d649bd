//! `pgleak watch` for a long while, as it is installed: under load, with many processes, and a leak on each server. What
//! leaks has to be found, once, nothing else, and the service has to stay as small and as cheap as it was.

mod options;

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use options::Options;
use pgleak_tests::{
    Build, BuildKind, LEAKING_ROUND, Server, ServerOptions, Session,
    service::Service,
    workload::{Pgbench, Script, init_pgbench},
};
use serde_json::Value;

/// The most of one core that the service may take, between captures.
const MOST_OF_A_CORE: f64 = 0.01;

/// The most that it may grow by, once it has seen everything.
const MOST_GROWTH: u64 = 2 << 20;

/// What is remembered of the window that growth is looked for in, 10 minutes of 30, has its size after that part of the time.
const SETTLED: f64 = 0.45;

fn main() -> ExitCode {
    match Options::parse(std::env::args().skip(1)).and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A session of its own that leaks at a human rate, until it is dropped: PostgreSQL's own leak of dropped functions.
struct Leaking {
    pid: u32,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Leaking {
    fn start(server: &Server) -> Result<Self> {
        let mut session = Session::open(server)?;
        let (pid, stop) = (session.backend_pid(), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                session.run(LEAKING_ROUND)?;
                thread::sleep(Duration::from_millis(300));
            }
            Ok(())
        });
        Ok(Self { pid, stop, thread: Some(thread) })
    }
}

impl Drop for Leaking {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// What the service says of itself at a time.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Duration,
    own_bytes: u64,
    cpu_seconds: f64,
}

fn run(options: &Options) -> Result<()> {
    let servers: Vec<Server> = [Build::packaged(15)?, Build::npm(17)?]
        .iter()
        .enumerate()
        .map(|(index, build)| {
            let settings = ServerOptions::default().set("max_connections", "300");
            // All that there are to touch belong to the first.
            let buffers = if index == 0 { options.buffers_mib } else { 128 };
            Server::start(build, &settings.set("shared_buffers", &format!("{buffers}MB")))
        })
        .collect::<Result<_>>()?;
    let mut idle = touch(&servers[0], options)?;
    for _ in idle.len()..options.backends {
        idle.push(Session::open(&servers[0])?);
    }
    println!("{} sessions wait on {}", idle.len(), servers[0].build().name);
    let seconds = options.minutes * 60 + 300;
    let mut loads = Vec::new();
    for server in &servers {
        init_pgbench(server)?;
        loads.push(Pgbench::start(server, Script::TpcB, 1, seconds)?);
    }
    let service =
        Service::start_of(&servers.iter().collect::<Vec<_>>(), &format!("[census]\n{}", options.config))?;
    let leaks: Vec<Leaking> = servers.iter().map(Leaking::start).collect::<Result<_>>()?;

    let begun = Instant::now();
    let whole = Duration::from_secs(u64::from(options.minutes) * 60);
    let mut samples = Vec::new();
    while begun.elapsed() < whole {
        thread::sleep(Duration::from_secs(30).min(whole.saturating_sub(begun.elapsed())));
        let state = service.json("/api/v1/state")?;
        let sample = sample(begun.elapsed(), &state["figures"])?;
        println!(
            "{:>5.0} s: {} processes, {} KiB of its own, {:.2} % of a core in the last minute, {} captures, unread {}",
            sample.at.as_secs_f64(),
            state["processes"].as_array().map_or(0, Vec::len),
            sample.own_bytes >> 10,
            state["figures"]["cpu_seconds_last_minute"].as_f64().unwrap_or(0.0) / 0.6,
            service.captures()?.len(),
            state["figures"]["unread"],
        );
        samples.push(sample);
    }
    let verdict = judge(&service, &servers, &leaks, &samples);
    if verdict.is_err() {
        eprintln!("{}", service.running().said());
    }
    for load in &mut loads {
        ensure!(load.is_running(), "pgbench has ended before its time");
    }
    verdict
}

/// Fills the first server's shared buffers, and has some sessions touch all of them.
fn touch(server: &Server, options: &Options) -> Result<Vec<Session>> {
    if options.buffers_mib <= 128 {
        return Ok(Vec::new());
    }
    let mut session = Session::open(server)?;
    // Seven rows of a kilobyte in each block, and room for all else.
    let rows = u64::from(options.buffers_mib) * 9 / 10 * 128 * 7;
    session.run("create extension pg_prewarm")?;
    session.run(&format!(
        "create unlogged table filler as select repeat(md5(g::text), 32) as a from generate_series(1, {rows}) as g"
    ))?;
    session.run("select pg_prewarm('filler')")?;
    let mut sessions = vec![session];
    for _ in 0..5 {
        let mut session = Session::open(server)?;
        session.run("set max_parallel_workers_per_gather = 0; select count(a) from filler")?;
        sessions.push(session);
    }
    Ok(sessions)
}

fn sample(at: Duration, figures: &Value) -> Result<Sample> {
    let own_bytes = figures["own_bytes"].as_u64().context("the service says how large it is")?;
    let cpu_seconds = figures["cpu_seconds"].as_f64().context("the service says what it took")?;
    Ok(Sample { at, own_bytes, cpu_seconds })
}

fn judge(service: &Service, servers: &[Server], leaks: &[Leaking], samples: &[Sample]) -> Result<()> {
    let captures = service.captures()?;
    for capture in &captures {
        println!("{capture}");
    }
    for (server, leak) in servers.iter().zip(leaks) {
        let own: Vec<&Value> = captures.iter().filter(|capture| capture["pid"] == leak.pid).collect();
        let [capture] = own[..] else { bail!("{}: captured {} times", server.build().name, own.len()) };
        ensure!(
            capture["outcome"] == "leak" && capture["trigger"] == "growth",
            "not told as it is: {capture}"
        );
        let about = service.json(&format!("/api/v1/captures/{}", capture["number"]))?;
        let text = about["capture"]["findings"]["suspects"].to_string();
        // PL/pgSQL's own functions are static, and stripped in Debian's package.
        let names = match server.build().kind {
            BuildKind::Package => ["SPI_prepare_extended", "plpgsql_compile"],
            BuildKind::Npm => ["exec_prepare_plan", "plpgsql_compile"],
        };
        for name in names {
            ensure!(text.contains(name), "{}: {name} is not named in {text}", server.build().name);
        }
    }
    ensure!(captures.len() == leaks.len(), "{} captures of {} leaks", captures.len(), leaks.len());
    let settled = (samples.len() as f64 * SETTLED) as usize;
    let (Some(first), Some(last)) = (samples.get(settled), samples.last()) else { bail!("it was too short") };
    let part = (last.cpu_seconds - first.cpu_seconds) / (last.at - first.at).as_secs_f64();
    let most = samples[settled..].iter().map(|sample| sample.own_bytes).max().unwrap_or(0);
    println!(
        "{:.2} % of a core; {} KiB of its own when it had settled, {} KiB at most, {} KiB at the end",
        part * 100.0,
        first.own_bytes >> 10,
        most >> 10,
        last.own_bytes >> 10
    );
    ensure!(part < MOST_OF_A_CORE, "the service takes more than {MOST_OF_A_CORE} of a core");
    ensure!(last.own_bytes < first.own_bytes + MOST_GROWTH, "the service grows");
    Ok(())
}
