//! What windows say of all the time: intervals, and whether the contexts grew as much as they should have.

use statrs::distribution::{ContinuousCDF as _, StudentsT};

use super::{Capture, Course, OUTSIDE, Slice, Tally};

/// Fewer windows than this have no interval.
const LEAST: usize = 3;

/// Contexts that grew by less than this part of what survivors say keep none of it.
const LEAST_PART: f64 = 0.2;
/// Less than this is chance.
const NOTABLE: f64 = (16 << 10) as f64;

/// Where the growth a second lies, by the differences of windows: none is like the other, whatever many chunks each
/// may hold. The growth is the ratio of all bytes to all time, and each window differs from that by what it has more
/// or less than its time would have it.
pub(super) fn interval(tallies: &[Tally], slices: &[Slice]) -> Option<[f64; 2]> {
    let windows: Vec<(f64, f64)> = (tallies.iter().zip(slices))
        .map(|(tally, slice)| (tally.held as f64, slice.length_ns.max(1) as f64 / 1e9))
        .collect();
    if windows.len() < LEAST {
        return None;
    }
    let count = windows.len() as f64;
    let (held, seconds) =
        windows.iter().fold((0.0, 0.0), |sums, window| (sums.0 + window.0, sums.1 + window.1));
    let rate = held / seconds;
    let squares: f64 = windows.iter().map(|(held, seconds)| (held - rate * seconds).powi(2)).sum();
    let quantile = StudentsT::new(0.0, 1.0, count - 1.0).ok()?.inverse_cdf(0.975);
    let half = quantile * (squares * count / (count - 1.0)).sqrt() / seconds;
    Some([(rate - half).max(0.0), rate + half])
}

/// Where the growth a second lies, by the chance that chose samples: so many of them stand for what survives, of which
/// the variance is known.
pub(super) fn interval_of_samples(
    samples: u64,
    held: u64,
    variance: u64,
    record_ns: u64,
) -> Option<[f64; 2]> {
    let freedom = samples.saturating_sub(1).max(1) as f64;
    let quantile = StudentsT::new(0.0, 1.0, freedom).ok()?.inverse_cdf(0.975);
    let (held, seconds) = (held as f64, record_ns.max(1) as f64 / 1e9);
    let half = quantile * (variance as f64).sqrt();
    Some([((held - half) / seconds).max(0.0), (held + half) / seconds])
}

/// What the contexts of these labels grew by from the first window to the end, and what was to be expected, in
/// bytes: if it is much less, what survives a window goes later.
pub(super) fn grew_less(capture: &Capture, labels: &[String], course: &Course) -> Option<(i64, f64)> {
    let windows = capture.window.windows.as_ref()?;
    let memory = capture.memory.as_ref()?;
    if labels.iter().any(|label| OUTSIDE.contains(&&**label)) {
        return None;
    }
    let expected = course.steady_per_second * windows.wall_ns as f64 / 1e9;
    let of_labels = memory.by_label.iter().filter(|growth| labels.contains(&growth.label));
    let grown: i64 =
        of_labels.map(|growth| growth.after as i64 - growth.before as i64 - growth.overhead).sum();
    (expected > NOTABLE && (grown as f64) < expected * LEAST_PART).then_some((grown, expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_as_wide_as_chance_has_it() {
        // A hundred samples that stand for 10,000 bytes each: p = 1/100, x = 100.
        let variance = 100 * 100 * 99 * 100 * 100;
        let [low, high] = interval_of_samples(100, 1_000_000, variance, 2_000_000_000).expect("it is known");
        assert!((low - 401_300.0).abs() < 200.0 && (high - 598_700.0).abs() < 200.0, "{low} {high}");
        assert_eq!(interval_of_samples(3, 300, 0, 1_000_000_000), Some([300.0, 300.0]));
        assert_eq!(interval_of_samples(1, 100, 10_000, 1_000_000_000).map(|[low, _]| low), Some(0.0));
    }

    #[test]
    fn an_interval_is_as_wide_as_windows_differ() {
        let slices = vec![Slice { start_ns: 0, length_ns: 500_000_000 }; 4];
        let of = |bytes: [u64; 4]| {
            let tallies = bytes.map(|held| Tally { count: 1, requested: held, held });
            interval(&tallies, &slices).expect("four windows")
        };
        assert_eq!(of([100; 4]), [200.0, 200.0]);
        let [low, high] = of([80, 120, 90, 110]);
        assert!((low - 141.9).abs() < 1.0 && (high - 258.1).abs() < 1.0, "{low} {high}");
        assert_eq!(of([0, 0, 0, 400])[0], 0.0);
        assert_eq!(interval(&[Tally::default(); 2], &slices), None);
        // One that is longer counts for more.
        let unequal: Vec<Slice> =
            [1, 1, 2].map(|seconds| Slice { start_ns: 0, length_ns: seconds * 1_000_000_000 }).to_vec();
        let tallies = [100, 100, 200].map(|held| Tally { count: 1, requested: held, held });
        assert_eq!(interval(&tallies, &unequal), Some([100.0, 100.0]));
    }
}
