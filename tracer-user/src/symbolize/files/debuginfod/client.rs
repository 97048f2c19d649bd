//! Asks servers for debug files by build ID, each server only as long as it behaves.

use std::{
    fs::File,
    os::fd::AsRawFd as _,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use super::{
    DebuginfodError, FetchError, Settings,
    cache::Cache,
    download::{Outcome, Request, download},
};
use crate::{addr::BuildId, elf::Image, https::system_tls};

/// Asks debuginfod servers, within one time limit for all requests.
#[derive(Debug)]
pub struct Debuginfod {
    agent: ureq::Agent,
    /// Those that are still asked.
    servers: Vec<String>,
    cache: Cache,
    most_bytes: u64,
    time_limit: Duration,
    time_left: Duration,
    interrupted: Arc<AtomicBool>,
}

impl Debuginfod {
    /// Gets ready and asks nothing yet. As soon as `interrupted` is set, no server is waited for.
    ///
    /// # Errors
    /// If the cache cannot be written to, or https servers cannot be verified.
    pub fn new(settings: Settings, interrupted: Arc<AtomicBool>) -> Result<Self, DebuginfodError> {
        let cache = Cache::at(&settings.cache)?;
        let uses_tls = settings.servers.iter().any(|server| server.starts_with("https:"));
        let mut config = ureq::Agent::config_builder()
            .user_agent(concat!("pgleak/", env!("CARGO_PKG_VERSION")))
            .accept("*/*");
        if uses_tls {
            config = config.tls_config(system_tls().ok_or(DebuginfodError::NoCertificates)?);
        }
        Ok(Self {
            agent: config.build().new_agent(),
            servers: settings.servers,
            cache,
            most_bytes: settings.most_bytes,
            time_limit: settings.time_limit,
            time_left: settings.time_limit,
            interrupted,
        })
    }

    /// The debug file of a build: from the cache, else from the first server that has it. A server
    /// that fails or lies is told in `failures` and not asked again.
    pub(in crate::symbolize) fn find(
        &mut self,
        id: &BuildId,
        failures: &mut Vec<FetchError>,
    ) -> Option<Image> {
        if let Some(image) = self.cache.get(id) {
            return Some(image);
        }
        for server in self.servers.clone() {
            match self.ask(&server, id) {
                Ok(None) => {}
                Ok(Some(image)) => return Some(image),
                Err(error) => {
                    self.draw_consequences(&error, &server);
                    failures.push(error);
                }
            }
            if self.servers.is_empty() {
                break;
            }
        }
        None
    }

    fn ask(&mut self, server: &str, id: &BuildId) -> Result<Option<Image>, FetchError> {
        let request = Request {
            agent: self.agent.clone(),
            url: format!("{server}/buildid/{id}/debuginfo"),
            scratch: self.cache.path().to_owned(),
            most_bytes: self.most_bytes,
            time_left: self.time_left,
        };
        let asked = Instant::now();
        let outcome = download(request, &self.interrupted);
        self.time_left = self.time_left.saturating_sub(asked.elapsed());
        match outcome {
            Outcome::Came(mut file) => {
                verify(server, id, &file)?;
                self.cache.put(id, &mut file)?;
                Ok(self.cache.get(id))
            }
            Outcome::NotThere => Ok(None),
            Outcome::TooLarge => {
                let (server, wanted, limit) = (server.to_owned(), id.clone(), self.most_bytes);
                Err(FetchError::TooLarge { server, wanted, limit })
            }
            Outcome::TimeOver => Err(FetchError::TimeOver { limit_s: self.time_limit.as_secs() }),
            Outcome::Interrupted => Err(FetchError::Interrupted),
            Outcome::Failed(reason) => Err(FetchError::Server { server: server.to_owned(), reason }),
        }
    }

    /// Whom not to ask again.
    fn draw_consequences(&mut self, error: &FetchError, server: &str) {
        match error {
            FetchError::TooLarge { .. } => {}
            FetchError::Server { .. } | FetchError::Lie { .. } => {
                self.servers.retain(|other| other != server)
            }
            FetchError::TimeOver { .. } | FetchError::Interrupted | FetchError::Cache { .. } => {
                self.servers.clear();
            }
        }
    }
}

/// A build ID is a hash of what was linked, and a server that gives another file for it is broken or
/// hostile.
fn verify(server: &str, id: &BuildId, file: &File) -> Result<(), FetchError> {
    let opened = format!("/proc/self/fd/{}", file.as_raw_fd());
    let found = match Image::open(Path::new(&opened), Path::new("the file")) {
        Ok(image) if image.build_id() == Some(id) => return Ok(()),
        Ok(image) => match image.build_id() {
            Some(other) => format!("a file with build ID {other}"),
            None => "a file without a build ID".to_owned(),
        },
        Err(error) => format!("something else: {error}"),
    };
    Err(FetchError::Lie { server: server.to_owned(), wanted: id.clone(), found })
}
