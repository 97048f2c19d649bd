//! Listening: sockets, addresses, TLS; each connection bounded in time, all of them in number.

use std::{fs, io, net::SocketAddr, os::unix::fs::FileTypeExt as _, path::Path, sync::Arc, time::Duration};

use axum::{Extension, Router};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::{WebError, gate::Via};
use crate::{https::install_provider, watch::config::Tls};

/// As many connections are served at once at each place; others wait.
pub(super) const MOST_CONNECTIONS: usize = 64;

/// A client has so long for TLS, and for the head of each request.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection lives no longer.
const LONGEST_CONNECTION: Duration = Duration::from_secs(300);

/// Listens at a socket that only its owner can connect to.
pub(super) fn unix(path: &Path, router: Router, connections: Arc<Semaphore>) -> Result<String, WebError> {
    let failed = |source| WebError::Unix { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        use std::os::unix::fs::DirBuilderExt as _;
        fs::DirBuilder::new().mode(0o700).recursive(true).create(parent).map_err(failed)?;
    }
    clear(path).map_err(failed)?;
    // From the beginning, and not only once it was changed.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = listener.map_err(failed)?;
    let router = router.layer(Extension(Via { is_open: false, is_tls: false }));
    tokio::spawn(async move {
        loop {
            let permit = permit(&connections).await;
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(serve(stream, router.clone(), permit))),
                Err(error) => pause(&error).await,
            }
        }
    });
    Ok(format!("unix:{}", path.display()))
}

/// Takes a socket away that an earlier service has left behind.
fn clear(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => Err(io::ErrorKind::AlreadyExists.into()),
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
            Err(_) => fs::remove_file(path),
        },
    }
}

/// Listens at a network address.
pub(super) async fn tcp(
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    router: Router,
    connections: Arc<Semaphore>,
) -> Result<String, WebError> {
    let failed = |source| WebError::Tcp { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let is_tls = tls.is_some();
    let router = router.layer(Extension(Via { is_open: true, is_tls }));
    tokio::spawn(async move {
        loop {
            let permit = permit(&connections).await;
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    pause(&error).await;
                    continue;
                }
            };
            let (router, tls) = (router.clone(), tls.clone());
            tokio::spawn(async move {
                match tls {
                    None => serve(stream, router, permit).await,
                    Some(tls) => match timeout(PATIENCE, tls.accept(stream)).await {
                        Ok(Ok(stream)) => serve(stream, router, permit).await,
                        Ok(Err(error)) => debug!("no TLS: {error}"),
                        Err(_) => debug!("no TLS in time"),
                    },
                }
            });
        }
    });
    Ok(format!("{}://{bound}", if is_tls { "https" } else { "http" }))
}

async fn permit(connections: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    // Nobody closes it.
    Arc::clone(connections).acquire_owned().await.ok()
}

/// Out of descriptors, most likely: accepting at once again would not help.
async fn pause(error: &io::Error) {
    warn!("cannot accept a connection: {error}");
    sleep(Duration::from_millis(500)).await;
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    permit: Option<OwnedSemaphorePermit>,
) {
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // A browser opens another one; who reads nothing is not served for ever.
    match timeout(LONGEST_CONNECTION, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!("a connection ended early: {error}"),
        Err(_) => debug!("a connection was ended for its age"),
    }
    drop(permit);
}

/// TLS with a certificate.
pub(super) fn acceptor(files: &Tls) -> Result<TlsAcceptor, WebError> {
    install_provider();
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |why: String| WebError::Tls { path, why }
    };
    let certificates = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| failed(&files.certificate)(error.to_string()))?;
    let key =
        PrivateKeyDer::from_pem_file(&files.key).map_err(|error| failed(&files.key)(error.to_string()))?;
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(|error| failed(&files.certificate)(error.to_string()))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
