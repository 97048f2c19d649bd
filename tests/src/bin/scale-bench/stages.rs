//! How long each stage took, as `-vv` says.

/// Milliseconds of the lines that hold a text and end with a duration, in their order.
pub(crate) fn times(stderr: &str, text: &str) -> Vec<f64> {
    stderr.lines().filter(|line| line.contains(text)).filter_map(duration_ms).collect()
}

/// The last word as milliseconds: a `Duration` as `{:?}` writes it.
fn duration_ms(line: &str) -> Option<f64> {
    let word = line.split_whitespace().last()?;
    // Longer units first: `ms` ends with `s`.
    [("ns", 1e-6), ("µs", 1e-3), ("ms", 1.0), ("s", 1e3)]
        .into_iter()
        .find_map(|(unit, ms)| Some(word.strip_suffix(unit)?.parse::<f64>().ok()? * ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        let said =
            "DEBUG a: 7 records drained in 1.5ms\nDEBUG a: 9 records drained in 2.25s\nx drained in 750µs\n";
        assert_eq!(times(said, "records drained in"), [1.5, 2250.0]);
        assert_eq!(times(said, "x drained"), [0.75]);
        assert!(times("drained in no time", "drained").is_empty());
    }
}
