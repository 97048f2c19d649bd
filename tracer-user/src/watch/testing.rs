//! Captures that never were, for tests.

use super::record::{CaptureNumber, Record, Status, Subject, Trigger};
use crate::{
    profile::testing::{Maker, SIMPLE_QUERY, every},
    render::findings,
};

/// A capture that ended after ten minutes, and found a leak in that context.
pub(super) fn record(number: i64, leak: Option<&str>) -> Record {
    let maker = Maker::new();
    let capture = match leak {
        Some(context) => maker
            .survivors(&format!("AllocSetAlloc < palloc < f < {SIMPLE_QUERY}"), context, 64, every(30))
            .build(),
        None => maker.build(),
    };
    Record {
        number: CaptureNumber(number),
        trigger: Trigger::Growth,
        why: "it grew".to_owned(),
        subject: Subject {
            pid: 7,
            start_ticks: 70,
            server: "/data".to_owned(),
            kind: "client backend".to_owned(),
            database: None,
            user: None,
            context: None,
            growing: Vec::new(),
        },
        boot: "boot".to_owned(),
        begun_ms: 599_000,
        ended_ms: Some(600_000),
        status: Status::Done,
        error: None,
        probed_seconds: 15.0,
        bytes: 1,
        told: true,
        findings: Some(findings(&capture)),
    }
}
