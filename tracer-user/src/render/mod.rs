//! From a capture to artifacts. Nothing here knows how it was captured.

mod diff;
mod findings;
mod folded;
mod formats;
mod options;
mod output;
mod page;
mod pprof;
mod processes;
mod read;
mod report;
mod stap;
mod suspect;
mod svg;
pub mod units;

pub use diff::{Difference, difference};
pub use findings::{FINDINGS_SCHEMA, Finding, Findings, FoundContext, Loss, Recorded, Traced, findings};
pub use formats::{CAPTURE_FILE, FORMATS, Format, UnknownFormat, VERDICT_FILE, format};
pub use options::{Colours, RenderOptions, UnknownPalette};
pub use output::{OutputDir, WriteError};
pub(crate) use page::WIDTH as REPORT_WIDTH;
pub use read::{ReadError, parse_capture, read_capture};
pub use report::report;
pub use svg::plain_pictures;

use crate::profile::EndReason;

/// Why a capture ended, in words.
pub(crate) fn end_words(end: EndReason) -> &'static str {
    match end {
        EndReason::Completed => "to the end",
        EndReason::Interrupted => "interrupted",
        EndReason::TargetExited => "until the process ended",
        EndReason::TargetExec => "until the process became another program",
        EndReason::TooSlow => "ended early because it cost too much",
        EndReason::MapFull => "ended early because the kernel maps were full",
    }
}
