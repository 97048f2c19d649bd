//! Why `pgleak top` cannot run.

use std::{io, path::PathBuf};

use crate::target::ProcessError;

/// Why there is no view.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    /// Nobody would see it.
    #[error("standard output is no terminal, and top draws on one; `pgleak list` prints the same once")]
    NoTerminal,
    /// A process that was asked for is not there.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A process that was asked for is something else.
    #[error("process {pid} belongs to no PostgreSQL or Greenplum server; `pgleak list` shows those that do")]
    NoServer {
        /// Which.
        pid: u32,
    },
    /// The terminal cannot be used.
    #[error("cannot {what} the terminal: {source}")]
    Terminal {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Signals or threads cannot be had.
    #[error("cannot start {what}: {source}")]
    Start {
        /// What was to be started.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The capture cannot be started.
    #[error("cannot start a capture into {}: {source}", directory.display())]
    Capture {
        /// Where it was to write.
        directory: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A part of the program has panicked, and has said so.
    #[error("a thread has panicked, which is a mistake in pgleak; the terminal is as it was")]
    Panicked,
}

impl TopError {
    /// Whether something was asked for that makes no sense, rather than not working.
    pub fn is_misuse(&self) -> bool {
        matches!(self, Self::NoTerminal | Self::NoServer { .. } | Self::Process(_))
    }
}
