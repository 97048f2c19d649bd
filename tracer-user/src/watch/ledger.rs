//! The captures: those that are being made, and what became of all others. They begin, end, are put away, told and forgotten
//! here.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::{
    sync::mpsc,
    task::{Id, JoinError, JoinSet, spawn_blocking},
    time::timeout,
};
use tracing::{info, warn};

use super::{
    config::{Config, StoreConfig},
    decide::Wish,
    deliver::{Delivered, deliver},
    observe::Look,
    record::{CaptureNumber, Record, Status, Trigger},
    run::{Ended, Order, RunError},
    shelf::{SharedShelf, Shelf, ShelfError, complete, may_be_at_work},
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
    runs: JoinSet<Ended>,
    /// Of which capture each of them is.
    numbers: HashMap<Id, CaptureNumber>,
    handles: HashMap<CaptureNumber, Handle>,
    counts: Counts,
    /// The servers that there are to capture.
    servers: HashSet<String>,
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
        let mut records = shelf.with(|shelf| shelf.database.records(0, MOST_RECORDS)).await?;
        // What became of those that could not be put away is not in the index.
        records.retain(|record| !left.iter().any(|left| left.number == record.number));
        records.extend(left.iter().cloned());
        Ok(Self {
            shelf,
            boot,
            records,
            left,
            runs: JoinSet::new(),
            numbers: HashMap::new(),
            handles: HashMap::new(),
            counts: Counts::default(),
            servers: HashSet::new(),
            deliveries,
            trouble: Trouble::default(),
        })
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
        let (boot, records, budget, servers) = (&*self.boot, &*self.records, &config.budget, &self.servers);
        Now { at_ms, boot, records, budget, planned, servers }
    }

    /// All processes were looked at.
    pub(super) fn looked(&mut self, look: &Look) {
        self.servers.retain(|server| look.processes.iter().any(|seen| seen.server == *server));
        for seen in &look.processes {
            if !self.servers.contains(&seen.server) {
                self.servers.insert(seen.server.clone());
            }
        }
    }

    /// Begins a capture, if it may be.
    ///
    /// # Errors
    /// Why it was not begun.
    pub(super) async fn begin(&mut self, wish: Wish, config: &Config) -> Result<CaptureNumber, NotBegun> {
        let Wish { subject, trigger, why, how } = wish;
        let (planned, begun_ms) = (how.planned(), jiff::Timestamp::now().as_millisecond());
        let now = self.now(begun_ms, config, planned);
        now.has_room(&subject)?;
        // Somebody who asks goes first.
        if trigger != Trigger::Request {
            now.leaves_room_for_others(&subject.server, config.capture.planned())?;
        }
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
        let order = Order { number, process: subject.id(), out: out.clone(), how };
        self.records.push(record);
        match order.start() {
            Ok(run) => {
                match run.handle() {
                    Ok(handle) => drop(self.handles.insert(number, handle)),
                    Err(error) => warn!("capture {number} cannot be ended early: {error}"),
                }
                self.await_end(number, async move {
                    let ended = run.finish(number).await;
                    made_whole(out).await;
                    ended
                });
                Ok(number)
            }
            Err(error) => {
                let why = error.to_string();
                self.put_away(number, Err(why), None, config).await;
                Err(error.into())
            }
        }
    }

    fn await_end(&mut self, number: CaptureNumber, end: impl Future<Output = Ended> + Send + 'static) {
        let task = self.runs.spawn(end);
        self.numbers.insert(task.id(), number);
    }

    /// The next capture that has come to an end; never, while there is none. To be given to [`Self::ended`].
    pub(super) async fn next_end(&mut self) -> Result<(Id, Ended), JoinError> {
        match self.runs.join_next_with_id().await {
            Some(ended) => ended,
            None => std::future::pending().await,
        }
    }

    /// Puts a capture away that has come to an end, and tells of it.
    pub(super) async fn ended(&mut self, ended: Result<(Id, Ended), JoinError>, config: &Config) {
        let (task, result, findings) = match ended {
            Ok((task, Ended { result, findings })) => (task, result.map_err(|why| why.to_string()), findings),
            // One that is never put away would be at work for ever.
            Err(error) => (error.id(), Err(format!("nobody waits for it any more: {error}")), None),
        };
        let Some(number) = self.numbers.remove(&task) else { return };
        self.handles.remove(&number);
        self.put_away(number, result, findings, config).await;
        self.expire(&config.store).await;
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
    pub(super) async fn take_over(&mut self) {
        for record in std::mem::take(&mut self.left) {
            let number = record.number;
            let (spool, is_at_work) = self
                .shelf
                .with(move |shelf| {
                    let spool = shelf.store.spool(number);
                    let is_at_work = may_be_at_work(&spool);
                    (spool, is_at_work)
                })
                .await;
            if is_at_work {
                self.left.push(record);
                continue;
            }
            if record.status == Status::Running {
                self.await_end(number, async move {
                    made_whole(spool).await;
                    Ended { result: Err(RunError::LeftBehind), findings: None }
                });
                continue;
            }
            // It is known what became of it, and there was no room to write that down. It may have been told meanwhile.
            let known = self.records.iter().find(|known| known.number == number);
            let mut record = Record { told: known.is_some_and(|known| known.told), ..record };
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
            Ok((expired, troubles)) => {
                troubles.iter().for_each(|error| warn!("an old capture cannot be removed: {error}"));
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

/// What a capture has not written, and can be made from what it has, is made.
async fn made_whole(spool: PathBuf) {
    // What went wrong was said; whatever is missing is found out by whoever puts it away.
    let _ = spawn_blocking(move || complete(&spool)).await;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        target::{Memory, testing::server},
        watch::{
            config::{Budget, StoreConfig},
            observe::Seen,
            record::Subject,
            testing,
        },
    };

    struct Kept {
        _directory: tempfile::TempDir,
        config: Config,
        shelf: SharedShelf,
        told: mpsc::UnboundedReceiver<Delivered>,
        ledger: Ledger,
    }

    /// A ledger of a store with these captures. Those that are running are left by an earlier service.
    async fn ledger(records: &[Record], budget: Budget) -> Kept {
        let directory = tempfile::tempdir().expect("a directory");
        let store =
            StoreConfig { directory: directory.path().join("store"), min_free: 0, ..StoreConfig::default() };
        let (mut shelf, _) = Shelf::open(&store).expect("a new one");
        records.iter().for_each(|record| shelf.database.note(record).expect("it is written"));
        let left = records.iter().filter(|record| record.status == Status::Running).cloned().collect();
        let shelf = SharedShelf::new(shelf);
        let (deliveries, told) = mpsc::unbounded_channel();
        let ledger =
            Ledger::open(shelf.clone(), left, "boot".to_owned(), deliveries).await.expect("it is read");
        let config = Config { store, budget, ..Config::default() };
        Kept { _directory: directory, config, shelf, told, ledger }
    }

    fn look(servers: &[&str]) -> Look {
        let seen = |(index, name): (usize, &&str)| {
            let process = server(7 + index as u32, "postgres: a b [local] idle", Memory::default(), None);
            Seen { id: process.id(), process, server: (*name).to_owned(), contexts: None }
        };
        Look { processes: servers.iter().enumerate().map(seen).collect(), ..Look::default() }
    }

    #[tokio::test]
    async fn a_server_leaves_room_for_those_that_are_seen_beside_it() {
        let ended_ms = jiff::Timestamp::now().as_millisecond() - 1000;
        let record = Record { ended_ms: Some(ended_ms), probed_seconds: 20.0, ..testing::record(1, None) };
        let budget = Budget { probed_per_hour: Duration::from_secs(40), ..Budget::default() };
        let mut kept = ledger(&[record], budget).await;
        // Nobody is there with that start, so that nothing begins, whatever is allowed.
        let subject = Subject { pid: 1, start_ticks: 1, server: "/data".to_owned(), ..Subject::default() };
        let how = kept.config.capture.clone();
        let wish = Wish { subject, trigger: Trigger::Growth, why: "a test".to_owned(), how };
        kept.ledger.looked(&look(&["/data", "/other"]));
        let begun = kept.ledger.begin(wish.clone(), &kept.config).await;
        assert!(matches!(begun, Err(NotBegun::Refused(Refusal::Kept { servers: 1, .. }))), "{begun:?}");
        kept.ledger.looked(&look(&["/data"]));
        let begun = kept.ledger.begin(wish, &kept.config).await;
        assert!(matches!(begun, Err(NotBegun::Run(RunError::Ended(1)))), "{begun:?}");
        let failed =
            kept.shelf.with(|shelf| shelf.database.record(CaptureNumber(2))).await.expect("it is read");
        assert_eq!(failed.expect("it is known").status, Status::Failed);
    }

    #[tokio::test]
    async fn what_an_earlier_service_began_is_put_away_and_told_once() {
        let running =
            Record { status: Status::Running, ended_ms: None, told: false, ..testing::record(3, None) };
        let mut kept = ledger(&[Record { findings: None, ..running }], Budget::default()).await;
        assert_eq!((kept.ledger.at_work(), kept.ledger.running().count()), (1, 1));
        kept.ledger.take_over().await;
        let ended = kept.ledger.next_end().await;
        kept.ledger.ended(ended, &kept.config).await;
        assert_eq!((kept.ledger.at_work(), kept.ledger.running().count()), (0, 0));
        let told = kept.told.recv().await.expect("whoever wants to know");
        kept.ledger.told(told).await;
        let record =
            kept.shelf.with(|shelf| shelf.database.record(CaptureNumber(3))).await.expect("it is read");
        let record = record.expect("it is known");
        assert_eq!((record.status, record.told), (Status::Failed, true));
        assert_eq!(record.error.as_deref(), Some(crate::watch::shelf::LEFT_BEHIND));
        assert_eq!(kept.ledger.counts().ended(Trigger::Growth, Status::Failed), 1);
    }

    /// It ended, the disk was full, and its row still says that it is being made.
    #[tokio::test]
    async fn what_could_not_be_put_away_is_not_at_work() {
        let running =
            Record { status: Status::Running, ended_ms: None, findings: None, ..testing::record(3, None) };
        let mut kept = ledger(&[running], Budget::default()).await;
        let found = Record { told: false, ..testing::record(3, Some("Leaky")) };
        let (deliveries, mut told) = mpsc::unbounded_channel();
        let (shelf, left) = (kept.shelf.clone(), vec![found.clone()]);
        kept.ledger = Ledger::open(shelf, left, "boot".to_owned(), deliveries).await.expect("it is read");
        assert_eq!(kept.ledger.running().count(), 0);
        kept.ledger.tell_again(&kept.config);
        kept.ledger.told(told.recv().await.expect("it is told")).await;
        let make = |shelf: &mut Shelf| std::fs::create_dir(shelf.store.spool(CaptureNumber(3)));
        kept.shelf.with(make).await.expect("a directory");
        kept.ledger.take_over().await;
        assert_eq!(kept.ledger.at_work(), 0);
        let record =
            kept.shelf.with(|shelf| shelf.database.record(CaptureNumber(3))).await.expect("it is read");
        let record = record.expect("it is known");
        assert_eq!((record.status, record.told, record.findings), (Status::Done, true, found.findings));
    }

    #[tokio::test]
    async fn a_task_that_is_lost_is_no_capture_for_ever() {
        let running = Record { status: Status::Running, ended_ms: None, ..testing::record(3, None) };
        let mut kept = ledger(&[running], Budget::default()).await;
        kept.ledger.await_end(CaptureNumber(3), async { panic!("a fault") });
        let ended = kept.ledger.next_end().await;
        kept.ledger.ended(ended, &kept.config).await;
        assert_eq!(kept.ledger.running().count(), 0);
    }
}
