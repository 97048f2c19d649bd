//! The page, its data, the metrics and the requests, over HTTP.

mod api;
mod artifacts;
mod gate;
mod listen;
mod metrics;
mod pages;
mod token;

pub use api::CaptureRequest;

use std::{
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use axum::{Router, extract::DefaultBodyLimit, middleware};
use tokio::sync::{Semaphore, mpsc, watch};

use super::{
    config::{Listen, StoreConfig, WebConfig},
    database::{Database, DatabaseError},
    decide::Asked,
    view::View,
};

/// The longest body of a request.
const MOST_BODY: usize = 16 << 10;

/// As many artifacts are on their way at once, each in memory.
const MOST_READ: usize = 4;

/// Why there can be no page.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// It cannot listen at a socket.
    #[error("cannot listen at {}: {source}; give another place in web.listen", path.display())]
    Unix {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot listen at an address.
    #[error("cannot listen at {address}: {source}; give another address in web.listen")]
    Tcp {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The certificate or its key cannot be used.
    #[error("cannot use {} for web.tls: {why}", path.display())]
    Tls {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The token cannot be read or made.
    #[error("cannot use the token in {}: {source}", path.display())]
    Token {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The index cannot be read.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

/// What all requests share.
#[derive(Clone)]
struct Shared {
    view: watch::Receiver<Arc<View>>,
    index: Arc<Mutex<Database>>,
    directory: Arc<Path>,
    asking: mpsc::Sender<Asked>,
    gate: Arc<gate::Gate>,
    /// The difference that was drawn last.
    drawn: Arc<tokio::sync::Mutex<Option<artifacts::Drawn>>>,
    /// Page tables are walked one at a time.
    measuring: Arc<Semaphore>,
    /// Artifacts are read a few at a time: each is in memory meanwhile.
    reading: Arc<Semaphore>,
}

impl Shared {
    /// Reads the index where that may take its time.
    async fn index<T: Send + 'static>(&self, read: impl FnOnce(&Database) -> T + Send + 'static) -> T {
        let index = Arc::clone(&self.index);
        let read = tokio::task::spawn_blocking(move || {
            read(&index.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
        });
        read.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }
}

/// Where it listens, for the log.
#[derive(Debug)]
pub(super) struct Served(Vec<String>);

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0[..] {
            [] => f.write_str("no page"),
            _ => write!(f, "page at {}", self.0.join(" and ")),
        }
    }
}

/// Begins to serve, in the background.
///
/// # Errors
/// If it cannot listen.
pub(super) async fn serve(
    config: &WebConfig,
    store: &StoreConfig,
    view: watch::Receiver<Arc<View>>,
    asking: mpsc::Sender<Asked>,
) -> Result<Served, WebError> {
    let token = token::read_or_make(&store.directory)?;
    let gate = Arc::new(gate::Gate::new(token, &config.hosts, &config.listen));
    let shared = Shared {
        view,
        index: Arc::new(Mutex::new(Database::read_only(&store.directory)?)),
        directory: store.directory.clone().into(),
        asking,
        gate: Arc::clone(&gate),
        drawn: Arc::default(),
        measuring: Arc::new(Semaphore::new(1)),
        reading: Arc::new(Semaphore::new(MOST_READ)),
    };
    let router = Router::new()
        .merge(pages::routes())
        .merge(api::routes())
        .merge(artifacts::routes())
        .merge(metrics::routes())
        .fallback(pages::not_found)
        .with_state(shared)
        .layer(DefaultBodyLimit::max(MOST_BODY))
        .layer(middleware::from_fn_with_state(gate, gate::check));
    let tls = config.tls.as_ref().map(listen::acceptor).transpose()?;
    let mut served = Vec::new();
    for listen in &config.listen {
        // Who fills up one place keeps nobody from another.
        let (router, connections) = (router.clone(), Arc::new(Semaphore::new(listen::MOST_CONNECTIONS)));
        served.push(match listen {
            Listen::Unix(path) => listen::unix(path, router, connections)?,
            Listen::Tcp(address) => {
                // Encrypted where others can read.
                let tls = tls.clone().filter(|_| !address.ip().is_loopback());
                listen::tcp(*address, tls, router, connections).await?
            }
        });
    }
    Ok(Served(served))
}
