//! The terminal: taken, drawn on, and given back as it was, however the program ends.

use std::{
    io::{self, IsTerminal as _, Stdout, stdout},
    panic,
    sync::{
        Once,
        atomic::{AtomicBool, Ordering},
    },
};

use ratatui::{
    Frame, Terminal,
    backend::CrosstermBackend,
    crossterm::{
        cursor::Show,
        execute,
        terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
    },
};

use super::error::TopError;

/// Whether the terminal is not as it was.
static TAKEN: AtomicBool = AtomicBool::new(false);
/// Whether any thread has panicked.
static PANICKED: AtomicBool = AtomicBool::new(false);

/// The terminal while it is drawn on. Dropping it gives it back.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    /// Takes the terminal. A panic of any thread gives it back before it says anything.
    pub(super) fn take() -> Result<Self, TopError> {
        static HOOK: Once = Once::new();
        if !stdout().is_terminal() {
            return Err(TopError::NoTerminal);
        }
        let failed = |source| TopError::Terminal { what: "draw on", source };
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |panic| {
                PANICKED.store(true, Ordering::SeqCst);
                give_back();
                before(panic);
            }));
        });
        TAKEN.store(true, Ordering::SeqCst);
        // From here on every way out gives it back.
        let result = enable_raw_mode()
            .and_then(|()| execute!(stdout(), EnterAlternateScreen))
            .and_then(|()| Terminal::new(CrosstermBackend::new(stdout())));
        match result {
            Ok(terminal) => Ok(Self { terminal }),
            Err(error) => {
                give_back();
                Err(failed(error))
            }
        }
    }

    /// Draws once.
    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> Result<(), TopError> {
        if PANICKED.load(Ordering::SeqCst) {
            return Err(TopError::Panicked);
        }
        match self.terminal.draw(draw) {
            Ok(_) => Ok(()),
            Err(source) => Err(TopError::Terminal { what: "draw on", source }),
        }
    }

    /// What was on the terminal before, as far as the size is concerned.
    pub(super) fn area(&self) -> ratatui::layout::Rect {
        let size = self.terminal.size().unwrap_or_default();
        ratatui::layout::Rect::from(((0, 0).into(), size))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Gives the terminal back, once. A terminal that is gone takes no text, and needs none.
fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        let _: io::Result<()> = execute!(stdout(), LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
    }
}
