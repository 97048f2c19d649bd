//! When the sources were changed last, and by whom: what a package says instead of the time and place of its making.

use std::{env, process::Command};

use anyhow::{Context, Result};

use crate::{process::output, workspace};

/// The last change.
#[derive(Debug)]
pub(super) struct Commit {
    /// Seconds since 1970.
    pub(super) epoch: u64,
    /// `Name <address>`.
    pub(super) author: String,
}

impl Commit {
    /// Of the checkout, where the environment does not say otherwise: `SOURCE_DATE_EPOCH`, and `DEBFULLNAME` with
    /// `DEBEMAIL`.
    pub(super) fn of_sources() -> Result<Self> {
        let set = |name| env::var(name).ok().filter(|value| !value.is_empty());
        let author = set("DEBFULLNAME").zip(set("DEBEMAIL")).map(|(name, mail)| format!("{name} <{mail}>"));
        let epoch = match set("SOURCE_DATE_EPOCH") {
            Some(epoch) => epoch,
            None => of_git("%ct").context("set SOURCE_DATE_EPOCH where this is no git checkout")?,
        };
        let author = match author {
            Some(author) => author,
            None => {
                of_git("%an <%ae>").context("set DEBFULLNAME and DEBEMAIL where this is no git checkout")?
            }
        };
        let epoch = epoch.parse().with_context(|| format!("'{epoch}' is no time in seconds since 1970"))?;
        Ok(Self { epoch, author })
    }

    /// The time as changelogs have it: `Sun, 29 Nov 2026 06:49:56 +0000`.
    pub(super) fn date(&self) -> Result<String> {
        let mut command = Command::new("date");
        command.args(["--utc", "--rfc-email", &format!("--date=@{}", self.epoch)]).env("LC_ALL", "C");
        output(&mut command).map(|date| date.trim_end().to_owned())
    }
}

fn of_git(format: &str) -> Result<String> {
    let mut command = Command::new("git");
    command.args(["log", "-1", &format!("--format={format}")]).current_dir(workspace::root());
    output(&mut command).map(|line| line.trim_end().to_owned())
}
