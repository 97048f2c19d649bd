//! The files of a capture, and differences of two. What is asked for is looked up in tables: no path comes from a request.

use std::{
    io,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use axum::{
    Router,
    body::Bytes,
    extract::{Path as UrlPath, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::{sync::OwnedSemaphorePermit, task::spawn_blocking};

use super::{Shared, pages::not_found};
use crate::{
    program::{ProgramError, own_program, run_for},
    render::{FORMATS, plain_pictures},
    watch::{
        record::CaptureNumber,
        store::{artifact_path, free_bytes, trash},
    },
};

/// Pictures and tables of a difference: what `pgleak diff` writes.
const DIFFERENCES: [&str; 3] = ["diff.txt", "diff.svg", "diff-before.svg"];

/// The largest artifact that is given out.
const MOST_BYTES: u64 = 64 << 20;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/captures/{number}/{file}", get(artifact))
        .route("/captures/{number}/since/{earlier}/{file}", get(difference))
}

async fn artifact(State(shared): State<Shared>, UrlPath((number, file)): UrlPath<(i64, String)>) -> Response {
    let Some(file) = FORMATS.iter().filter_map(|format| format.file).find(|known| *known == file) else {
        return not_found().await;
    };
    let path = artifact_path(&shared.directory, CaptureNumber(number), file);
    let Ok(permit) = shared.reading.acquire_owned().await else { return not_found().await };
    match spawn_blocking(move || (read(&path), permit)).await {
        Ok((Ok(bytes), permit)) => answer(file, bytes, permit),
        Ok((Err(error), _)) if error.kind() == io::ErrorKind::FileTooLarge => {
            (StatusCode::PAYLOAD_TOO_LARGE, "this file is too large for the page; it is in the store\n")
                .into_response()
        }
        // It never was, or it is too old.
        _ => (StatusCode::NOT_FOUND, "this capture is not in the store, or no longer\n").into_response(),
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    if std::fs::metadata(path)?.len() > MOST_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    std::fs::read(path)
}

async fn difference(
    State(shared): State<Shared>,
    UrlPath((number, earlier, file)): UrlPath<(i64, i64, String)>,
) -> Response {
    let Some(file) = DIFFERENCES.into_iter().find(|known| *known == file) else { return not_found().await };
    let capture = |number| artifact_path(&shared.directory, CaptureNumber(number), "capture.json");
    let (before, after) = (capture(earlier), capture(number));
    let (directory, min_free) = (shared.directory, shared.view.borrow().settings.min_free);
    let Ok(permit) = shared.reading.acquire_owned().await else { return not_found().await };
    // One at a time, whoever still waits for it; and the last one stays, since a page asks for all of its files.
    let mut drawn = shared.drawn.lock_owned().await;
    let work = move || {
        if !(before.is_file() && after.is_file()) {
            return Err(DiffError::Gone);
        }
        let files = match drawn.take().filter(|last| last.of == (number, earlier)) {
            Some(last) => last.files,
            None => compare(&before, &after, &directory, min_free)?,
        };
        let path = files.path().join(file);
        let bytes = read(&path).map_err(|source| DiffError::Read { path, source });
        *drawn = Some(Drawn { of: (number, earlier), files });
        bytes
    };
    match spawn_blocking(work).await {
        Ok(Ok(bytes)) => answer(file, bytes, permit),
        Ok(Err(error)) => (error.status(), format!("{error}\n")).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// A difference that was drawn.
pub(super) struct Drawn {
    /// The numbers of the captures, the later first.
    of: (i64, i64),
    files: TempDir,
}

/// Why there is no difference.
#[derive(Debug, thiserror::Error)]
enum DiffError {
    /// A capture is not there.
    #[error("one of these captures is not in the store, or no longer")]
    Gone,
    /// There is too little room for it.
    #[error("there is no room for it: less than store.min_free is free")]
    NoRoom,
    /// There is no place for it.
    #[error("there is no place for it: {0}")]
    Place(io::Error),
    /// They cannot be compared.
    #[error("they cannot be compared: {0}")]
    Compare(#[from] ProgramError),
    /// It was not written.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl DiffError {
    fn status(&self) -> StatusCode {
        match self {
            Self::Gone => StatusCode::NOT_FOUND,
            Self::NoRoom => StatusCode::INSUFFICIENT_STORAGE,
            Self::Place(_) | Self::Compare(_) | Self::Read { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// Has a program of its own compare them: what that takes is not the service's.
fn compare(before: &Path, after: &Path, store: &Path, min_free: u64) -> Result<TempDir, DiffError> {
    if free_bytes(store).map_err(DiffError::Place)? < min_free {
        return Err(DiffError::NoRoom);
    }
    // Where it goes at the next start, if it does not before.
    let out = tempfile::Builder::new().prefix("diff-").tempdir_in(trash(store)).map_err(DiffError::Place)?;
    let mut command = own_program("diff");
    command.args([before, after]).arg("--out").arg(out.path());
    run_for(command)?;
    Ok(out)
}

/// A file in our memory, for as long as somebody takes to take it.
struct Held {
    bytes: Vec<u8>,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn answer(file: &str, bytes: Vec<u8>, permit: OwnedSemaphorePermit) -> Response {
    let is = |ending: &str| file.ends_with(ending);
    let content = match () {
        () if is(".svg") => "image/svg+xml",
        () if is(".json") => "application/json",
        () if is(".gz") => "application/gzip",
        () => "text/plain; charset=utf-8",
    };
    let body = Bytes::from_owner(Held { bytes, _permit: permit });
    let mut response = ([(header::CONTENT_TYPE, content)], body).into_response();
    if is(".svg")
        && let Ok(policy) = HeaderValue::from_str(&POLICY)
    {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// The policy of pictures as this program draws them. What else has got into a file is not run.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    // Without any, no script is run.
    policy_of(&plain_pictures().map(|pictures| pictures.concat()).unwrap_or_default())
});

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

    /// The script of a real picture is among those of the plain ones, whichever it is.
    #[test]
    fn the_policy_is_that_of_real_pictures() {
        use crate::{
            profile::testing::{Maker, SIMPLE_QUERY, every},
            render::{RenderOptions, format},
        };
        let stack = format!("AllocSetAlloc < palloc < f < {SIMPLE_QUERY}");
        let capture = Maker::new().survivors(&stack, "Leaky", 64, every(3)).build();
        let hashes = |policy: &str| -> Vec<String> {
            policy.split([' ', ';']).filter(|part| part.starts_with("'sha256-")).map(str::to_owned).collect()
        };
        for name in ["svg", "inverted", "contexts"] {
            let mut picture = Vec::new();
            let format = format(name).expect("a format");
            (format.write)(&capture, &RenderOptions::default(), &mut picture)
                .expect("memory takes everything");
            let own = hashes(&policy_of(&String::from_utf8_lossy(&picture)));
            assert_eq!(own.len(), 2, "a script and what starts it: {own:?}");
            assert!(own.iter().all(|hash| POLICY.contains(hash)), "{name}: {own:?} in {}", *POLICY);
        }
    }
}
