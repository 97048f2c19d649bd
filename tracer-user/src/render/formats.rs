//! Every format in one table: `capture`, `render` and the tests go through it.

use std::io::{self, Write};

use super::{RenderOptions, folded, report, stap, svg};
use crate::profile::Capture;

/// A way to write a capture down.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// Its name on the command line.
    pub name: &'static str,
    /// The artifact that holds it; `None` if it is only made on request.
    pub file: Option<&'static str>,
    /// Writes it.
    pub write: fn(&Capture, &RenderOptions, &mut dyn Write) -> io::Result<()>,
}

/// All formats, in the order in which artifacts are written.
pub const FORMATS: &[Format] = &[
    Format { name: "json", file: Some("capture.json"), write: write_json },
    Format { name: "report", file: Some("report.txt"), write: write_report },
    Format { name: "folded", file: Some("stacks.folded"), write: folded::write },
    Format { name: "svg", file: Some("flame.svg"), write: svg::write },
    Format { name: "inverted", file: Some("flame-inverted.svg"), write: svg::write_inverted },
    Format { name: "stap", file: None, write: stap::write },
];

/// A format that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no format '{name}'; take one of {}", FORMATS.iter().map(|format| format.name).collect::<Vec<_>>().join(", "))]
pub struct UnknownFormat {
    name: String,
}

/// The format with that name.
///
/// # Errors
/// If there is none.
pub fn format(name: &str) -> Result<&'static Format, UnknownFormat> {
    FORMATS.iter().find(|format| format.name == name).ok_or_else(|| UnknownFormat { name: name.to_owned() })
}

/// The capture itself, whatever the options: it is what the others are made from.
fn write_json(capture: &Capture, _: &RenderOptions, out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, capture)?;
    writeln!(out)
}

fn write_report(capture: &Capture, _: &RenderOptions, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(report::report(capture).as_bytes())
}
