//! A program in a pseudo terminal, and the screen that a user would see.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd, FromRawFd as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use xtask::process::signal;

/// A program that has a terminal of its own. Dropping it kills the program.
pub struct Terminal {
    child: Child,
    master: File,
    /// Kept open: what the program leaves behind is looked at when it has ended.
    slave: File,
    screen: Arc<Screen>,
    before: Modes,
}

struct Screen {
    parser: Mutex<vt100::Parser>,
    changed: Condvar,
}

impl Screen {
    fn lock(&self) -> MutexGuard<'_, vt100::Parser> {
        self.parser.lock().expect("the reader does not panic")
    }
}

/// The settings of a terminal, to be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Modes {
    flags: [libc::tcflag_t; 4],
    characters: [libc::cc_t; libc::NCCS],
}

impl Terminal {
    /// Starts a program in a new terminal of that size.
    pub fn start(command: &mut Command, (columns, rows): (u16, u16)) -> Result<Self> {
        let (master, slave) = open(columns, rows)?;
        let before = modes_of(&slave)?;
        let inherit = || slave.try_clone().context("cannot duplicate the terminal");
        command.stdin(inherit()?).stdout(inherit()?).stderr(inherit()?).env("TERM", "xterm-256color");
        // SAFETY: both calls are async-signal-safe and touch nothing but the child's own session.
        unsafe {
            command.pre_exec(|| {
                // A session of its own, which has this terminal.
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child =
            command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let screen =
            Screen { parser: Mutex::new(vt100::Parser::new(rows, columns, 0)), changed: Condvar::new() };
        let screen = Arc::new(screen);
        let from = master.try_clone().context("cannot duplicate the terminal")?;
        let shown = Arc::clone(&screen);
        // It ends when the last descriptor of the other side is closed.
        thread::spawn(move || read(from, &shown));
        Ok(Self { child, master, slave, screen, before })
    }

    /// What is on the screen.
    pub fn contents(&self) -> String {
        self.screen.lock().screen().contents()
    }

    /// Whether the screen is one that vanishes with the program.
    pub fn is_alternate(&self) -> bool {
        self.screen.lock().screen().alternate_screen()
    }

    /// Whether any cell has a colour.
    pub fn has_colours(&self) -> bool {
        let parser = self.screen.lock();
        let (rows, columns) = parser.screen().size();
        let cells = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
        cells
            .filter_map(|(row, column)| parser.screen().cell(row, column))
            .any(|cell| cell.fgcolor() != vt100::Color::Default || cell.bgcolor() != vt100::Color::Default)
    }

    /// Waits until a line of the screen holds all the texts; gives the line.
    pub fn wait_for(&self, texts: &[&str], patience: Duration) -> Result<String> {
        let holds = |line: &&str| texts.iter().all(|text| line.contains(text));
        let line = |screen: &vt100::Screen| screen.contents().lines().find(holds).map(str::to_owned);
        let found = self.wait_until(patience, line);
        found.with_context(|| format!("no line has {texts:?}"))
    }

    /// Waits until no line of the screen holds the text.
    pub fn wait_until_gone(&self, text: &str, patience: Duration) -> Result<()> {
        let gone = |screen: &vt100::Screen| (!screen.contents().contains(text)).then_some(());
        self.wait_until(patience, gone).with_context(|| format!("{text:?} stays"))
    }

    /// Waits until the lowest line of the screen holds the text.
    pub fn wait_for_bottom(&self, text: &str, patience: Duration) -> Result<()> {
        let holds = |screen: &vt100::Screen| {
            let (_, columns) = screen.size();
            screen.rows(0, columns).last().filter(|line| line.contains(text)).map(drop)
        };
        self.wait_until(patience, holds).with_context(|| format!("{text:?} is not at the bottom"))
    }

    /// Waits until the screen is the one that was there before the program.
    pub fn wait_until_given_back(&self, patience: Duration) -> Result<()> {
        let main = |screen: &vt100::Screen| (!screen.alternate_screen()).then_some(());
        self.wait_until(patience, main).context("the alternate screen stays")
    }

    fn wait_until<T>(&self, patience: Duration, wanted: impl Fn(&vt100::Screen) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + patience;
        let mut parser = self.screen.lock();
        loop {
            if let Some(found) = wanted(parser.screen()) {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("the screen is\n{}", parser.screen().contents());
            }
            parser = self.screen.changed.wait_timeout(parser, left).expect("the reader does not panic").0;
        }
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        self.master.write_all(keys.as_bytes()).context("cannot press keys")
    }

    /// Gives the terminal another size, which the program is told.
    pub fn resize(&mut self, columns: u16, rows: u16) -> Result<()> {
        self.screen.lock().screen_mut().set_size(rows, columns);
        let size = size(columns, rows);
        // SAFETY: the call reads a winsize, which this is.
        let result = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        if result < 0 {
            Err(io::Error::last_os_error()).context("cannot resize the terminal")
        } else {
            Ok(())
        }
    }

    /// Sends the program a signal.
    pub fn signal(&self, number: libc::c_int) -> Result<()> {
        if !signal(self.child.id(), number)? {
            bail!("the program had ended already");
        }
        Ok(())
    }

    /// The settings of the terminal now.
    pub fn modes(&self) -> Result<Modes> {
        modes_of(&self.slave)
    }

    /// The same before the program was started.
    pub fn modes_before(&self) -> &Modes {
        &self.before
    }

    /// Waits for the end of the program. The screen stays.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.child.wait().context("cannot wait for the program")
    }
}

fn modes_of(terminal: &impl AsRawFd) -> Result<Modes> {
    // SAFETY: all zeros is a valid termios to write into, and the descriptor is that of a terminal.
    let (result, now) = unsafe {
        let mut now: libc::termios = std::mem::zeroed();
        (libc::tcgetattr(terminal.as_raw_fd(), &raw mut now), now)
    };
    if result < 0 {
        return Err(io::Error::last_os_error()).context("cannot read the settings of the terminal");
    }
    let flags = [now.c_iflag, now.c_oflag, now.c_cflag, now.c_lflag];
    Ok(Modes { flags, characters: now.c_cc })
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Harmless after `wait`: the child is reaped and std sends nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn size(columns: u16, rows: u16) -> libc::winsize {
    libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn open(columns: u16, rows: u16) -> Result<(File, File)> {
    let (mut master, mut slave, size) = (-1, -1, size(columns, rows));
    // SAFETY: the call writes two descriptors and reads a size; null means no name and default settings.
    let result = unsafe {
        libc::openpty(
            &raw mut master,
            &raw mut slave,
            std::ptr::null_mut(),
            std::ptr::null(),
            &raw const size,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error()).context("cannot open a pseudo terminal");
    }
    // SAFETY: the kernel has just made both, and nothing else knows them.
    let (master, slave) = unsafe { (File::from_raw_fd(master), File::from_raw_fd(slave)) };
    for file in [&master, &slave] {
        // SAFETY: setting a flag of a descriptor that is open.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok((master, slave))
}

fn read(mut from: File, screen: &Screen) {
    let mut bytes = [0; 4096];
    // Ends with the terminal, or with an error that ends it as well.
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        screen.lock().process(&bytes[..length]);
        screen.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn a_program_has_a_terminal_and_is_seen_on_it() {
        let script = "stty size; read -r word; echo \"got $word\"; stty -echo; read -r _";
        let mut terminal = Terminal::start(Command::new("sh").args(["-c", script]), (60, 10)).expect("sh");
        terminal.wait_for(&["10 60"], PATIENCE).expect("its size");
        let before = terminal.modes().expect("settings");
        terminal.press("thing\n").expect("keys");
        terminal.wait_for(&["got", "thing"], PATIENCE).expect("what was pressed");
        terminal.press("\n").expect("keys");
        assert!(terminal.wait().expect("it ends").success());
        assert_ne!(terminal.modes().expect("settings"), before, "what it does to them is seen");
    }
}
