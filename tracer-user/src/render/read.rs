//! Reading a `capture.json` that may be damaged, foreign or newer.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::profile::{Capture, SCHEMA};

/// Larger files are no captures: a full one, with 32,768 stacks of 127 frames, is below this.
const LARGEST: u64 = 1 << 30;

/// Why a file cannot be rendered.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is too large.
    #[error("{} has {bytes} bytes and is no capture of pgleak; give the capture.json of a capture", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// It is no JSON, or cut off.
    #[error("{} is damaged or no JSON: {source}; copy the capture.json again from where it was made", path.display())]
    Json {
        /// Which.
        path: PathBuf,
        /// Where.
        source: serde_json::Error,
    },
    /// It is JSON of something else.
    #[error("{} is no capture of pgleak ({source}); give the capture.json of a capture", path.display())]
    Foreign {
        /// Which.
        path: PathBuf,
        /// What is missing.
        source: serde_json::Error,
    },
    /// It was written by another version.
    #[error("{} has schema {found}, and this pgleak reads schema {SCHEMA}; render it with the pgleak that made it", path.display())]
    Schema {
        /// Which.
        path: PathBuf,
        /// Its schema.
        found: u64,
    },
    /// Its parts do not fit together.
    #[error("{} is damaged: {what}; copy the capture.json again from where it was made", path.display())]
    Inconsistent {
        /// Which.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
}

#[derive(Deserialize)]
struct Head {
    schema: u64,
}

/// Reads a capture and checks that every id in it leads somewhere.
///
/// # Errors
/// What is wrong with it.
pub fn read_capture(path: &Path) -> Result<Capture, ReadError> {
    let failed = |source| ReadError::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    if bytes > LARGEST {
        return Err(ReadError::TooLarge { path: path.to_owned(), bytes });
    }
    let mut text = Vec::new();
    (&mut file).take(LARGEST).read_to_end(&mut text).map_err(failed)?;
    parse(path, &text)
}

fn parse(path: &Path, text: &[u8]) -> Result<Capture, ReadError> {
    let value: serde_json::Value =
        serde_json::from_slice(text).map_err(|source| ReadError::Json { path: path.to_owned(), source })?;
    let head =
        Head::deserialize(&value).map_err(|source| ReadError::Foreign { path: path.to_owned(), source })?;
    if head.schema != u64::from(SCHEMA) {
        return Err(ReadError::Schema { path: path.to_owned(), found: head.schema });
    }
    let capture: Capture = serde_json::from_value(value)
        .map_err(|source| ReadError::Foreign { path: path.to_owned(), source })?;
    check(&capture).map_err(|what| ReadError::Inconsistent { path: path.to_owned(), what })?;
    Ok(capture)
}

fn check(capture: &Capture) -> Result<(), String> {
    let profile = &capture.profile;
    for (at, frame) in profile.frames.iter().enumerate() {
        if frame.module.is_some_and(|id| id.0 as usize >= capture.modules.len()) {
            return Err(format!("frame {at} is in a module that is not there"));
        }
    }
    for (at, stack) in profile.stacks.iter().enumerate() {
        if stack.frames.iter().any(|id| id.0 as usize >= profile.frames.len()) {
            return Err(format!("stack {at} has a frame that is not there"));
        }
    }
    for (at, group) in profile.groups.iter().enumerate() {
        if group.stack.0 as usize >= profile.stacks.len() {
            return Err(format!("group {at} has a stack that is not there"));
        }
        if group.slices.len() != capture.window.slices.len() {
            return Err(format!(
                "group {at} has {} time slices, and the window {}",
                group.slices.len(),
                capture.window.slices.len()
            ));
        }
    }
    Ok(())
}
