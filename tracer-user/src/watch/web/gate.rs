//! Who may come in: by which name, from which page, with which token.
//!
//! A page of somebody else in the same browser can send requests here, and names can be made to lead here (DNS rebinding).
//! So the name that was asked for must be one of ours, and what changes something must come from our own page, or from no
//! page at all. At a network address a token is needed beside; a socket in the file system has its permissions.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use tokio::time::timeout;

use super::{MOST_BODY, pages};
use crate::watch::config::Listen;

/// How a connection came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Via {
    /// Whether everybody on the host, or beyond, can connect.
    pub(super) is_open: bool,
    /// Whether it is encrypted.
    pub(super) is_tls: bool,
}

/// What is asked at the door.
pub(super) struct Gate {
    token: String,
    /// Names and addresses that are ours, without ports.
    hosts: Vec<String>,
}

/// A request is answered within that time, or not at all.
const LONGEST_REQUEST: Duration = Duration::from_secs(90);

/// The cookie that a browser keeps the token in.
const COOKIE: &str = "pgleak";

/// Nothing but our own files, and nothing in them that is not in a file.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'self'";

impl Gate {
    pub(super) fn new(token: String, hosts: &[String], listen: &[Listen]) -> Self {
        let mut ours = ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned).to_vec();
        ours.extend(hosts.iter().map(|host| host.to_ascii_lowercase()));
        ours.extend(listen.iter().filter_map(|listen| match listen {
            Listen::Tcp(address) if address.is_ipv6() => Some(format!("[{}]", address.ip())),
            Listen::Tcp(address) => Some(address.ip().to_string()),
            Listen::Unix(_) => None,
        }));
        Self { token, hosts: ours }
    }

    /// Whether that is the token. How long it takes says nothing of where they differ.
    pub(super) fn is_token(&self, given: &str) -> bool {
        let (given, token) = (given.as_bytes(), self.token.as_bytes());
        let different = given.iter().zip(token).fold(0, |different, (a, b)| different | (a ^ b));
        given.len() == token.len() && different == 0
    }

    fn is_ours(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else { return false };
        let name = authority.host().trim_end_matches('.').to_ascii_lowercase();
        self.hosts.contains(&name)
    }

    /// Why a request is not let in; `None` if it is.
    fn refusal(&self, request: &Request, via: Via) -> Option<(StatusCode, &'static str)> {
        let headers = request.headers();
        let host = text(headers, &header::HOST);
        if !host.is_some_and(|host| self.is_ours(host)) {
            return Some((
                StatusCode::MISDIRECTED_REQUEST,
                "this name is not one of this page; put it into web.hosts of pgleak's configuration",
            ));
        }
        let is_safe = matches!(*request.method(), Method::GET | Method::HEAD);
        if !is_safe && !is_from_here(headers, host) {
            return Some((StatusCode::FORBIDDEN, "this request came from another page"));
        }
        // A page of somebody else must not even read.
        let site = text(headers, &HeaderName::from_static("sec-fetch-site"));
        let is_foreign = site.is_some_and(|site| !matches!(site, "same-origin" | "none"));
        // But a link may lead here: to a document, in a window of its own.
        let is_link = text(headers, &HeaderName::from_static("sec-fetch-mode")) == Some("navigate")
            && text(headers, &HeaderName::from_static("sec-fetch-dest")) == Some("document");
        if is_foreign && !(is_safe && is_link && pages::is_document(request.uri().path())) {
            return Some((StatusCode::FORBIDDEN, "this request came from another page"));
        }
        // Said at once, and not when all of it was sent.
        let length = text(headers, &header::CONTENT_LENGTH).and_then(|length| length.parse::<usize>().ok());
        if length.is_some_and(|length| length > MOST_BODY) {
            return Some((StatusCode::PAYLOAD_TOO_LARGE, "a request is not as long as that"));
        }
        if via.is_open && !pages::is_public(request.uri().path()) && !self.has_token(headers) {
            return Some((
                StatusCode::UNAUTHORIZED,
                "a token is needed: it is in the file `token` of the store",
            ));
        }
        None
    }

    fn has_token(&self, headers: &HeaderMap) -> bool {
        let bearer = text(headers, &header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let cookie = cookies
            .flat_map(|line| line.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .find_map(|(name, value)| (name == COOKIE).then_some(value));
        bearer.or(cookie).is_some_and(|given| self.is_token(given.trim()))
    }

    /// The header that makes a browser keep the token.
    pub(super) fn cookie(&self, via: Via) -> String {
        let secure = if via.is_tls { "; Secure" } else { "" };
        format!("{COOKIE}={}; HttpOnly; SameSite=Lax; Path=/{secure}", self.token)
    }
}

fn is_from_here(headers: &HeaderMap, host: Option<&str>) -> bool {
    match text(headers, &header::ORIGIN) {
        // No browser sends a request that changes something without it.
        None => true,
        Some(origin) => {
            let origin = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            origin.is_some() && origin == host
        }
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Lets a request in or not, and puts on every answer what a browser should know.
pub(super) async fn check(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let via = request.extensions().get::<Via>().copied().unwrap_or(Via { is_open: true, is_tls: false });
    let wants_page =
        text(request.headers(), &header::ACCEPT).is_some_and(|accept| accept.contains("text/html"));
    let mut response = match gate.refusal(&request, via) {
        // A body that does not come, and whatever takes too long.
        None => match timeout(LONGEST_REQUEST, next.run(request)).await {
            Ok(response) => response,
            Err(_) => (StatusCode::REQUEST_TIMEOUT, "this took too long\n").into_response(),
        },
        Some((StatusCode::UNAUTHORIZED, _)) if wants_page && request.method() == Method::GET => {
            (StatusCode::UNAUTHORIZED, pages::login()).into_response()
        }
        Some((status, why)) => (status, format!("{why}\n")).into_response(),
    };
    harden(&mut response);
    response
}

fn harden(response: &mut Response<Body>) {
    let headers = response.headers_mut();
    // A picture with a script of its own brings its own policy.
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static(POLICY));
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        // Without its own origin, a form of our own would be taken for another page's.
        ("referrer-policy", "same-origin"),
        ("x-frame-options", "SAMEORIGIN"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Via = Via { is_open: true, is_tls: false };
    const SOCKET: Via = Via { is_open: false, is_tls: false };

    fn gate() -> Gate {
        Gate::new("secret".to_owned(), &["db7.example.org".to_owned()], &[])
    }

    fn refused(via: Via, method: Method, path: &str, headers: &[(&str, &str)]) -> Option<StatusCode> {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        gate().refusal(&request.body(Body::empty()).expect("a request"), via).map(|(status, _)| status)
    }

    #[test]
    fn only_our_own_names_lead_here() {
        for host in
            ["localhost", "localhost:9188", "127.0.0.1:1", "[::1]:9188", "DB7.example.org", "localhost."]
        {
            assert_eq!(refused(SOCKET, Method::GET, "/", &[("host", host)]), None, "{host}");
        }
        for host in
            ["evil.example.org", "localhost.evil.org", "127.0.0.1.nip.io", "", "a b", "user@localhost:1@x"]
        {
            let status = refused(SOCKET, Method::GET, "/", &[("host", host)]);
            assert_eq!(status, Some(StatusCode::MISDIRECTED_REQUEST), "{host}");
        }
        assert_eq!(refused(SOCKET, Method::GET, "/", &[]), Some(StatusCode::MISDIRECTED_REQUEST));
    }

    #[test]
    fn other_pages_change_and_read_nothing() {
        let host = ("host", "localhost:9188");
        let post = |origin| refused(SOCKET, Method::POST, "/api/v1/captures", &[host, ("origin", origin)]);
        assert_eq!(post("http://localhost:9188"), None);
        for origin in ["http://localhost:8080", "http://evil.example.org", "null", "localhost:9188"] {
            assert_eq!(post(origin), Some(StatusCode::FORBIDDEN), "{origin}");
        }
        assert_eq!(refused(SOCKET, Method::POST, "/api/v1/captures", &[host]), None, "a program");
        let read = |site| refused(SOCKET, Method::GET, "/api/v1/state", &[host, ("sec-fetch-site", site)]);
        assert_eq!((read("same-origin"), read("none")), (None, None));
        assert_eq!(
            (read("cross-site"), read("same-site")),
            (Some(StatusCode::FORBIDDEN), Some(StatusCode::FORBIDDEN))
        );
        // A link to us in a chat.
        let from = |path, dest| {
            let headers = [
                host,
                ("sec-fetch-site", "cross-site"),
                ("sec-fetch-mode", "navigate"),
                ("sec-fetch-dest", dest),
            ];
            refused(SOCKET, Method::GET, path, &headers)
        };
        assert_eq!((from("/", "document"), from("/capture?n=3", "document")), (None, None));
        // What does work, in a frame that nobody sees, and in any.
        for (path, dest) in [
            ("/captures/3/since/2/diff.svg", "iframe"),
            ("/captures/3/since/2/diff.svg", "document"),
            ("/api/v1/processes/1/smaps", "document"),
            ("/", "iframe"),
        ] {
            assert_eq!(from(path, dest), Some(StatusCode::FORBIDDEN), "{path} {dest}");
        }
    }

    #[test]
    fn a_network_address_wants_the_token() {
        let host = ("host", "localhost:9188");
        let get = |headers: &[(&str, &str)]| {
            let all: Vec<_> = std::iter::once(host).chain(headers.iter().copied()).collect();
            refused(OPEN, Method::GET, "/metrics", &all)
        };
        assert_eq!(get(&[]), Some(StatusCode::UNAUTHORIZED));
        assert_eq!(get(&[("authorization", "Bearer wrong!")]), Some(StatusCode::UNAUTHORIZED));
        assert_eq!(get(&[("authorization", "Bearer secre")]), Some(StatusCode::UNAUTHORIZED));
        assert_eq!(get(&[("cookie", "a=b; pgleakx=secret")]), Some(StatusCode::UNAUTHORIZED));
        assert_eq!(get(&[("authorization", "Bearer secret")]), None);
        assert_eq!(get(&[("cookie", "a=b; pgleak=secret")]), None);
        assert_eq!(refused(SOCKET, Method::GET, "/metrics", &[host]), None);
    }
}
