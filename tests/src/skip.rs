//! Tests that cannot run here say so, and are counted.

use std::env;
use std::fs::OpenOptions;
use std::io::Write;
use std::thread;

/// Where `cargo xtask test` wants skipped tests written, one a line.
const LIST: &str = "PGLEAK_SKIPPED";

/// Notes that the running test does nothing, and why. The caller returns right after it.
///
/// The test harness of the standard library knows no skipped tests and counts this one as passed;
/// `cargo xtask test` corrects its sum by this list, and lets the run fail in CI.
pub fn skip(reason: &str) {
    let test = thread::current().name().unwrap_or("unnamed test").to_owned();
    eprintln!("skipped: {test}: {reason}");
    if let Some(list) = env::var_os(LIST) {
        let line = format!("{test}: {}\n", reason.replace('\n', " "));
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&list)
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .expect("a skipped test that is not counted would look like a passed one");
    }
}

/// Skips the rest of a test: `skip!("no {}", what)`.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        $crate::skip::skip(&format!($($reason)*));
        return Default::default();
    }};
}
