//! How much of its time a process may lose to being traced.

use std::{fmt, str::FromStr, time::Duration};

/// What `--overhead` says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Overhead {
    /// Every allocation is recorded, for as long as was asked for.
    Full,
    /// Added time is at most this part of all time: recording happens in windows at random times, and between
    /// them there are no probes at all.
    Share(f64),
}

impl Overhead {
    /// What `low` means: well below what users of a database notice.
    pub const LOW: Self = Self::Share(0.03);
    const LEAST: f64 = 0.001;
    /// At least so many windows are wanted: what they say of the rest is told by their differences.
    const WINDOWS: f64 = 12.0;
    /// Shorter ones end within the statements of a process that is many times slower.
    const SHORTEST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_millis(250);

    /// How long one window records, and settles unless something else is asked for, in a capture that takes so
    /// long: short enough for many of them even if the process does hardly anything of its own meanwhile.
    pub fn window(self, length: Duration) -> Duration {
        match self {
            Self::Full => length,
            Self::Share(share) => {
                (length.mul_f64(share) / 2).div_f64(Self::WINDOWS).clamp(Self::SHORTEST, Self::LONGEST)
            }
        }
    }
}

impl fmt::Display for Overhead {
    /// As `--overhead` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Full => f.write_str("full"),
            Self::LOW => f.write_str("low"),
            Self::Share(share) => write!(f, "{}%", share * 100.0),
        }
    }
}

impl FromStr for Overhead {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "full" => return Ok(Self::Full),
            "low" => return Ok(Self::LOW),
            _ => {}
        }
        let number: f64 = text.trim_end_matches('%').trim().parse().map_err(|_| {
            format!("'{text}' is neither full, low nor a part of the time in percent, such as 5")
        })?;
        let share = number / 100.0;
        if !(Self::LEAST..=1.0).contains(&share) {
            return Err(
                "the part of the time is between 0.1 and 100 percent; full records everything".to_owned()
            );
        }
        Ok(Self::Share(share))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_as_long_as_the_budget_allows() {
        let ms = |share, seconds| Overhead::Share(share).window(Duration::from_secs(seconds)).as_millis();
        assert_eq!([ms(0.03, 120), ms(0.03, 1), ms(0.05, 3600)], [150, 50, 250]);
        assert_eq!(Overhead::Full.window(Duration::from_secs(13)), Duration::from_secs(13));
    }

    #[test]
    fn words_and_percent() {
        assert_eq!("full".parse(), Ok(Overhead::Full));
        assert_eq!("low".parse(), Ok(Overhead::Share(0.03)));
        for text in ["5", "5%", "5.0 %"] {
            assert_eq!(text.parse(), Ok(Overhead::Share(0.05)), "{text}");
        }
        for text in ["", "some", "-1", "0", "101", "NaN", "5 percent"] {
            assert!(text.parse::<Overhead>().is_err(), "{text}");
        }
    }
}
