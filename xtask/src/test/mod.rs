//! `cargo xtask test`: the set-up, then every check and test, and one line that sums them up.

mod tally;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::NamedTempFile;
use xtask::process::{cargo, is_root, output, run, shown};
use xtask::workspace;

use crate::kernels::{self, Matrix};
use crate::{build, licences, setup};
use tally::Tally;

/// Integration tests whose target has this name, or one that begins with it, attach probes.
const PRIVILEGED: &str = "privileged";
/// Where `pgleak_tests::skip` writes.
const SKIPPED: &str = "PGLEAK_SKIPPED";
/// How many stacks the differential test compares.
const STACKS_COMPARED: &str = "PGLEAK_DIFFERENTIAL";
/// How often work that leaks nothing is captured.
const QUIET_ROUNDS: &str = "PGLEAK_QUIET";

/// How often the service is killed.
const KILLS: &str = "PGLEAK_KILLS";

/// Run every check and test, the privileged ones included
#[derive(clap::Args)]
pub(crate) struct Test {
    /// Leave out the documentation, the release build and the privileged tests
    #[arg(long)]
    fast: bool,
    /// Compare 100,000 stacks of each server with another unwinder's, instead of 5,000
    #[arg(long, conflicts_with = "fast")]
    differential: bool,
    /// Capture each of the workloads that leak nothing four times, and for longer
    #[arg(long, conflicts_with = "fast")]
    quiet: bool,
    /// Kill the service fifty times instead of six
    #[arg(long, conflicts_with = "fast")]
    kills: bool,
    /// Only boot these kernels, by series, as `6.1,6.12`, or `current`; all of them if none is named
    #[arg(long, value_name = "SERIES", num_args = 0.., value_delimiter = ',', conflicts_with = "fast")]
    kernels: Option<Vec<String>>,
}

impl Test {
    pub(crate) fn run(self) -> Result<()> {
        let tools = setup::for_build()?;
        if let Some(kernels) = self.kernels {
            build::bpf_object(&tools)?;
            let mut session = Session::new(false, Vec::new())?;
            match kernels[..] {
                [] => session.kernels(kernels::ALL),
                _ => session.kernels(kernels.iter().map(String::as_str)),
            }
            return session.finish();
        }
        setup::for_tests()?;
        build::bpf_object(&tools)?;
        build::program(!self.fast)?;

        let long = [
            (self.differential, (STACKS_COMPARED, "100000")),
            (self.quiet, (QUIET_ROUNDS, "4")),
            (self.kills, (KILLS, "50")),
        ];
        let long = long.into_iter().filter(|(wanted, _)| *wanted).map(|(_, setting)| setting);
        let mut session = Session::new(!self.fast, long.collect())?;
        session.check("formatting", || run(&mut cargo(["fmt", "--all", "--check"])));
        session.check("clippy", || {
            run(&mut cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
        });
        session.check("licences", || licences::check().map(drop));
        if !self.fast {
            session.check("documentation", || {
                run(cargo(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
            });
        }
        // Always the whole workspace: single packages get other features of their dependencies, and
        // all would be compiled twice.
        session.tests(&["--workspace", "--lib", "--bins"], &[])?;
        session.tests(&["--workspace", "--doc"], &[])?;
        let (privileged, ordinary): (Vec<String>, Vec<String>) =
            integration_tests()?.into_iter().partition(|name| name.starts_with(PRIVILEGED));
        for name in &ordinary {
            session.tests(&["--workspace", &format!("--test={name}")], &[])?;
        }
        for name in &privileged {
            let target = ["--workspace", &format!("--test={name}")];
            if self.fast {
                session.leave_out(&target, "--fast")?;
            } else if is_root() {
                // One at a time: they measure, and there may be only two processors.
                session.tests(&target, &["--test-threads=1"])?;
            } else {
                session.skip_all(&target, "not root")?;
            }
        }
        if !self.fast {
            session.kernels([kernels::OLDEST]);
        }
        session.finish()
    }
}

/// The sum so far.
struct Session {
    tally: Tally,
    /// Skipped because it was asked for.
    left_out: u64,
    skipped: NamedTempFile,
    release: bool,
    /// What the long forms of tests are told by.
    settings: Vec<(&'static str, &'static str)>,
}

impl Session {
    fn new(release: bool, settings: Vec<(&'static str, &'static str)>) -> Result<Self> {
        let skipped = NamedTempFile::new().context("cannot make a temporary file")?;
        Ok(Self { tally: Tally::default(), left_out: 0, skipped, release, settings })
    }

    /// A check that passes or fails as a whole, and never ends the run.
    fn check(&mut self, name: &str, check: impl FnOnce() -> Result<()>) {
        match check() {
            Ok(()) => self.tally.passed += 1,
            Err(error) => {
                eprintln!("{name}: {error:#}");
                self.tally.fail(name);
            }
        }
    }

    /// Boots each kernel: one check.
    fn kernels<'a>(&mut self, series: impl IntoIterator<Item = &'a str>) {
        let matrix = match Matrix::prepare() {
            Ok(matrix) => matrix,
            Err(error) => return self.check("kernels", || Err(error)),
        };
        for series in series {
            self.check(&format!("kernel {series}"), || matrix.check(series));
        }
    }

    /// Runs tests and adds what their harness says.
    fn tests(&mut self, target: &[&str], arguments: &[&str]) -> Result<()> {
        let mut command = self.cargo_test(target);
        command.arg("--").args(arguments).stdout(Stdio::piped());
        eprintln!("+ {}", shown(&command));
        let mut child = command.spawn().context("cannot start cargo")?;
        let mut ran = Tally::default();
        for line in BufReader::new(child.stdout.take().expect("started with a pipe")).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            println!("{line}");
            ran.read(&line);
        }
        let status = child.wait()?;
        if !status.success() && ran.failed == 0 {
            // It was not built, or a test took the whole process with it.
            ran.fail(&format!("cargo test {}: {status}", target.join(" ")));
        }
        self.tally.add(ran);
        Ok(())
    }

    /// Counts tests that cannot run here.
    fn skip_all(&mut self, target: &[&str], reason: &str) -> Result<()> {
        let listed = output(self.cargo_test(target).args(["--", "--list"]))?;
        let count = listed.lines().filter(|line| line.ends_with(": test")).count() as u64;
        eprintln!("skipped: {count} tests of {}: {reason}", target.join(" "));
        self.tally.skipped += count;
        Ok(())
    }

    /// The same, on request.
    fn leave_out(&mut self, target: &[&str], reason: &str) -> Result<()> {
        let before = self.tally.skipped;
        self.skip_all(target, reason)?;
        self.left_out += self.tally.skipped - before;
        Ok(())
    }

    fn cargo_test(&self, target: &[&str]) -> Command {
        let mut command = cargo(["test", "--no-fail-fast"]);
        command
            .args(target)
            .env(SKIPPED, self.skipped.path())
            .env("PGLEAK_BIN", workspace::pgleak(self.release));
        command.envs(self.settings.iter().copied());
        command
    }

    /// Says what happened; an error unless all is well.
    fn finish(mut self) -> Result<()> {
        let noted = fs::read_to_string(self.skipped.path()).context("the list of skipped tests is gone")?;
        for line in noted.lines() {
            eprintln!("skipped: {line}");
            self.tally.skipped_inside();
        }
        for name in &self.tally.failures {
            eprintln!("failed: {name}");
        }
        let unexpected = self.tally.skipped - self.left_out;
        println!("{}", self.tally);
        if self.tally.failed > 0 {
            bail!("{} checks or tests failed", self.tally.failed);
        }
        if unexpected > 0 && env::var("CI").is_ok_and(|ci| ci == "true" || ci == "1") {
            bail!("{unexpected} tests were skipped, and this is CI, where everything has to run");
        }
        Ok(())
    }
}

fn integration_tests() -> Result<Vec<String>> {
    let text = output(&mut cargo(["metadata", "--format-version=1", "--no-deps"]))?;
    let metadata: Value = serde_json::from_str(&text).context("cannot understand cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    let package = packages.iter().find(|package| package["name"] == "pgleak-tests");
    let targets = package.and_then(|package| package["targets"].as_array());
    let targets = targets.context("cargo metadata does not know pgleak-tests")?;
    Ok(targets
        .iter()
        .filter(|target| target["kind"] == serde_json::json!(["test"]))
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect())
}
