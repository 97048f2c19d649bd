//! Reading a `capture.json` that may be damaged, foreign or newer.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::profile::{Capture, SCHEMA, Tally};

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
    /// Another tool wrote it.
    #[error("{} was written by {tool} and is no capture of pgleak; give the capture.json of a capture", path.display())]
    OtherTool {
        /// Which.
        path: PathBuf,
        /// By whom.
        tool: String,
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
    parse_capture(path, &text)
}

/// Reads a capture from its text; `path` is for messages.
///
/// # Errors
/// What is wrong with it.
pub fn parse_capture(path: &Path, text: &[u8]) -> Result<Capture, ReadError> {
    let value: serde_json::Value =
        serde_json::from_slice(text).map_err(|source| ReadError::Json { path: path.to_owned(), source })?;
    let head =
        Head::deserialize(&value).map_err(|source| ReadError::Foreign { path: path.to_owned(), source })?;
    if head.schema != u64::from(SCHEMA) {
        return Err(ReadError::Schema { path: path.to_owned(), found: head.schema });
    }
    let capture: Capture = serde_json::from_value(value)
        .map_err(|source| ReadError::Foreign { path: path.to_owned(), source })?;
    if capture.tool.name != "pgleak" {
        return Err(ReadError::OtherTool { path: path.to_owned(), tool: capture.tool.name });
    }
    check(&capture).map_err(|what| ReadError::Inconsistent { path: path.to_owned(), what })?;
    Ok(capture)
}

/// More bytes, chunks or nanoseconds than any process has (8 TiB, two hours); sums of as
/// many as a capture can hold stay below 2^64.
const MOST: u64 = 1 << 43;

/// More groups than hundreds of processes with thousands of stacks each.
const MOST_GROUPS: usize = 1 << 20;

fn is_plausible(tally: &Tally) -> bool {
    tally.count <= MOST && tally.requested <= MOST && tally.held <= MOST
}

fn check(capture: &Capture) -> Result<(), String> {
    let profile = &capture.profile;
    let window = &capture.window;
    // Several processes use more CPU time than there is.
    if [window.record_ns, window.settle_ns, window.target_cpu_ns >> 10].iter().any(|ns| *ns > MOST)
        || window.record_ns == 0
        || profile.groups.len() > MOST_GROUPS
        || profile.stacks.len() > MOST_GROUPS
    {
        return Err("its times or sizes cannot be".to_owned());
    }
    for (at, frame) in profile.frames.iter().enumerate() {
        if frame.module.is_some_and(|id| id.0 as usize >= capture.modules.len()) {
            return Err(format!("frame {at} is in a module that is not there"));
        }
    }
    for (at, stack) in profile.stacks.iter().enumerate() {
        if stack.frames.iter().any(|id| id.0 as usize >= profile.frames.len()) {
            return Err(format!("stack {at} has a frame that is not there"));
        }
        let summary = &stack.summary;
        if ![summary.allocated, summary.freed, summary.reset, summary.exited].iter().all(is_plausible) {
            return Err(format!("stack {at} has more bytes than a process can have"));
        }
    }
    for (at, group) in profile.groups.iter().enumerate() {
        if group.stack.0 as usize >= profile.stacks.len() {
            return Err(format!("group {at} has a stack that is not there"));
        }
        if group.context.0 as usize >= profile.contexts.len() {
            return Err(format!("group {at} is in contexts that are not there"));
        }
        if group.process as usize >= capture.processes.len().max(1) {
            return Err(format!("group {at} is of a process that is not there"));
        }
        if group.pinned > MOST {
            return Err(format!("group {at} has more bytes than a process can have"));
        }
        if ![group.recorded, group.survived].iter().chain(&group.slices).all(is_plausible) {
            return Err(format!("group {at} has more bytes than a process can have"));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{
        FrameId,
        testing::{Maker, SIMPLE_QUERY, every},
    };

    fn text() -> String {
        let capture = Maker::new().survivors(&format!("f < {SIMPLE_QUERY}"), "Leaky", 64, every(3)).build();
        serde_json::to_string_pretty(&capture).expect("a capture is JSON")
    }

    fn read(text: &str) -> Result<Capture, String> {
        parse_capture(Path::new("x.json"), text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_was_written_is_read() {
        let text = text();
        let capture = read(&text).expect("a capture");
        assert_eq!(serde_json::to_string_pretty(&capture).expect("JSON"), text);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let whole = text();
        for (damaged, says) in [
            (whole[..whole.len() / 2].to_owned(), "damaged or no JSON"),
            (String::new(), "damaged or no JSON"),
            ("{\"traceEvents\": []}".to_owned(), "no capture of pgleak"),
            ("[1, 2]".to_owned(), "no capture of pgleak"),
            (whole.replacen("\"schema\": 2", "\"schema\": 1", 1), "schema 1"),
            (whole.replacen("\"pgleak\"", "\"heaptrack\"", 1), "written by heaptrack"),
            (whole.replacen("\"held\": 216", "\"held\": 18446744073709551615", 1), "more bytes than"),
        ] {
            assert_ne!(damaged, whole, "{says}");
            let error = read(&damaged).expect_err(says);
            assert!(error.contains(says) && error.contains("x.json"), "{error}");
        }
    }

    #[test]
    fn ids_that_lead_nowhere_are_refused() {
        let mut capture = read(&text()).expect("a capture");
        capture.profile.stacks[0].frames.push(FrameId(9999));
        assert_eq!(check(&capture), Err("stack 0 has a frame that is not there".to_owned()));
        let mut capture = read(&text()).expect("a capture");
        capture.profile.groups[0].stack.0 = 9999;
        assert_eq!(check(&capture), Err("group 0 has a stack that is not there".to_owned()));
        let mut capture = read(&text()).expect("a capture");
        capture.profile.groups[0].slices.pop();
        assert!(check(&capture).is_err());
    }
}
