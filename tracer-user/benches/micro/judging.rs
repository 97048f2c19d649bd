//! From a large capture to the verdict and to each artifact.

use std::path::Path;
use std::sync::LazyLock;

use divan::{Bencher, black_box};
use pgleak::{
    profile::{Capture, judge},
    render::{RenderOptions, format, parse_capture},
};

use crate::large;

static LARGE: LazyLock<Capture> = LazyLock::new(large::capture);

#[divan::bench(sample_count = 20)]
fn verdict(bencher: Bencher<'_, '_>) {
    let capture = &*LARGE;
    bencher.bench_local(|| judge(black_box(capture)));
}

#[divan::bench(sample_count = 10, args = ["report", "folded", "svg", "inverted", "contexts", "stap", "json"])]
fn render(bencher: Bencher<'_, '_>, name: &str) {
    let (capture, options) = (&*LARGE, RenderOptions::default());
    let format = format(name).expect("a format of the table");
    bencher.bench_local(|| {
        let mut out = Vec::new();
        (format.write)(black_box(capture), &options, &mut out).expect("memory takes everything");
        out
    });
}

/// What `pgleak render` begins with.
#[divan::bench(sample_count = 10)]
fn parse(bencher: Bencher<'_, '_>) {
    let text = serde_json::to_string(&*LARGE).expect("a capture can be written");
    bencher.bench_local(|| {
        parse_capture(Path::new("capture.json"), black_box(text.as_bytes())).expect("its own capture")
    });
}
