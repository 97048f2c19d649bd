//! Profiles for stores of profiles: `profile.pb.gz` as Pyroscope and Parca take it, and OTLP for what only wants the figures.

use std::{collections::BTreeMap, fs, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};

use super::{TellError, notice::Notice, post::post};
use crate::watch::config::{Push, PushTo};

/// Sends the profile of a capture.
///
/// # Errors
/// If it cannot be read, or is not taken.
pub(super) fn push(push: &Push, profile: &Path, notice: &Notice) -> Result<(), TellError> {
    let labels = labels(push, notice);
    let raw = || match fs::read(profile) {
        Ok(bytes) => Ok(BASE64.encode(bytes)),
        Err(source) => Err(TellError::Profile { path: profile.to_owned(), source }),
    };
    let (path, body) = match push.to {
        PushTo::Pyroscope => ("push.v1.PusherService/Push", pyroscope(&labels, &raw()?)),
        PushTo::Parca => ("profiles/writeraw", parca(&labels, &raw()?)),
        PushTo::Otlp => ("v1/logs", otlp_log(&labels, notice)),
    };
    let url = format!("{}/{path}", push.url.trim_end_matches('/'));
    post(&url, &push.headers, "application/json", body.to_string().as_bytes())
}

/// Labels of a profile: what it is of, without what changes with each process.
fn labels(push: &Push, notice: &Notice) -> BTreeMap<String, String> {
    let subject = &notice.capture.subject;
    let own = [
        ("service_name", Some("pgleak")),
        ("host", Some(&*notice.host)),
        ("server", Some(&*subject.server)),
        ("backend_type", Some(&*subject.kind)),
        ("database", subject.database.as_deref()),
    ];
    let own = own.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
    own.chain(push.labels.clone()).collect()
}

/// `PushRequest` of Pyroscope's `push.proto`, as Connect takes it in JSON.
fn pyroscope(labels: &BTreeMap<String, String>, profile: &str) -> Value {
    json!({ "series": [{ "labels": label_pairs(labels), "samples": [{ "rawProfile": profile }] }] })
}

/// `WriteRawRequest` of Parca's `profilestore.proto`, as its gateway takes it in JSON.
fn parca(labels: &BTreeMap<String, String>, profile: &str) -> Value {
    let labels = json!({ "labels": label_pairs(labels) });
    json!({ "series": [{ "labels": labels, "samples": [{ "rawProfile": profile }] }] })
}

/// Labels as Prometheus has them, the name of the profile first.
fn label_pairs(labels: &BTreeMap<String, String>) -> Vec<Value> {
    let labels = labels.iter().map(|(name, value)| (&**name, &**value));
    let all = std::iter::once(("__name__", "memory")).chain(labels);
    all.map(|(name, value)| json!({ "name": name, "value": value })).collect()
}

/// The verdict as a log record: `ExportLogsServiceRequest` of OpenTelemetry's protocol 1, in its JSON.
fn otlp_log(labels: &BTreeMap<String, String>, notice: &Notice) -> Value {
    let text = |name: &str, value: &str| json!({ "key": name, "value": { "stringValue": value } });
    let capture = &notice.capture;
    let resource: Vec<Value> = labels
        .iter()
        .map(|(name, value)| match name.as_str() {
            // Names of the semantic conventions.
            "service_name" => text("service.name", value),
            "host" => text("host.name", value),
            name => text(name, value),
        })
        .collect();
    let mut attributes = vec![text("pgleak.trigger", capture.trigger.name())];
    attributes
        .push(json!({ "key": "process.pid", "value": { "intValue": capture.subject.pid.to_string() } }));
    if let Some(suspect) = capture.findings.as_ref().and_then(|findings| findings.suspects.first()) {
        attributes.push(text("pgleak.class", &suspect.class));
        attributes.push(text("pgleak.function", &suspect.function));
        if let Some(context) = suspect.contexts.first() {
            attributes.push(text("pgleak.context", &context.name));
        }
        attributes.push(
            json!({ "key": "pgleak.bytes_per_second", "value": { "doubleValue": suspect.bytes_per_second } }),
        );
    }
    // WARN where something grows, INFO where not (SeverityNumber in logs.proto).
    let (number, severity) = if capture.found_growth() { (13, "WARN") } else { (9, "INFO") };
    let at_ms = capture.ended_ms.unwrap_or(capture.begun_ms);
    json!({ "resourceLogs": [{
        "resource": { "attributes": resource },
        "scopeLogs": [{
            "scope": { "name": "pgleak", "version": env!("CARGO_PKG_VERSION") },
            "logRecords": [{
                "timeUnixNano": (i128::from(at_ms) * 1_000_000).to_string(),
                "severityNumber": number,
                "severityText": severity,
                "body": { "stringValue": notice.summary },
                "attributes": attributes,
            }],
        }],
    }] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::testing::record;

    #[test]
    fn labels_name_no_process() {
        let push = Push {
            to: PushTo::Pyroscope,
            url: "https://profiles.example.org".to_owned(),
            headers: BTreeMap::new(),
            labels: BTreeMap::from([("region".to_owned(), "north".to_owned())]),
        };
        let notice = Notice::of(record(7, Some("Leaky")));
        let labels = labels(&push, &notice);
        assert_eq!(labels.get("region").map(String::as_str), Some("north"));
        assert_eq!(labels.get("server").map(String::as_str), Some("/data"));
        assert!(!labels.keys().any(|name| name.contains("pid")), "{labels:?}");
        let body = pyroscope(&labels, "AAAA");
        assert_eq!(body["series"][0]["samples"][0]["rawProfile"], "AAAA");
        assert_eq!(body["series"][0]["labels"][0], json!({ "name": "__name__", "value": "memory" }));
        assert_eq!(parca(&labels, "AAAA")["series"][0]["labels"]["labels"][0]["value"], "memory");
    }

    #[test]
    fn a_leak_is_a_warning() {
        let log = |context| otlp_log(&BTreeMap::new(), &Notice::of(record(7, context)));
        let leak = log(Some("Leaky"));
        let entry = &leak["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0];
        assert_eq!((&entry["severityNumber"], &entry["severityText"]), (&json!(13), &json!("WARN")));
        let none = log(None);
        assert_eq!(none["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]["severityNumber"], 9);
    }
}
