//! Bytes, counts and times as people read them.

/// Bytes with a binary unit and about three digits: `1.25 MiB`.
pub fn bytes(value: u64) -> String {
    amount(value as f64)
}

/// Bytes per second: `1.25 MiB/s`.
pub fn rate(bytes_per_second: f64) -> String {
    format!("{}/s", amount(bytes_per_second))
}

/// Bytes with their unit, and exactly: `1.25 MiB (1,310,720 bytes)`.
pub fn exact_bytes(value: u64) -> String {
    if value < 1024 { bytes(value) } else { format!("{} ({} bytes)", bytes(value), count(value)) }
}

/// A number with its thousands apart: `1,310,720`.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A number of things: `1 chunk`, `2,000 chunks`.
pub fn counted(value: u64, singular: &str) -> String {
    let ending = match value {
        1 => "",
        _ if singular.ends_with('s') => "es",
        _ => "s",
    };
    format!("{} {singular}{ending}", count(value))
}

/// Nanoseconds as seconds: `13.0 s`.
pub fn seconds(ns: u64) -> String {
    format!("{:.1} s", ns as f64 / 1e9)
}

/// A part of a whole in percent: `73 %`, and `<1 %` for the least.
pub fn percent(part: u64, whole: u64) -> String {
    if part == 0 || whole == 0 {
        return "0 %".to_owned();
    }
    let percent = part as f64 * 100.0 / whole as f64;
    if percent < 1.0 { "<1 %".to_owned() } else { format!("{percent:.0} %") }
}

fn amount(value: f64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (value, 0);
    // What would be rounded to 1,024 of a unit is one of the next.
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = match value {
        _ if unit == 0 => 0,
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    let name = if unit == 0 && value.round() == 1.0 { "byte" } else { UNITS[unit] };
    format!("{value:.digits$} {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits_and_the_right_unit() {
        for (value, text) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (1023, "1023 bytes"),
            (1024, "1.00 KiB"),
            (10_235, "10.0 KiB"),
            (10_240, "10.0 KiB"),
            (1_048_575, "1.00 MiB"),
            (1_310_720, "1.25 MiB"),
            (157_286_400, "150 MiB"),
            (u64::MAX, "16777216 TiB"),
        ] {
            assert_eq!(bytes(value), text);
        }
        assert_eq!(exact_bytes(1_310_720), "1.25 MiB (1,310,720 bytes)");
        assert_eq!(exact_bytes(200), "200 bytes");
        assert_eq!(rate(0.4), "0 bytes/s");
    }

    #[test]
    fn thousands_are_apart() {
        for (value, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(value), text);
        }
        assert_eq!((counted(1, "path"), counted(0, "path")), ("1 path".to_owned(), "0 paths".to_owned()));
    }

    #[test]
    fn a_part_is_never_rounded_to_nothing() {
        assert_eq!(percent(1, 1_000), "<1 %");
        assert_eq!(percent(0, 1_000), "0 %");
        assert_eq!(percent(2, 3), "67 %");
        assert_eq!(percent(5, 0), "0 %");
    }
}
