//! What the environment says about debuginfod, in the variables of elfutils.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use super::DebuginfodError;

/// All requests of one run together. Nobody waits for names for longer in an incident.
const TIME_LIMIT: Duration = Duration::from_secs(20);

/// The debug file of a large server has a fifth of this.
const MOST_BYTES: u64 = 1 << 30;

/// How debuginfod is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Servers, without a slash at the end, in the order in which they are asked.
    pub servers: Vec<String>,
    /// Where files are kept, as `BUILDID/debuginfo`.
    pub cache: PathBuf,
    /// For all requests together.
    pub time_limit: Duration,
    /// Larger files are refused.
    pub most_bytes: u64,
}

impl Settings {
    /// Reads `DEBUGINFOD_URLS`, `DEBUGINFOD_CACHE_PATH`, `DEBUGINFOD_TIMEOUT` (seconds) and
    /// `DEBUGINFOD_MAXSIZE` (bytes).
    ///
    /// # Errors
    /// If there is no server, or a value makes no sense.
    pub fn from_env() -> Result<Self, DebuginfodError> {
        Self::from_variables(|name| std::env::var_os(name))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, DebuginfodError> {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        let text = |name| set(name).map(|value| value.to_string_lossy().into_owned());
        let number = |name: &'static str| match text(name) {
            None => Ok(None),
            Some(value) => match value.trim().parse::<u64>() {
                Ok(number) => Ok(Some(number).filter(|number| *number > 0)),
                Err(_) => Err(DebuginfodError::BadNumber { name, value }),
            },
        };
        let in_home = || {
            let caches = set("XDG_CACHE_HOME").map(PathBuf::from);
            let caches = caches.or_else(|| Some(PathBuf::from(set("HOME")?).join(".cache")));
            caches.map(|caches| caches.join("pgleak/debuginfod"))
        };
        Ok(Self {
            servers: servers(&text("DEBUGINFOD_URLS").unwrap_or_default())?,
            cache: set("DEBUGINFOD_CACHE_PATH")
                .map(PathBuf::from)
                .or_else(in_home)
                .ok_or(DebuginfodError::NoCache)?,
            // Zero means no limit to elfutils; here it is the default's turn.
            time_limit: number("DEBUGINFOD_TIMEOUT")?.map_or(TIME_LIMIT, Duration::from_secs),
            most_bytes: number("DEBUGINFOD_MAXSIZE")?.unwrap_or(MOST_BYTES),
        })
    }
}

fn servers(urls: &str) -> Result<Vec<String>, DebuginfodError> {
    // Words such as ima:enforcing say how signatures of the servers after them are checked. The
    // build ID is what is checked here.
    let words = urls.split_ascii_whitespace().filter(|word| !word.starts_with("ima:"));
    let server = |word: &str| match word.split_once("://") {
        Some(("http" | "https", host)) if !host.is_empty() => Ok(word.trim_end_matches('/').to_owned()),
        _ => Err(DebuginfodError::BadUrl(word.to_owned())),
    };
    let servers = words.map(server).collect::<Result<Vec<_>, _>>()?;
    if servers.is_empty() { Err(DebuginfodError::NoServer) } else { Ok(servers) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings, String> {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
        Settings::from_variables(find).map_err(|error| error.to_string())
    }

    #[test]
    fn the_environment_is_that_of_elfutils() {
        let urls = ("DEBUGINFOD_URLS", "ima:enforcing https://one.example/ http://two.example:8002");
        let least = settings(&[urls, ("HOME", "/root")]).expect("enough");
        assert_eq!(least.servers, ["https://one.example", "http://two.example:8002"]);
        assert_eq!(least.cache, PathBuf::from("/root/.cache/pgleak/debuginfod"));
        assert_eq!((least.time_limit, least.most_bytes), (TIME_LIMIT, MOST_BYTES));
        let all = settings(&[
            urls,
            ("XDG_CACHE_HOME", "/var/cache"),
            ("DEBUGINFOD_TIMEOUT", "5"),
            ("DEBUGINFOD_MAXSIZE", "1000"),
        ]);
        let all = all.expect("all");
        assert_eq!(all.cache, PathBuf::from("/var/cache/pgleak/debuginfod"));
        assert_eq!((all.time_limit, all.most_bytes), (Duration::from_secs(5), 1000));
        let own = settings(&[urls, ("DEBUGINFOD_CACHE_PATH", "/c")]).expect("no home needed");
        assert_eq!(own.cache, PathBuf::from("/c"));
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        let urls = ("DEBUGINFOD_URLS", "http://one.example");
        for (variables, says) in [
            (&[("HOME", "/root")][..], "names no server"),
            (&[("DEBUGINFOD_URLS", " \t"), ("HOME", "/root")], "names no server"),
            (&[("DEBUGINFOD_URLS", "ftp://x"), ("HOME", "/root")], "'ftp://x'"),
            (&[urls], "set DEBUGINFOD_CACHE_PATH"),
            (&[urls, ("HOME", "/root"), ("DEBUGINFOD_TIMEOUT", "soon")], "DEBUGINFOD_TIMEOUT is 'soon'"),
        ] {
            let error = settings(variables).expect_err(says);
            assert!(error.contains(says), "{error}");
        }
    }
}
