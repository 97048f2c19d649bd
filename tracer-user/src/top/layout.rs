//! Where things stand on the screen.

use ratatui::layout::{Constraint, Layout, Rect};

use super::{acting::Pages, model::Model};

/// Lines of the pane of a capture, its title included.
const CAPTURE: u16 = 7;
/// The same with live stacks below what it says.
const CAPTURE_WITH_STACKS: u16 = 12;
/// From so many columns on live stacks stand beside what a capture says.
const WIDE: u16 = 130;
/// With fewer lines between head and foot there is only the table.
const LOW: u16 = 9;
/// The title of a pane, and that and the head of a table.
const TITLE: u16 = 1;

/// The parts of the screen. Those without room are empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Areas {
    /// One line above all.
    pub(super) head: Rect,
    /// The processes.
    pub(super) table: Rect,
    /// The contexts of the selected one.
    pub(super) contexts: Rect,
    /// What a capture says.
    pub(super) capture: Rect,
    /// Live stacks, while it runs and there are any.
    pub(super) stacks: Rect,
    /// One line below all.
    pub(super) foot: Rect,
    /// All between head and foot: for what is opened over the rest.
    pub(super) body: Rect,
}

impl Areas {
    /// The parts for what the model shows.
    pub(super) fn of(area: Rect, model: &Model) -> Self {
        let [head, body, foot] =
            Layout::vertical([Constraint::Length(1), Constraint::Min(0), Constraint::Length(1)]).areas(area);
        let mut areas = Self { head, body, foot, ..Self::default() };
        let stacks = model.capture.as_ref().map_or(0, |capture| capture.stacks.stacks.len());
        let wanted = match (&model.capture, stacks) {
            (None, _) => 0,
            (Some(_), 0) => CAPTURE,
            (Some(_), _) if body.width >= WIDE => CAPTURE,
            (Some(_), _) => CAPTURE_WITH_STACKS,
        };
        // On a low screen a capture matters more than contexts, which matter more than the rest of the table.
        let capture = wanted.min(body.height / 2);
        let rest = body.height - capture;
        let contexts = if rest < LOW { 0 } else { rest * 2 / 5 };
        let [table, contexts, capture] =
            Layout::vertical([Constraint::Min(0), Constraint::Length(contexts), Constraint::Length(capture)])
                .areas(body);
        (areas.table, areas.contexts, areas.capture) = (table, contexts, capture);
        if stacks > 0 && capture.height > TITLE {
            let split = if capture.width >= WIDE {
                Layout::horizontal([Constraint::Percentage(40), Constraint::Fill(1)])
            } else {
                Layout::vertical([Constraint::Length(TITLE + 3), Constraint::Fill(1)])
            };
            [areas.capture, areas.stacks] = split.areas(capture);
        }
        areas
    }

    /// How much a page is.
    pub(super) fn pages(&self) -> Pages {
        Pages {
            table: usize::from(self.table.height.saturating_sub(1)),
            report: usize::from(self.body.height.saturating_sub(TITLE)),
            report_width: usize::from(self.body.width),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        session::{LiveStack, LiveStacks},
        target::ProcessId,
    };

    fn heights(area: Rect, model: &Model) -> [u16; 4] {
        let areas = Areas::of(area, model);
        assert_eq!(areas.head.height + areas.body.height + areas.foot.height, area.height);
        [areas.table, areas.contexts, areas.capture, areas.stacks].map(|part| part.height)
    }

    #[test]
    fn a_small_screen_has_room_for_all() {
        let mut model = Model::new(String::new(), Duration::from_secs(2));
        let small = Rect::new(0, 0, 80, 24);
        assert_eq!(heights(small, &model), [14, 8, 0, 0]);
        model.begin(ProcessId { pid: 1, start_ticks: 0 }, "full".into(), "x".into());
        assert_eq!(heights(small, &model), [9, 6, 7, 0]);
        model.see_stacks(LiveStacks { stacks: vec![LiveStack::default()] });
        assert_eq!(heights(small, &model), [7, 4, 4, 7]);
        assert_eq!(heights(Rect::new(0, 0, 200, 24), &model), [9, 6, 7, 7], "side by side");
    }

    #[test]
    fn no_screen_is_too_small() {
        let mut model = Model::new(String::new(), Duration::from_secs(2));
        for capture in [false, true] {
            if capture {
                model.begin(ProcessId { pid: 1, start_ticks: 0 }, "full".into(), "x".into());
            }
            for height in 2..12 {
                let [table, contexts, capture, _] = heights(Rect::new(0, 0, 20, height), &model);
                assert_eq!(table + contexts + capture, height - 2);
            }
        }
    }
}
