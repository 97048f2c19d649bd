//! A logarithmic axis of ratios. That of plotters has labels at powers of ten only.

use std::ops::Range;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};

/// It, with round numbers at its ticks.
pub(crate) struct Ratios {
    range: Range<f64>,
    labels: Vec<f64>,
}

/// Leading digits of labels, coarse first.
const CHOICES: [&[f64]; 4] = [
    &[1.0],
    &[1.0, 2.0, 5.0],
    &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0],
    &[1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
];
const ENOUGH: usize = 4;

impl Ratios {
    /// From one positive ratio to another.
    pub(crate) fn of(range: Range<f64>) -> Self {
        let within = |choice: &[f64]| -> Vec<f64> {
            let powers = (-4..5).flat_map(|power| choice.iter().map(move |digit| digit * 10f64.powi(power)));
            powers.filter(|ratio| range.contains(ratio)).collect()
        };
        // The coarsest choice of which there are enough, or the finest.
        let mut choices = CHOICES.iter().map(|choice| within(choice));
        let labels = choices.find(|labels| labels.len() >= ENOUGH);
        let labels = labels.unwrap_or_else(|| within(CHOICES[CHOICES.len() - 1]));
        Self { range, labels }
    }
}

impl Ranged for Ratios {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, ratio: &f64, (from, to): (i32, i32)) -> i32 {
        let part = (ratio / self.range.start).ln() / (self.range.end / self.range.start).ln();
        from + (f64::from(to - from) * part).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // Light lines between the labels are of no use.
        if hint.weight().allow_light_points() { Vec::new() } else { self.labels.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_round_and_enough() {
        assert_eq!(Ratios::of(0.5..200.0).labels, [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        assert_eq!(Ratios::of(0.8..2.2).labels, [0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.0]);
        assert_eq!(Ratios::of(0.009..11.0).labels, [0.01, 0.1, 1.0, 10.0]);
    }

    #[test]
    fn equal_factors_are_equally_far() {
        let axis = Ratios::of(0.1..10.0);
        assert_eq!([0.1, 1.0, 10.0].map(|ratio| axis.map(&ratio, (100, 300))), [100, 200, 300]);
    }
}
