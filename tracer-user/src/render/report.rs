//! The answer for a person.
use crate::profile::Capture;

/// The report of a capture.
pub fn report(capture: &Capture) -> String {
    format!("pid {}\n", capture.target.pid)
}
