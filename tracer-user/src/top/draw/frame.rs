//! All of it: the line above, the panes, the line below, and what is opened over them.

use ratatui::{
    Frame,
    text::{Line, Span},
};

use super::{
    super::{acting::Mode, layout::Areas, model::Model},
    capture, contexts, over,
    paint::{Paint, grows},
    processes,
};

/// Draws the model.
pub(in super::super) fn draw(frame: &mut Frame<'_>, model: &Model, paint: Paint) {
    let areas = Areas::of(frame.area(), model);
    frame.render_widget(head(model, paint), areas.head);
    if let Mode::Reading(line) = model.mode {
        over::report(frame, &areas, model, paint, line);
    } else {
        processes::draw(frame, areas.table, model, paint);
        contexts::draw(frame, areas.contexts, model, paint);
        if let Some(shown) = &model.capture {
            capture::draw(frame, &areas, shown, model.now, paint);
        }
        match &model.mode {
            Mode::Help => over::help(frame, areas.body, paint),
            Mode::Asking(typed) => over::ask(frame, areas.body, model, paint, typed),
            _ => {}
        }
    }
    foot(frame, &areas, model, paint);
}

fn head(model: &Model, paint: Paint) -> Line<'static> {
    let growing = model.all().iter().filter(|row| grows(row.series.minute_rate())).count();
    let mut text = match model.all().len() {
        0 => "no process".to_owned(),
        1 => "1 process".to_owned(),
        processes => format!("{processes} processes"),
    };
    if growing > 0 {
        text += &format!(", {growing} {}", if growing == 1 { "grows" } else { "grow" });
    }
    let order = model.sort.name();
    let mut line = vec![
        Span::styled(" pgleak top", paint.head()),
        format!(" on {}: {text}; every {:?}, by {order}", model.host, model.interval).into(),
    ];
    if !model.filter.is_empty() {
        let shown = model.shown().len();
        line.push(Span::styled(format!(", {shown} with /{}", model.filter), paint.head()));
    }
    Line::from(line)
}

fn foot(frame: &mut Frame<'_>, areas: &Areas, model: &Model, paint: Paint) {
    let keys = " ? keys  ↑↓ select  / filter  g s p order  c capture  C with …  q end";
    let line = match (&model.notice, &model.mode) {
        (Some(notice), _) => Line::styled(format!(" {notice}"), paint.bad()),
        (None, Mode::Leaving) => Line::styled(
            " the capture ends and writes what it has; Ctrl-C does not wait for it",
            paint.head(),
        ),
        (None, Mode::Typing) => {
            let line = Line::raw(format!(" filter: {}", model.filter));
            let column = u16::try_from(line.width()).unwrap_or(u16::MAX);
            frame.set_cursor_position((areas.foot.x.saturating_add(column), areas.foot.y));
            line
        }
        (None, Mode::Reading(_)) => Line::raw(" ↑↓ PgUp PgDn Home End  Esc back"),
        (None, _) => Line::raw(keys),
    };
    frame.render_widget(line, areas.foot);
}
