//! The service: looks, decides, captures, puts away, tells. The only file of `watch` that sees all the others.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    task::{JoinHandle, JoinSet, spawn_blocking},
};
use tracing::{error, info, warn};

use super::{
    config::{CaptureConfig, CensusConfig, Config, ConfigError, StoreConfig},
    deliver::{Delivered, deliver},
    history::{Grower, History},
    host::{boot_id, host_name},
    manager::Manager,
    observe::{ContextBytes, Look, Observer, Seen, process_time, seen_now},
    record::{CaptureNumber, Record, Status, Subject, Trigger},
    run::{Ended, Handle, Order, is_at_work},
    series::Writer,
    shelf::{LEFT_BEHIND, Shelf, ShelfError},
    thin::thin_out,
    triggers::Now,
    view::{Figures, Meter, Settings, View, processes},
    web::{WebError, serve},
};
use crate::{
    render::{Findings, units::bytes},
    session::Overhead,
    target::{ProcessId, status},
};

/// Series and store are looked through for what is too old so often.
const TIDY_EVERY: Duration = Duration::from_secs(300);

/// Captures get so long to come to an end when the service has to.
const LEAVING: Duration = Duration::from_secs(30);

/// A look at all processes takes no longer than that; if it does, the thread that looks hangs.
const LONGEST_LOOK: Duration = Duration::from_secs(60);

/// A store without room is tried again so often.
const ROOM_EVERY: Duration = Duration::from_secs(5);

/// So many captures are remembered to decide by.
const MOST_RECORDS: u32 = 1000;

/// Why the service cannot run.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// Its configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its store.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    /// Its page.
    #[error(transparent)]
    Web(#[from] WebError),
    /// The thread that looks at processes is gone.
    #[error("the thread that looks at processes has ended: this is a fault of pgleak; it has said why above")]
    Census,
    /// A thread, a signal or a descriptor.
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
}

/// Somebody asks for a capture.
#[derive(Debug)]
pub(super) struct Asked {
    /// Of which process.
    pub pid: u32,
    /// For how long, if not as configured.
    pub duration: Option<Duration>,
    /// How much of its time the process may lose, if not as configured.
    pub overhead: Option<Overhead>,
    /// Who, in a few words.
    pub by: String,
    /// Gets the capture's number, or why there is none.
    pub answer: oneshot::Sender<Result<CaptureNumber, String>>,
}

/// What runs, between one event and the next.
struct Service {
    config: Config,
    path: PathBuf,
    shelf: Arc<Mutex<Shelf>>,
    writer: Option<Writer>,
    history: History,
    /// Contexts of each process as they were read last.
    contexts: HashMap<ProcessId, Vec<ContextBytes>>,
    /// The last captures, in any order.
    records: Vec<Record>,
    /// Captures that a service before this one has begun, and that are still at work.
    orphans: Vec<Record>,
    runs: JoinSet<(CaptureNumber, Ended)>,
    handles: HashMap<CaptureNumber, Handle>,
    boot: String,
    started: Instant,
    figures: Figures,
    cpu: Meter,
    read: Meter,
    context_bytes: u64,
    left_out: Arc<AtomicU64>,
    /// Captures that have ended, by why they began and what became of them, and those that found growth.
    counts: HashMap<(Trigger, Status), u64>,
    found: HashMap<Trigger, u64>,
    /// What might not begin at the last look: told once, and not each time.
    held_back: HashSet<ProcessId>,
    /// When the last capture of the schedule began, in milliseconds since 1970.
    last_scheduled_ms: i64,
    last_tidied: Option<Instant>,
    thinning: Option<JoinHandle<()>>,
    last_looked: Instant,
    last_look: Option<Look>,
    view: watch::Sender<Arc<View>>,
    census: watch::Sender<CensusConfig>,
    deliveries: mpsc::UnboundedSender<Delivered>,
}

/// Runs until it is told to end.
///
/// # Errors
/// If it cannot start.
pub async fn run(path: &Path) -> Result<(), WatchError> {
    keep_memory_together();
    let config = Config::read(path)?;
    let manager = Manager::from_environment();
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut hung_up = signal(SignalKind::hangup())?;
    let (shelf, orphans) = tokio::select! {
        opened = open(&config.store, manager) => opened?,
        _ = terminated.recv() => return Ok(()),
        _ = interrupted.recv() => return Ok(()),
    };
    let boot = boot_id()?;
    let now_ms = jiff::Timestamp::now().as_millisecond();
    let mut history = History::new(config.triggers.growth.window);
    let since_ms = now_ms - i64::try_from(config.triggers.growth.window.as_millis()).unwrap_or(0);
    for (id, course) in shelf.database.courses(since_ms, &boot).map_err(ShelfError::from)? {
        history.restore(id, course);
    }
    let records = shelf.database.records(0, MOST_RECORDS).map_err(ShelfError::from)?;
    let directory = shelf.store.directory().to_owned();
    let (view_sender, view) = watch::channel(Arc::new(View::default()));
    let (census_sender, census) = watch::channel(config.census.clone());
    let (deliveries, mut delivered) = mpsc::unbounded_channel();
    let (asking, mut asked) = mpsc::channel(16);
    let web = serve(&config.web, directory, view, asking).await?;

    let left_out = Arc::new(AtomicU64::new(0));
    let (looks_sender, mut looks) = mpsc::channel(1);
    let counter = Arc::clone(&left_out);
    thread::Builder::new()
        .name("census".to_owned())
        .spawn(move || look_on(census, &looks_sender, &counter))?;

    info!("watching: store {}, {}", config.store.directory.display(), web);
    let scheduled = records.iter().filter(|record| record.trigger == Trigger::Schedule);
    let last_scheduled_ms = scheduled.map(|record| record.begun_ms).max().unwrap_or(now_ms);
    let mut service = Service {
        config,
        path: path.to_owned(),
        shelf: Arc::new(Mutex::new(shelf)),
        writer: Some(Writer::default()),
        history,
        contexts: HashMap::new(),
        records,
        orphans,
        runs: JoinSet::new(),
        handles: HashMap::new(),
        boot,
        started: Instant::now(),
        figures: Figures::default(),
        cpu: Meter::default(),
        read: Meter::default(),
        context_bytes: 0,
        left_out,
        held_back: HashSet::new(),
        last_scheduled_ms,
        counts: HashMap::new(),
        found: HashMap::new(),
        last_tidied: None,
        thinning: None,
        last_looked: Instant::now(),
        last_look: None,
        view: view_sender,
        census: census_sender,
        deliveries,
    };
    let before = service.records.clone();
    before.iter().filter(|record| record.status != Status::Running).for_each(|record| service.count(record));
    service.tell_again();
    manager.ready();
    let mut heartbeat = tokio::time::interval(manager.period().unwrap_or(LONGEST_LOOK));
    loop {
        tokio::select! {
            look = looks.recv() => match look {
                Some(look) => {
                    service.looked(look).await;
                    manager.status(&service.status_line());
                }
                None => {
                    service.leave().await;
                    return Err(WatchError::Census);
                }
            },
            _ = heartbeat.tick() => {
                if service.looks() {
                    manager.alive();
                }
            }
            Some(ended) = service.runs.join_next() => match ended {
                Ok((number, result)) => service.ended(number, result).await,
                Err(error) => error!("a capture was lost: {error}"),
            },
            Some(asked) = asked.recv() => service.asked(asked).await,
            Some(told) = delivered.recv() => service.told(told).await,
            _ = hung_up.recv() => {
                manager.reloading();
                service.reload();
                manager.ready();
            }
            _ = terminated.recv() => break,
            _ = interrupted.recv() => break,
        }
    }
    manager.stopping();
    service.leave().await;
    Ok(())
}

/// What is free is given back from so many bytes on; larger pieces are mappings of their own. glibc raises both by itself, up
/// to 64 MiB, with the largest piece that was ever freed.
const MOST_SLACK: libc::c_int = 512 << 10;
const LARGE_PIECE: libc::c_int = 128 << 10;

/// Threads that come and go would each leave a heap of their own behind, which is never given back.
fn keep_memory_together() {
    // SAFETY: settings of the allocator, before there are other threads.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, MOST_SLACK);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_PIECE);
    }
}

/// Gives what the allocator holds for nobody back to the kernel.
fn give_memory_back() {
    // SAFETY: it touches nothing that is in use.
    unsafe { libc::malloc_trim(0) };
}

/// Opens the store; where there is no room for that, as soon as there is some.
async fn open(config: &StoreConfig, manager: Manager) -> Result<(Shelf, Vec<Record>), ShelfError> {
    loop {
        match Shelf::open(config) {
            Err(error) if error.is_full() => {
                warn!(
                    "there is no room for the store: {error}; it is tried again in {} s",
                    ROOM_EVERY.as_secs()
                );
                // Otherwise it would be taken for one that does not start.
                manager.ready();
                manager.status("waiting for room for the store");
                manager.alive();
                tokio::time::sleep(ROOM_EVERY).await;
            }
            result => return result,
        }
    }
}

/// Looks again and again, until nobody wants to know.
fn look_on(mut census: watch::Receiver<CensusConfig>, looks: &mpsc::Sender<Look>, left_out: &AtomicU64) {
    let mut observer = Observer::new();
    let mut next = Instant::now();
    loop {
        let config = census.borrow_and_update().clone();
        observer.follow(&config);
        match looks.try_send(observer.look()) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                left_out.fetch_add(1, Ordering::Relaxed);
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return,
        }
        // What is late is not made up for.
        next = (next + config.interval).max(Instant::now());
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

impl Service {
    /// Does something with the store where that may take its time.
    async fn shelf<T: Send + 'static>(&self, work: impl FnOnce(&mut Shelf) -> T + Send + 'static) -> T {
        let shelf = Arc::clone(&self.shelf);
        let done = spawn_blocking(move || {
            // Whoever panicked has said so; the database takes back what was half done.
            work(&mut shelf.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
        });
        done.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    async fn looked(&mut self, look: Look) {
        self.last_looked = Instant::now();
        self.history.add(&look);
        self.contexts.retain(|id, _| look.processes.iter().any(|seen| seen.id == *id));
        for seen in &look.processes {
            if let Some(contexts) = &seen.contexts {
                self.contexts.insert(seen.id, contexts.clone());
            }
        }
        self.figures.looks += 1;
        self.figures.unread += look.unread;
        self.context_bytes += look.read_bytes;
        let look = self.write(look).await;
        self.adopt().await;
        self.capture_what_grows(&look).await;
        self.capture_on_schedule(&look).await;
        if self.last_tidied.is_none_or(|last| last.elapsed() >= TIDY_EVERY) {
            self.tidy().await;
        }
        self.last_look = Some(look);
        self.show();
    }

    /// Writes a look to the series, and gives it back.
    async fn write(&mut self, look: Look) -> Look {
        let (mut writer, boot) = (self.writer.take().unwrap_or_default(), self.boot.clone());
        let (writer, look, result) = self
            .shelf(move |shelf| {
                let result = writer.write(&mut shelf.database, &look, &boot);
                let size = result.and_then(|()| shelf.database.size());
                (writer, look, size)
            })
            .await;
        self.writer = Some(writer);
        match result {
            Ok(size) => {
                self.figures.series_bytes = size;
                if self.figures.store_trouble.take().is_some() {
                    info!("the series is written again");
                }
            }
            Err(error) => {
                self.figures.not_stored += 1;
                let text = error.to_string();
                if self.figures.store_trouble.as_ref() != Some(&text) {
                    warn!("{text}; looking goes on, and what is seen meanwhile is not kept");
                    self.figures.store_trouble = Some(text);
                }
            }
        }
        look
    }

    async fn capture_what_grows(&mut self, look: &Look) {
        let growers = self.history.growers(look, &self.config.triggers);
        let mut held_back = HashSet::new();
        for grower in growers {
            let Err(why) = self.try_grower(&grower, look).await else { continue };
            // Whatever else of it grows is told with that.
            if held_back.insert(grower.id) && !self.held_back.contains(&grower.id) {
                self.hold_back(&format!("process {}: {}; {why}", grower.id.pid, grower.why()));
            }
        }
        self.held_back = held_back;
    }

    fn hold_back(&mut self, why: &str) {
        info!("not captured: {why}");
        self.figures.held_back += 1;
        self.figures.held_back_why = Some(why.to_owned());
        self.figures.held_back_at_ms = Some(jiff::Timestamp::now().as_millisecond());
    }

    async fn try_grower(&mut self, grower: &Grower, look: &Look) -> Result<(), String> {
        let now = self.now(look.at_ms);
        // What was captured of late is no wish that could not be met.
        if now.is_news(grower).is_err() || now.is_running(grower.id) {
            return Ok(());
        }
        now.has_room(grower.id).map_err(|refusal| refusal.to_string())?;
        let Some(seen) = look.processes.iter().find(|seen| seen.id == grower.id) else { return Ok(()) };
        let subject = subject(seen, Some(grower));
        let how = self.config.capture.clone();
        self.begin(subject, grower.trigger(), grower.why(), how).await.map(drop)
    }

    async fn capture_on_schedule(&mut self, look: &Look) {
        let Some(schedule) = self.config.triggers.schedule.clone() else { return };
        let since_ms = look.at_ms - self.last_scheduled_ms;
        // Less than none: the clock was set back.
        if (0..i64::try_from(schedule.every.as_millis()).unwrap_or(i64::MAX)).contains(&since_ms) {
            return;
        }
        self.last_scheduled_ms = look.at_ms;
        let fastest: Vec<_> = self
            .history
            .fastest(look)
            .into_iter()
            .take(schedule.top as usize)
            .map(|(seen, slope)| (subject(seen, None), slope))
            .collect();
        for (subject, slope) in fastest {
            let why = format!("the schedule: of all, it grew most, by {} a minute", bytes(slope as u64));
            let room = self.now(look.at_ms).has_room(subject.id());
            let how = self.config.capture.clone();
            let result = match room {
                Ok(()) => self.begin(subject, Trigger::Schedule, why, how).await.map(drop),
                Err(refusal) => Err(refusal.to_string()),
            };
            if let Err(why) = result {
                self.hold_back(&format!("the schedule: {why}"));
            }
        }
    }

    async fn asked(&mut self, asked: Asked) {
        let Asked { pid, duration, overhead, by, answer } = asked;
        let result = self.request(pid, duration, overhead, &by).await;
        if let Err(why) = &result {
            info!("a request by {by} was refused: {why}");
        }
        // Whoever asked may be gone.
        let _ = answer.send(result);
        self.show();
    }

    async fn request(
        &mut self,
        pid: u32,
        duration: Option<Duration>,
        overhead: Option<Overhead>,
        by: &str,
    ) -> Result<CaptureNumber, String> {
        // It may have come since the last look.
        let servers = &self.config.census.servers;
        let seen =
            seen_now(pid).filter(|seen| servers.is_empty() || servers.contains(&seen.server)).ok_or_else(
                || format!("process {pid} is no server process that is watched; `pgleak list` shows all"),
            )?;
        let subject = subject(&seen, None);
        let mut config = self.config.clone();
        config.capture.duration = duration.unwrap_or(config.capture.duration);
        config.capture.overhead = overhead.unwrap_or(config.capture.overhead);
        let planned = config.planned().as_secs_f64();
        let now = Now { planned, ..self.now(jiff::Timestamp::now().as_millisecond()) };
        now.has_room(subject.id()).map_err(|refusal| refusal.to_string())?;
        self.begin(subject, Trigger::Request, format!("asked for by {by}"), config.capture).await
    }

    fn now(&self, at_ms: i64) -> Now<'_> {
        Now {
            at_ms,
            boot: &self.boot,
            records: &self.records,
            budget: &self.config.budget,
            planned: self.config.planned().as_secs_f64(),
        }
    }

    /// Begins a capture, or says why it cannot.
    async fn begin(
        &mut self,
        subject: Subject,
        trigger: Trigger,
        why: String,
        how: CaptureConfig,
    ) -> Result<CaptureNumber, String> {
        let planned = Config { capture: how.clone(), ..self.config.clone() }.planned();
        let mut record = Record {
            number: CaptureNumber(0),
            trigger,
            why,
            subject,
            boot: self.boot.clone(),
            begun_ms: jiff::Timestamp::now().as_millisecond(),
            ended_ms: None,
            status: Status::Running,
            error: None,
            probed_seconds: planned.as_secs_f64(),
            bytes: 0,
            told: false,
            findings: None,
        };
        let min_free = self.config.store.min_free;
        let (record_again, begun) = self
            .shelf(move |shelf| {
                let begun = shelf.begin(&mut record, min_free).map(|()| shelf.store.spool(record.number));
                (record, begun)
            })
            .await;
        let (record, out) = (record_again, begun.map_err(|error| error.to_string())?);
        let order = Order { number: record.number, process: record.subject.id(), out, how };
        info!(
            "capture {} of process {} begins ({}): {}",
            record.number,
            record.subject.pid,
            record.trigger.name(),
            record.why
        );
        let number = record.number;
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
                self.ended(number, Ended { result: Err(error), findings: None }).await;
                Err(why)
            }
        }
    }

    async fn ended(&mut self, number: CaptureNumber, ended: Ended) {
        self.handles.remove(&number);
        let Some(index) = self.records.iter().position(|record| record.number == number) else { return };
        let record = self.records[index].clone();
        let Ended { result, findings } = ended;
        self.put_away(index, record, result.map_err(|error| error.to_string()), findings).await;
        self.tidy_store().await;
        self.show();
    }

    async fn put_away(
        &mut self,
        index: usize,
        record: Record,
        result: Result<(), String>,
        printed: Option<Findings>,
    ) {
        let end = move |shelf: &mut Shelf| {
            shelf.end(record, result.as_ref().copied().map_err(|why| &**why), printed)
        };
        let (record, put) = self.shelf(end).await;
        self.say(&record);
        self.records[index] = record.clone();
        self.count(&record);
        if let Err(error) = put {
            // It is tried again with what others have left behind.
            warn!("capture {} cannot be put away yet: {error}", record.number);
            self.orphans.push(record.clone());
        }
        deliver(&self.config, record, &self.deliveries);
    }

    fn count(&mut self, record: &Record) {
        // One whose artifacts are gone was made all the same.
        let status = if record.status == Status::Expired { Status::Done } else { record.status };
        *self.counts.entry((record.trigger, status)).or_default() += 1;
        *self.found.entry(record.trigger).or_default() += u64::from(record.found_growth());
    }

    fn say(&self, record: &Record) {
        match (&record.findings, &record.error) {
            (Some(findings), _) if record.found_growth() => {
                warn!("capture {} of process {}: {}", record.number, record.subject.pid, findings.answer)
            }
            (Some(findings), _) => {
                info!("capture {} of process {}: {}", record.number, record.subject.pid, findings.answer)
            }
            (None, error) => warn!(
                "capture {} of process {} failed: {}",
                record.number,
                record.subject.pid,
                error.as_deref().unwrap_or("nobody knows why")
            ),
        }
    }

    /// Takes captures over that a service before this one began, once they have come to an end.
    async fn adopt(&mut self) {
        let orphans = std::mem::take(&mut self.orphans);
        for record in orphans {
            let spool = {
                let shelf = self.shelf.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                shelf.store.spool(record.number)
            };
            if is_at_work(&spool).unwrap_or(false) {
                self.orphans.push(record);
                continue;
            }
            if record.status != Status::Running {
                // It is known what became of it, and there was no room to write that down.
                let (record, put) = self
                    .shelf(move |shelf| {
                        let mut record = record;
                        let put = shelf.put_away(&mut record);
                        (record, put)
                    })
                    .await;
                if put.is_err() {
                    self.orphans.push(record);
                }
                continue;
            }
            let known = self.records.iter().position(|known| known.number == record.number);
            let index = known.unwrap_or_else(|| {
                self.records.push(record.clone());
                self.records.len() - 1
            });
            self.put_away(index, record, Err(LEFT_BEHIND.to_owned()), None).await;
        }
    }

    /// Tells of what an earlier service has put away and not told.
    fn tell_again(&self) {
        for record in self.records.iter().filter(|record| !record.told) {
            if matches!(record.status, Status::Done | Status::Failed) {
                deliver(&self.config, record.clone(), &self.deliveries);
            }
        }
    }

    async fn told(&mut self, told: Delivered) {
        for why in told.failures {
            self.figures.undelivered += 1;
            self.figures.undelivered_why = Some(why);
            self.figures.undelivered_at_ms = Some(jiff::Timestamp::now().as_millisecond());
        }
        if let Some(known) = self.records.iter_mut().find(|record| record.number == told.number) {
            known.told = true;
            let record = known.clone();
            if let Err(error) = self.shelf(move |shelf| shelf.database.note(&record)).await {
                warn!("{error}; the same may be told again after a restart");
            }
        }
    }

    async fn tidy(&mut self) {
        self.last_tidied = Some(Instant::now());
        give_memory_back();
        self.tidy_store().await;
        if self.thinning.as_ref().is_some_and(|thinning| !thinning.is_finished()) {
            return;
        }
        let (keep, max_size) = (self.config.census.keep, self.config.census.max_size);
        let (shelf, now_ms) = (Arc::clone(&self.shelf), jiff::Timestamp::now().as_millisecond());
        self.thinning = Some(spawn_blocking(move || {
            if let Err(error) = thin_out(&shelf, now_ms, keep, max_size) {
                warn!("the series cannot be thinned out: {error}");
            }
        }));
    }

    async fn tidy_store(&mut self) {
        let config = self.config.store.clone();
        let now_ms = jiff::Timestamp::now().as_millisecond();
        match self.shelf(move |shelf| shelf.retain(&config, now_ms)).await {
            Ok(expired) => {
                for gone in expired {
                    info!(
                        "capture {} is gone, as store.keep, max_captures and max_size want it",
                        gone.number
                    );
                    if let Some(known) = self.records.iter_mut().find(|record| record.number == gone.number) {
                        *known = gone;
                    }
                }
            }
            Err(error) => warn!("old captures cannot be removed: {error}"),
        }
        // Enough to decide by.
        if self.records.len() > 2 * MOST_RECORDS as usize {
            self.records.sort_by_key(|record| record.number);
            self.records.drain(..self.records.len() - MOST_RECORDS as usize);
        }
    }

    fn reload(&mut self) {
        let mut config = match Config::read(&self.path) {
            Ok(config) => config,
            Err(error) => {
                error!("the configuration was not read again, and the old one holds: {error}");
                return;
            }
        };
        if config.store.directory != self.config.store.directory || config.web != self.config.web {
            warn!("store.directory and web hold from the next start on");
            config.store.directory.clone_from(&self.config.store.directory);
            config.web.clone_from(&self.config.web);
        }
        self.history.set_window(config.triggers.growth.window);
        self.census.send_replace(config.census.clone());
        self.config = config;
        info!("the configuration was read again");
    }

    /// Comes to an end: captures write what they have.
    async fn leave(mut self) {
        self.handles.values().for_each(Handle::terminate);
        let deadline = Instant::now() + LEAVING;
        while !self.runs.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, self.runs.join_next()).await {
                Ok(Some(Ok((number, result)))) => self.ended(number, result).await,
                Ok(Some(Err(error))) => error!("a capture was lost: {error}"),
                Ok(None) | Err(_) => break,
            }
        }
        info!("ended");
    }

    fn show(&mut self) {
        let Some(look) = &self.last_look else { return };
        let at_ms = jiff::Timestamp::now().as_millisecond();
        let own = std::process::id();
        let cpu = process_time().as_secs_f64();
        let read = self.context_bytes + own_read_bytes();
        let figures = &mut self.figures;
        figures.up_seconds = self.started.elapsed().as_secs_f64();
        figures.looks_left_out = self.left_out.load(Ordering::Relaxed);
        figures.cpu_seconds = cpu;
        figures.cpu_seconds_last_minute = self.cpu.note(at_ms, cpu);
        figures.read_bytes = read;
        figures.read_bytes_last_minute = self.read.note(at_ms, read as f64) as u64;
        figures.own_bytes =
            status(own).ok().and_then(|status| status.memory).map_or(0, |memory| memory.rss_anon);
        let running = self.records.iter().filter(|record| record.status == Status::Running);
        let view = View {
            at_ms,
            host: host_name(),
            version: env!("CARGO_PKG_VERSION"),
            settings: Settings::of(&self.config),
            figures: figures.clone(),
            processes: processes(look, &self.history, &self.contexts, |id| {
                self.writer.as_ref().and_then(|writer| writer.row(id))
            }),
            running: running.cloned().collect(),
            counts: self.counts.clone(),
            found: self.found.clone(),
        };
        self.view.send_replace(Arc::new(view));
    }

    /// Whether the thread that looks does so.
    fn looks(&self) -> bool {
        self.last_looked.elapsed() < self.config.census.interval + LONGEST_LOOK
    }

    fn status_line(&self) -> String {
        let processes = self.last_look.as_ref().map_or(0, |look| look.processes.len());
        format!("{processes} server processes, {} captures at work", self.runs.len() + self.orphans.len())
    }
}

/// A process, and what of it is known to grow.
fn subject(seen: &Seen, grower: Option<&Grower>) -> Subject {
    Subject {
        pid: seen.id.pid,
        start_ticks: seen.id.start_ticks,
        server: seen.server.clone(),
        kind: seen.process.parsed.kind.clone(),
        database: seen.process.parsed.database.clone(),
        user: seen.process.parsed.user.clone(),
        context: grower.and_then(|grower| grower.context.clone()),
        growing: grower.map(|grower| grower.growing.clone()).unwrap_or_default(),
    }
}

/// Bytes that this process has read from files, those of `/proc` among them (proc_pid_io(5)).
fn own_read_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}
