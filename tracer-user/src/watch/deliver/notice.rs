//! What is told of a capture: docs/verdict-json.md says what each field is.

use serde::Serialize;

use crate::watch::{host::host_name, record::Record, ticket::ticket};

/// Version of this document.
pub(super) const NOTICE_SCHEMA: u32 = 1;

/// What is told of a capture.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Notice {
    /// [`NOTICE_SCHEMA`].
    pub schema: u32,
    /// Host name.
    pub host: String,
    /// One line for a pager.
    pub summary: String,
    /// Markdown for a ticket.
    pub ticket: String,
    /// The capture, with what was found.
    pub capture: Record,
}

impl Notice {
    /// Of a capture that has ended.
    pub(super) fn of(capture: Record) -> Self {
        let host = host_name();
        let what = match (&capture.findings, &capture.error) {
            (Some(findings), _) => findings.answer.clone(),
            (None, Some(error)) => format!("capture failed: {error}"),
            (None, None) => "capture failed".to_owned(),
        };
        let summary = format!("{host}, process {} ({}): {what}", capture.subject.pid, capture.subject.kind);
        Self { schema: NOTICE_SCHEMA, host, summary, ticket: ticket(&capture), capture }
    }

    /// One line of JSON.
    pub(super) fn json(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec(self).expect("a notice is plain data with names for keys");
        text.push(b'\n');
        text
    }
}
