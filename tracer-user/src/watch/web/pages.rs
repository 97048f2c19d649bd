//! The pages: documents, a style and a script, all in the program.

use axum::{
    Extension, Form, Router,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Redirect, Response},
    routing::get,
};
use serde::Deserialize;

use super::{Shared, gate::Via};

/// A file of the pages.
struct Asset {
    path: &'static str,
    content: &'static str,
    text: &'static str,
    /// Whether somebody without a token may have it: the page that asks for one needs its style.
    is_public: bool,
}

/// A document: what all have in common, and what is its own.
macro_rules! document {
    ($path:literal, $title:literal, $name:literal) => {
        Asset {
            path: $path,
            content: "text/html; charset=utf-8",
            text: concat!(
                include_str!("assets/head.html"),
                "<title>",
                $title,
                " – pgleak</title>\n<script type=\"module\" src=\"/assets/",
                $name,
                ".js\"></script>\n",
                include_str!("assets/header.html"),
                include_str!(concat!("assets/", $name, ".html"))
            ),
            is_public: false,
        }
    };
}

const fn script(path: &'static str, text: &'static str) -> Asset {
    Asset { path, content: "text/javascript; charset=utf-8", text, is_public: true }
}

/// All of them.
const ASSETS: &[Asset] = &[
    document!("/", "Processes", "servers"),
    document!("/process", "Process", "process"),
    document!("/captures", "Captures", "captures"),
    document!("/capture", "Capture", "capture"),
    script("/assets/servers.js", include_str!("assets/servers.js")),
    script("/assets/process.js", include_str!("assets/process.js")),
    script("/assets/captures.js", include_str!("assets/captures.js")),
    script("/assets/capture.js", include_str!("assets/capture.js")),
    script("/assets/page.js", include_str!("assets/page.js")),
    script("/assets/plot.js", include_str!("assets/plot.js")),
    Asset {
        path: "/assets/style.css",
        content: "text/css; charset=utf-8",
        text: include_str!("assets/style.css"),
        is_public: true,
    },
    Asset {
        path: "/assets/icon.svg",
        content: "image/svg+xml",
        text: include_str!("assets/icon.svg"),
        is_public: true,
    },
];

const LOGIN: &str = "/login";

pub(super) fn routes() -> Router<Shared> {
    let router = ASSETS.iter().fold(Router::new(), |router, asset| {
        router.route(asset.path, get(|| async { asset_response(asset) }))
    });
    router.route(LOGIN, get(|| async { login() }).post(log_in)).route("/healthz", get(health))
}

/// Whether the service looks as often as it should.
async fn health(State(shared): State<Shared>) -> Response {
    let now_ms = jiff::Timestamp::now().as_millisecond();
    match shared.view.borrow().is_current(now_ms) {
        true => "ok\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "no look at the processes lately\n").into_response(),
    }
}

/// Whether a path is for everybody.
pub(super) fn is_public(path: &str) -> bool {
    path == LOGIN || path == "/healthz" || ASSETS.iter().any(|asset| asset.is_public && asset.path == path)
}

/// Whether a path is that of a document, which says and does nothing by itself.
pub(super) fn is_document(path: &str) -> bool {
    path == LOGIN || ASSETS.iter().any(|asset| !asset.is_public && asset.path == path)
}

fn asset_response(asset: &Asset) -> Response {
    ([(header::CONTENT_TYPE, asset.content), (header::CACHE_CONTROL, "no-cache")], asset.text).into_response()
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
}

/// Asks for the token.
pub(super) fn login() -> Html<&'static str> {
    Html(concat!(
        include_str!("assets/head.html"),
        "<title>Token needed – pgleak</title>\n",
        include_str!("assets/login.html")
    ))
}

async fn log_in(
    State(shared): State<Shared>,
    Extension(via): Extension<Via>,
    Form(given): Form<Token>,
) -> Response {
    if !given.token.is_some_and(|token| shared.gate.is_token(token.trim())) {
        return (StatusCode::UNAUTHORIZED, login()).into_response();
    }
    let mut response = Redirect::to("/").into_response();
    if let Ok(cookie) = HeaderValue::from_str(&shared.gate.cookie(via)) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

pub(super) async fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "there is no such page\n").into_response()
}
