//! Whether a capture says what a case is.

use pgleak::profile::{Capture, Class, Group, Place, Verdict};
use pgleak_tests::findings::{names, stack};
use serde::Serialize;

use crate::case::Case;

/// How far from the headline a function of the case may stand in the hottest path.
const NEAR: usize = 3;
/// The part of the case's bytes that the first suspect must have.
const LEAST_SHARE: f64 = 0.80;
/// A suspect with this part of all growth is a root of it.
const LARGE: f64 = 0.25;
/// How exact the bytes of an iteration must be, and of a case that is a race.
const EXACT: f64 = 0.05;
const EXACT_RACE: f64 = 0.20;
const EXACT_ANONYMOUS: f64 = 0.10;
const RACES: [&str; 1] = ["apply_worker_attrmap"];

/// What was seen, and what was wrong with it.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Findings {
    pub(crate) headline: String,
    /// Which of the suspects it is, from 1.
    pub(crate) rank: usize,
    pub(crate) class: String,
    pub(crate) confidence: f64,
    /// The part of the case's bytes that the first suspect has.
    pub(crate) share: f64,
    /// Requested bytes of an iteration.
    pub(crate) requested: f64,
    /// Anonymous memory that the process gained in an iteration.
    pub(crate) anonymous: f64,
    pub(crate) iterations: u64,
    pub(crate) wrong: Vec<String>,
}

/// A leaking build. `is_full`: every allocation was recorded, so that bytes can be told exactly.
pub(crate) fn leaking(
    case: &Case,
    capture: &Capture,
    verdict: &Verdict,
    iterations: u64,
    is_full: bool,
) -> Findings {
    let mut findings = Findings { iterations, ..Findings::default() };
    let grows = |place: &Place| place.weight();
    let all: u64 = verdict.suspects.iter().map(grows).sum();
    // A leak with two roots is two suspects; the second must be a large part of it.
    let is_root = |(rank, place): &(usize, &Place)| *rank == 0 || grows(place) as f64 >= all as f64 * LARGE;
    let is_named = |place: &Place| case.expected_top_functions.iter().all(|name| is_near(place, name));
    let roots = verdict.suspects.iter().enumerate().filter(is_root);
    let found = roots.clone().find(|(_, place)| is_named(place)).or(roots.clone().next());
    let Some((rank, first)) = found else {
        findings.wrong.push("no suspect".to_owned());
        return findings;
    };
    findings.rank = rank + 1;
    findings.headline = first.head.clone();
    findings.class = first.course.class.name().to_owned();
    findings.confidence = first.course.confidence;
    let mut wrong = Vec::new();
    for function in &case.expected_top_functions {
        if !is_near(first, function) {
            wrong.push(format!("{function} is not near the headline"));
        }
    }
    let of_case: Vec<&Group> =
        capture.profile.groups.iter().filter(|group| is_of(capture, group, case)).collect();
    let all: u64 = of_case.iter().map(|group| group.weight()).sum();
    let covered = of_case.iter().filter(|group| has(capture, group, &first.head));
    let covered: u64 = covered.map(|group| group.weight()).sum();
    findings.share = covered as f64 / all.max(1) as f64;
    if is_full && findings.share < LEAST_SHARE {
        wrong.push(format!("{:.0} % of its bytes are in the first suspect", findings.share * 100.0));
    }
    let is_right = |name: &str| {
        case.contexts.iter().any(|context| name == context || name.ends_with(context))
            || (case.is_outside() && name == "malloc")
    };
    if !first.contexts.first().is_some_and(|share| is_right(&share.name)) {
        let seen: Vec<&str> = first.contexts.iter().map(|share| share.name.as_str()).collect();
        wrong.push(format!("contexts {seen:?}"));
    }
    let grown =
        verdict.suspects.iter().filter(|place| matches!(place.course.class, Class::Leak | Class::Held));
    // Without a build that is mended, unless only there is none here.
    let is_by_design = case.npm_control.is_empty() && !case.is_of_workers();
    let requested: u64 = match is_by_design {
        // What PostgreSQL does by design is no leak to it.
        true => verdict.suspects.iter().map(|place| place.survived.requested).sum(),
        false => grown.map(|place| place.survived.requested).sum(),
    };
    let each = |bytes: i64| bytes as f64 / iterations.max(1) as f64;
    findings.requested = each(requested as i64 - replaced(case, capture));
    findings.anonymous = each(anonymous(capture));
    let is_race = RACES.contains(&case.name.as_str());
    let differs =
        |seen: f64, expected: u64, allowed: f64| (seen - expected as f64).abs() > expected as f64 * allowed;
    let expected = case.requested_bytes_per_iteration;
    // Where the figure was taken over some ten iterations that are not all alike, or over one of a race,
    // the memory of the process, taken over hundreds, says more.
    let (exact, by_memory) = match (is_race, is_by_design) {
        (true, _) => (EXACT_RACE, Some(EXACT_RACE)),
        (false, true) => (EXACT, Some(EXACT_ANONYMOUS)),
        (false, false) => (EXACT, None),
    };
    let differs_by_memory = |allowed| differs(findings.anonymous, case.rss_bytes_per_iteration, allowed);
    if is_full
        && expected > 0
        && differs(findings.requested, expected, exact)
        && by_memory.is_none_or(differs_by_memory)
    {
        wrong.push(format!("{:.0} bytes an iteration, not {expected}", findings.requested));
    }
    if !matches!(first.course.class, Class::Leak | Class::Held) && !is_by_design {
        wrong.push(format!("called {}", first.course.class.name()));
    }
    findings.wrong = wrong;
    findings
}

/// A build in which it was mended, or a case that leaks nothing.
pub(crate) fn control(verdict: &Verdict, iterations: u64) -> Findings {
    let leak = verdict.suspects.iter().find(|place| place.course.class == Class::Leak);
    let mut findings = Findings { iterations, ..Findings::default() };
    if let Some(place) = leak {
        findings.headline = place.head.clone();
        findings.class = place.course.class.name().to_owned();
        findings.confidence = place.course.confidence;
        findings.wrong.push(format!("{} is called a leak: {}", place.head, place.course.reason));
    }
    findings
}

/// Bytes from before the capture that were handed on to what survives.
fn replaced(case: &Case, capture: &Capture) -> i64 {
    let growths = capture.memory.iter().flat_map(|memory| &memory.by_label);
    let of_case = growths.filter(|growth| case.contexts.contains(&growth.label));
    of_case.filter_map(|growth| growth.untraced).map(|untraced| (-untraced).max(0)).sum()
}

fn anonymous(capture: &Capture) -> i64 {
    let ends = capture.memory.as_ref().map(|memory| (memory.rss_anon_before, memory.rss_anon_after));
    match ends {
        Some((Some(before), Some(after))) => after as i64 - before as i64,
        _ => 0,
    }
}

fn is_near(place: &Place, function: &str) -> bool {
    let is = |label: &str| pgleak::profile::wrappers::strip_suffixes(label) == function;
    let head = place.hottest.iter().position(|step| step.is_head);
    let at = place.hottest.iter().position(|step| is(&step.label));
    is(&place.head) || head.zip(at).is_some_and(|(head, at)| head.abs_diff(at) <= NEAR)
}

fn has(capture: &Capture, group: &Group, function: &str) -> bool {
    names(capture, stack(capture, group))
        .any(|name| pgleak::profile::wrappers::strip_suffixes(name) == function)
}

pub(crate) fn is_of(capture: &Capture, group: &Group, case: &Case) -> bool {
    case.expected_top_functions.iter().all(|function| has(capture, group, function))
}
