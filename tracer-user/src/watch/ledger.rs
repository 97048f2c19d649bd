//! The captures: those that are being made, and what became of all others. They begin, end, are put away, told and forgotten
//! here.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use tokio::{
    sync::mpsc,
    task::{JoinError, JoinSet},
    time::timeout,
};
use tracing::{error, info, warn};

use super::{
    config::{Config, StoreConfig},
    decide::Wish,
    deliver::{Delivered, deliver},
    observe::Look,
    record::{CaptureNumber, Record, Status, Trigger},
    run::{Ended, Order, RunError, is_at_work},
    shelf::{LEFT_BEHIND, SharedShelf, Shelf, ShelfError},
    triggers::{Now, Refusal},
    view::{Counts, Trouble},
};
use crate::{program::Handle, render::Findings};

/// Captures get so long to come to an end when the service has to.
const LEAVING: Duration = Duration::from_secs(30);

/// So many captures are remembered to decide by.
const MOST_RECORDS: u32 = 1000;

/// Why a capture was not begun.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotBegun {
    /// It may not, now.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// There is no room for it, or it cannot be written down.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    /// Its program cannot be started.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// All captures.
pub(super) struct Ledger {
    shelf: SharedShelf,
    boot: String,
    /// The last captures, in any order.
    records: Vec<Record>,
    /// Captures that a service before this one has begun and that are still at work, and those that could not be put away.
    left: Vec<Record>,
    runs: JoinSet<(CaptureNumber, Ended)>,
    handles: HashMap<CaptureNumber, Handle>,
    counts: Counts,
    /// How many servers there are to capture.
    servers: usize,
    deliveries: mpsc::UnboundedSender<Delivered>,
    /// Receivers that could not be told.
    pub trouble: Trouble,
}

impl Ledger {
    /// Those that are on the shelf; `left` are still at work, or could not be put away.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub(super) async fn open(
        shelf: SharedShelf,
        left: Vec<Record>,
        boot: String,
        deliveries: mpsc::UnboundedSender<Delivered>,
    ) -> Result<Self, ShelfError> {
        let records = shelf.with(|shelf| shelf.database.records(0, MOST_RECORDS)).await?;
        let mut counts = Counts::default();
        let ended = records.iter().filter(|record| record.status != Status::Running);
        ended.for_each(|record| counts.add(record));
        let (runs, handles, trouble) = (JoinSet::new(), HashMap::new(), Trouble::default());
        Ok(Self { shelf, boot, records, left, runs, handles, counts, servers: 0, deliveries, trouble })
    }

    /// When the last capture with that trigger began, in milliseconds since 1970.
    pub(super) fn last_begun_by(&self, trigger: Trigger) -> Option<i64> {
        self.records.iter().filter(|record| record.trigger == trigger).map(|record| record.begun_ms).max()
    }

    /// Captures that are being made.
    pub(super) fn running(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(|record| record.status == Status::Running)
    }

    /// Captures that have ended.
    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// What counts for a decision about captures that are made so.
    pub(super) fn now<'a>(&'a self, at_ms: i64, config: &'a Config, planned: Duration) -> Now<'a> {
        let (boot, records, budget, servers) = (&*self.boot, &*self.records, &config.budget, self.servers);
        Now { at_ms, boot, records, budget, planned, servers }
    }

    /// All processes were looked at.
    pub(super) fn looked(&mut self, look: &Look) {
        self.servers = look.processes.iter().map(|seen| &seen.server).collect::<HashSet<_>>().len();
    }

    /// Begins a capture, if it may be.
    ///
    /// # Errors
    /// Why it was not begun.
    pub(super) async fn begin(&mut self, wish: Wish, config: &Config) -> Result<CaptureNumber, NotBegun> {
        let Wish { subject, trigger, why, how } = wish;
        let (planned, begun_ms) = (how.planned(), jiff::Timestamp::now().as_millisecond());
        self.now(begun_ms, config, planned).has_room(&subject)?;
        let mut record = Record {
            number: CaptureNumber(0),
            trigger,
            why,
            subject,
            boot: self.boot.clone(),
            begun_ms,
            ended_ms: None,
            status: Status::Running,
            error: None,
            probed_seconds: planned.as_secs_f64(),
            bytes: 0,
            told: false,
            findings: None,
        };
        let min_free = config.store.min_free;
        let begin = move |shelf: &mut Shelf| -> Result<_, ShelfError> {
            shelf.begin(&mut record, min_free)?;
            Ok((shelf.store.spool(record.number), record))
        };
        let (out, record) = self.shelf.with(begin).await?;
        let (number, subject) = (record.number, &record.subject);
        info!(
            "capture {number} of process {} begins ({}): {}",
            subject.pid,
            record.trigger.name(),
            record.why
        );
        let order = Order { number, process: subject.id(), out, how };
        self.records.push(record);
        match order.start() {
            Ok(run) => {
                match run.handle() {
                    Ok(handle) => drop(self.handles.insert(number, handle)),
                    Err(error) => warn!("capture {number} cannot be ended early: {error}"),
                }
                self.runs.spawn(async move { (number, run.finish(number).await) });
                Ok(number)
            }
            Err(error) => {
                let why = error.to_string();
                self.put_away(number, Err(why), None, config).await;
                Err(error.into())
            }
        }
    }

    /// The next capture that has come to an end; never, while there is none. To be given to [`Self::ended`].
    pub(super) async fn next_end(&mut self) -> Result<(CaptureNumber, Ended), JoinError> {
        match self.runs.join_next().await {
            Some(ended) => ended,
            None => std::future::pending().await,
        }
    }

    /// Puts a capture away that has come to an end, and tells of it.
    pub(super) async fn ended(&mut self, ended: Result<(CaptureNumber, Ended), JoinError>, config: &Config) {
        match ended {
            Ok((number, Ended { result, findings })) => {
                self.handles.remove(&number);
                let result = result.map_err(|error| error.to_string());
                self.put_away(number, result, findings, config).await;
                self.expire(&config.store).await;
            }
            Err(error) => error!("a capture was lost: {error}"),
        }
    }

    async fn put_away(
        &mut self,
        number: CaptureNumber,
        result: Result<(), String>,
        printed: Option<Findings>,
        config: &Config,
    ) {
        let Some(record) = self.records.iter().find(|record| record.number == number).cloned() else {
            return;
        };
        let (record, put) = self
            .shelf
            .with(move |shelf| shelf.end(record, result.as_ref().copied().map_err(|why| &**why), printed))
            .await;
        say(&record);
        self.counts.add(&record);
        if let Err(error) = put {
            // It is tried again with what others have left behind.
            warn!("capture {number} cannot be put away yet: {error}");
            self.left.push(record.clone());
        }
        self.know(record.clone());
        deliver(config, record, &self.deliveries);
    }

    /// Takes captures over that a service before this one began, once they have come to an end; and tries those again
    /// that could not be put away.
    pub(super) async fn take_over(&mut self, config: &Config) {
        for record in std::mem::take(&mut self.left) {
            let number = record.number;
            let spool = self.shelf.with(move |shelf| shelf.store.spool(number)).await;
            if is_at_work(&spool).unwrap_or(false) {
                self.left.push(record);
                continue;
            }
            if record.status == Status::Running {
                if !self.records.iter().any(|known| known.number == number) {
                    self.records.push(record);
                }
                self.put_away(number, Err(LEFT_BEHIND.to_owned()), None, config).await;
                continue;
            }
            // It is known what became of it, and there was no room to write that down. It may have been told meanwhile.
            let known = self.records.iter().find(|known| known.number == number);
            let mut record = known.cloned().unwrap_or(record);
            let (record, put) = self
                .shelf
                .with(move |shelf| {
                    let put = shelf.put_away(&mut record);
                    (record, put)
                })
                .await;
            if put.is_err() {
                self.left.push(record.clone());
            }
            self.know(record);
        }
    }

    /// Tells of what an earlier service has put away and not told.
    pub(super) fn tell_again(&self, config: &Config) {
        for record in self.records.iter().filter(|record| !record.told) {
            if matches!(record.status, Status::Done | Status::Failed) {
                deliver(config, record.clone(), &self.deliveries);
            }
        }
    }

    /// All who were to know of a capture were told, or cannot be.
    pub(super) async fn told(&mut self, told: Delivered) {
        for why in told.failures {
            self.trouble.note(why);
        }
        let number = told.number;
        let Some(known) = self.records.iter_mut().find(|record| record.number == number) else { return };
        known.told = true;
        if self.left.iter().any(|left| left.number == number) {
            // It is written down when it is put away.
            return;
        }
        let record = known.clone();
        if let Err(error) = self.shelf.with(move |shelf| shelf.database.note(&record)).await {
            warn!("{error}; the same may be told again after a restart");
        }
    }

    /// Takes captures away that are too old or too many.
    pub(super) async fn expire(&mut self, config: &StoreConfig) {
        let (config, now_ms) = (config.clone(), jiff::Timestamp::now().as_millisecond());
        match self.shelf.with(move |shelf| shelf.retain(&config, now_ms)).await {
            Ok(expired) => {
                for gone in expired {
                    info!(
                        "capture {} is gone, as store.keep, max_captures and max_size want it",
                        gone.number
                    );
                    self.know(gone);
                }
            }
            Err(error) => warn!("old captures cannot be removed: {error}"),
        }
        // Enough to decide by.
        let most = MOST_RECORDS as usize;
        if self.records.len() > 2 * most {
            self.records.sort_by_key(|record| record.number);
            self.records.drain(..self.records.len() - most);
        }
    }

    /// How many are at work.
    pub(super) fn at_work(&self) -> usize {
        self.runs.len() + self.left.len()
    }

    /// Comes to an end: captures write what they have.
    pub(super) async fn leave(mut self, config: &Config) {
        self.handles.values().for_each(Handle::terminate);
        let deadline = Instant::now() + LEAVING;
        while !self.runs.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(ended) = timeout(left, self.next_end()).await else { return };
            self.ended(ended, config).await;
        }
    }

    /// What is known of a capture now.
    fn know(&mut self, record: Record) {
        if let Some(known) = self.records.iter_mut().find(|known| known.number == record.number) {
            *known = record;
        }
    }
}

fn say(record: &Record) {
    let (number, pid) = (record.number, record.subject.pid);
    match (&record.findings, &record.error) {
        (Some(findings), _) if record.found_growth() => {
            warn!("capture {number} of process {pid}: {}", findings.answer);
        }
        (Some(findings), _) => info!("capture {number} of process {pid}: {}", findings.answer),
        (None, error) => {
            let why = error.as_deref().unwrap_or("nobody knows why");
            warn!("capture {number} of process {pid} failed: {why}");
        }
    }
}
