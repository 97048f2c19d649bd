//! The fixture `fixtures/chains.c` as a process, and what it says of its own stacks.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use pgleak::addr::AbsAddr;

/// A chain as libgcc's unwinder saw it, before there was any probe.
#[derive(Debug)]
pub(crate) struct Chain {
    /// Its name in the fixture.
    pub(crate) name: String,
    /// Innermost first: an address in the target, then return addresses; each with its symbol.
    pub(crate) frames: Vec<(AbsAddr, String)>,
}

/// The running fixture.
pub(crate) struct Fixture {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// What it told.
    pub(crate) chains: Vec<Chain>,
    /// First instruction of `target_alloc`.
    pub(crate) alloc: AbsAddr,
    /// First instruction of `target_free`.
    pub(crate) free: AbsAddr,
}

impl Fixture {
    /// Starts it and waits until it has told its chains.
    pub(crate) fn start(program: &str, rounds: u64) -> Result<Self> {
        let mut child = Command::new(program)
            .arg(rounds.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let stdin = child.stdin.take().context("started with a pipe")?;
        let stdout = BufReader::new(child.stdout.take().context("started with a pipe")?);
        let mut fixture =
            Self { child, stdin, stdout, chains: Vec::new(), alloc: AbsAddr(0), free: AbsAddr(0) };
        loop {
            let line = fixture.line()?;
            if let Some(functions) = line.strip_prefix("functions ") {
                let (alloc, free) = functions.split_once(' ').context("two functions")?;
                (fixture.alloc, fixture.free) = (address(alloc)?, address(free)?);
                return Ok(fixture);
            }
            fixture.chains.push(chain(&line)?);
        }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs every chain so many times as was said, and returns when it has.
    pub(crate) fn run_chains(&mut self) -> Result<()> {
        writeln!(self.stdin).context("cannot write to the fixture")?;
        let line = self.line()?;
        if line.starts_with("done ") { Ok(()) } else { bail!("the fixture said `{line}`") }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line).context("cannot read from the fixture")? == 0 {
            bail!("the fixture ended: {}", self.child.wait()?);
        }
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn chain(line: &str) -> Result<Chain> {
    let mut words = line.strip_prefix("chain ").with_context(|| format!("no chain: {line}"))?.split(' ');
    let name = words.next().context("a chain has a name")?.to_owned();
    let frame = |word: &str| {
        let (at, symbol) = word.split_once('=').with_context(|| format!("no frame: {word}"))?;
        Ok((address(at)?, symbol.to_owned()))
    };
    Ok(Chain { name, frames: words.map(frame).collect::<Result<_>>()? })
}

fn address(text: &str) -> Result<AbsAddr> {
    let digits = text.strip_prefix("0x").with_context(|| format!("no address: {text}"))?;
    Ok(AbsAddr(u64::from_str_radix(digits, 16).with_context(|| format!("no address: {text}"))?))
}
