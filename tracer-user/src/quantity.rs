//! Durations and sizes as people write them: `13s`, `2m`, `30d`, `64M`.

use std::time::Duration;

use serde::{Deserialize as _, Deserializer, de::Error as _};

/// `500ms`, `13s` (or `13`), `2m`, `6h`, `30d`.
///
/// # Errors
/// What is wrong with it, and how to write it.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 =
        number.parse().map_err(|_| format!("'{text}' is no duration; write it like 13s, 500ms or 2m"))?;
    let seconds = match unit.trim() {
        "ms" => number / 1000.0,
        "" | "s" => number,
        "m" | "min" => number * 60.0,
        "h" => number * 3600.0,
        "d" => number * 86400.0,
        unit => return Err(format!("'{unit}' is no unit of time; write ms, s, m, h or d")),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| format!("'{text}' is out of range"))
}

/// `4096`, `64K`, `64M`, `64MiB`, `1G`: powers of 1024.
///
/// # Errors
/// What is wrong with it, and how to write it.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("'{text}' is no number of bytes; write it like 4096, 64M or 1G"))?;
    let shift = match unit.trim().trim_end_matches("iB").trim_end_matches('B') {
        "" => 0,
        "k" | "K" => 10,
        "M" => 20,
        "G" => 30,
        unit => return Err(format!("'{unit}' is no unit of bytes; write K, M or G")),
    };
    number.checked_mul(1 << shift).ok_or_else(|| format!("'{text}' is out of range"))
}

/// A part of a whole: `0.3%`, `3 %`.
///
/// # Errors
/// What is wrong with it, and how to write it.
pub(crate) fn percent(text: &str) -> Result<f64, String> {
    let number = text.trim().strip_suffix('%').map(str::trim_end).unwrap_or(text.trim());
    let number: f64 = number.parse().map_err(|_| format!("'{text}' is no percentage; write it like 0.3%"))?;
    if (0.0..=100.0).contains(&number) {
        Ok(number / 100.0)
    } else {
        Err(format!("'{text}' is not between 0% and 100%"))
    }
}

/// A duration in a configuration file.
pub(crate) fn read_duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    duration(&String::deserialize(from)?).map_err(D::Error::custom)
}

/// A duration in a configuration file, where none is an answer.
pub(crate) fn read_some_duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    read_duration(from).map(Some)
}

/// A size in a configuration file.
pub(crate) fn read_bytes<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    bytes(&String::deserialize(from)?).map_err(D::Error::custom)
}

/// A size in a configuration file, where none is an answer.
pub(crate) fn read_some_bytes<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    read_bytes(from).map(Some)
}

/// A percentage in a configuration file.
pub(crate) fn read_percent<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    percent(&String::deserialize(from)?).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("13s"), Ok(Duration::from_secs(13)));
        assert_eq!(duration("13"), Ok(Duration::from_secs(13)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("30d"), Ok(Duration::from_secs(30 * 86400)));
        for absurd in ["", "s", "-3s", "3 weeks", "1e400s", "."] {
            assert!(duration(absurd).is_err(), "{absurd}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(bytes("64M"), Ok(64 << 20));
        assert_eq!(bytes("64MiB"), Ok(64 << 20));
        assert_eq!(bytes("4096"), Ok(4096));
        assert!(bytes("99999999999G").is_err());
        assert!(bytes("64X").is_err());
    }

    #[test]
    fn parts_of_a_whole() {
        assert_eq!([percent("0.5%"), percent("3 %"), percent("100")], [Ok(0.005), Ok(0.03), Ok(1.0)]);
        assert!(percent("101%").is_err() && percent("-1%").is_err() && percent("much").is_err());
    }
}
