//! Models for tests.

use std::time::Duration;

use super::model::{Look, Model, Seen};
use crate::target::ProcessId;

/// A process that started at once.
pub(super) fn id(pid: u32) -> ProcessId {
    ProcessId { pid, start_ticks: u64::from(pid) }
}

/// A client's process.
pub(super) fn client(pid: u32, database: &str, rss_anon: u64) -> Seen {
    Seen {
        id: id(pid),
        server: None,
        kind: "client backend".to_owned(),
        database: database.to_owned(),
        user: "app".to_owned(),
        rss_anon,
    }
}

/// A process of the server itself.
pub(super) fn process(pid: u32, kind: &str, rss_anon: u64) -> Seen {
    Seen {
        kind: kind.to_owned(),
        database: "-".to_owned(),
        user: "-".to_owned(),
        ..client(pid, "-", rss_anon)
    }
}

/// A model that has seen these processes, each two seconds apart.
pub(super) fn seen(looks: &[Vec<Seen>]) -> Model {
    let mut model = Model::new("db1".to_owned(), Duration::from_secs(2));
    for (index, processes) in (0..).zip(looks) {
        model.now = Duration::from_secs(index * 2);
        model.see(Look { at: model.now, processes: processes.clone() });
    }
    model
}
