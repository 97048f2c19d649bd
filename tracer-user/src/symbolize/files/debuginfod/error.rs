//! What may go wrong with debuginfod: before anything is asked, and with single answers.

use std::{io, path::PathBuf};

use crate::addr::BuildId;

/// Why debuginfod cannot be used though it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum DebuginfodError {
    /// Nobody said which servers.
    #[error(
        "--debuginfod was given and DEBUGINFOD_URLS names no server; set it, for example to \
             https://debuginfod.elfutils.org, or leave the option out"
    )]
    NoServer,
    /// A server's address is none.
    #[error("'{0}' in DEBUGINFOD_URLS is no address of a server; write http://… or https://…")]
    BadUrl(String),
    /// A number is none.
    #[error("{name} is '{value}' and should be a whole number; correct it or unset it")]
    BadNumber {
        /// The environment variable.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// Nobody knows where to put files.
    #[error(
        "there is no directory for the files of debuginfod, since HOME is not set; set DEBUGINFOD_CACHE_PATH"
    )]
    NoCache,
    /// The cache cannot be written to.
    #[error("cannot write to {}: {source}; set DEBUGINFOD_CACHE_PATH to another directory", path.display())]
    Cache {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The certificates for https cannot be used.
    #[error(
        "no certificate authority of this system can be read, so no https server can be trusted; install the \
             package ca-certificates"
    )]
    NoCertificates,
}

/// Why debuginfod's answer is not used.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It took too long.
    #[error("debuginfod was given up after {limit_s} s in all; DEBUGINFOD_TIMEOUT allows more")]
    TimeOver {
        /// The limit for the whole run.
        limit_s: u64,
    },
    /// The user does not want to wait.
    #[error("debuginfod was not asked any further, since the capture was interrupted")]
    Interrupted,
    /// A server does not work.
    #[error("{server} is not asked any further: {reason}")]
    Server {
        /// Which.
        server: String,
        /// What happened.
        reason: String,
    },
    /// A server sent something else.
    #[error("{server} is not trusted any further: asked for build ID {wanted}, it sent {found}")]
    Lie {
        /// Which.
        server: String,
        /// What it was asked for.
        wanted: BuildId,
        /// What came.
        found: String,
    },
    /// A file is too large.
    #[error("{server} has more than {limit} bytes for build ID {wanted}; DEBUGINFOD_MAXSIZE allows more")]
    TooLarge {
        /// Which.
        server: String,
        /// What it was asked for.
        wanted: BuildId,
        /// The limit.
        limit: u64,
    },
    /// A file that came cannot be kept.
    #[error("cannot keep a debug file in {}: {source}; set DEBUGINFOD_CACHE_PATH to another directory", path.display())]
    Cache {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}
