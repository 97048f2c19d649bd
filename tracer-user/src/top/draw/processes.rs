//! The table of processes.

use ratatui::{
    Frame,
    layout::{Constraint, Rect},
    text::Line,
    widgets::{Cell, Paragraph, Row, Table, TableState},
};

use super::{
    super::{
        model::{self, Model},
        series::MOST_BARS,
    },
    paint::Paint,
};
use crate::target::{human_bytes, human_rate};

/// The longest names that have all the room they want: kind, database, user.
const LONGEST: [usize; 3] = [24, 18, 18];
/// They have no less, unless they are shorter: `client backend`.
const SHORTEST: [usize; 3] = [14, 8, 8];
/// `1023.9 MB`
const BYTES: usize = 9;
/// `+123.4 MB`
const RATE: usize = 9;
/// A sparkline has as many bars, unless names cannot be read otherwise.
const FEWEST_BARS: usize = 8;
/// Columns that go where there is no room, the first of these first: bars, user, database, growth since the last look,
/// kind, growth in a minute.
const DISPENSABLE: [usize; 6] = [7, 3, 2, 5, 1, 6];
const HEADS: [&str; 8] = ["PID", "KIND", "DATABASE", "USER", "RssAnon", "now/s", "1 min/s", "RssAnon"];

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, model: &Model, paint: Paint) {
    let shown = model.shown();
    if shown.is_empty() && area.height > 0 {
        let why = match (model.looks, model.filter.is_empty()) {
            (0, _) => "looking for server processes …",
            (_, true) => {
                "no PostgreSQL or Greenplum process runs on this host, or none that this user may see"
            }
            (_, false) => "no process with what the filter says; Esc takes it away",
        };
        frame.render_widget(Paragraph::new(format!("\n {why}")), area);
        return;
    }
    let widths = widths(&shown, usize::from(area.width));
    let columns = columns(&widths, usize::from(area.width));
    let rows = shown.iter().map(|row| line(row, &widths, &columns, paint));
    let heads = columns.iter().map(|column| cell(*column, HEADS[*column].to_owned()));
    let lengths =
        columns.iter().map(|column| Constraint::Length(u16::try_from(widths[*column]).unwrap_or(0)));
    let table = Table::new(rows, lengths)
        .header(Row::new(heads).style(paint.head()))
        .row_highlight_style(paint.selected());
    let mut state = TableState::default().with_selected(model.selected_line());
    frame.render_stateful_widget(table, area, &mut state);
}

fn line(row: &model::Row, widths: &[usize; 8], columns: &[usize], paint: Paint) -> Row<'static> {
    let rate = |rate: Option<i64>| match rate {
        // The head says what it is by.
        Some(rate) => human_rate(rate).trim_end_matches("/s").to_owned(),
        None => "-".to_owned(),
    };
    let (last, minute) = (row.series.last_rate(), row.series.minute_rate());
    let cells = columns.iter().map(|column| {
        let text = match column {
            0 => row.seen.id.pid.to_string(),
            1 => fitting(&row.seen.kind, widths[1]),
            2 => fitting(&row.seen.database, widths[2]),
            3 => fitting(&row.seen.user, widths[3]),
            4 => human_bytes(row.series.bytes()),
            5 => rate(last),
            6 => rate(minute),
            _ => row.series.bars(widths[7]),
        };
        let cell = cell(*column, text);
        match column {
            5 => cell.style(paint.rate(last)),
            6 => cell.style(paint.rate(minute)),
            _ => cell,
        }
    });
    Row::new(cells)
}

/// The columns that there is room for: a number of which the first digits are cut off would lie.
fn columns(widths: &[usize; 8], width: usize) -> Vec<usize> {
    let mut columns: Vec<usize> = (0..widths.len()).collect();
    for dispensable in DISPENSABLE {
        let needed = columns.iter().map(|column| widths[*column] + 1).sum::<usize>() - 1;
        if needed > width {
            columns.retain(|column| *column != dispensable);
        }
    }
    columns
}

/// Words and bars to the left, numbers to the right.
fn cell(column: usize, text: String) -> Cell<'static> {
    let line = Line::raw(text);
    Cell::from(if matches!(column, 1..=3 | 7) { line } else { line.right_aligned() })
}

/// As much of a name as there is room for.
fn fitting(name: &str, width: usize) -> String {
    if name.chars().count() <= width {
        return name.to_owned();
    }
    name.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// How wide each column is: names as wide as they are, the sparkline what is left.
fn widths(shown: &[&model::Row], width: usize) -> [usize; 8] {
    let longest = |of: fn(&model::Row) -> usize| shown.iter().map(|row| of(row)).max().unwrap_or(0);
    let pid = longest(|row| row.seen.id.pid.to_string().len()).max(5) + 1;
    let mut names = [
        longest(|row| row.seen.kind.chars().count()),
        longest(|row| row.seen.database.chars().count()),
        longest(|row| row.seen.user.chars().count()),
    ];
    for (column, name) in names.iter_mut().enumerate() {
        *name = (*name).clamp(HEADS[column + 1].len(), LONGEST[column]);
    }
    let others = pid + BYTES + 2 * RATE + HEADS.len() - 1;
    let room = width.saturating_sub(others + FEWEST_BARS);
    // The longest gives first.
    while names.iter().sum::<usize>() > room {
        let gives = |(name, shortest): &(&mut usize, usize)| **name > *shortest;
        let Some((name, _)) = names.iter_mut().zip(SHORTEST).filter(gives).max() else { break };
        *name -= 1;
    }
    let bars = width.saturating_sub(others + names.iter().sum::<usize>()).clamp(FEWEST_BARS, MOST_BARS);
    [pid, names[0], names[1], names[2], BYTES, RATE, RATE, bars]
}
