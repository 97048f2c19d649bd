//! Manual pages and completions, from the definitions of the command line.

use std::io;

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::Cli;

/// A command that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no command '{name}'; take one of {}", names().join(", "))]
pub struct UnknownCommand {
    name: String,
}

/// A page: `pgleak-capture.1` and what is in it.
pub type Page = (String, Vec<u8>);

/// The command line without the commands that pgleak keeps to itself.
fn pgleak() -> Command {
    let all = Cli::command();
    let about = all.get_about().cloned().unwrap_or_default();
    let mut shown = Command::new("pgleak")
        .about(about)
        .version(env!("CARGO_PKG_VERSION"))
        .args(all.get_arguments().cloned())
        .subcommands(all.get_subcommands().filter(|command| !command.is_hide_set()).cloned());
    shown.build();
    shown
}

fn commands(pgleak: &Command) -> impl Iterator<Item = &Command> {
    pgleak.get_subcommands().filter(|command| command.get_name() != "help")
}

fn names() -> Vec<String> {
    commands(&pgleak()).map(|command| command.get_name().to_owned()).collect()
}

/// What a shell needs to complete arguments.
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut pgleak(), "pgleak", &mut script);
    script
}

/// Every page, that of pgleak itself first.
///
/// # Errors
/// None that memory does not have.
pub fn pages() -> io::Result<Vec<Page>> {
    let pgleak = pgleak();
    std::iter::once(page(&pgleak, None))
        .chain(commands(&pgleak).map(|command| page(&pgleak, Some(command))))
        .collect()
}

/// The page of a command, or of pgleak itself.
///
/// # Errors
/// If there is no such command.
pub fn page_of(name: Option<&str>) -> Result<Page, UnknownCommand> {
    let wanted = name.map_or_else(|| "pgleak.1".to_owned(), |name| format!("pgleak-{name}.1"));
    let unknown = || UnknownCommand { name: name.unwrap_or_default().to_owned() };
    pages().ok().and_then(|pages| pages.into_iter().find(|(file, _)| *file == wanted)).ok_or_else(unknown)
}

fn page(pgleak: &Command, command: Option<&Command>) -> io::Result<Page> {
    let (name, of) = match command {
        None => ("pgleak".to_owned(), pgleak.clone()),
        Some(command) => {
            let name = format!("pgleak-{}", command.get_name());
            let usage = format!("pgleak {}", command.get_name());
            // As it is typed, and with the version that only pgleak itself has.
            let version = pgleak.get_version().unwrap_or_default().to_owned();
            (name.clone(), command.clone().name(name).bin_name(usage).version(version))
        }
    };
    let mut page = Vec::new();
    Man::new(of).title(name.to_uppercase()).render(&mut page)?;
    Ok((format!("{name}.1"), page))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_that_is_shown_has_a_page() {
        let pages = pages().expect("pages");
        let files: Vec<&str> = pages.iter().map(|(file, _)| &**file).collect();
        for file in ["pgleak.1", "pgleak-capture.1", "pgleak-contexts.1", "pgleak-diff.1", "pgleak-man.1"] {
            assert!(files.contains(&file), "{file} is not in {files:?}");
        }
        assert!(!files.iter().any(|file| file.contains("help") || file.contains("watchdog")), "{files:?}");
        let (_, capture) = page_of(Some("capture")).expect("a page");
        let text = String::from_utf8(capture).expect("text");
        for part in [".TH PGLEAK-CAPTURE 1", "pgleak capture", "\\-\\-overhead", ".SH OPTIONS"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn another_command_is_refused_with_those_that_are() {
        let error = page_of(Some("fly")).expect_err("no command").to_string();
        assert!(error.contains("'fly'") && error.contains("capture, render"), "{error}");
    }
}
