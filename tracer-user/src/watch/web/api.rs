//! The data of the pages, as JSON: docs/service.md says what each path gives.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::{Deserialize, Serialize};
use tokio::{sync::oneshot, task::spawn_blocking};

use super::Shared;
use crate::{
    quantity,
    session::Overhead,
    target::{Rollup, rollup},
    watch::{
        database::{Database, DatabaseError},
        decide::Asked,
        host::boot_id,
        record::{CaptureNumber, Record, Status},
        series::{ContextSeries, KnownProcess, MemoryPoint},
        ticket::ticket,
        view::View,
    },
};

/// Points of a plot.
const MOST_POINTS: u32 = 600;

/// Contexts of a plot.
const MOST_CONTEXTS: usize = 12;

/// Captures of a list.
const MOST_CAPTURES: u32 = 200;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/api/v1/state", get(state))
        .route("/api/v1/processes", get(processes))
        .route("/api/v1/processes/{row}", get(process))
        .route("/api/v1/processes/{row}/smaps", get(smaps))
        .route("/api/v1/captures", get(captures).post(capture_now))
        .route("/api/v1/captures/{number}", get(capture))
}

/// An answer that is none.
struct Failure(StatusCode, String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(serde_json::json!({ "error": self.1 }))).into_response()
    }
}

impl From<DatabaseError> for Failure {
    fn from(error: DatabaseError) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

fn nothing(what: &str) -> Failure {
    Failure(StatusCode::NOT_FOUND, format!("there is no such {what}, or no longer"))
}

/// Everything as it is now.
async fn state(State(shared): State<Shared>) -> Response {
    let view: Arc<View> = Arc::clone(&shared.view.borrow());
    Json(&*view).into_response()
}

/// Processes that were there in the last day, those that have ended too.
async fn processes(State(shared): State<Shared>) -> Result<Json<Vec<KnownProcess>>, Failure> {
    const DAY_MS: i64 = 86_400_000;
    let since_ms = jiff::Timestamp::now().as_millisecond() - DAY_MS;
    let boot = boot_id().unwrap_or_default();
    Ok(Json(shared.index(move |index| index.processes_since(since_ms, &boot)).await?))
}

#[derive(Deserialize)]
struct Span {
    from: Option<i64>,
    to: Option<i64>,
}

/// A process over time.
#[derive(Serialize)]
struct ProcessAnswer {
    process: KnownProcess,
    from_ms: i64,
    to_ms: i64,
    memory: Vec<MemoryPoint>,
    contexts: Vec<ContextSeries>,
    captures: Vec<Brief>,
}

async fn process(
    State(shared): State<Shared>,
    Path(row): Path<i64>,
    Query(span): Query<Span>,
) -> Result<Json<ProcessAnswer>, Failure> {
    let now_ms = jiff::Timestamp::now().as_millisecond();
    let boot = boot_id().unwrap_or_default();
    shared
        .index(move |index| {
            let process = index.process(row, &boot)?.ok_or_else(|| nothing("process"))?;
            let to = span.to.unwrap_or(now_ms).min(now_ms);
            let from = span.from.unwrap_or(process.first_ms).min(to).max(0);
            let mut contexts = index.contexts_of(row, (from, to), MOST_POINTS)?;
            contexts.truncate(MOST_CONTEXTS);
            let id = process.subject.id();
            let captures = index.records(process.first_ms, MOST_CAPTURES)?;
            let captures =
                captures.iter().filter(|record| record.subject.id() == id && record.begun_ms <= to);
            Ok(Json(ProcessAnswer {
                from_ms: from,
                to_ms: to,
                memory: index.memory_of(row, (from, to), MOST_POINTS)?,
                contexts,
                captures: captures.map(Brief::of).collect(),
                process,
            }))
        })
        .await
}

/// What a process really has, and what it took to know that.
#[derive(Serialize)]
struct SmapsAnswer {
    took_ms: f64,
    #[serde(flatten)]
    rollup: Rollup,
}

async fn smaps(State(shared): State<Shared>, Path(row): Path<i64>) -> Result<Json<SmapsAnswer>, Failure> {
    let boot = boot_id().unwrap_or_default();
    let process = shared.index(move |index| index.process(row, &boot)).await?;
    let id = process.ok_or_else(|| nothing("process"))?.subject.id();
    // One at a time: each walks the page table of a process that people may be waiting for.
    let permit = shared.measuring.acquire_owned().await;
    let measured = spawn_blocking(move || {
        // Until it is done, whoever still waits for it.
        let _permit = permit;
        let begun = Instant::now();
        // A row of an earlier boot, or a pid that is somebody else's by now.
        let rollup = id.is_same().then(|| rollup(id.pid));
        (rollup, begun.elapsed())
    });
    match measured.await {
        Ok((Some(Ok(rollup)), took)) => {
            Ok(Json(SmapsAnswer { took_ms: took.as_secs_f64() * 1000.0, rollup }))
        }
        Ok((Some(Err(error)), _)) => Err(Failure(StatusCode::CONFLICT, error.to_string())),
        Ok((None, _)) => Err(Failure(StatusCode::CONFLICT, "this process has ended".to_owned())),
        Err(error) => Err(Failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

/// A capture in a line.
#[derive(Serialize)]
struct Brief {
    number: CaptureNumber,
    begun_ms: i64,
    ended_ms: Option<i64>,
    status: Status,
    trigger: &'static str,
    pid: u32,
    start_ticks: u64,
    kind: String,
    server: String,
    database: Option<String>,
    outcome: Option<crate::profile::Outcome>,
    function: Option<String>,
    context: Option<String>,
    bytes_per_second: Option<f64>,
    error: Option<String>,
}

impl Brief {
    fn of(record: &Record) -> Self {
        let findings = record.findings.as_ref();
        let first = findings.and_then(|findings| findings.suspects.first());
        Self {
            number: record.number,
            begun_ms: record.begun_ms,
            ended_ms: record.ended_ms,
            status: record.status,
            trigger: record.trigger.name(),
            pid: record.subject.pid,
            start_ticks: record.subject.start_ticks,
            kind: record.subject.kind.clone(),
            server: record.subject.server.clone(),
            database: record.subject.database.clone(),
            outcome: findings.map(|findings| findings.outcome),
            function: first.map(|suspect| suspect.function.clone()),
            context: first.and_then(|suspect| suspect.contexts.first()).map(|context| context.name.clone()),
            bytes_per_second: first.map(|suspect| suspect.bytes_per_second),
            error: record.error.clone(),
        }
    }
}

async fn captures(State(shared): State<Shared>) -> Result<Json<Vec<Brief>>, Failure> {
    let records = shared.index(|index| index.records(0, MOST_CAPTURES)).await?;
    Ok(Json(records.iter().map(Brief::of).collect()))
}

/// A capture, and what goes with it.
#[derive(Serialize)]
struct CaptureAnswer {
    capture: Record,
    /// Markdown.
    ticket: String,
    /// Earlier captures of the same, the newest first: what it can be compared with.
    earlier: Vec<Brief>,
}

async fn capture(
    State(shared): State<Shared>,
    Path(number): Path<i64>,
) -> Result<Json<CaptureAnswer>, Failure> {
    shared
        .index(move |index: &Database| {
            let capture = index.record(CaptureNumber(number))?.ok_or_else(|| nothing("capture"))?;
            let all = index.records(0, MOST_CAPTURES)?;
            let earlier =
                all.iter().filter(|record| record.status == Status::Done && record.number < capture.number);
            let same = |record: &&Record| {
                record.subject.server == capture.subject.server
                    && (record.subject.id() == capture.subject.id()
                        || record.contexts().any(|context| capture.contexts().any(|own| own == context)))
            };
            let earlier = earlier.filter(same).map(Brief::of).collect();
            Ok(Json(CaptureAnswer { ticket: ticket(&capture), earlier, capture }))
        })
        .await
}

/// What is asked for.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CaptureRequest {
    /// Of which process.
    pub pid: u32,
    /// For how long: `30s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// `full`, `low` or a percentage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overhead: Option<String>,
}

async fn capture_now(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Json(request): Json<CaptureRequest>,
) -> Result<Response, Failure> {
    let senseless = |why: String| Failure(StatusCode::BAD_REQUEST, why);
    let duration = request.duration.as_deref().map(quantity::duration).transpose().map_err(senseless)?;
    let range = Duration::from_secs(1)..=Duration::from_secs(3600);
    if duration.is_some_and(|duration| !range.contains(&duration)) {
        return Err(senseless("the duration is between 1s and 1h".to_owned()));
    }
    let overhead = request.overhead.as_deref().map(str::parse::<Overhead>).transpose().map_err(senseless)?;
    let by = if headers.contains_key(header::ORIGIN) { "the page" } else { "a program" };
    let (answer, answered) = oneshot::channel();
    let asked = Asked { pid: request.pid, duration, overhead, by: by.to_owned(), answer };
    let busy = || Failure(StatusCode::SERVICE_UNAVAILABLE, "the service comes to an end".to_owned());
    shared.asking.send(asked).await.map_err(|_| busy())?;
    match answered.await {
        Ok(Ok(number)) => {
            Ok((StatusCode::ACCEPTED, Json(serde_json::json!({ "number": number }))).into_response())
        }
        Ok(Err(why)) => Err(Failure(StatusCode::CONFLICT, why)),
        Err(_) => Err(busy()),
    }
}
