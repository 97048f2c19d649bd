//! The configuration file of the service: what it may say, what holds where it is silent.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::Parser as _;
use serde::{Deserialize, Deserializer, de::Error as _};

use super::{record::CaptureNumber, run::Order};
use crate::{
    cli::Cli,
    quantity::{read_bytes, read_duration, read_percent, read_some_bytes, read_some_duration},
    session::Overhead,
    target::ProcessId,
};

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

/// Looks that are kept to see growth by.
const MOST_POINTS: f64 = 2000.0;

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

/// Looking at processes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CensusConfig {
    /// How often memory is looked at.
    #[serde(deserialize_with = "read_duration")]
    pub interval: Duration,
    /// Data directories of the servers that are watched; all servers of the host if there are none.
    pub servers: Vec<String>,
    /// The part of one core that reading memory contexts may take.
    #[serde(deserialize_with = "read_percent")]
    pub contexts_share: f64,
    /// How long the series is kept, thinned out with age.
    #[serde(deserialize_with = "read_duration")]
    pub keep: Duration,
    /// How large its file may become.
    #[serde(deserialize_with = "read_bytes")]
    pub max_size: u64,
}

impl Default for CensusConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(5),
            servers: Vec::new(),
            contexts_share: 0.003,
            keep: Duration::from_secs(30 * 86400),
            max_size: 256 << 20,
        }
    }
}

/// When a capture begins by itself.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Triggers {
    /// When something keeps growing.
    pub growth: GrowthTrigger,
    /// When something is large.
    pub limit: LimitTrigger,
    /// Every so often.
    pub schedule: Option<ScheduleTrigger>,
}

/// When something keeps growing.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GrowthTrigger {
    /// Whether it is looked for.
    pub enabled: bool,
    /// Over which time.
    #[serde(deserialize_with = "read_duration")]
    pub window: Duration,
    /// A process whose anonymous memory gains so many bytes a minute.
    #[serde(deserialize_with = "read_bytes")]
    pub process_per_minute: u64,
    /// Contexts of one name in a process that gain so many bytes a minute.
    #[serde(deserialize_with = "read_bytes")]
    pub context_per_minute: u64,
}

impl Default for GrowthTrigger {
    fn default() -> Self {
        Self {
            enabled: true,
            window: Duration::from_secs(600),
            process_per_minute: 1 << 20,
            context_per_minute: 512 << 10,
        }
    }
}

/// When something is large: none unless it is said.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitTrigger {
    /// A process with so many bytes of anonymous memory.
    #[serde(deserialize_with = "read_some_bytes")]
    pub process: Option<u64>,
    /// Contexts of one name in a process with so many bytes.
    #[serde(deserialize_with = "read_some_bytes")]
    pub context: Option<u64>,
}

/// Every so often, whatever grows.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleTrigger {
    /// How often.
    #[serde(deserialize_with = "read_duration")]
    pub every: Duration,
    /// How many of those that grow most.
    #[serde(default = "one")]
    pub top: u32,
}

fn one() -> u32 {
    1
}

/// How captures are made: as by the options of `pgleak capture` with these names.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaptureConfig {
    /// `full`, `low` or a percentage.
    #[serde(deserialize_with = "read_overhead")]
    pub overhead: Overhead,
    /// How long allocations are recorded.
    #[serde(deserialize_with = "read_duration")]
    pub duration: Duration,
    /// How long frees are followed after that, if that is not left to pgleak.
    #[serde(deserialize_with = "read_some_duration")]
    pub settle: Option<Duration>,
    /// Record samples, one each so many bytes.
    #[serde(deserialize_with = "read_some_bytes")]
    pub sample: Option<u64>,
    /// How many times slower a process may become while it is recorded.
    pub max_slowdown: f64,
    /// Kernel memory for the maps.
    #[serde(deserialize_with = "read_some_bytes")]
    pub map_memory: Option<u64>,
    /// Keep the literals of statements.
    pub show_queries: bool,
    /// Ask debuginfod for what this host does not have.
    pub debuginfod: bool,
}

impl Default for CaptureConfig {
    fn default() -> Self {
        Self {
            overhead: Overhead::LOW,
            duration: Duration::from_secs(120),
            settle: None,
            sample: None,
            max_slowdown: 25.0,
            map_memory: None,
            show_queries: false,
            debuginfod: false,
        }
    }
}

fn read_overhead<'de, D: Deserializer<'de>>(from: D) -> Result<Overhead, D::Error> {
    Overhead::from_str(&String::deserialize(from)?).map_err(D::Error::custom)
}

/// What captures may cost.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Budget {
    /// Seconds with probes in an hour, over all processes.
    #[serde(deserialize_with = "read_duration")]
    pub probed_per_hour: Duration,
    /// The same of one process.
    #[serde(deserialize_with = "read_duration")]
    pub probed_per_hour_and_process: Duration,
    /// Captures at once.
    pub at_once: u32,
    /// What leaked is not captured again for so long.
    #[serde(deserialize_with = "read_duration")]
    pub cool_down: Duration,
    /// What turned out to be no leak is not captured again for so long at first, twice as long each time, and at most for
    /// `cool_down`.
    #[serde(deserialize_with = "read_duration")]
    pub cool_down_without_leak: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            probed_per_hour: Duration::from_secs(300),
            probed_per_hour_and_process: Duration::from_secs(120),
            at_once: 1,
            cool_down: Duration::from_secs(86400),
            cool_down_without_leak: Duration::from_secs(3600),
        }
    }
}

/// Where everything is kept, and for how long.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// The directory, made if it is not there.
    pub directory: PathBuf,
    /// How long captures are kept.
    #[serde(deserialize_with = "read_duration")]
    pub keep: Duration,
    /// How many of them.
    pub max_captures: u32,
    /// How many bytes of them.
    #[serde(deserialize_with = "read_bytes")]
    pub max_size: u64,
    /// Nothing is captured where less than this is free.
    #[serde(deserialize_with = "read_bytes")]
    pub min_free: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            directory: "/var/lib/pgleak".into(),
            keep: Duration::from_secs(90 * 86400),
            max_captures: 500,
            max_size: 2 << 30,
            min_free: 256 << 20,
        }
    }
}

/// Where the page, the metrics and the requests are.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WebConfig {
    /// `unix:/run/pgleak/web.sock`, `127.0.0.1:9188`, or another address with `tls`. Nothing if empty.
    #[serde(deserialize_with = "read_listeners")]
    pub listen: Vec<Listen>,
    /// Names that a browser may reach it by, beside localhost: `db7.example.org`.
    pub hosts: Vec<String>,
    /// Certificate and key, for addresses that other hosts can reach.
    pub tls: Option<Tls>,
}

impl Default for WebConfig {
    fn default() -> Self {
        Self { listen: vec![Listen::Unix("/run/pgleak/web.sock".into())], hosts: Vec::new(), tls: None }
    }
}

/// A place to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A socket in the file system, for its owner only.
    Unix(PathBuf),
    /// A network address.
    Tcp(SocketAddr),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return match path.is_absolute() {
                true => Ok(Self::Unix(path)),
                false => Err(format!("'{text}' needs a whole path, such as unix:/run/pgleak/web.sock")),
            };
        }
        text.parse().map(Self::Tcp).map_err(|_| {
            format!("'{text}' is no place to listen at; write unix:/run/pgleak/web.sock or 127.0.0.1:9188")
        })
    }
}

fn read_listeners<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Listen>, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    texts.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
}

/// Files in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate, with those that lead to its root.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Who is told of a verdict.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Notify {
    /// Of leaks only, or of each capture.
    pub on: NotifyOn,
    /// A program with its arguments, which gets the JSON on its standard input and has no capabilities.
    pub command: Vec<String>,
    /// An address that gets the JSON by POST.
    pub webhook: Option<Webhook>,
}

/// Of what is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NotifyOn {
    /// What leaks, is held or grows as a cache.
    #[default]
    Leak,
    /// Each capture, those that failed too.
    Capture,
}

/// An address that gets the JSON by POST.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// `https://…`
    pub url: String,
    /// Headers beside, such as `Authorization`.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

/// Where profiles are sent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Push {
    /// What listens there.
    pub to: PushTo,
    /// `https://…`, without the path that the protocol has.
    pub url: String,
    /// Headers beside.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Labels of every profile beside its own.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// What listens there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PushTo {
    /// `PusherService` of Pyroscope.
    Pyroscope,
    /// `/profiles/writeraw` of Parca.
    Parca,
    /// OTLP over HTTP: verdicts as log records.
    Otlp,
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

    /// What does not go together.
    fn problem(&self) -> Option<String> {
        let seconds = |seconds| Duration::from_secs(seconds);
        let (census, growth) = (&self.census, &self.triggers.growth);
        if !(seconds(1)..=seconds(600)).contains(&census.interval) {
            return Some("census.interval is between 1s and 10m".to_owned());
        }
        if census.keep < seconds(3600) {
            return Some("census.keep is at least 1h".to_owned());
        }
        if growth.window.as_secs_f64() / census.interval.as_secs_f64() > MOST_POINTS {
            return Some(format!(
                "triggers.growth.window has more than {MOST_POINTS} looks, which are kept in memory for each process and \
                 context: give a shorter one, or a longer census.interval"
            ));
        }
        if census.max_size < 4 << 20 {
            return Some("census.max_size is at least 4M".to_owned());
        }
        if growth.window < census.interval * 12 || growth.window > seconds(86400) {
            return Some(format!(
                "triggers.growth.window is between twelve times census.interval ({}s now) and 24h",
                (census.interval * 12).as_secs()
            ));
        }
        if growth.process_per_minute == 0 || growth.context_per_minute == 0 {
            return Some(
                "triggers.growth wants rates of at least one byte a minute; `enabled = false` turns it off"
                    .to_owned(),
            );
        }
        if self.triggers.schedule.as_ref().is_some_and(|schedule| schedule.every < seconds(10)) {
            return Some("triggers.schedule.every is at least 10s".to_owned());
        }
        let capture = &self.capture;
        if !(seconds(1)..=seconds(3600)).contains(&capture.duration) {
            return Some("capture.duration is between 1s and 1h".to_owned());
        }
        if !capture.max_slowdown.is_finite() || capture.max_slowdown < 1.0 {
            return Some("capture.max_slowdown is a factor of at least 1".to_owned());
        }
        if let Some(why) = self.refused_by_capture() {
            return Some(format!("[capture]: {why}"));
        }
        let budget = &self.budget;
        if budget.at_once == 0 {
            return Some(
                "budget.at_once is at least 1; without triggers nothing starts by itself".to_owned(),
            );
        }
        let planned = self.planned();
        if planned > budget.probed_per_hour || planned > budget.probed_per_hour_and_process {
            return Some(format!(
                "one capture has probes for about {} s, which is more than budget.probed_per_hour or \
                 budget.probed_per_hour_and_process allow: no capture would ever begin",
                planned.as_secs_f64().ceil()
            ));
        }
        if !self.store.directory.is_absolute() {
            return Some("store.directory needs a whole path".to_owned());
        }
        self.web.problem().or_else(|| self.addresses_problem())
    }

    fn addresses_problem(&self) -> Option<String> {
        let webhook = self.notify.webhook.iter().map(|webhook| ("notify.webhook.url", &webhook.url));
        let pushes = self.push.iter().map(|push| ("push.url", &push.url));
        webhook.chain(pushes).find_map(|(key, url)| {
            let is_web = url.starts_with("https://") || url.starts_with("http://");
            (!is_web).then(|| format!("{key} is no address that begins with https:// or http://"))
        })
    }

    /// What `pgleak capture` would say to the options that it would get.
    fn refused_by_capture(&self) -> Option<String> {
        let order = Order {
            number: CaptureNumber(0),
            process: ProcessId { pid: 1, start_ticks: 0 },
            out: PathBuf::from("/"),
            how: self.capture.clone(),
        };
        let asked = std::iter::once("pgleak".to_owned()).chain(order.arguments());
        let error = Cli::try_parse_from(asked).err()?.to_string();
        let first = error.lines().next().unwrap_or_default();
        Some(first.trim_start_matches("error: ").to_owned())
    }

    /// For how long one capture has probes, as far as that is known before.
    pub fn planned(&self) -> Duration {
        let capture = &self.capture;
        match capture.overhead {
            Overhead::Full => capture.duration + capture.settle.unwrap_or(Duration::from_secs(3)),
            // Windows are attached, recorded and settled for a small part of the time, at most for a quarter of it
            // where a process does hardly anything.
            Overhead::Share(share) => capture.duration.mul_f64((share * 4.0).min(1.0)),
        }
    }
}

impl WebConfig {
    fn problem(&self) -> Option<String> {
        let outside = self.listen.iter().find_map(|listen| match listen {
            Listen::Tcp(address) if !address.ip().is_loopback() => Some(address),
            _ => None,
        });
        match outside {
            Some(address) if self.tls.is_none() => Some(format!(
                "web.listen has {address}, which other hosts can reach: give web.tls a certificate and its key, or \
                 listen at 127.0.0.1 behind a proxy that does"
            )),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(config.planned(), Duration::from_secs(16));
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
        let text = include_str!("../../../packaging/pgleak.toml");
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
        assert_eq!(schedule.as_ref().map(|schedule| schedule.top), Some(one()));
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
