//! What the service knows of itself and of all processes, put together after each look for whoever wants to see it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use tokio::sync::watch;
use tracing::{info, warn};

use super::{
    config::Config,
    database::DatabaseError,
    decide::Decider,
    host::host_name,
    labels::Labels,
    ledger::Ledger,
    looking::Looking,
    observe::{ContextBytes, Look},
    own::Own,
    series::Writer,
    view::{Figures, Meter, Settings, View, processes},
};
use crate::target::ProcessId;

/// Everything that is shown and not kept elsewhere.
pub(super) struct Overview {
    view: watch::Sender<Arc<View>>,
    started: Instant,
    figures: Figures,
    cpu: Meter,
    read: Meter,
    /// Bytes of other processes' memory that were read.
    context_bytes: u64,
    /// Contexts of each process as they were read last.
    contexts: HashMap<ProcessId, Vec<ContextBytes>>,
    last_look: Option<Look>,
    labels: Labels,
}

impl Overview {
    /// Nothing was looked at yet. The other side sees what is shown.
    pub(super) fn new(config: &Config) -> (Self, watch::Receiver<Arc<View>>) {
        let looked_ms = jiff::Timestamp::now().as_millisecond();
        let first = View { settings: Settings::of(config), looked_ms, ..View::default() };
        let (view, seen) = watch::channel(Arc::new(first));
        let overview = Self {
            view,
            started: Instant::now(),
            figures: Figures::default(),
            cpu: Meter::default(),
            read: Meter::default(),
            context_bytes: 0,
            contexts: HashMap::new(),
            last_look: None,
            labels: Labels::default(),
        };
        (overview, seen)
    }

    /// All processes were looked at.
    pub(super) fn looked(&mut self, look: &Look) {
        let alive: HashSet<ProcessId> = look.processes.iter().map(|seen| seen.id).collect();
        self.contexts.retain(|id, _| alive.contains(id));
        for seen in &look.processes {
            if let Some(contexts) = &seen.contexts {
                self.contexts.insert(seen.id, contexts.clone());
            }
        }
        self.figures.looks += 1;
        self.figures.unread += look.unread;
        self.figures.unseen += look.unseen;
        self.context_bytes += look.read_bytes;
    }

    /// A look was written to the series, which has so many bytes now; or could not be.
    pub(super) fn written(&mut self, result: Result<u64, DatabaseError>) {
        let figures = &mut self.figures;
        match result {
            Ok(size) => {
                figures.series_bytes = size;
                if figures.store_trouble.take().is_some() {
                    info!("the series is written again");
                }
            }
            Err(error) => {
                figures.not_stored += 1;
                let text = error.to_string();
                if figures.store_trouble.as_ref() != Some(&text) {
                    warn!("{text}; looking goes on, and what is seen meanwhile is not kept");
                    figures.store_trouble = Some(text);
                }
            }
        }
    }

    /// What the last look saw.
    pub(super) fn keep(&mut self, look: Look) {
        self.last_look = Some(look);
    }

    /// Shows everything as it is now.
    pub(super) fn show(
        &mut self,
        config: &Config,
        looking: &Looking,
        decider: &Decider,
        ledger: &Ledger,
        writer: Option<&Writer>,
    ) {
        let Some(look) = &self.last_look else { return };
        let at_ms = jiff::Timestamp::now().as_millisecond();
        let own = Own::now();
        let read = self.context_bytes + own.read_bytes;
        let figures = Figures {
            up_seconds: self.started.elapsed().as_secs_f64(),
            looks_left_out: looking.left_out(),
            cpu_seconds: own.cpu_seconds,
            cpu_seconds_last_minute: self.cpu.note(at_ms, own.cpu_seconds),
            read_bytes: read,
            read_bytes_last_minute: self.read.note(at_ms, read as f64) as u64,
            own_bytes: own.anon_bytes,
            held_back: decider.trouble.clone(),
            undelivered: ledger.trouble.clone(),
            ..self.figures.clone()
        };
        let row = |id| writer.and_then(|writer| writer.row(id));
        let processes = processes(look, &decider.history, &self.contexts, row);
        self.labels.follow(&processes);
        self.view.send_replace(Arc::new(View {
            at_ms,
            looked_ms: look.at_ms,
            host: host_name(),
            version: env!("CARGO_PKG_VERSION"),
            settings: Settings::of(config),
            figures,
            processes,
            running: ledger.running().cloned().collect(),
            counts: ledger.counts().clone(),
            labels: self.labels.clone(),
        }));
    }

    /// In a line, for the service manager.
    pub(super) fn status_line(&self, ledger: &Ledger) -> String {
        let processes = self.last_look.as_ref().map_or(0, |look| look.processes.len());
        format!("{processes} server processes, {} captures at work", ledger.at_work())
    }
}
