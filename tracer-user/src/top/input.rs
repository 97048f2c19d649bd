//! Keys to actions.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::{
    acting::Mode,
    action::{Action, Sort, Step},
};

/// The keys and what they do, for the page of help; what is below is the same as code.
pub(super) const KEYS: &[(&str, &str)] = &[
    ("↑ ↓  k j", "select a process; with PgUp, PgDn, Home, End further"),
    ("g s p", "order by growth over the last minute, by size, by pid"),
    ("/", "filter by pid, kind, database, user; Esc takes it away"),
    ("c", "capture the selected process: 13 s, every allocation"),
    ("C", "the same, but ask first how much it may cost"),
    ("c Esc", "while it runs: end it early, with what it has"),
    ("Enter", "read the report of the last capture; Esc closes it"),
    ("?", "these keys"),
    ("q Ctrl-C", "end; a capture that runs is ended and waited for,"),
    ("", "but not after a second Ctrl-C"),
];

/// What a key means in a mode; `None` if nothing.
pub(super) fn action(key: KeyEvent, mode: &Mode) -> Option<Action> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    let plain = !key.modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT);
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Action::Interrupt),
        KeyCode::Char('u') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Action::RubAll),
        KeyCode::Char(letter) if plain => of_letter(letter, mode),
        KeyCode::Backspace => Some(Action::Rub),
        KeyCode::Enter if matches!(mode, Mode::Typing | Mode::Asking(_)) => Some(Action::Done),
        KeyCode::Enter => Some(Action::Open),
        KeyCode::Esc => Some(Action::Back),
        code => step(code).map(Action::Move),
    }
}

fn step(code: KeyCode) -> Option<Step> {
    Some(match code {
        KeyCode::Up => Step::Up,
        KeyCode::Down => Step::Down,
        KeyCode::PageUp => Step::PageUp,
        KeyCode::PageDown => Step::PageDown,
        KeyCode::Home => Step::First,
        KeyCode::End => Step::Last,
        _ => return None,
    })
}

fn of_letter(letter: char, mode: &Mode) -> Option<Action> {
    Some(match (mode, letter) {
        (Mode::Typing, letter) => Action::Letter(letter),
        (Mode::Asking(_), 'f') => Action::Choose("full"),
        (Mode::Asking(_), 'l') => Action::Choose("low"),
        (Mode::Asking(_), '0'..='9' | '.') => Action::Letter(letter),
        (Mode::Asking(_) | Mode::Reading(_) | Mode::Help, 'q') => Action::Back,
        (Mode::Asking(_), _) => return None,
        (_, 'k') => Action::Move(Step::Up),
        (_, 'j') => Action::Move(Step::Down),
        (Mode::Reading(_), ' ') => Action::Move(Step::PageDown),
        (Mode::Reading(_), 'b') => Action::Move(Step::PageUp),
        (Mode::Help, '?') => Action::Help,
        (Mode::Reading(_) | Mode::Help, _) => return None,
        (_, 'q') => Action::Leave,
        (_, 'g') => Action::Sort(Sort::Growth),
        (_, 's') => Action::Sort(Sort::Size),
        (_, 'p') => Action::Sort(Sort::Pid),
        (_, '/') => Action::Filter,
        (_, 'c') => Action::Capture,
        (_, 'C') => Action::Ask,
        (_, '?') => Action::Help,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(code: KeyCode, mode: &Mode) -> Option<Action> {
        action(KeyEvent::new(code, KeyModifiers::NONE), mode)
    }

    #[test]
    fn keys_of_the_table() {
        let keys = [
            ('j', Action::Move(Step::Down)),
            ('k', Action::Move(Step::Up)),
            ('s', Action::Sort(Sort::Size)),
            ('/', Action::Filter),
            ('c', Action::Capture),
            ('C', Action::Ask),
            ('?', Action::Help),
            ('q', Action::Leave),
        ];
        for (letter, wanted) in keys {
            assert_eq!(key(KeyCode::Char(letter), &Mode::Table), Some(wanted));
        }
        assert_eq!(key(KeyCode::PageDown, &Mode::Table), Some(Action::Move(Step::PageDown)));
        assert_eq!(key(KeyCode::Enter, &Mode::Table), Some(Action::Open));
        assert_eq!(key(KeyCode::Char('x'), &Mode::Table), None);
    }

    #[test]
    fn letters_are_letters_while_typing() {
        for letter in ['q', 'c', 'j', '/', '?', 'ä'] {
            assert_eq!(key(KeyCode::Char(letter), &Mode::Typing), Some(Action::Letter(letter)));
        }
        assert_eq!(key(KeyCode::Enter, &Mode::Typing), Some(Action::Done));
        assert_eq!(key(KeyCode::Up, &Mode::Typing), Some(Action::Move(Step::Up)));
    }

    #[test]
    fn overheads_are_chosen_or_typed() {
        let asking = Mode::Asking(String::new());
        assert_eq!(key(KeyCode::Char('l'), &asking), Some(Action::Choose("low")));
        assert_eq!(key(KeyCode::Char('5'), &asking), Some(Action::Letter('5')));
        assert_eq!(key(KeyCode::Char('c'), &asking), None);
        assert_eq!(key(KeyCode::Enter, &asking), Some(Action::Done));
    }

    #[test]
    fn control_c_always_ends() {
        let control = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        for mode in [Mode::Table, Mode::Typing, Mode::Help, Mode::Reading(3), Mode::Leaving] {
            assert_eq!(action(control, &mode), Some(Action::Interrupt));
        }
        let alt = KeyEvent::new(KeyCode::Char('q'), KeyModifiers::ALT);
        assert_eq!(action(alt, &Mode::Table), None);
        let release = KeyEvent::new_with_kind(KeyCode::Char('q'), KeyModifiers::NONE, KeyEventKind::Release);
        assert_eq!(action(release, &Mode::Table), None);
    }
}
