//! The contexts of the selected process.

use ratatui::{
    Frame,
    layout::{Constraint, Rect},
    text::Line,
    widgets::{Cell, Paragraph, Row, Table},
};

use super::{
    super::{
        contexts::{ContextLine, Contexts, ContextsLook},
        model::Model,
    },
    paint::Paint,
};
use crate::target::human_bytes;

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, model: &Model, paint: Paint) {
    let Some(selected) = model.selected_row() else { return };
    if area.height == 0 {
        return;
    }
    let of = format!("contexts of {}", selected.seen.id.pid);
    let read = model.contexts.as_ref().filter(|(process, _)| *process == selected.seen.id);
    let line = match read {
        Some((_, Contexts::Read(look))) => return table(frame, area, model, paint, &of, look),
        Some((_, Contexts::Unreadable(error))) => Line::styled(format!(" {error}"), paint.bad()),
        Some((_, Contexts::Later(at))) if *at > model.now => {
            let seconds = (*at - model.now).as_secs() + 1;
            Line::raw(format!(
                " read in {seconds} s, since looks may take 5 % of a core, and one has just taken long"
            ))
        }
        Some((_, Contexts::Later(_))) | None => Line::raw(" reading …"),
    };
    frame.render_widget(Paragraph::new(line).block(paint.pane(of)), area);
}

fn table(frame: &mut Frame<'_>, area: Rect, model: &Model, paint: Paint, of: &str, look: &ContextsLook) {
    let mut title = format!(
        "{of}: {} in {}, read in {:.0} ms{}; grown in {} s",
        look.contexts,
        human_bytes(look.bytes),
        (look.took.as_secs_f64() * 1e3).ceil(),
        // The interval stands above.
        if look.every > model.interval { format!(" each {} s", look.every.as_secs()) } else { String::new() },
        look.since.as_secs(),
    );
    if !look.troubles.is_empty() {
        title += &format!("; NOT COMPLETE: {}", look.troubles);
    }
    let number = |text: &str| Cell::from(Line::raw(text.to_owned()).right_aligned());
    let head = Row::new([number("grown by"), number("bytes"), number("count"), Cell::from("CONTEXT")]);
    let lines = look.lines.iter().take(usize::from(area.height)).map(|line| {
        let style = if line.more_bytes > 0 { paint.bad() } else { ratatui::style::Style::new() };
        Row::new([
            number(&grown(line)).style(style),
            number(&human_bytes(line.bytes)),
            number(&line.contexts.to_string()),
            Cell::from(line.label.clone()),
        ])
    });
    let widths = [Constraint::Length(11), Constraint::Length(10), Constraint::Length(7), Constraint::Fill(1)];
    let table = Table::new(lines, widths).header(head.style(paint.head())).block(paint.pane(title));
    frame.render_widget(table, area);
}

fn grown(line: &ContextLine) -> String {
    let sign = match line.more_bytes {
        0 => return "0".to_owned(),
        more if more < 0 => '-',
        _ => '+',
    };
    format!("{sign}{}", human_bytes(line.more_bytes.unsigned_abs()))
}
