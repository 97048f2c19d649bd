//! How often looks can be afforded.

use std::{collections::VecDeque, time::Duration};

/// Looks take at most one part in so many of a core's time.
const SHARE: u32 = 20;
/// Over this time, so that a process that is selected now need not wait for what another has cost.
const OVER: Duration = Duration::from_secs(60);

/// When to look again at the same, after a look that took some time: an interval after it began, unless looks would
/// then take more than 5 % of a core.
pub(super) fn pause(interval: Duration, took: Duration) -> Duration {
    interval.saturating_sub(took).max(took.saturating_mul(SHARE - 1))
}

/// What looks have taken, at times since the program began.
#[derive(Debug, Default)]
pub(super) struct Budget {
    looks: VecDeque<(Duration, Duration)>,
}

impl Budget {
    /// A look has ended.
    pub(super) fn spend(&mut self, at: Duration, took: Duration) {
        self.looks.push_back((at, took));
        while self.looks.front().is_some_and(|(then, _)| *then + OVER < at) {
            self.looks.pop_front();
        }
    }

    /// When the next look can be afforded, whatever at: as soon as those of the last minute took less than 5 % of it.
    pub(super) fn affordable(&self, now: Duration) -> Duration {
        let mut left = OVER / SHARE;
        // From the last on: the first of them that is too much has to be forgotten.
        for (at, took) in self.looks.iter().rev() {
            match left.checked_sub(*took) {
                Some(rest) if rest > Duration::ZERO => left = rest,
                _ => return now.max(*at + OVER),
            }
        }
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn looks_take_no_more_than_their_share() {
        assert_eq!(pause(ms(2000), ms(10)), ms(1990));
        assert_eq!(pause(ms(2000), ms(100)), ms(1900));
        assert_eq!(pause(ms(2000), ms(500)), ms(9500));
    }

    #[test]
    fn others_are_looked_at_until_the_minute_is_spent() {
        let mut budget = Budget::default();
        assert_eq!(budget.affordable(ms(0)), ms(0));
        budget.spend(ms(5000), ms(2000));
        assert_eq!(budget.affordable(ms(5100)), ms(5100));
        budget.spend(ms(8000), ms(1500));
        assert_eq!(budget.affordable(ms(8100)), ms(65_000), "when the first is a minute old");
        budget.spend(ms(65_000), ms(1));
        assert_eq!(budget.affordable(ms(65_100)), ms(65_100));
        budget.spend(ms(65_200), ms(9000));
        assert_eq!(budget.affordable(ms(65_300)), ms(125_200), "one alone can be too much");
    }
}
