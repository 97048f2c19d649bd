//! Any bytes as a `capture.json`: what is read can be written in every format.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use pgleak::render::{FORMATS, RenderOptions, parse_capture};

fuzz_target!(|bytes: &[u8]| {
    let Ok(capture) = parse_capture(Path::new("fuzzed"), bytes) else { return };
    for format in FORMATS {
        (format.write)(&capture, &RenderOptions::default(), &mut std::io::sink()).expect("a sink takes all");
    }
});
