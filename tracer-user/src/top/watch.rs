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
use crate::target::{ProcessId, ServerProcess, find_servers, server_process, stat};

/// Looks at these processes, or at all if none is named.
pub(super) fn watch(
    pids: Vec<u32>,
    interval: Duration,
    started: Instant,
    events: Sender<Event>,
) -> Result<(), TopError> {
    start("looks", move || {
        loop {
            let began = Instant::now();
            let servers = if pids.is_empty() {
                find_servers()
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

/// The processes as they are shown; those that have ended meanwhile are left out.
fn seen(servers: &[ServerProcess]) -> Vec<Seen> {
    let mut known: HashMap<u32, Option<ProcessId>> = HashMap::new();
    let mut identify = |pid: u32| {
        let of = |pid| stat(pid).ok().map(|stat| ProcessId { pid, start_ticks: stat.start_ticks });
        *known.entry(pid).or_insert_with(|| of(pid))
    };
    let name = |name: &Option<String>| name.as_deref().map_or_else(|| "-".to_owned(), harmless);
    let seen = |server: &ServerProcess| {
        let id = identify(server.pid)?;
        let first = if server.is_postmaster { Some(server.pid) } else { server.postmaster };
        Some(Seen {
            id,
            server: first.and_then(&mut identify),
            kind: harmless(&server.parsed.kind),
            database: name(&server.parsed.database),
            user: name(&server.parsed.user),
            rss_anon: server.memory.rss_anon,
        })
    };
    servers.iter().filter_map(seen).collect()
}
