//! Every format in one table: `capture`, `render` and the tests go through it.

use std::io::{self, BufWriter, Write};

use super::{RenderOptions, findings, folded, pprof, report, stap, svg};
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

/// The artifact that all others can be made from.
pub const CAPTURE_FILE: &str = "capture.json";

/// The artifact that says for programs what was found.
pub const VERDICT_FILE: &str = "verdict.json";

/// All formats, in the order in which artifacts are written.
pub const FORMATS: &[Format] = &[
    Format { name: "json", file: Some(CAPTURE_FILE), write: write_json },
    Format { name: "report", file: Some("report.txt"), write: write_report },
    Format { name: "folded", file: Some("stacks.folded"), write: folded::write },
    Format { name: "svg", file: Some("flame.svg"), write: svg::write },
    Format { name: "inverted", file: Some("flame-inverted.svg"), write: svg::write_inverted },
    Format { name: "contexts", file: Some("contexts.svg"), write: svg::write_by_context },
    Format { name: "pprof", file: Some("profile.pb.gz"), write: pprof::write },
    Format { name: "verdict", file: Some(VERDICT_FILE), write: findings::write },
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
    // A large buffer of its own: a number or a blank is one write.
    let mut buffered = BufWriter::with_capacity(1 << 16, out);
    serde_json::to_writer_pretty(&mut buffered, capture)?;
    writeln!(buffered)?;
    buffered.flush()
}

fn write_report(capture: &Capture, _: &RenderOptions, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(report::report(capture).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::testing::{Maker, SIMPLE_QUERY, every, last};

    fn capture() -> Capture {
        Maker::new()
            .survivors(&format!("AllocSetAlloc < palloc < f < {SIMPLE_QUERY}"), "Leaky", 64, every(3))
            .survivors(&format!("AllocSetAlloc < palloc < f.part.0 < {SIMPLE_QUERY}"), "Leaky", 32, every(2))
            .survivors(&format!("AllocSetAlloc < f < {SIMPLE_QUERY}"), "Other", 128, last(1))
            .survivors(
                &format!("AllocSetAlloc < postgres+0x5c7730 < std::less<int> < {SIMPLE_QUERY}"),
                "Other",
                16,
                every(1),
            )
            .counter("recorded", 1234, false, "allocations recorded")
            .counter("live_full", 3, true, "allocations not recorded because the map of live chunks was full")
            .build()
    }

    fn written(name: &str, capture: &Capture, options: &RenderOptions) -> String {
        let mut out = Vec::new();
        let format = format(name).expect("a format");
        (format.write)(capture, options, &mut out).expect("memory takes everything");
        String::from_utf8(out).expect("text")
    }

    fn golden(file: &str, text: &str) {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
        if std::env::var_os("PGLEAK_BLESS").is_some() {
            std::fs::write(&path, text).expect("golden files can be written");
        }
        let wanted = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(text == wanted, "{file} differs; PGLEAK_BLESS=1 writes it anew:\n{text}");
    }

    #[test]
    fn text_formats() {
        let (capture, options) = (capture(), RenderOptions::default());
        golden("stacks.folded", &written("folded", &capture, &options));
        golden("stap.txt", &written("stap", &capture, &options));
        let reversed = RenderOptions { reverse: true, min_bytes: 100, ..options };
        golden("reversed.folded", &written("folded", &capture, &reversed));
    }

    #[test]
    fn pictures_are_the_same_each_time_and_say_what_they_show() {
        let (capture, options) = (capture(), RenderOptions::default());
        for name in ["svg", "inverted"] {
            let picture = written(name, &capture, &options);
            assert_eq!(picture, written(name, &capture, &options));
            for text in
                ["1234 allocations", "LOST: 3 allocations not recorded", "build ID", "std::less&lt;int&gt;"]
            {
                assert!(picture.contains(text), "{text} is not in {name}");
            }
            // One box for a function, though another name sorts between its own and its callees'.
            assert_eq!(picture.matches("<title>f.part.0 ").count(), 1);
        }
        let one_context = RenderOptions { context: Some("Leaky".to_owned()), ..options };
        let picture = written("svg", &capture, &one_context);
        assert!(picture.contains("only memory context Leaky") && !picture.contains("postgres+0x5c7730"));
    }

    #[test]
    fn a_capture_without_survivors_is_a_picture_too() {
        let capture = Maker::new().build();
        let picture = written("svg", &capture, &RenderOptions::default());
        assert!(picture.contains("nothing that was allocated is left") && picture.ends_with("</svg>\n"));
        assert_eq!(written("folded", &capture, &RenderOptions::default()), "");
    }

    #[test]
    fn an_unknown_format_names_the_known_ones() {
        let error = format("gif").expect_err("no format").to_string();
        assert!(error.contains("'gif'") && error.contains("folded") && error.contains("stap"), "{error}");
    }
}
