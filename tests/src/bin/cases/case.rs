//! A folder with a leak: what `case.toml` says, and its `run.sh`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// What a case says of itself. Versions are those of the npm package; empty where there is none.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) npm_leaking: String,
    pub(crate) npm_control: String,
    pub(crate) process_type: String,
    pub(crate) lifespan: String,
    pub(crate) allocator: String,
    /// Names of contexts of which the leak's must be one.
    pub(crate) contexts: Vec<String>,
    /// Functions that stand in every leaking stack.
    pub(crate) expected_top_functions: Vec<String>,
    /// Bytes that one iteration asks for and leaves; 0 if nobody knows.
    pub(crate) requested_bytes_per_iteration: u64,
    /// Bytes of anonymous memory that it takes.
    pub(crate) rss_bytes_per_iteration: u64,
}

impl Case {
    /// Reads the folder's `case.toml`.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("case.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))
    }

    /// Whether its processes leak from birth and end before anybody could name them.
    pub(crate) fn is_of_workers(&self) -> bool {
        self.lifespan.contains("worker")
    }

    /// Whether it leaks outside of contexts.
    pub(crate) fn is_outside(&self) -> bool {
        self.allocator == "malloc"
    }
}

/// The scripts of a case at work on one build. Dropping it stops its servers.
#[derive(Debug)]
pub(crate) struct Stage {
    script: PathBuf,
    server_bin: PathBuf,
    client_bin: PathBuf,
    port: u16,
    work: tempfile::TempDir,
}

impl Stage {
    /// Makes its servers and the process that leaks.
    pub(crate) fn set(folder: &Path, server_bin: &Path, client_bin: &Path, port: u16) -> Result<Self> {
        let work = tempfile::Builder::new().prefix("pgleak-case-").tempdir_in("/tmp")?;
        // The servers run as another user.
        Command::new("chmod").arg("755").arg(work.path()).status()?;
        let script = folder.canonicalize()?.join("run.sh");
        let (server_bin, client_bin) = (server_bin.to_owned(), client_bin.to_owned());
        let stage = Self { script, server_bin, client_bin, port, work };
        stage.run(&["setup"])?;
        Ok(stage)
    }

    /// The process to look at.
    pub(crate) fn pid(&self) -> Result<u32> {
        let text = self.run(&["pid"])?;
        text.trim().parse().with_context(|| format!("`run.sh pid` said {text:?}"))
    }

    /// The data directory of its server.
    pub(crate) fn data_dir(&self) -> Result<PathBuf> {
        let below = |folder: &Path| -> Vec<PathBuf> {
            fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
        };
        let folders = below(self.work.path()).into_iter().flat_map(|folder| below(&folder));
        let mut data_dirs = folders.filter(|folder| folder.join("postmaster.pid").exists());
        data_dirs.next().context("the case has no data directory")
    }

    /// Iterations to warm up, and how many there are at the most after that: the script says its own
    /// defaults, `WARM=${WARM:-20} ITERS=${ITERS:-300} ROUNDS=${ROUNDS:-4}`.
    pub(crate) fn iterations(&self) -> Result<(u64, u64)> {
        let text = fs::read_to_string(&self.script)?;
        let default = |name: &str| -> Result<u64> {
            let (_, rest) =
                text.split_once(&format!("{name}:-")).with_context(|| format!("no default of {name}"))?;
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().with_context(|| format!("the default of {name} is no number"))
        };
        Ok((default("WARM")?, default("ITERS")? * default("ROUNDS")?))
    }

    /// Runs so many iterations.
    pub(crate) fn load(&self, iterations: u64) -> Result<()> {
        self.run(&["load", &iterations.to_string()]).map(drop)
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        // A file, not a pipe: what the script leaves running would keep a pipe open.
        let out = self.work.path().join("script.out");
        let file = fs::File::create(&out)?;
        let status = Command::new("bash")
            .arg(&self.script)
            .args(arguments)
            .env("PGBIN", &self.server_bin)
            .env("PGCLIENT", &self.client_bin)
            .env("PGPORT", self.port.to_string())
            .env("WORK", self.work.path())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .status()?;
        let text = fs::read_to_string(&out)?;
        if !status.success() {
            bail!("`run.sh {}` failed: {status}: {text}", arguments.join(" "));
        }
        Ok(text)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = self.run(&["stop"]) {
            eprintln!("{error:#}");
        }
    }
}
