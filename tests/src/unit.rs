//! What systemd does for a unit before it starts the program, as far as that can be done without it: user, capabilities,
//! directories, environment.

use std::process::Command;

use anyhow::{Context, Result};

use crate::overlay::Overlay;

/// Directories that a unit asks for, and where they are.
const DIRECTORIES: [(&str, &str); 3] =
    [("StateDirectory", "/var/lib"), ("RuntimeDirectory", "/run"), ("CacheDirectory", "/var/cache")];

/// Runs the rest with a mask for the modes of new files.
const WITH_UMASK: &str = r#"umask "$1" && shift && exec "$@""#;

/// What a unit says of its service: keys and values in their order.
#[derive(Debug)]
pub struct Unit {
    settings: Vec<(String, String)>,
}

impl Unit {
    /// Reads the section `[Service]` of a unit in which no line goes on in the next.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().map(str::trim).skip_while(|line| *line != "[Service]").skip(1);
        let settings = lines
            .take_while(|line| !line.starts_with('['))
            .filter(|line| !line.starts_with(['#', ';']))
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Self { settings }
    }

    /// The words of all lines with a key.
    pub fn words<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        let values = self.settings.iter().filter(move |(known, _)| known == key);
        values.flat_map(|(_, value)| value.split_whitespace())
    }

    /// The value of a key that is there once.
    ///
    /// # Errors
    /// If it is not there.
    pub fn value(&self, key: &str) -> Result<&str> {
        let value = self.settings.iter().rfind(|(known, _)| known == key);
        value.map(|(_, value)| &**value).with_context(|| format!("the unit has no {key}="))
    }

    /// Makes the service's directories.
    ///
    /// # Errors
    /// If there is no such user.
    pub fn make_directories(&self, machine: &Overlay) -> Result<()> {
        let (user, group) = (self.value("User")?, self.value("Group")?);
        for (key, parent) in DIRECTORIES {
            let mode = self.value(&format!("{key}Mode"))?;
            for name in self.words(key) {
                let path = format!("{parent}/{name}");
                machine.output(["install", "-d", "-m", mode, "-o", user, "-g", group, &path])?;
            }
        }
        Ok(())
    }

    /// A program as the service runs it.
    ///
    /// # Errors
    /// If the unit does not say how.
    pub fn command<'a>(
        &'a self,
        machine: &Overlay,
        words: impl IntoIterator<Item = &'a str>,
    ) -> Result<Command> {
        let sets = |key| {
            let names = self.words(key).filter_map(|name| name.strip_prefix("CAP_"));
            names.fold("-all".to_owned(), |all, name| format!("{all},+{}", name.to_lowercase()))
        };
        let (ambient, bounding) = (sets("AmbientCapabilities"), sets("CapabilityBoundingSet"));
        let options = [
            format!("--reuid={}", self.value("User")?),
            format!("--regid={}", self.value("Group")?),
            "--init-groups".to_owned(),
            "--no-new-privs".to_owned(),
            format!("--inh-caps={ambient}"),
            format!("--ambient-caps={ambient}"),
            format!("--bounding-set={bounding}"),
        ];
        let mut command = machine.command(["setpriv"]);
        command.args(options).args([
            "sh",
            "-c",
            WITH_UMASK,
            "sh",
            self.value("UMask")?,
            "env",
            "--ignore-environment",
        ]);
        command.args(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "LC_ALL=C.UTF-8"]);
        command.args(self.words("Environment")).args(words);
        Ok(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_says_what_its_service_gets() {
        let unit = Unit::parse(
            "[Unit]\nUser=no\n[Service]\n# User=no\nUser=pgleak\nA=one two\nA=three\nB=\n[Install]\nUser=no\n",
        );
        assert_eq!(unit.value("User").expect("it is there"), "pgleak");
        assert_eq!(unit.words("A").collect::<Vec<_>>(), ["one", "two", "three"]);
        assert!(unit.value("C").is_err() && unit.value("B").is_ok_and(str::is_empty));
    }
}
