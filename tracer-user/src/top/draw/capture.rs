//! What a capture says, and its verdict.

use std::time::Duration;

use ratatui::{Frame, layout::Rect, style::Style, text::Line, widgets::Paragraph};

use super::{
    super::{
        capturing::{Capturing, Phase, Stage},
        layout::Areas,
        stacks::line,
        text::{joined, wrapped},
    },
    paint::Paint,
};

/// Length of the bar of a phase.
const BAR: usize = 30;

pub(super) fn draw(frame: &mut Frame<'_>, areas: &Areas, capture: &Capturing, now: Duration, paint: Paint) {
    let height = areas.capture.height;
    if height == 0 {
        return;
    }
    let of = format!("capture of {}", capture.process.pid);
    let directory = capture.directory.display();
    let (width, room) = (usize::from(areas.capture.width), usize::from(height - 1));
    let (title, lines) = match &capture.stage {
        Stage::Running => (
            format!("{of}, overhead {}; c or Esc ends it early", capture.overhead),
            running(capture, width, room, now),
        ),
        Stage::Ending => (format!("{of} ends, and writes what it has"), running(capture, width, room, now)),
        Stage::Reported(_) => {
            (format!("{of}: {directory}/; Enter opens the report"), verdict(capture, width, paint))
        }
        Stage::Failed(reason) => {
            (format!("{of} failed"), paragraph(reason, width).map(|line| line.style(paint.bad())).collect())
        }
    };
    frame.render_widget(Paragraph::new(lines).block(paint.pane(title)), areas.capture);
    stacks(frame, areas.stacks, capture, paint);
}

/// The place for live stacks: one a line, the largest first.
fn stacks(frame: &mut Frame<'_>, area: Rect, capture: &Capturing, paint: Paint) {
    if area.height == 0 {
        return;
    }
    let shown = capture.stacks.stacks.iter().take(usize::from(area.height));
    let lines: Vec<Line<'_>> = shown.map(|stack| Line::raw(line(stack))).collect();
    frame.render_widget(Paragraph::new(lines).block(paint.pane("held now, innermost first".into())), area);
}

/// What it does now, then the last of what it has said, as far as there is room.
fn running(capture: &Capturing, width: usize, room: usize, now: Duration) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    if let Some(phase) = &capture.phase {
        lines.push(Line::raw(format!(" {}", bar(phase, now))));
        if !phase.figures.is_empty() {
            lines.extend(paragraph(&phase.figures, width));
        }
    }
    let said: Vec<Line<'_>> = capture.lines.iter().flat_map(|line| paragraph(line, width)).collect();
    let skipped = said.len().saturating_sub(room.saturating_sub(lines.len()));
    lines.extend(said.into_iter().skip(skipped));
    if lines.is_empty() {
        lines.push(Line::raw(" it starts …"));
    }
    lines
}

fn bar(phase: &Phase, now: Duration) -> String {
    let (elapsed, length) = (phase.elapsed(now).as_secs_f64(), phase.length.as_secs_f64());
    let done = if length > 0.0 { (elapsed / length * BAR as f64) as usize } else { BAR }.min(BAR);
    let (full, empty) = ("━".repeat(done), "┄".repeat(BAR - done));
    format!("{} {full}{empty} {elapsed:.0} of {length:.0} s", phase.name)
}

fn verdict(capture: &Capturing, width: usize, paint: Paint) -> Vec<Line<'static>> {
    let paragraphs = joined(capture.verdict().unwrap_or_default());
    let mut lines = Vec::new();
    for (index, text) in paragraphs.iter().enumerate() {
        let style = match index {
            0 if text.starts_with("No ") => paint.good(),
            0 => paint.bad(),
            _ => Style::new(),
        };
        lines.extend(paragraph(text, width).map(|line| line.style(style)));
    }
    lines
}

/// A text as lines that fit, a little to the right.
fn paragraph(text: &str, width: usize) -> impl Iterator<Item = Line<'static>> {
    wrapped(&format!(" {text}"), width).into_iter().map(Line::raw)
}
