//! The figures for people: `docs/scale.md`.

use std::fmt::Write as _;

use crate::{
    axis::{Axis, Measured, Unit},
    fit::{MOST, slope},
};

const HEAD: &str = "# What a capture costs as things grow\n\n\
    ![Time and memory over processes, live chunks and stacks](scale.svg)\n\n\
    Made by `cargo xtask bench scale`, which measures, draws and writes this page. Steepness is the exponent of a power \
    law through the four largest points: 1 is in proportion, 2 is the square, and what costs every capture the same is 0. \
    Above 1.15 the benchmark fails.\n";

/// The whole page.
pub(crate) fn page(measured: &Measured) -> String {
    let mut page = format!("{HEAD}\nMeasured on {}, PostgreSQL 15 of Debian.\n", measured.machine);
    for axis in &measured.axes {
        let _ = write!(page, "\n## {}\n\n{}\n\n{}", capital(&axis.label), axis.how, of_axis(axis));
    }
    page
}

/// The figures only.
pub(crate) fn table(measured: &Measured) -> String {
    measured.axes.iter().map(|axis| format!("{}\n\n{}\n", axis.label, of_axis(axis))).collect()
}

/// Whether nothing costs more than in proportion; not if there are too few points to tell.
pub(crate) fn is_linear(measured: &Measured) -> bool {
    let curves = measured.axes.iter().flat_map(|axis| &axis.curves);
    let slopes: Vec<f64> = curves.filter_map(|curve| slope(&curve.points)).collect();
    !slopes.is_empty() && slopes.iter().all(|slope| *slope <= MOST)
}

fn of_axis(axis: &Axis) -> String {
    let mut xs: Vec<f64> =
        axis.curves.iter().flat_map(|curve| curve.points.iter().map(|(x, _)| *x)).collect();
    xs.sort_by(f64::total_cmp);
    xs.dedup();
    let mut table = format!("| {} |", axis.label);
    xs.iter().for_each(|x| table += &format!(" {} |", grouped(*x as u64)));
    table += " steepness |\n|---|";
    table += &"---|".repeat(xs.len() + 1);
    table.push('\n');
    for curve in &axis.curves {
        let _ = write!(table, "| {}, {} |", curve.name, curve.unit.label());
        for x in &xs {
            let of_x = curve.points.iter().find(|(at, _)| at == x).map(|(_, y)| *y);
            let _ = write!(table, " {} |", of_x.map_or_else(String::new, |y| shown(y, curve.unit)));
        }
        let _ = writeln!(
            table,
            " {} |",
            slope(&curve.points).map_or_else(String::new, |slope| format!("{slope:.2}"))
        );
    }
    table
}

fn shown(value: f64, unit: Unit) -> String {
    match (value, unit) {
        (value, _) if value.abs() >= 100.0 => format!("{value:.0}"),
        (value, _) if value.abs() >= 1.0 => format!("{value:.1}"),
        (value, Unit::Milliseconds | Unit::MiB) => format!("{value:.3}"),
    }
}

fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    groups.map(|group| String::from_utf8_lossy(group).into_owned()).collect::<Vec<_>>().join(",")
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(of: fn(f64) -> f64) -> Measured {
        let mut axis = Axis::new("live", "live chunks", "By hand.");
        for x in [1000, 10_000, 100_000, 1_000_000] {
            axis.add("one drain", Unit::Milliseconds, x, of(x as f64));
        }
        Measured { machine: "a machine".to_owned(), axes: vec![axis] }
    }

    #[test]
    fn a_page_has_every_figure_and_the_steepness() {
        let page = page(&measured(|x| x / 1000.0));
        assert!(page.contains("| one drain, ms | 1.0 | 10.0 | 100 | 1000 | 1.00 |"), "{page}");
        assert!(
            page.contains("| live chunks | 1,000 | 10,000 | 100,000 | 1,000,000 | steepness |"),
            "{page}"
        );
        assert!(page.contains("## Live chunks"));
    }

    #[test]
    fn what_grows_with_the_square_fails() {
        assert!(is_linear(&measured(|x| x)));
        assert!(!is_linear(&measured(|x| x * x)));
    }
}
