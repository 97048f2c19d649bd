//! Work for servers to do while they are traced.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use xtask::postgres::Server;
use xtask::process::output;

use crate::Session;

/// How long a client may take to begin.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// What its own scripts run, as a regular expression.
const BUILT_IN: &str = "^(SELECT abalance FROM|UPDATE pgbench_|INSERT INTO pgbench_|BEGIN|END)";
/// How often the server is asked whether it has.
const POLL: Duration = Duration::from_millis(10);

/// What pgbench runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    /// `-S`: one select by key.
    SelectOnly,
    /// The built-in default, with updates.
    TpcB,
    /// One statement.
    Statement(&'static str),
}

/// What pgbench said at its end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PgbenchResult {
    /// Transactions that were run.
    pub transactions: u64,
    /// Transactions that failed.
    pub failed: u64,
    /// Transactions a second, without the time to connect.
    pub tps: f64,
}

/// A pgbench at work. Dropping it ends it.
#[derive(Debug)]
pub struct Pgbench {
    child: Option<Child>,
    backends: Vec<u32>,
}

/// Fills pgbench's tables, scale 1.
pub fn init_pgbench(server: &Server) -> Result<()> {
    output(server.client("pgbench").args(["--initialize", "--scale=1", "--quiet"])).map(drop)
}

impl Pgbench {
    /// Starts clients for so many seconds; returns when each of them is at work on its script.
    pub fn start(server: &Server, script: Script, clients: u32, seconds: u32) -> Result<Self> {
        Self::start_with(server, script, clients, seconds, None)
    }

    /// Starts one client that logs in a directory when each of its transactions ended.
    pub fn start_logging(server: &Server, script: Script, seconds: u32, dir: &Path) -> Result<Self> {
        Self::start_with(server, script, 1, seconds, Some(dir))
    }

    fn start_with(
        server: &Server,
        script: Script,
        clients: u32,
        seconds: u32,
        log_dir: Option<&Path>,
    ) -> Result<Self> {
        let name = format!("pgbench-{}", unique());
        let mut command = server.client("pgbench");
        command.args(["--no-vacuum", &format!("--client={clients}"), &format!("--time={seconds}")]);
        let statement = match script {
            Script::SelectOnly => {
                command.arg("--select-only");
                BUILT_IN.to_owned()
            }
            Script::TpcB => BUILT_IN.to_owned(),
            // From standard input.
            Script::Statement(text) => {
                command.args(["--file", "-"]);
                format!("^{}", text.split_whitespace().next().unwrap_or_default())
            }
        };
        if let Some(dir) = log_dir {
            command.args(["--log", "--log-prefix"]).arg(dir.join("pgbench_log"));
        }
        command.env("PGAPPNAME", &name);
        let mut child = spawn(&mut command)?;
        // Closed at once: it reads to the end before it begins.
        if let (Some(mut stdin), Script::Statement(text)) = (child.stdin.take(), script) {
            writeln!(stdin, "{text}").context("pgbench does not read its script")?;
        }
        let mut bench = Self { child: Some(child), backends: Vec::new() };
        bench.backends = bench.wait_for_backends(server, &name, clients, &statement)?;
        Ok(bench)
    }

    /// The server processes of its clients.
    pub fn backend_pids(&self) -> &[u32] {
        &self.backends
    }

    /// The server process of its first client.
    pub fn backend_pid(&self) -> u32 {
        self.backends[0]
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Waits for its end; an error if pgbench or one of its clients failed.
    pub fn finish(mut self) -> Result<PgbenchResult> {
        let child = self.child.take().expect("only finish and drop take it");
        let output = child.wait_with_output().context("cannot wait for pgbench")?;
        let (said, complained) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if !output.status.success() || complained.contains("error:") || complained.contains("aborted") {
            bail!("pgbench failed: {}\n{said}{complained}", output.status);
        }
        parse_result(&said).with_context(|| format!("cannot understand pgbench:\n{said}"))
    }

    fn wait_for_backends(
        &mut self,
        server: &Server,
        name: &str,
        clients: u32,
        statement: &str,
    ) -> Result<Vec<u32>> {
        let mut session = Session::open(server)?;
        // The connection that pgbench looks at its tables with is not one of the clients.
        let sql = format!(
            "select coalesce(string_agg(pid::text, ' ' order by pid), '') from pg_stat_activity \
             where application_name = '{name}' \
             and query ~ '{statement}'"
        );
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let pids: Vec<u32> =
                session.text(&sql)?.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
            if pids.len() == clients as usize {
                return Ok(pids);
            }
            if !self.is_running() {
                let output = self.child.take().expect("it was started").wait_with_output()?;
                bail!("pgbench ended early: {}", String::from_utf8_lossy(&output.stderr));
            }
            if Instant::now() > deadline {
                bail!("pgbench has {} of {clients} clients at work after {START_DEADLINE:?}", pids.len());
            }
            thread::sleep(POLL);
        }
    }
}

impl Drop for Pgbench {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn spawn(command: &mut Command) -> Result<Child> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start pgbench")
}

fn parse_result(said: &str) -> Option<PgbenchResult> {
    let after = |label: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(label))?;
        line.split([' ', '/']).find(|word| !word.is_empty())
    };
    Some(PgbenchResult {
        transactions: after("number of transactions actually processed:")?.parse().ok()?,
        // Clients before 15 give up at the first failure and do not print this.
        failed: after("number of failed transactions:").map_or(Some(0), |count| count.parse().ok())?,
        tps: after("tps =")?.parse().ok()?,
    })
}

/// A number that no other call in this process gets.
fn unique() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A session that runs the same statements again and again. Dropping it ends it.
#[derive(Debug)]
pub struct Loop {
    backend: u32,
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Loop {
    /// Starts it; returns after the first round.
    pub fn start(server: &Server, sql: &str) -> Result<Self> {
        let mut session = Session::open(server)?;
        session.run(sql)?;
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(1)));
        let backend = session.backend_pid();
        let (sql, stopped, counted) = (sql.to_owned(), Arc::clone(&stop), Arc::clone(&rounds));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                session.run(&sql)?;
                counted.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Ok(Self { backend, stop, rounds, thread: Some(thread) })
    }

    /// The server process of the session.
    pub fn backend_pid(&self) -> u32 {
        self.backend
    }

    /// Rounds that were finished so far.
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// Ends it; rounds that were run, or the error that ended it before.
    pub fn stop(mut self) -> Result<u64> {
        self.join().expect("only stop and drop join it")?;
        Ok(self.rounds())
    }

    fn join(&mut self) -> Option<Result<()>> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take()?;
        Some(thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the thread of a session panicked"))))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // Its error matters to those who ask for it by `stop`.
        let _ = self.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_pgbench_says() {
        let said = "number of transactions actually processed: 1234\nnumber of failed transactions: 2 (0.1%)\n\
                    latency average = 0.1 ms\ntps = 8123.500000 (without initial connection time)\n";
        let result = parse_result(said).expect("it is whole");
        assert_eq!(result, PgbenchResult { transactions: 1234, failed: 2, tps: 8123.5 });
        assert_eq!(parse_result(&said.replace("tps", "tpm")), None);
        let with_total = said.replace("1234", "10/10");
        assert_eq!(parse_result(&with_total).expect("-t says it so").transactions, 10);
    }
}
