//! Whether something keeps growing, by what it held over a while.

use std::time::Duration;

/// What something held at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Point {
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// Bytes.
    pub bytes: u64,
}

/// That it keeps growing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rise {
    /// Bytes a minute, by the least of each part of the window.
    pub per_minute: f64,
    /// What it held at least in the first part.
    pub from: u64,
    /// The same in the last.
    pub to: u64,
    /// How long that is.
    pub over: Duration,
}

/// The window is cut into so many parts. What is held in between, by a sort, is not what the least of each part shows.
const PARTS: usize = 6;

/// In so many of the steps from part to part it has to rise: one may be still, as blocks are acquired in leaps.
const LEAST_RISES: usize = PARTS - 2;

/// One step with more of the growth than this is a leap, such as a cache that was filled, and no course.
const MOST_OF_ONE_STEP: f64 = 0.6;

/// Points have to cover this part of the window.
const COVERED: f64 = 0.9;

/// How something grows that was held so in a window which ends with the last point, oldest first; `None` if it does not
/// keep growing, or that is not known yet.
pub(super) fn keeps_growing(points: &[Point], window: Duration) -> Option<Rise> {
    let (first, last) = (points.first()?, points.last()?);
    let window_ms = i64::try_from(window.as_millis()).ok()?;
    let begin_ms = last.at_ms - window_ms;
    if last.at_ms - first.at_ms < (window_ms as f64 * COVERED) as i64 {
        return None;
    }
    let mut least = [None::<u64>; PARTS];
    for point in points.iter().filter(|point| point.at_ms >= begin_ms) {
        let part = ((point.at_ms - begin_ms) as i128 * PARTS as i128 / i128::from(window_ms.max(1))) as usize;
        let least = &mut least[part.min(PARTS - 1)];
        *least = Some(least.map_or(point.bytes, |bytes| bytes.min(point.bytes)));
    }
    // A part that nobody looked in says nothing: what was there before it counts on.
    let mut parts = Vec::with_capacity(PARTS);
    for part in least {
        parts.push(part.or(parts.last().copied())?);
    }
    let (from, to) = (parts[0], parts[PARTS - 1]);
    let gained = to.checked_sub(from).filter(|gained| *gained > 0)?;
    let steps: Vec<i128> = parts.windows(2).map(|pair| i128::from(pair[1]) - i128::from(pair[0])).collect();
    let rises = steps.iter().filter(|step| **step > 0).count();
    let largest = steps.iter().copied().max().unwrap_or(0);
    if rises < LEAST_RISES || largest as f64 > gained as f64 * MOST_OF_ONE_STEP {
        return None;
    }
    // From the middle of the first part to that of the last.
    let over = window.mul_f64((PARTS - 1) as f64 / PARTS as f64);
    Some(Rise { per_minute: gained as f64 * 60.0 / over.as_secs_f64(), from, to, over })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(600);

    fn points(bytes: impl Fn(u64) -> u64) -> Vec<Point> {
        (0..=120).map(|at| Point { at_ms: at * 5000, bytes: bytes(at as u64) }).collect()
    }

    #[test]
    fn a_steady_rise_is_told_with_its_rate() {
        let rise = keeps_growing(&points(|at| 1000 + at * 5000), WINDOW).expect("60,000 a minute");
        assert!((rise.per_minute - 60_000.0).abs() < 1500.0, "{rise:?}");
    }

    #[test]
    fn blocks_are_acquired_in_leaps_and_that_is_growth_too() {
        // 8 MiB each 100 s: six leaps in the window.
        assert!(keeps_growing(&points(|at| (at / 20) << 23), WINDOW).is_some());
    }

    #[test]
    fn what_comes_and_goes_does_not_grow() {
        // A sort that takes more and more, and gives all of it back each minute.
        assert_eq!(keeps_growing(&points(|at| 5000 + (at % 12) * (at + 1) * 1000), WINDOW), None);
        assert_eq!(keeps_growing(&points(|_| 5000), WINDOW), None);
        assert_eq!(keeps_growing(&points(|at| 900_000 - at * 1000), WINDOW), None);
    }

    #[test]
    fn a_cache_that_fills_up_is_one_leap() {
        assert_eq!(keeps_growing(&points(|at| if at < 30 { 1000 } else { 9_000_000 }), WINDOW), None);
        // Fast at first, then no more.
        assert_eq!(keeps_growing(&points(|at| at.min(30) * 100_000), WINDOW), None);
    }

    #[test]
    fn a_short_history_is_no_evidence() {
        let all = points(|at| at * 5000);
        assert_eq!(keeps_growing(&all[..60], WINDOW), None);
        assert_eq!(keeps_growing(&[], WINDOW), None);
        // Nobody looked for a while in the middle.
        let mut holes = all.clone();
        holes.retain(|point| !(200_000..310_000).contains(&point.at_ms));
        assert!(keeps_growing(&holes, WINDOW).is_some());
    }

    #[test]
    fn a_leak_beside_work_that_comes_and_goes_is_seen() {
        assert!(keeps_growing(&points(|at| at * 5000 + (at % 7) * 3_000_000), WINDOW).is_some());
    }
}
