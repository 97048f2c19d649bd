//! The picture of what was measured: a panel for each build and load, a line for each rival.

use std::ops::Range;

use anyhow::{Result, anyhow};
use plotters::{coord::Shift, prelude::*};

use crate::{
    axis::Ratios,
    group::Group,
    ratio::{Estimate, Summary},
    rivals::{FLOOR, MEMLEAK, NOTHING, RIVALS},
};

/// Dark on white, whatever the page around it is.
const INK: RGBColor = RGBColor(0x20, 0x20, 0x20);
const FAINT: RGBColor = RGBColor(0xd8, 0xd8, 0xd8);
/// pgleak's, and those of the others.
const OURS: RGBColor = RGBColor(0xb0, 0x30, 0x20);
const OTHERS: RGBColor = RGBColor(0x1f, 0x5a, 0x96);
const FONT: &str = "sans-serif";

const PANEL_WIDTH: u32 = 460;
/// Of a panel without its lines, and of each line.
const PANEL_FRAME: u32 = 84;
const LINE: u32 = 20;
const TITLE: u32 = 34;

/// One panel.
struct Panel<'a> {
    title: String,
    /// What its axis is a multiple of.
    unit: String,
    /// The last is drawn at the top.
    lines: Vec<(&'static str, Estimate)>,
    range: Range<f64>,
    group: &'a Group<'a>,
}

/// It as SVG; `None` if there are too few rounds for any interval.
pub(crate) fn picture(groups: &[Group<'_>]) -> Result<Option<String>> {
    let panels: Vec<Panel<'_>> = groups.iter().filter_map(Panel::of).collect();
    let mut builds: Vec<&str> = panels.iter().map(|panel| panel.group.build).collect();
    builds.dedup();
    let columns = panels.iter().fold(0, |most, panel| {
        most.max(panels.iter().filter(|other| other.group.build == panel.group.build).count())
    });
    if panels.is_empty() {
        return Ok(None);
    }
    let lines = panels.iter().map(|panel| panel.lines.len()).max().unwrap_or(1) as u32;
    let height = PANEL_FRAME + LINE * lines;
    let size = (PANEL_WIDTH * columns as u32, TITLE + height * builds.len() as u32);
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let title = "What tracing adds to a transaction's time: mean of the rounds' ratios, 95 % interval";
        let root = root.titled(title, (FONT, 20).into_font().color(&INK)).map_err(failed)?;
        let cells = root.split_evenly((builds.len(), columns));
        for (row, build) in builds.iter().enumerate() {
            let of_build = panels.iter().filter(|panel| panel.group.build == *build);
            for (panel, cell) in of_build.zip(&cells[row * columns..]) {
                panel.draw(cell)?;
            }
        }
        root.present().map_err(failed)?;
    }
    Ok(Some(text))
}

/// Errors of plotters are not for other threads.
fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}

impl<'a> Panel<'a> {
    /// `None` if nothing in it has an interval.
    fn of(group: &'a Group<'a>) -> Option<Self> {
        let yardstick = [FLOOR, MEMLEAK].into_iter().find(|name| group.known(name) > 0)?;
        let lines: Vec<(&'static str, Estimate)> = RIVALS
            .iter()
            .rev()
            .filter(|rival| rival.name != NOTHING && rival.name != yardstick)
            .filter_map(|rival| match group.added_to(rival.name, yardstick) {
                Summary::Known(estimate) => Some((rival.name, estimate)),
                _ => None,
            })
            .collect();
        let low = lines.iter().map(|(_, estimate)| estimate.low).fold(0.8, f64::min);
        let high = lines.iter().map(|(_, estimate)| estimate.high).fold(1.25, f64::max);
        (!lines.is_empty()).then(|| Self {
            title: format!("{}, {}", group.build, group.load),
            unit: format!("added time ÷ {yardstick}'s, times (logarithmic)"),
            lines,
            // Room for the figures at the right.
            range: low / 1.15..high * (high / low).powf(0.3),
            group,
        })
    }

    fn draw(&self, cell: &DrawingArea<SVGBackend<'_>, Shift>) -> Result<()> {
        // An axis with a single place would have no name for it.
        let count = self.lines.len().max(2);
        let mut chart = ChartBuilder::on(cell)
            .caption(&self.title, (FONT, 16).into_font().color(&INK))
            .margin(6)
            .margin_right(12)
            .x_label_area_size(40)
            .y_label_area_size(100)
            .build_cartesian_2d(
                Ratios::of(self.range.clone()),
                // Its end is part of it.
                (0..count - 1).into_segmented(),
            )
            .map_err(failed)?;
        let name = |place: &SegmentValue<usize>| match place {
            SegmentValue::CenterOf(at) => self.lines.get(*at).map_or("", |(name, _)| name).to_owned(),
            _ => String::new(),
        };
        chart
            .configure_mesh()
            .disable_y_mesh()
            .light_line_style(WHITE)
            .bold_line_style(FAINT)
            .axis_style(INK)
            .x_label_formatter(&|ratio| short(*ratio))
            .y_labels(count)
            .y_label_formatter(&name)
            .x_desc(&self.unit)
            .label_style((FONT, 13).into_font().color(&INK))
            .axis_desc_style((FONT, 13).into_font().color(&INK))
            .draw()
            .map_err(failed)?;
        // Where what is compared with would be.
        let bounds = [SegmentValue::Exact(0), SegmentValue::Last];
        let one = PathElement::new(bounds.map(|end| (1.0, end)).to_vec(), INK);
        chart.draw_series(std::iter::once(one)).map_err(failed)?;
        for (at, (name, estimate)) in self.lines.iter().enumerate() {
            let colour = if name.starts_with("pgleak") { OURS } else { OTHERS };
            let at = |ratio| (ratio, SegmentValue::CenterOf(at));
            let interval =
                PathElement::new(vec![at(estimate.low), at(estimate.high)], colour.stroke_width(3));
            chart.draw_series(std::iter::once(interval)).map_err(failed)?;
            let mean = Circle::new(at(estimate.mean), 4, colour.filled());
            chart.draw_series(std::iter::once(mean)).map_err(failed)?;
            let figure = EmptyElement::at(at(estimate.high))
                + Text::new(format!("{:.2}", estimate.mean), (8, -7), (FONT, 13).into_font().color(&INK));
            chart.draw_series(std::iter::once(figure)).map_err(failed)?;
        }
        Ok(())
    }
}

/// As few digits as tell a label of the axis from its neighbours.
fn short(ratio: f64) -> String {
    if ratio >= 10.0 { format!("{ratio:.0}") } else { format!("{}", (ratio * 100.0).round() / 100.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::testing::rounds;

    #[test]
    fn each_build_and_load_is_a_panel() {
        let times = |pgleak| {
            [(NOTHING, Some(10.0)), (FLOOR, Some(30.0)), ("pgleak", Some(pgleak)), ("bpftrace", Some(90.0))]
        };
        let mut all = rounds("debian-15", "select", &times(38.0));
        all.extend(rounds("debian-15", "tpcb", &times(33.0)));
        all.extend(rounds("npm-17.10", "select", &times(36.0)));
        let malloc = [(NOTHING, Some(10.0)), (MEMLEAK, Some(40.0)), ("pgleak-malloc", Some(25.0))];
        all.extend(rounds("npm-17.10", "malloc", &malloc));
        let picture = picture(&Group::all(&all)).expect("it can be drawn").expect("there are intervals");
        for text in [
            "debian-15, select",
            "npm-17.10, malloc",
            "÷ floor&apos;s",
            "÷ memleak&apos;s",
            "bpftrace",
            "pgleak-malloc",
            "1.4",
            "#FFFFFF",
        ] {
            assert!(picture.contains(text), "{text} is not in\n{picture}");
        }
    }

    #[test]
    fn without_an_interval_there_is_no_picture() {
        assert!(picture(&[]).expect("that is no error").is_none());
        let few = &rounds("debian-15", "select", &[(NOTHING, Some(10.0)), (FLOOR, Some(30.0))])[..1];
        assert!(picture(&Group::all(few)).expect("that is no error").is_none());
    }
}
