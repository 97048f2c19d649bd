//! How steep a curve is: the exponent of a power law through its upper end.

/// What a cost in proportion has, with some room for noise; what grows with the square has 2.
pub(crate) const MOST: f64 = 1.15;

/// The points that are fitted: the largest, since small captures cost what every capture costs.
const FITTED: usize = 4;

/// The exponent by least squares, both logarithms taken; `None` of fewer than three points.
pub(crate) fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let upper = &points[points.len().saturating_sub(FITTED)..];
    let logs: Vec<(f64, f64)> =
        upper.iter().filter(|(x, y)| *x > 0.0 && *y > 0.0).map(|(x, y)| (x.ln(), y.ln())).collect();
    if logs.len() < 3 {
        return None;
    }
    let count = logs.len() as f64;
    let mean_x = logs.iter().map(|(x, _)| x).sum::<f64>() / count;
    let mean_y = logs.iter().map(|(_, y)| y).sum::<f64>() / count;
    let both: f64 = logs.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let square: f64 = logs.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    (square > 0.0).then(|| both / square)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(of: fn(f64) -> f64) -> Vec<(f64, f64)> {
        [10.0, 100.0, 1000.0, 10_000.0, 100_000.0].map(|x| (x, of(x))).to_vec()
    }

    #[test]
    fn a_square_is_told_from_a_line() {
        let is = |of: fn(f64) -> f64, wanted: f64| {
            let found = slope(&curve(of)).expect("enough points");
            assert!((found - wanted).abs() < 0.01, "{found}");
        };
        is(|x| 3.0 * x, 1.0);
        is(|x| x * x, 2.0);
        is(|_| 7.0, 0.0);
        assert!(slope(&curve(|x| 50.0 + x / 1e6)).expect("enough points") < 0.1);
        assert_eq!(slope(&[(1.0, 1.0), (2.0, 2.0)]), None);
    }
}
