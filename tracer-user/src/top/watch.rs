//! Looks at all server processes, again and again.

use std::{
    collections::HashMap,
    sync::mpsc::Sender,
    thread,
    time::{Duration, Instant},
};

use super::{
    budget::pause,
    error::TopError,
    event::{Event, start},
    model::{Look, Seen},
    text::harmless,
};
use crate::target::{Finder, ProcessId, ServerProcess, server_process};

/// Looks at these processes, or at all if none is named.
pub(super) fn watch(
    pids: Vec<u32>,
    interval: Duration,
    started: Instant,
    events: Sender<Event>,
) -> Result<(), TopError> {
    start("looks", move || {
        let mut finder = Finder::default();
        loop {
            let began = Instant::now();
            let servers = if pids.is_empty() {
                finder.find()
            } else {
                pids.iter().filter_map(|pid| server_process(*pid).ok().flatten()).collect()
            };
            let processes = seen(&servers);
            if events.send(Event::Look(Look { at: began.duration_since(started), processes })).is_err() {
                return;
            }
            thread::sleep(pause(interval, began.elapsed()));
        }
    })
}

/// The processes as they are shown.
fn seen(servers: &[ServerProcess]) -> Vec<Seen> {
    let ids: HashMap<u32, ProcessId> = servers.iter().map(|server| (server.pid, server.id())).collect();
    // One that is named alone stands there without its postmaster.
    let identify = |pid: u32| ids.get(&pid).copied().or_else(|| ProcessId::of(pid).ok());
    let name = |name: &Option<String>| name.as_deref().map_or_else(|| "-".to_owned(), harmless);
    let seen = |server: &ServerProcess| {
        let first = if server.is_postmaster { Some(server.pid) } else { server.postmaster };
        Seen {
            id: server.id(),
            server: first.and_then(identify),
            kind: harmless(&server.parsed.kind),
            database: name(&server.parsed.database),
            user: name(&server.parsed.user),
            rss_anon: server.memory.rss_anon,
        }
    };
    servers.iter().map(seen).collect()
}
