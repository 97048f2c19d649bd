//! The parts of the configuration, with what holds where it is silent.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, de::Error as _};

use crate::{
    quantity::{read_bytes, read_duration, read_percent, read_some_bytes, read_some_duration},
    session::Overhead,
};

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

impl CaptureConfig {
    /// For how long one capture has probes, as far as that is known before.
    pub fn planned(&self) -> Duration {
        match self.overhead {
            Overhead::Full => self.duration + self.settle.unwrap_or(Duration::from_secs(3)),
            // Windows are attached, recorded and settled for a small part of the time, at most for a quarter of it
            // where a process does hardly anything.
            Overhead::Share(share) => self.duration.mul_f64((share * 4.0).min(1.0)),
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
    /// Seconds with probes in an hour, over all processes. Of that, one capture is kept for each server that had none.
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
