//! The picture: for each thing that grows, times above and memory below, on logarithmic axes.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::axis::{Axis, Curve, Measured, Unit};

const PANEL: (u32, u32) = (520, 400);
const TITLE_HEIGHT: u32 = 64;
/// Told apart by those who see no colours, too, by their marks.
const COLOURS: [RGBColor; 4] =
    [RGBColor(0, 90, 160), RGBColor(200, 80, 0), RGBColor(0, 130, 90), RGBColor(130, 60, 140)];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The picture as SVG.
pub(crate) fn draw(measured: &Measured) -> Result<String> {
    let mut svg = String::new();
    let columns = measured.axes.len().max(1) as u32;
    {
        let size = (PANEL.0 * columns, PANEL.1 * 2 + TITLE_HEIGHT);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let (title, below) = root.split_vertically(TITLE_HEIGHT);
        let font = |points: u32| ("sans-serif", points).into_font().color(&BLACK);
        title.draw(&Text::new("pgleak: what a capture costs", (12, 10), font(22))).map_err(failed)?;
        title.draw(&Text::new(measured.machine.clone(), (12, 40), font(13))).map_err(failed)?;
        for (panel, axis, unit) in below
            .split_evenly((2, columns as usize))
            .iter()
            .zip(panels(measured))
            .map(|(panel, (axis, unit))| (panel, axis, unit))
        {
            draw_panel(panel, axis, unit)?;
        }
        root.present().map_err(failed)?;
    }
    // Trailing blanks would be noise in every diff.
    Ok(svg.lines().map(|line| format!("{}\n", line.trim_end())).collect())
}

/// In the order in which panels are drawn: times of all, then memory of all.
fn panels(measured: &Measured) -> impl Iterator<Item = (&Axis, Unit)> {
    [Unit::Milliseconds, Unit::MiB]
        .into_iter()
        .flat_map(|unit| measured.axes.iter().map(move |axis| (axis, unit)))
}

fn draw_panel(area: &Area<'_>, axis: &Axis, unit: Unit) -> Result<()> {
    let curves: Vec<(&Curve, Vec<(f64, f64)>)> = axis
        .curves
        .iter()
        .filter(|curve| curve.unit == unit)
        // A logarithm of nothing is none.
        .map(|curve| (curve, curve.points.iter().copied().filter(|(_, y)| *y > 0.0).collect()))
        .collect();
    let all = || curves.iter().flat_map(|(_, points)| points.iter());
    let Some(xs) = decades(all().map(|(x, _)| *x)) else { return Ok(()) };
    let Some(ys) = decades(all().map(|(_, y)| *y)) else { return Ok(()) };
    let caption = match unit {
        Unit::Milliseconds => format!("time over {}", axis.label),
        Unit::MiB => format!("memory over {}", axis.label),
    };
    // Room for the legend above the highest curve.
    let ys = ys.start..ys.end * (ys.end / ys.start).powf(0.35);
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(42)
        .y_label_area_size(66)
        .build_cartesian_2d(xs.log_scale(), ys.log_scale())
        .map_err(failed)?;
    chart
        .configure_mesh()
        .light_line_style(RGBColor(240, 240, 240))
        .bold_line_style(RGBColor(215, 215, 215))
        .x_desc(axis.label.clone())
        .y_desc(unit.label())
        .x_label_formatter(&|x| number(*x))
        .y_label_formatter(&|y| number(*y))
        .label_style(("sans-serif", 12))
        .axis_desc_style(("sans-serif", 14))
        .draw()
        .map_err(failed)?;
    for ((curve, points), colour) in curves.iter().zip(COLOURS) {
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))
            .map_err(failed)?
            .label(curve.name.clone())
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], colour.stroke_width(3)));
        chart
            .draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))
            .map_err(failed)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.9))
        .border_style(RGBColor(200, 200, 200))
        .label_font(("sans-serif", 12))
        .draw()
        .map_err(failed)?;
    Ok(())
}

/// From the power of ten below all to the one above.
fn decades(values: impl Iterator<Item = f64>) -> Option<std::ops::Range<f64>> {
    let (least, most) =
        values.fold((f64::INFINITY, 0.0_f64), |(least, most), value| (least.min(value), most.max(value)));
    (most > 0.0).then(|| {
        let (first, last) = (least.log10().floor(), most.log10().ceil());
        10f64.powf(first)..10f64.powf(last.max(first + 1.0))
    })
}

fn number(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{}M", (value / 1e6).round()),
        value if value >= 1e4 => format!("{}k", (value / 1e3).round()),
        value if value >= 1.0 => format!("{}", value.round()),
        value => format!("{value:.3}").trim_end_matches('0').to_owned(),
    }
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_curve_is_drawn_and_named() {
        let mut axis = Axis::new("live", "live chunks", "");
        for x in [10, 100, 1000] {
            axis.add("one drain", Unit::Milliseconds, x, x as f64);
            axis.add("kernel maps", Unit::MiB, x, 64.0);
            axis.add("nothing", Unit::MiB, x, 0.0);
        }
        let measured = Measured { machine: "2 processors".to_owned(), axes: vec![axis] };
        let picture = draw(&measured).expect("it can be drawn");
        for text in ["one drain", "kernel maps", "live chunks", "2 processors", "MiB"] {
            assert!(picture.contains(text), "{text}");
        }
        assert!(draw(&Measured::default()).is_ok());
    }

    #[test]
    fn axes_begin_and_end_at_powers_of_ten() {
        assert_eq!(decades([20.0, 300.0].into_iter()), Some(10.0..1000.0));
        assert_eq!(decades([10.0].into_iter()), Some(10.0..100.0));
        assert_eq!(decades([].into_iter()), None);
    }
}
