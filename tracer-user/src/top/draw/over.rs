//! What is opened over the panes: keys, a question, the report.

use ratatui::{
    Frame,
    layout::{Constraint, Rect},
    text::Line,
    widgets::{Block, Clear, Paragraph},
};

use super::{
    super::{input::KEYS, layout::Areas, model::Model, text::fitted},
    paint::Paint,
};

pub(super) fn help(frame: &mut Frame<'_>, area: Rect, paint: Paint) {
    let lines = KEYS.iter().map(|(keys, what)| Line::raw(format!(" {keys:<9}  {what}"))).collect();
    window(frame, area, "keys".into(), lines, paint);
}

pub(super) fn ask(frame: &mut Frame<'_>, area: Rect, model: &Model, paint: Paint, typed: &str) {
    let Some(row) = model.selected_row() else { return };
    let lines = vec![
        Line::raw(" f      every allocation, for 13 s: the process is slower meanwhile"),
        Line::raw(" l      in short windows over 2 minutes, which add 3 % of the time"),
        Line::raw(" 0 … 9  the same with so many percent, then Enter"),
        Line::raw(format!("        percent: {typed}_")),
        Line::raw(" Esc    not at all"),
    ];
    window(frame, area, format!("capture process {}: at which overhead?", row.seen.id.pid), lines, paint);
}

/// A box in the middle.
fn window(frame: &mut Frame<'_>, area: Rect, title: String, lines: Vec<Line<'_>>, paint: Paint) {
    let width = lines.iter().map(Line::width).max().unwrap_or(0).max(title.len() + 2) + 3;
    let size = |length: usize| Constraint::Length(u16::try_from(length).unwrap_or(u16::MAX));
    let place = area.centered(size(width), size(lines.len() + 2));
    let block = Block::bordered().title(Line::styled(format!(" {title} "), paint.head()));
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(lines).block(block), place);
}

/// The whole report, from a line on.
pub(super) fn report(frame: &mut Frame<'_>, areas: &Areas, model: &Model, paint: Paint, line: usize) {
    let Some(capture) = &model.capture else { return };
    let lines = fitted(capture.report().unwrap_or_default(), usize::from(areas.body.width));
    let page = areas.pages().report;
    let last = (line + page).min(lines.len());
    let title = format!(
        "report of {}, lines {} to {last} of {}",
        capture.directory.display(),
        (line + 1).min(lines.len()),
        lines.len()
    );
    let shown: Vec<Line<'_>> = lines.iter().skip(line).take(page).map(|line| Line::raw(&**line)).collect();
    frame.render_widget(Paragraph::new(shown).block(paint.pane(title)), areas.body);
}
