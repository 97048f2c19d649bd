//! Small programs with the memory contexts of servers that cannot be had (`planted/greenplum.c`).

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use xtask::process::output;

/// One of them at work. It ends with its standard input, that is with this process.
#[derive(Debug)]
pub struct Imitation {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Imitation {
    /// Compiles it into a directory, with further flags, and starts it.
    pub fn start(dir: &Path, flags: &[&str]) -> Result<Self> {
        let program = dir.join("postgres");
        let mut command = Command::new("cc");
        command.args(["-O2", "-rdynamic", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&program).args(flags);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("planted/greenplum.c"));
        output(&mut command).with_context(|| format!("cannot compile an imitation with {flags:?}"))?;
        let mut child = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start an imitation")?;
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().context("it was started with a pipe")?);
        let mut imitation = Self { child, stdin, stdout };
        let version = imitation.line()?;
        if !version.starts_with("PostgreSQL ") {
            bail!("an imitation began with {version:?}");
        }
        Ok(imitation)
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it do so many rounds; returns when they are done.
    pub fn rounds(&mut self, rounds: u32) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its input is open as long as it lives")?;
        writeln!(stdin, "{rounds}").context("cannot tell an imitation what to do")?;
        let done = self.line()?;
        if done != rounds.to_string() {
            bail!("an imitation was to do {rounds} rounds and said {done:?}");
        }
        Ok(())
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line).context("cannot hear an imitation")?;
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Imitation {
    fn drop(&mut self) {
        // It ends when there is nothing more to read.
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}
