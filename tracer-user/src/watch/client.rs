//! Asks a service that runs: for a capture, and for what became of it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::UnixStream, time::timeout};

use super::web::CaptureRequest;
use crate::https::system_tls;

/// A service that works answers within that time.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest answer that is read.
const MOST_BYTES: usize = 64 << 20;

/// Where a service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A socket in the file system.
    Unix(PathBuf),
    /// `http://127.0.0.1:9188`, without a path.
    Url(String),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        if text.starts_with("http://") || text.starts_with("https://") {
            return Ok(Self::Url(text.trim_end_matches('/').to_owned()));
        }
        Err(format!(
            "'{text}' is no place of a service; write unix:/run/pgleak/web.sock or http://127.0.0.1:9188"
        ))
    }
}

/// Why a service cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error(
        "cannot reach pgleak watch at {at}: {why}; does it run? `systemctl status pgleak` says, and --at where it listens"
    )]
    Unreachable {
        /// Where.
        at: String,
        /// Why not.
        why: String,
    },
    /// The token cannot be read.
    #[error("cannot read the token in {}: {source}; --token-file names it", path.display())]
    Token {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It says no.
    #[error("{0}")]
    Refused(String),
}

/// A service to ask.
#[derive(Clone, Debug)]
pub struct Client {
    place: Place,
    token: Option<String>,
}

impl Client {
    /// With the token of a file, which a network address needs.
    ///
    /// # Errors
    /// If that cannot be read.
    pub fn new(place: Place, token_file: Option<&Path>) -> Result<Self, ClientError> {
        let read = |path: &Path| {
            let text = fs::read_to_string(path);
            text.map_err(|source| ClientError::Token { path: path.to_owned(), source })
        };
        let token = token_file.map(read).transpose()?.map(|token| token.trim().to_owned());
        Ok(Self { place, token })
    }

    /// Asks for a capture, and gives its number.
    ///
    /// # Errors
    /// If it is refused, or nobody answers.
    pub async fn capture(&self, request: &CaptureRequest) -> Result<i64, ClientError> {
        let body = serde_json::to_string(request).expect("a request is plain data with names for keys");
        let answer = self.ask("POST", "/api/v1/captures", body).await?;
        answer["number"].as_i64().ok_or_else(|| self.strange(&answer))
    }

    /// What is known of a capture: the answer of `/api/v1/captures/N`.
    ///
    /// # Errors
    /// If there is none, or nobody answers.
    pub async fn about(&self, number: i64) -> Result<Value, ClientError> {
        self.ask("GET", &format!("/api/v1/captures/{number}"), String::new()).await
    }

    fn strange(&self, answer: &Value) -> ClientError {
        ClientError::Refused(format!("the service gives an answer that this pgleak does not know: {answer}"))
    }

    async fn ask(&self, method: &'static str, path: &str, body: String) -> Result<Value, ClientError> {
        let asked = timeout(PATIENCE, async {
            match &self.place {
                Place::Unix(socket) => self.ask_socket(socket, method, path, body).await,
                Place::Url(url) => self.ask_url(url, method, path, body).await,
            }
        });
        let at = match &self.place {
            Place::Unix(socket) => format!("unix:{}", socket.display()),
            Place::Url(url) => url.clone(),
        };
        let unreachable = |why: String| ClientError::Unreachable { at: at.clone(), why };
        let (status, text) =
            asked.await.map_err(|_| unreachable("it does not answer".to_owned()))?.map_err(unreachable)?;
        let answer: Result<Value, _> = serde_json::from_slice(&text);
        match (status.is_success(), answer) {
            (true, Ok(answer)) => Ok(answer),
            (false, Ok(answer)) if answer["error"].is_string() => {
                Err(ClientError::Refused(answer["error"].as_str().unwrap_or_default().to_owned()))
            }
            _ => {
                let said = String::from_utf8_lossy(&text);
                Err(ClientError::Refused(format!("the service answered {status}: {}", said.trim())))
            }
        }
    }

    async fn ask_socket(
        &self,
        socket: &Path,
        method: &str,
        path: &str,
        body: String,
    ) -> Result<(StatusCode, Vec<u8>), String> {
        let stream = UnixStream::connect(socket).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let text = Limited::new(response.into_body(), MOST_BYTES).collect().await;
        drop(sender);
        connection.abort();
        Ok((status, text.map_err(|error| error.to_string())?.to_bytes().to_vec()))
    }

    async fn ask_url(
        &self,
        url: &str,
        method: &'static str,
        path: &str,
        body: String,
    ) -> Result<(StatusCode, Vec<u8>), String> {
        let (url, token) = (format!("{url}{path}"), self.token.clone());
        let asked = tokio::task::spawn_blocking(move || {
            let mut config = ureq::Agent::config_builder().http_status_as_error(false).max_redirects(0);
            if url.starts_with("https:") {
                config =
                    config.tls_config(system_tls().ok_or("this system trusts no certificate authority")?);
            }
            let agent = config.build().new_agent();
            let bearer = token.map(|token| format!("Bearer {token}"));
            let answer = if method == "POST" {
                let request = agent.post(&url).content_type("application/json");
                match bearer {
                    Some(bearer) => request.header("authorization", bearer),
                    None => request,
                }
                .send(body)
            } else {
                let request = agent.get(&url);
                match bearer {
                    Some(bearer) => request.header("authorization", bearer),
                    None => request,
                }
                .call()
            };
            let mut answer = answer.map_err(|error| error.to_string())?;
            let status = answer.status();
            let text = answer.body_mut().read_to_vec().map_err(|error| error.to_string())?;
            Ok((status, text))
        });
        asked.await.map_err(|error| error.to_string())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        assert_eq!("unix:/x".parse(), Ok(Place::Unix("/x".into())));
        assert_eq!("http://localhost:9188/".parse(), Ok(Place::Url("http://localhost:9188".to_owned())));
        assert!("localhost".parse::<Place>().is_err());
    }
}
