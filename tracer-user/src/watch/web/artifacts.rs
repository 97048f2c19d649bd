//! The files of a capture, and differences of two. What is asked for is looked up in tables: no path comes from a request.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use sha2::{Digest as _, Sha256};
use tokio::task::spawn_blocking;

use super::{Shared, pages::not_found};
use crate::{
    render::FORMATS,
    watch::{record::CaptureNumber, store::artifact_path},
};

/// Pictures and tables of a difference: what `pgleak diff` writes.
const DIFFERENCES: [&str; 3] = ["diff.txt", "diff.svg", "diff-before.svg"];

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/captures/{number}/{file}", get(artifact))
        .route("/captures/{number}/since/{earlier}/{file}", get(difference))
}

async fn artifact(State(shared): State<Shared>, Path((number, file)): Path<(i64, String)>) -> Response {
    let Some(file) = FORMATS.iter().filter_map(|format| format.file).find(|known| *known == file) else {
        return not_found().await;
    };
    let path = artifact_path(&shared.directory, CaptureNumber(number), file);
    match spawn_blocking(move || std::fs::read(path)).await {
        Ok(Ok(bytes)) => answer(file, bytes),
        // It never was, or it is too old.
        _ => (StatusCode::NOT_FOUND, "this capture is not in the store, or no longer\n").into_response(),
    }
}

async fn difference(
    State(shared): State<Shared>,
    Path((number, earlier, file)): Path<(i64, i64, String)>,
) -> Response {
    let Some(file) = DIFFERENCES.into_iter().find(|known| *known == file) else { return not_found().await };
    let capture = |number| artifact_path(&shared.directory, CaptureNumber(number), "capture.json");
    let (before, after) = (capture(earlier), capture(number));
    let Ok(_permit) = shared.drawing.acquire().await else { return not_found().await };
    match spawn_blocking(move || compare(&before, &after, file)).await {
        Ok(Ok(bytes)) => answer(file, bytes),
        Ok(Err(why)) => (StatusCode::NOT_FOUND, format!("{why}\n")).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Has a program of its own compare them: what that takes is not the service's.
fn compare(before: &PathBuf, after: &PathBuf, file: &str) -> Result<Vec<u8>, String> {
    if !(before.is_file() && after.is_file()) {
        return Err("one of these captures is not in the store, or no longer".to_owned());
    }
    let out = tempfile::tempdir().map_err(|error| format!("there is no room for it: {error}"))?;
    let compared = Command::new("/proc/self/exe")
        .arg("diff")
        .args([before, after])
        .arg("--out")
        .arg(out.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .map_err(|error| format!("they cannot be compared: {error}"))?;
    if !compared.status.success() {
        return Err(String::from_utf8_lossy(&compared.stderr).trim().to_owned());
    }
    std::fs::read(out.path().join(file)).map_err(|error| error.to_string())
}

fn answer(file: &str, bytes: Vec<u8>) -> Response {
    let is = |ending: &str| file.ends_with(ending);
    let content = match () {
        () if is(".svg") => "image/svg+xml",
        () if is(".json") => "application/json",
        () if is(".gz") => "application/gzip",
        () => "text/plain; charset=utf-8",
    };
    let policy = is(".svg").then(|| policy_of(&String::from_utf8_lossy(&bytes)));
    let mut response = ([(header::CONTENT_TYPE, content)], bytes).into_response();
    if let Some(policy) = policy.and_then(|policy| HeaderValue::from_str(&policy).ok()) {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// What an interactive flame graph may do: run the script that is in it, and no other; style itself; nothing else, and as
/// nobody (an origin of its own), so that it can reach nothing of ours.
fn policy_of(svg: &str) -> String {
    let hash = |text: &str| format!("'sha256-{}'", BASE64.encode(Sha256::digest(text.as_bytes())));
    let mut allowed: Vec<String> = Vec::new();
    let mut rest = svg;
    while let Some((_, after)) = rest.split_once("<script") {
        let Some((_, body)) = after.split_once('>') else { break };
        let Some((script, after)) = body.split_once("</script>") else { break };
        // It is in several sections, whose marks are no part of it.
        allowed.push(hash(&script.replace("<![CDATA[", "").replace("]]>", "")));
        rest = after;
    }
    // `onload="init(evt)"`, which starts it.
    if let Some((_, after)) = svg.split_once("onload=\"")
        && let Some((handler, _)) = after.split_once('"')
    {
        allowed.extend([hash(handler), "'unsafe-hashes'".to_owned()]);
    }
    format!(
        "default-src 'none'; style-src 'unsafe-inline'; script-src {}; frame-ancestors 'self'; sandbox allow-scripts",
        allowed.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_may_run_its_own_script_and_no_other() {
        let policy = policy_of(
            "<svg onload=\"init(evt)\"><script type=\"x\"><![CDATA[alert]]><![CDATA[(1)]]></script><g>onclick</g></svg>",
        );
        // echo -n 'alert(1)' | openssl dgst -sha256 -binary | base64
        assert!(policy.contains("'sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI='"), "{policy}");
        assert!(policy.contains("'unsafe-hashes'") && policy.contains("sandbox allow-scripts"), "{policy}");
        let script = policy.split("script-src").nth(1).expect("a part").split(';').next().expect("its end");
        assert!(!script.contains("unsafe-inline"), "{policy}");
    }
}
