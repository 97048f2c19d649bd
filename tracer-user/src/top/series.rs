//! What one process had in memory, look by look.

use std::{collections::VecDeque, time::Duration};

use super::text::sparkline;

/// Growth is shown over the last look and over this.
const MINUTE: Duration = Duration::from_secs(60);
/// A sparkline has no more bars.
pub(super) const MOST_BARS: usize = 40;

/// Bytes at times since the program began.
#[derive(Clone, Debug, Default)]
pub(super) struct Series {
    points: VecDeque<(Duration, u64)>,
}

impl Series {
    /// Adds a look. What is older than a minute goes, unless a bar is drawn for it.
    pub(super) fn push(&mut self, at: Duration, bytes: u64) {
        self.points.push_back((at, bytes));
        while self.points.len() > MOST_BARS && self.points[1].0 + MINUTE <= at {
            self.points.pop_front();
        }
    }

    /// Bytes at the last look.
    pub(super) fn bytes(&self) -> u64 {
        self.points.back().map_or(0, |(_, bytes)| *bytes)
    }

    /// Growth a second since the look before the last.
    pub(super) fn last_rate(&self) -> Option<i64> {
        let before = self.points.len().checked_sub(2)?;
        self.rate_since(before)
    }

    /// Growth a second over the last minute, or over less if it is not known for so long. Where looks are further
    /// apart, that since the look before the last.
    pub(super) fn minute_rate(&self) -> Option<i64> {
        let before_last = self.points.len().checked_sub(2)?;
        let (now, _) = *self.points.back()?;
        let within = self.points.iter().position(|(at, _)| *at + MINUTE >= now)?;
        self.rate_since(within.min(before_last))
    }

    fn rate_since(&self, index: usize) -> Option<i64> {
        let ((then, before), (now, bytes)) = (*self.points.get(index)?, *self.points.back()?);
        let ns = i128::try_from(now.saturating_sub(then).as_nanos()).ok().filter(|ns| *ns > 0)?;
        let per_s = (i128::from(bytes) - i128::from(before)) * 1_000_000_000 / ns;
        Some(i64::try_from(per_s).unwrap_or(if per_s < 0 { i64::MIN } else { i64::MAX }))
    }

    /// The last looks as bars, so many of them at the most.
    pub(super) fn bars(&self, most: usize) -> String {
        let skipped = self.points.len().saturating_sub(most.min(MOST_BARS));
        sparkline(self.points.iter().skip(skipped).map(|(_, bytes)| *bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(every_s: u64, bytes: impl IntoIterator<Item = u64>) -> Series {
        let mut series = Series::default();
        for (look, bytes) in (0..).zip(bytes) {
            series.push(Duration::from_secs(look * every_s), bytes);
        }
        series
    }

    #[test]
    fn one_look_shows_no_growth() {
        let one = series(2, [4096]);
        assert_eq!((one.bytes(), one.last_rate(), one.minute_rate()), (4096, None, None));
    }

    #[test]
    fn rates_are_by_the_second() {
        let grown = series(2, [1000, 3000, 2000]);
        assert_eq!((grown.last_rate(), grown.minute_rate()), (Some(-500), Some(250)));
        let steady = series(2, (0..100).map(|look| if look < 50 { 0 } else { (look - 50) * 200 }));
        assert_eq!(
            (steady.last_rate(), steady.minute_rate()),
            (Some(100), Some(100)),
            "only a minute counts"
        );
    }

    #[test]
    fn rare_looks_have_a_rate_too() {
        let rare = series(600, [0, 600, 1800]);
        assert_eq!((rare.last_rate(), rare.minute_rate()), (Some(2), Some(2)));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut often = Series::default();
        for look in 0..10_000_u64 {
            often.push(Duration::from_millis(look * 100), look);
        }
        assert!(often.points.len() <= 602, "{}", often.points.len());
        assert_eq!(often.bars(10).chars().count(), 10);
        assert_eq!(series(600, 0..1000).points.len(), MOST_BARS);
    }
}
