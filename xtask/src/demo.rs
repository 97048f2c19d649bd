//! `cargo xtask demo`: a real leak in a real server, found and drawn, with nothing left behind but
//! the artifacts.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail};
use xtask::postgres::{Build, LEAKING_ROUND, Server, ServerOptions};
use xtask::process::{is_root, shown};
use xtask::workspace;

use crate::forward;
use crate::{build, setup};

/// Find a real leak in a throw-away PostgreSQL server, from nothing
#[derive(clap::Args)]
pub(crate) struct Demo {
    /// How long to record allocations
    #[arg(long, default_value = "6s")]
    duration: String,
    /// Where the artifacts go: a directory that is not there yet [default: target/demo, which is replaced]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Demo {
    pub(crate) fn run(self) -> Result<()> {
        if !is_root() {
            bail!(
                "probes need root: run `sudo --preserve-env=HOME env \"PATH=$PATH\" cargo xtask demo`, \
                 or only `cargo xtask build --release` as you are"
            );
        }
        let tools = setup::for_build()?;
        setup::for_servers(false)?;
        build::bpf_object(&tools)?;
        build::program(true)?;
        let out = self.fresh_directory()?;

        let postgres = Build::newest_packaged()?;
        println!("demo: starting a throw-away PostgreSQL {} ({})", postgres.major, postgres.bin.display());
        let server = Server::start(&postgres, &ServerOptions::default())?;
        let workload = Workload::start(&server)?;
        println!(
            "demo: backend {} creates, calls and drops plpgsql functions; PostgreSQL never forgets them",
            workload.backend
        );
        let status = capture(workload.backend, &self.duration, &out)?;
        let workload = workload.stop();
        drop(server);
        if !status.success() {
            bail!("pgleak failed: {status}");
        }
        workload?;
        println!("demo: the server is gone. What was written:");
        for artifact in artifacts(&out)? {
            println!("  {}", artifact.display());
        }
        Ok(())
    }

    fn fresh_directory(&self) -> Result<PathBuf> {
        if let Some(out) = &self.out {
            if out.exists() {
                bail!("{} is there already: remove it or choose another directory", out.display());
            }
            return Ok(out.clone());
        }
        let out = workspace::target().join("demo");
        if out.exists() {
            fs::remove_dir_all(&out).with_context(|| format!("cannot remove {}", out.display()))?;
        }
        fs::create_dir_all(workspace::target())?;
        Ok(out)
    }
}

fn capture(pid: u32, duration: &str, out: &Path) -> Result<ExitStatus> {
    let mut command = Command::new(workspace::pgleak(true));
    // It leaks as fast as the machine lets it.
    command.args([
        "capture",
        "--pid",
        &pid.to_string(),
        "--duration",
        duration,
        "--map-memory",
        "256M",
        "--out",
    ]);
    command.arg(out);
    println!("demo: {}\n", shown(&command));
    // SAFETY: prctl is one system call, and all that runs between fork and exec.
    unsafe {
        command.pre_exec(|| {
            // Ends in good order if this process is killed; spawned from the main thread, whose end
            // is the end of the process.
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            Ok(())
        });
    }
    let mut child = command.spawn().with_context(|| format!("cannot start `{}`", shown(&command)))?;
    let _forwarding = forward::to(child.id()).context("cannot pass signals on")?;
    let status = child.wait()?;
    println!();
    Ok(status)
}

fn artifacts(out: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(out).with_context(|| format!("pgleak left no {}", out.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    Ok(files)
}

/// One psql that runs the leaking round again and again. Dropping it ends it; if this process is
/// killed, psql sees the end of its input, or its server gone.
struct Workload {
    backend: u32,
    psql: Child,
    feeder: Option<JoinHandle<()>>,
}

impl Workload {
    fn start(server: &Server) -> Result<Self> {
        let mut psql = server
            .client("psql")
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start psql")?;
        let mut sql = psql.stdin.take().expect("started with a pipe");
        let stdout = psql.stdout.take().expect("started with a pipe");
        let mut workload = Self { backend: 0, psql, feeder: None };
        // What follows goes nowhere; this one answer is the handshake.
        writeln!(sql, "select pg_backend_pid();\n\\o /dev/null").context("psql does not listen")?;
        let mut answer = String::new();
        BufReader::new(stdout).read_line(&mut answer).context("psql does not answer")?;
        workload.backend =
            answer.trim().parse().with_context(|| format!("psql answered {answer:?} instead of a pid"))?;
        workload.feeder = Some(thread::spawn(move || {
            // The pipe is full most of the time, so psql paces this; its end ends this.
            while sql.write_all(LEAKING_ROUND.as_bytes()).is_ok() {}
        }));
        Ok(workload)
    }

    /// Ends it; an error if psql had ended by itself.
    fn stop(mut self) -> Result<()> {
        match self.psql.try_wait()? {
            Some(status) => bail!("the workload ended early: psql {status}"),
            None => Ok(()),
        }
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        let _ = self.psql.kill();
        let _ = self.psql.wait();
        if let Some(feeder) = self.feeder.take() {
            let _ = feeder.join();
        }
    }
}
