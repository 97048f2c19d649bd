//! The store and its index as one: captures begin, end, are found again after a restart, and grow old.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::task::spawn_blocking;
use tracing::{info, warn};

use super::{
    config::StoreConfig,
    database::{Database, DatabaseError},
    record::{CaptureNumber, Record, Status, Subject, Trigger},
    run::{forget_lock, is_at_work, lock_path},
    store::{Found, Store, StoreError, is_captured, is_made},
};
use crate::{
    program::{own_program, run_for},
    render::{CAPTURE_FILE, Findings},
};

/// Why a capture cannot be put away.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// The index.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The files.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is too little room.
    #[error(
        "{free_mib} MiB are free in {}, less than store.min_free ({min_mib} MiB); make room", directory.display()
    )]
    NoRoom {
        /// What is free.
        free_mib: u64,
        /// What has to be.
        min_mib: u64,
        /// Where.
        directory: PathBuf,
    },
}

impl ShelfError {
    /// Whether there was no room for it.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Database(error) => error.is_full(),
            Self::Store(StoreError::Io { source, .. }) => source.kind() == io::ErrorKind::StorageFull,
            _ => false,
        }
    }
}

/// So many captures are remembered after their artifacts are gone.
const MOST_REMEMBERED: u32 = 1000;

/// What is said of a capture that ended with the service.
pub(super) const LEFT_BEHIND: &str =
    "the service ended before the capture did, and nothing of it was written";

/// The store and its index.
#[derive(Debug)]
pub(super) struct Shelf {
    /// The files.
    pub store: Store,
    /// The index, and the series.
    pub database: Database,
}

/// The shelf, used by one at a time, where that may take its time.
#[derive(Clone, Debug)]
pub(super) struct SharedShelf(Arc<Mutex<Shelf>>);

impl SharedShelf {
    /// For all.
    pub(super) fn new(shelf: Shelf) -> Self {
        Self(Arc::new(Mutex::new(shelf)))
    }

    /// Does something with it.
    pub(super) async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Shelf) -> T + Send + 'static,
    ) -> T {
        let shelf = self.clone();
        let done = spawn_blocking(move || shelf.with_now(work));
        done.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    /// The same by a thread that may wait.
    pub(super) fn with_now<T>(&self, work: impl FnOnce(&mut Shelf) -> T) -> T {
        // Whoever panicked has said so; the database takes back what was half done.
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shelf {
    /// Opens both, and makes them agree: whatever an earlier service was doing when it ended is finished or taken back.
    /// Gives the captures that are still being made by programs that it has left behind.
    ///
    /// # Errors
    /// If they cannot be opened or written.
    pub(super) fn open(config: &StoreConfig) -> Result<(Self, Vec<Record>), ShelfError> {
        let store = Store::open(config)?;
        let database = Database::open(store.directory())?;
        if let Some(moved) = &database.moved {
            warn!(
                "the database was damaged and is {} now; the series begins anew, captures are found by their files",
                moved.display()
            );
        }
        let mut shelf = Self { store, database };
        let orphans = shelf.agree()?;
        Ok((shelf, orphans))
    }

    fn agree(&mut self) -> Result<Vec<Record>, ShelfError> {
        let mut orphans = Vec::new();
        for record in self.database.records_that_are(Status::Running)? {
            let spool = self.store.spool(record.number);
            if may_be_at_work(&spool) {
                orphans.push(record);
                continue;
            }
            complete(&spool);
            if let (record, Err(error)) = self.end(record, Err(LEFT_BEHIND), None) {
                warn!("capture {} cannot be put away yet: {error}", record.number);
                orphans.push(record);
            }
        }
        for found in self.store.unknown(&self.database.numbers()?)? {
            let record = match found {
                // Whoever was to know of it was told, or was not for long.
                Found::Whole(record) => Record { told: true, ..*record },
                Found::Nameless(number) => {
                    nameless(number, self.store.findings(&self.store.captured(number)).ok())
                }
            };
            info!("capture {} was in the store and not in the index", record.number);
            self.database.note(&record)?;
        }
        let running: HashSet<CaptureNumber> = orphans.iter().map(|record| record.number).collect();
        for number in self.store.spooled()?.into_iter().filter(|number| !running.contains(number)) {
            orphans.extend(self.take_in(number)?);
        }
        for mut record in self.database.records_that_are(Status::Done)? {
            if !self.store.has(record.number) {
                record.status = Status::Expired;
                self.database.note(&record)?;
            }
        }
        // The index may have been lost, and what it knew of numbers with it.
        let numbers = self.store.kept()?.into_iter().chain(self.store.spooled()?);
        if let Some(last) = numbers.max() {
            self.database.number_above(last)?;
        }
        Ok(orphans)
    }

    /// Takes a capture in the spool in of which the index knows nothing: it was lost while that was made. Gives it if it is
    /// being made still.
    fn take_in(&mut self, number: CaptureNumber) -> Result<Option<Record>, ShelfError> {
        let spool = self.store.spool(number);
        if may_be_at_work(&spool) {
            let begun_ms = begun_ms(&spool);
            let now_ms = jiff::Timestamp::now().as_millisecond();
            let record = Record {
                status: Status::Running,
                begun_ms,
                ended_ms: None,
                // As long as it took until now, at least.
                probed_seconds: (now_ms - begun_ms).max(0) as f64 / 1000.0,
                ..nameless(number, None)
            };
            self.database.note(&record)?;
            return Ok(Some(record));
        }
        complete(&spool);
        let record = match self.made(number) {
            None => {
                let error = Some(LEFT_BEHIND.to_owned());
                Record { status: Status::Failed, error, ..nameless(number, None) }
            }
            Some(found) => {
                let error = found.as_ref().err().cloned();
                Record { error, ..nameless(number, found.ok()) }
            }
        };
        let mut put = record;
        match self.put_away(&mut put) {
            Ok(()) => Ok(None),
            // It is tried again.
            Err(error) => {
                warn!("capture {number} cannot be put away yet: {error}");
                Ok(Some(put))
            }
        }
    }

    /// Gives a capture that is about to begin its number, if there is room for it.
    ///
    /// # Errors
    /// If there is none, or it cannot be written down.
    pub(super) fn begin(&mut self, record: &mut Record, min_free: u64) -> Result<(), ShelfError> {
        let free = self.store.free_bytes()?;
        if free < min_free {
            return Err(ShelfError::NoRoom {
                free_mib: free >> 20,
                min_mib: min_free >> 20,
                directory: self.store.directory().to_owned(),
            });
        }
        self.database.begin(record)?;
        Ok(())
    }

    /// Says what became of a capture that has ended, and puts it away. `result` says how its program ended and `printed`
    /// what it has said; what it has written counts for more. Where it can be written neither to the store nor to the index,
    /// it stays in the spool, and [`Self::put_away`] is for the next time.
    pub(super) fn end(
        &mut self,
        mut record: Record,
        result: Result<(), &str>,
        printed: Option<Findings>,
    ) -> (Record, Result<(), ShelfError>) {
        let now_ms = jiff::Timestamp::now().as_millisecond();
        record.ended_ms = Some(record.ended_ms.unwrap_or(now_ms));
        match self.made(record.number) {
            _ if self.store.has(record.number) => record = self.put_away_before(record),
            Some(Ok(findings)) => done(&mut record, findings),
            // What all is made from is there: it is kept, whatever is wrong with the rest.
            Some(Err(why)) => {
                record.status = Status::Done;
                record.error = Some(why);
                record.findings = printed;
            }
            None => {
                fail(&mut record, result.err().unwrap_or("it has written nothing"), now_ms);
                if let Some(findings) = printed {
                    // There was no room for files, and the answer is known all the same.
                    record.probed_seconds = findings.window.probed_seconds;
                    record.findings = Some(findings);
                }
            }
        }
        let put = self.put_away(&mut record);
        (record, put)
    }

    /// It was put away, and the index not told.
    fn put_away_before(&self, record: Record) -> Record {
        let kept = self.store.unknown(&HashSet::new()).into_iter().flatten().find_map(|found| match found {
            Found::Whole(kept) if kept.number == record.number => Some(*kept),
            _ => None,
        });
        Record { status: Status::Done, ..kept.unwrap_or(record) }
    }

    /// Puts a capture away of which it is known what became of it.
    ///
    /// # Errors
    /// If it cannot be written: then it stays in the spool.
    pub(super) fn put_away(&mut self, record: &mut Record) -> Result<(), ShelfError> {
        let number = record.number;
        if record.status == Status::Failed {
            self.store.drop_spool(number)?;
        } else if !self.store.has(number) {
            record.bytes = self.store.spooled_bytes(number);
            self.store.keep(record)?;
        }
        self.database.note(record)?;
        forget_lock(&self.store.spool(number));
        Ok(())
    }

    /// What a capture in the spool found, or why that cannot be told; `None` if nothing was captured.
    fn made(&self, number: CaptureNumber) -> Option<Result<Findings, String>> {
        let spool = self.store.spool(number);
        is_captured(&spool).then(|| self.store.findings(&spool).map_err(|error| error.to_string()))
    }

    /// Takes captures away that are too old, too many or too large together, the oldest first. Gives those, and what kept
    /// others from being taken away.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub(super) fn retain(
        &mut self,
        config: &StoreConfig,
        now_ms: i64,
    ) -> Result<(Vec<Record>, Vec<ShelfError>), ShelfError> {
        let done = self.database.records_that_are(Status::Done)?;
        let keep_ms = i64::try_from(config.keep.as_millis()).unwrap_or(i64::MAX);
        let mut count = done.len();
        let mut bytes: u64 = done.iter().map(|record| record.bytes).sum();
        let (mut expired, mut troubles) = (Vec::new(), Vec::new());
        for mut record in done {
            let is_old = record.begun_ms < now_ms.saturating_sub(keep_ms);
            if !is_old && count <= config.max_captures as usize && bytes <= config.max_size {
                break;
            }
            // One that cannot go must not keep all others.
            if let Err(error) = self.store.remove(record.number) {
                troubles.push(error.into());
                continue;
            }
            count -= 1;
            bytes = bytes.saturating_sub(record.bytes);
            record.status = Status::Expired;
            troubles.extend(self.database.note(&record).err().map(ShelfError::from));
            expired.push(record);
        }
        troubles.extend(self.database.forget_records(MOST_REMEMBERED).err().map(ShelfError::from));
        Ok((expired, troubles))
    }
}

fn done(record: &mut Record, findings: Findings) {
    if record.subject.pid == 0 {
        record.subject = subject(&findings);
    }
    record.status = Status::Done;
    record.probed_seconds = findings.window.probed_seconds;
    record.findings = Some(findings);
}

fn fail(record: &mut Record, why: &str, now_ms: i64) {
    record.status = Status::Failed;
    record.error = Some(why.to_owned());
    // Not longer than it took.
    let took = Duration::from_millis(u64::try_from(now_ms - record.begun_ms).unwrap_or(0));
    record.probed_seconds = record.probed_seconds.min(took.as_secs_f64());
}

/// A capture of which only the artifacts are known.
fn nameless(number: CaptureNumber, findings: Option<Findings>) -> Record {
    let begun =
        findings.as_ref().and_then(|findings| findings.window.started.parse::<jiff::Timestamp>().ok());
    let begun_ms = begun.unwrap_or_else(jiff::Timestamp::now).as_millisecond();
    Record {
        number,
        trigger: Trigger::Request,
        why: "found in the store, where nothing says why it was made".to_owned(),
        subject: findings.as_ref().map_or_else(Subject::default, subject),
        boot: String::new(),
        begun_ms,
        ended_ms: Some(begun_ms),
        status: Status::Done,
        error: None,
        probed_seconds: findings.as_ref().map_or(0.0, |findings| findings.window.probed_seconds),
        bytes: 0,
        told: true,
        findings,
    }
}

/// When the program began that makes the capture in a spool, in milliseconds since 1970: its lock is made with that.
fn begun_ms(spool: &Path) -> i64 {
    let made = std::fs::metadata(lock_path(spool)).and_then(|lock| lock.modified()).ok();
    let made = made.and_then(|made| jiff::Timestamp::try_from(made).ok());
    made.unwrap_or_else(jiff::Timestamp::now).as_millisecond()
}

/// What a capture was of, as far as its findings say.
fn subject(findings: &Findings) -> Subject {
    let target = &findings.target;
    Subject {
        pid: target.pid,
        server: target.binary.clone(),
        kind: target.kind.clone(),
        database: target.database.clone(),
        user: target.user.clone(),
        ..Subject::default()
    }
}

/// Makes artifacts of a capture that are missing from the one that all are made from. It may take its time.
pub(super) fn complete(spool: &Path) {
    if !is_captured(spool) || is_made(spool) {
        return;
    }
    let mut command = own_program("render");
    command.arg(spool.join(CAPTURE_FILE)).arg("--out").arg(spool);
    if let Err(why) = run_for(command) {
        warn!("the artifacts in {} cannot be made from its {CAPTURE_FILE}: {why}", spool.display());
    }
}

/// Whether a capture of an earlier service is being made still. One of which that cannot be found out is not touched.
pub(super) fn may_be_at_work(spool: &Path) -> bool {
    is_at_work(spool).unwrap_or_else(|error| {
        warn!("whether the capture in {} is still at work is not known: {error}", spool.display());
        true
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};

    use super::*;
    use crate::{guard::try_lock, watch::testing};

    fn config(directory: &Path) -> StoreConfig {
        StoreConfig { directory: directory.join("store"), min_free: 0, ..StoreConfig::default() }
    }

    /// The index is lost while a capture is being made: it is known again, and nobody gets its number.
    #[test]
    fn a_capture_at_work_survives_the_loss_of_its_index() {
        let directory = tempfile::tempdir().expect("a directory");
        let config = config(directory.path());
        let (shelf, _) = Shelf::open(&config).expect("a new one");
        let spool = shelf.store.spool(CaptureNumber(5));
        fs::create_dir(&spool).expect("a directory");
        let lock = OpenOptions::new().write(true).create_new(true).open(spool.with_extension("lock"));
        let lock = lock.expect("a lock");
        assert!(try_lock(&lock).expect("it works"));
        drop(shelf);
        let (mut shelf, left) = Shelf::open(&config).expect("once more");
        assert_eq!(left.iter().map(|record| record.number.0).collect::<Vec<_>>(), [5]);
        assert!(spool.is_dir());
        let mut next = testing::record(0, None);
        shelf.begin(&mut next, 0).expect("there is room");
        assert_eq!(next.number, CaptureNumber(6));
        // It has ended, and has written nothing.
        drop((lock, shelf));
        let (shelf, _) = Shelf::open(&config).expect("once more");
        assert!(!spool.exists());
        let record = shelf.database.record(CaptureNumber(5)).expect("it is read").expect("it is known");
        assert_eq!((record.status, record.error.as_deref()), (Status::Failed, Some(LEFT_BEHIND)));
    }

    #[test]
    fn what_cannot_be_removed_keeps_nothing_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let config = StoreConfig { max_captures: 0, ..config(directory.path()) };
        let (mut shelf, _) = Shelf::open(&config).expect("a new one");
        for number in [1, 2] {
            let record = testing::record(number, None);
            fs::create_dir(shelf.store.spool(record.number)).expect("a directory");
            shelf.store.keep(&record).expect("it is kept");
            shelf.database.note(&record).expect("it is written");
        }
        // Something that no capture can be renamed to is in the way of the first.
        let in_the_way = config.directory.join("trash/000001");
        fs::create_dir_all(in_the_way.join("inside")).expect("a directory");
        let (expired, troubles) = shelf.retain(&config, 600_000).expect("it is read");
        assert_eq!(expired.iter().map(|record| record.number.0).collect::<Vec<_>>(), [2]);
        assert_eq!(troubles.len(), 1);
        assert!(shelf.store.has(CaptureNumber(1)) && !shelf.store.has(CaptureNumber(2)));
    }
}
