//! `verdict.json`: the verdict for programs. docs/verdict-json.md says what each field is.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use super::RenderOptions;
use crate::profile::{Capture, Class, EndReason, Outcome, Place, Verdict, judge, wrappers::Role};

/// Version of this format.
pub const FINDINGS_SCHEMA: u32 = 1;

/// The most steps of a path: the rest is in `capture.json`.
const MOST_STEPS: usize = 24;

/// What a capture found, in short.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    /// [`FINDINGS_SCHEMA`].
    pub schema: u32,
    /// Version of pgleak.
    pub pgleak: String,
    /// The verdict in a word.
    pub outcome: Outcome,
    /// The first lines of the report, as one text.
    pub answer: String,
    /// What was traced.
    pub target: Traced,
    /// When and how long.
    pub window: Recorded,
    /// What grows and goes on growing, the largest first.
    pub suspects: Vec<Finding>,
    /// What was lost, by reason; empty if nothing was.
    pub losses: Vec<Loss>,
    /// Things that a reader has to know.
    pub notes: Vec<String>,
}

/// The process, or the first of several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traced {
    /// Its pid.
    pub pid: u32,
    /// `client backend`, `checkpointer` …
    pub kind: String,
    /// Database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// User.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// `PostgreSQL 15.18 (Debian 15.18-0+deb12u1)`.
    pub server: String,
    /// The server binary.
    pub binary: String,
    /// Its build ID, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_id: Option<String>,
    /// Host name.
    pub host: String,
    /// Anonymous resident bytes at the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rss_anon_start: Option<u64>,
    /// The same at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rss_anon_end: Option<u64>,
}

/// When, how long, and at what cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// Start, RFC 3339, UTC.
    pub started: String,
    /// Seconds that rates are by: those of recording, or of the work that windows stand for.
    pub seconds: f64,
    /// Seconds during which there were probes, those of attaching and detaching aside.
    pub probed_seconds: f64,
    /// Why it ended.
    pub end: EndReason,
    /// How many times slower the process was expected to be while it was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_slowdown: Option<f64>,
    /// Allocations that were recorded.
    pub recorded: u64,
    /// Whether figures are estimates, by windows or samples.
    pub is_estimate: bool,
}

/// One of the suspects.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// `leak`, `held_until_reset` or `cache`; `grew` if the process ended.
    pub class: String,
    /// The function; where only blocks were traced, the context.
    pub function: String,
    /// For a function without a name, its nearest caller with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named_caller: Option<String>,
    /// File and line, where they are known: `nodeHash.c:512`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Its callers, nearest first, as long as one of them dominates.
    pub callers: Vec<String>,
    /// The memory contexts, that with most first.
    pub contexts: Vec<FoundContext>,
    /// Bytes a second.
    pub bytes_per_second: f64,
    /// Of estimates: where that lies nineteen times of twenty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<[f64; 2]>,
    /// Bytes that survive, chunk headers and rounding included.
    pub held_bytes: u64,
    /// Bytes of these that were asked for.
    pub requested_bytes: u64,
    /// Bytes that these keep from others beside.
    pub pinned_bytes: u64,
    /// Chunks that survive.
    pub chunks: u64,
    /// How sure the class is, from 0 to 1.
    pub confidence: f64,
    /// Why it is that class.
    pub reason: String,
    /// The statement that most of it was allocated in, if one was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statement: Option<String>,
    /// Different call paths.
    pub paths: u64,
    /// The path with most, innermost first, without what all work runs below.
    pub path: Vec<String>,
}

/// A context that a suspect holds memory in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundContext {
    /// Its name, with what it is for if the name does not tell.
    pub name: String,
    /// Names from the top to its parent, if they were seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Vec<String>>,
    /// Bytes that are held there.
    pub held_bytes: u64,
}

/// Something that was lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Name of its counter.
    pub counter: String,
    /// How often.
    pub count: u64,
    /// What it means.
    pub meaning: String,
}

/// What a capture found, in short.
pub fn findings(capture: &Capture) -> Findings {
    let verdict = judge(capture);
    let (target, window) = (&capture.target, &capture.window);
    let probed_ns = window.windows.as_ref().map_or(window.record_ns, |windows| windows.record_ns);
    let lost = capture.counters.iter().filter(|counter| counter.loss && counter.value > 0);
    Findings {
        schema: FINDINGS_SCHEMA,
        pgleak: capture.tool.version.clone(),
        outcome: verdict.outcome(),
        answer: super::report::answer_text(capture, &verdict),
        target: Traced {
            pid: target.pid,
            kind: target.kind.clone(),
            database: target.database.clone(),
            user: target.user.clone(),
            server: target.server.clone(),
            binary: target.binary.clone(),
            build_id: target.build_id.as_ref().map(ToString::to_string),
            host: target.host.clone(),
            rss_anon_start: target.rss_anon_start,
            rss_anon_end: target.rss_anon_end,
        },
        window: Recorded {
            started: window.started.clone(),
            seconds: window.record_ns as f64 / 1e9,
            probed_seconds: (probed_ns + window.settle_ns) as f64 / 1e9,
            end: window.end,
            expected_slowdown: window.expected_slowdown,
            recorded: verdict.totals.recorded.count,
            is_estimate: capture.is_estimate() || window.windows.is_some(),
        },
        suspects: verdict.suspects.iter().map(|place| finding(capture, &verdict, place)).collect(),
        losses: lost
            .map(|counter| Loss {
                counter: counter.name.clone(),
                count: counter.value,
                meaning: counter.meaning.clone(),
            })
            .collect(),
        notes: capture.notes.clone(),
    }
}

fn finding(capture: &Capture, verdict: &Verdict, place: &Place) -> Finding {
    let course = &place.course;
    let statement = place.query.and_then(|(index, _)| capture.queries.get(index as usize));
    let class = match course.class {
        Class::Leak if verdict.process_ended => "grew",
        Class::Held => "held_until_reset",
        class => class.name(),
    };
    let steps = place.hottest.iter().filter(|step| step.role != Role::Driver);
    Finding {
        class: class.to_owned(),
        function: place.head.clone(),
        named_caller: place.named_caller.clone(),
        source: place
            .source
            .as_ref()
            .map(|(file, line)| line.map_or_else(|| file.clone(), |line| format!("{file}:{line}"))),
        callers: place.callers.clone(),
        contexts: place
            .contexts
            .iter()
            .map(|share| FoundContext {
                name: share.name.clone(),
                path: share.path.clone(),
                held_bytes: share.tally.held,
            })
            .collect(),
        bytes_per_second: course.growth_per_second,
        interval: course.interval,
        held_bytes: place.survived.held,
        requested_bytes: place.survived.requested,
        pinned_bytes: place.pinned,
        chunks: place.survived.count,
        confidence: course.confidence,
        reason: course.reason.clone(),
        statement: statement.map(|query| query.statement.clone()),
        paths: place.paths as u64,
        path: steps.take(MOST_STEPS).map(|step| step.label.clone()).collect(),
    }
}

/// The format of `verdict.json`.
pub(super) fn write(capture: &Capture, _: &RenderOptions, out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, &findings(capture))?;
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::testing::{Maker, SIMPLE_QUERY, every};

    #[test]
    fn what_the_report_says_first_is_there_as_data() {
        let capture = Maker::new()
            .survivors(&format!("AllocSetAlloc < palloc < f < {SIMPLE_QUERY}"), "Leaky", 64, every(30))
            .counter("live_full", 3, true, "allocations not recorded")
            .build();
        let found = findings(&capture);
        assert_eq!(found.outcome, Outcome::Leak);
        assert!(found.answer.starts_with("LEAK: f "), "{}", found.answer);
        let [leak] = &found.suspects[..] else { panic!("{:?}", found.suspects) };
        assert_eq!((leak.class.as_str(), leak.function.as_str()), ("leak", "f"));
        assert_eq!(leak.contexts[0].name, "Leaky");
        assert_eq!(leak.path, ["AllocSetAlloc", "palloc", "f"]);
        assert_eq!((found.losses[0].counter.as_str(), found.losses[0].count), ("live_full", 3));
        let text = serde_json::to_string(&found).expect("plain data");
        assert_eq!(serde_json::from_str::<Findings>(&text).expect("its own"), found);
    }

    #[test]
    fn nothing_found_is_an_answer_too() {
        let found = findings(&Maker::new().build());
        assert_eq!(found.outcome, Outcome::NothingSeen);
        assert!(found.suspects.is_empty() && found.answer.starts_with("No leak seen"), "{}", found.answer);
    }
}
