//! One file from one server, in a thread that can be left behind.

use std::{
    fs::File,
    io::{self, Read as _},
    path::PathBuf,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

/// How soon an interrupt is noticed.
const POLL: Duration = Duration::from_millis(50);

/// What to get.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) agent: ureq::Agent,
    pub(super) url: String,
    /// A directory with room for the file, which has no name there.
    pub(super) scratch: PathBuf,
    pub(super) most_bytes: u64,
    pub(super) time_left: Duration,
}

/// How it ended.
#[derive(Debug)]
pub(super) enum Outcome {
    Came(File),
    NotThere,
    TooLarge,
    TimeOver,
    Interrupted,
    Failed(String),
}

/// Gets a file. Name resolution, handshakes and reads may block, so that they happen in a thread of
/// their own: this returns when the time is over or the user interrupts, whatever the thread does. It
/// ends by its own time limit, and its file with it.
pub(super) fn download(request: Request, interrupted: &AtomicBool) -> Outcome {
    let deadline = Instant::now() + request.time_left;
    let (sender, receiver) = mpsc::channel();
    let worker = thread::Builder::new().name("debuginfod".to_owned()).spawn(move || {
        // Nobody listens any more if the download was left behind.
        let _ = sender.send(fetch(&request));
    });
    if let Err(error) = worker {
        return Outcome::Failed(format!("cannot start a thread for it: {error}"));
    }
    loop {
        if interrupted.load(Ordering::Relaxed) {
            return Outcome::Interrupted;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Outcome::TimeOver;
        }
        match receiver.recv_timeout(left.min(POLL)) {
            Ok(outcome) => return outcome,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Outcome::Failed("the download ended unexpectedly".to_owned());
            }
        }
    }
}

fn fetch(request: &Request) -> Outcome {
    let asked =
        request.agent.get(&request.url).config().timeout_global(Some(request.time_left)).build().call();
    let response = match asked {
        Ok(response) => response,
        Err(ureq::Error::StatusCode(404)) => return Outcome::NotThere,
        Err(ureq::Error::Timeout(_)) => return Outcome::TimeOver,
        Err(error) => return Outcome::Failed(error.to_string()),
    };
    if response.body().content_length().is_some_and(|bytes| bytes > request.most_bytes) {
        return Outcome::TooLarge;
    }
    let mut body = response.into_body().into_reader().take(request.most_bytes.saturating_add(1));
    let file = tempfile::tempfile_in(&request.scratch);
    let copied = file.and_then(|mut file| Ok((io::copy(&mut body, &mut file)?, file)));
    match copied {
        Ok((bytes, _)) if bytes > request.most_bytes => Outcome::TooLarge,
        Ok((_, file)) => Outcome::Came(file),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Outcome::TimeOver,
        Err(error) => Outcome::Failed(error.to_string()),
    }
}
