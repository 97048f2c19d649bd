//! The tables that the programs sample by.

use tracer_ebpf::sampling::{DISTANCES, ONE, Selection, WEIGHTS, size_of_cell, weight};

/// What samples of each size stand for.
#[derive(Clone, Debug)]
pub(super) struct Weights(Vec<u64>);

impl Weights {
    /// Of a selection that is sampled.
    pub(super) fn new(selection: Selection) -> Self {
        let sample = selection.sample as f64;
        let of = |cell| {
            let part = size_of_cell(cell).max(1) as f64 / sample;
            (ONE as f64 / -(-part).exp_m1()).round() as u64
        };
        Self((0..WEIGHTS).map(of).collect())
    }

    /// The table for the programs.
    pub(super) fn table(&self) -> &[u64] {
        &self.0
    }

    /// What a record stands for, by [`ONE`], as the programs reckon; 0 is the size of one that is no sample.
    pub(super) fn of(&self, sampled: u64) -> u64 {
        if sampled == 0 {
            return ONE;
        }
        weight(sampled, |cell| self.0.get(cell as usize).copied().unwrap_or(ONE))
    }
}

/// Distances between samples: the middles of equal parts of an exponential distribution, which the programs choose
/// among. Their mean is what was asked for before they are rounded up, as distances in whole bytes are.
pub(super) fn distances(selection: Selection) -> Vec<u32> {
    let of_one = |index: u32| -(-(f64::from(index) + 0.5) / f64::from(DISTANCES)).ln_1p();
    let mean = (0..DISTANCES).map(of_one).sum::<f64>() / f64::from(DISTANCES);
    let scale = selection.sample as f64 / mean;
    (0..DISTANCES).map(|index| (of_one(index) * scale).ceil() as u32).collect()
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::sampling::MOST_SAMPLE;

    use super::*;

    #[test]
    fn distances_have_the_mean_that_was_asked_for_and_fall_off_as_they_should() {
        for sample in [64, 4096, MOST_SAMPLE] {
            let distances = distances(Selection { min_size: 0, sample });
            let mean = distances.iter().map(|distance| f64::from(*distance)).sum::<f64>() / 65_536.0;
            // Rounded up, by half a byte on average.
            assert!((mean - sample as f64 - 0.5).abs() < 0.01 + sample as f64 * 1e-6, "{sample}: {mean}");
            assert!(distances.iter().all(|distance| *distance >= 1));
            for size in [sample / 8, sample, 3 * sample] {
                let hit = distances.iter().filter(|distance| u64::from(**distance) <= size).count();
                let (is, should) = (hit as f64 / 65_536.0, 1.0 / (weight_of(sample, size)));
                assert!((is - should).abs() < 1e-4, "{sample}, {size}: {is}, {should}");
            }
        }
    }

    fn weight_of(sample: u64, size: u64) -> f64 {
        Weights::new(Selection { min_size: 0, sample }).of(size) as f64 / ONE as f64
    }

    #[test]
    fn small_ones_stand_for_many_and_large_ones_for_themselves() {
        assert!((weight_of(4096, 8) - 512.5).abs() < 0.01);
        assert_eq!(weight_of(4096, 1 << 20), 1.0);
        assert_eq!(Weights::new(Selection { min_size: 0, sample: 4096 }).of(0), ONE);
    }

    /// What the programs do, with all sizes in one stream: estimates are right on average.
    #[test]
    fn estimates_are_unbiased() {
        let selection = Selection { min_size: 0, sample: 4096 };
        let (distances, weights) = (distances(selection), Weights::new(selection));
        let mut random = fastrand::Rng::with_seed(7);
        let mut draw = || u64::from(distances[random.usize(..distances.len())]);
        let sizes = [0u64, 8, 40, 300, 5000, 40_000];
        let rounds = 300_000u64;
        let (mut left, mut sums, mut variances) = (draw(), [0.0; 6], [0.0; 6]);
        for _ in 0..rounds {
            for (at, size) in sizes.into_iter().enumerate() {
                let bytes = size.max(1);
                if bytes < left {
                    left -= bytes;
                    continue;
                }
                left = draw();
                let weight = weights.of(bytes) as f64 / ONE as f64;
                sums[at] += weight;
                variances[at] += weight * (weight - 1.0);
            }
        }
        for at in 0..sizes.len() {
            let off = sums[at] - rounds as f64;
            assert!(
                off.abs() <= 5.0 * variances[at].sqrt() + 1.0,
                "{}: {off}, {}",
                sizes[at],
                variances[at].sqrt()
            );
        }
    }
}
