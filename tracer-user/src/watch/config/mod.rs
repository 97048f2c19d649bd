//! The configuration file of the service: what it may say, what holds where it is silent.

mod check;
mod sections;

pub(super) use sections::{
    Budget, CaptureConfig, CensusConfig, Listen, Notify, NotifyOn, Push, PushTo, ScheduleTrigger,
    StoreConfig, Tls, Triggers, WebConfig, Webhook,
};

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the configuration {}: {source}; `pgleak watch --config FILE` names it", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not in the language, or has a key or value that there is not.
    #[error("{}, line {line}: {what}", path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Which line; the line itself may hold a secret.
        line: usize,
        /// Why.
        what: String,
    },
    /// Its values do not go together.
    #[error("{}: {what}", path.display())]
    Senseless {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
}

/// All of it. The default watches, keeps and serves, and captures what keeps growing.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Looking at processes.
    pub census: CensusConfig,
    /// When a capture begins by itself.
    pub triggers: Triggers,
    /// How it is made.
    pub capture: CaptureConfig,
    /// What captures may cost.
    pub budget: Budget,
    /// Where everything is kept, and for how long.
    pub store: StoreConfig,
    /// The page, the metrics and the requests.
    pub web: WebConfig,
    /// Who is told.
    pub notify: Notify,
    /// Where profiles are sent.
    pub push: Vec<Push>,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// If there is none, it cannot be understood, or it makes no sense.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            ConfigError::Syntax {
                path: path.to_owned(),
                line: before.matches('\n').count() + 1,
                what: error.message().trim_end().to_owned(),
            }
        })?;
        match config.problem() {
            Some(what) => Err(ConfigError::Senseless { path: path.to_owned(), what }),
            None => Ok(config),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("pgleak.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_is_the_default_and_makes_sense() {
        assert_eq!(parse(""), Ok(Config::default()));
    }

    #[test]
    fn values_are_written_as_people_write_them() {
        let config = parse(
            r#"
            [census]
            interval = "10s"
            contexts_share = "0.5%"
            [triggers.growth]
            process_per_minute = "4M"
            [triggers.limit]
            process = "2G"
            [triggers.schedule]
            every = "6h"
            [capture]
            overhead = "full"
            duration = "13s"
            [web]
            listen = ["unix:/run/x.sock", "127.0.0.1:9188"]
            [[push]]
            to = "pyroscope"
            url = "https://profiles.example.org"
            "#,
        )
        .expect("it makes sense");
        assert_eq!(config.census.contexts_share, 0.005);
        assert_eq!(config.triggers.limit.process, Some(2 << 30));
        assert_eq!(config.triggers.schedule.as_ref().map(|schedule| schedule.top), Some(1));
        assert_eq!(config.capture.planned(), Duration::from_secs(16));
        assert_eq!(config.web.listen.len(), 2);
    }

    #[test]
    fn secrets_are_not_told() {
        let unclosed = "[notify.webhook]\nurl = \"https://x\"\nheaders = { Authorization = \"Bearer s3cret }";
        let error = parse(unclosed).expect_err("no quote");
        assert!(error.contains("line 3") && !error.contains("s3cret"), "{error}");
        let error = parse("[notify.webhook]\nurl = \"s3cret\"").expect_err("no address");
        assert!(!error.contains("s3cret"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (text, part) in [
            ("[census]\nintervall = \"5s\"", "intervall"),
            ("[census]\ninterval = \"5 weeks\"", "no unit of time"),
            ("[census]\ninterval = \"0s\"", "between 1s and 10m"),
            ("[capture]\noverhead = \"some\"", "neither full, low"),
            ("[capture]\noverhead = \"full\"\nduration = \"30m\"", "no capture would ever begin"),
            ("[web]\nlisten = [\"0.0.0.0:80\"]", "other hosts can reach"),
            ("[web]\nlisten = [\"web.sock\"]", "no place to listen at"),
            ("[notify.webhook]\nurl = \"ftp://x\"", "notify.webhook.url"),
            ("[triggers.growth]\nwindow = \"10s\"", "twelve times"),
            ("census = 1", "line 1"),
            ("[capture]\nsettle = \"20m\"", "limited to 10m"),
            ("[capture]\nsample = \"32\"", "one sample each 64"),
            ("[triggers.growth]\nwindow = \"24h\"", "kept in memory"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.starts_with("pgleak.toml") && error.contains(part), "{text}: {error}");
        }
    }

    /// What the package installs changes nothing, and shows every key with its default.
    #[test]
    fn the_packaged_file_is_the_default() {
        let text = include_str!("../../../../packaging/pgleak.toml");
        assert_eq!(parse(text), Ok(Config::default()));
        // Keys are commented out right behind the `#`, sentences behind a space.
        let is_key = |rest: &&str| rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[');
        let all: Vec<&str> =
            text.lines().map(|line| line.strip_prefix('#').filter(is_key).unwrap_or(line)).collect();
        let all = parse(&all.join("\n")).expect("they are keys");
        let default = Config::default();
        // What has no default is there as an example.
        let Triggers { growth, limit, schedule } = &all.triggers;
        assert!(limit.process.is_some() && limit.context.is_some());
        assert_eq!(schedule.as_ref().map(|schedule| schedule.top), Some(1));
        let Some(Push { to: PushTo::Pyroscope, headers, labels, .. }) = all.push.first() else {
            panic!("{all:?}")
        };
        assert!(!headers.is_empty() && !labels.is_empty() && all.web.tls.is_some());
        assert!(all.notify.webhook.as_ref().is_some_and(|webhook| !webhook.headers.is_empty()));
        let examples =
            [all.capture.settle.is_some(), all.capture.sample.is_some(), all.capture.map_memory.is_some()];
        assert_eq!(examples, [true; 3]);
        let capture = CaptureConfig { settle: None, sample: None, map_memory: None, ..all.capture.clone() };
        assert_eq!((growth, &capture), (&default.triggers.growth, &default.capture));
        assert_eq!(
            (&all.census, &all.budget, &all.store),
            (&default.census, &default.budget, &default.store)
        );
        let web = WebConfig { tls: None, ..all.web.clone() };
        assert_eq!(
            (&web, all.notify.on, &all.notify.command),
            (&default.web, default.notify.on, &default.notify.command)
        );
    }
}
