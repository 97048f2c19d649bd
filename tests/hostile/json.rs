//! Texts that are no capture, of any size and depth.

use std::path::Path;

use pgleak::render::parse_capture;

use crate::memory::most_bytes;

/// An object takes six bytes at the least, `{"a":}`, and in memory a tree's node of 632.
const FOR_A_BYTE: usize = 128;

#[test]
fn foreign_texts_cost_no_more_memory_than_their_size_allows() {
    let size = 300_000;
    let nested =
        |open: &str, close: &str, depth: usize| format!("{}1{}", open.repeat(depth), close.repeat(depth));
    for (what, text) in [
        ("a list of numbers", format!("[{}0]", "0,".repeat(size))),
        ("a list of empty lists", format!("[{}0]", "[],".repeat(size))),
        ("a list without an end", "[".repeat(size)),
        ("lists in lists", nested("[", "]", size)),
        ("objects in objects", nested("{\"a\":", "}", size)),
        ("objects in objects, few", nested("{\"a\":", "}", 100)),
        ("a string", format!("\"{}\"", "\\u0041".repeat(size))),
        ("a schema only", "{\"schema\": 1}".to_owned()),
        ("numbers that are too large", format!("{{\"schema\": 1{}}}", "0".repeat(size))),
        ("frames without a capture", format!("{{\"schema\": 1, \"frames\": [{}0]}}", "{},".repeat(size))),
    ] {
        let (read, taken) = most_bytes(|| parse_capture(Path::new("hostile.json"), text.as_bytes()));
        let error = read.expect_err(what).to_string();
        assert!(error.contains("hostile.json"), "{what}: {error}");
        assert!(taken <= 4096 + FOR_A_BYTE * text.len(), "{what}: {taken} bytes for {}", text.len());
    }
}
