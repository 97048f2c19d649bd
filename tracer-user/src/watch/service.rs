//! The service: sets everything up, and passes on what happens. The only file of `watch` that sees all the others.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
    time::{interval, sleep},
};
use tracing::{error, info, warn};

use super::{
    config::{Config, ConfigError, StoreConfig},
    decide::{Asked, Decider, Wish},
    history::{Grower, History},
    host::boot_id,
    ledger::{Ledger, NotBegun},
    looking::{LONGEST_LOOK, Looking},
    manager::{Manager, STARTING_EVERY},
    observe::Look,
    overview::Overview,
    own::{give_memory_back, have_many_files_open, keep_memory_together},
    record::{Record, Trigger},
    series::Writer,
    shelf::{SharedShelf, Shelf, ShelfError},
    thin::thin_out,
    triggers::Refusal,
    web::{WebError, serve},
};

/// Series and store are looked through for what is too old so often.
const TIDY_EVERY: Duration = Duration::from_secs(300);

/// A store without room is tried again so often.
const ROOM_EVERY: Duration = Duration::from_secs(5);

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

/// What runs, between one event and the next.
struct Service {
    config: Config,
    path: PathBuf,
    shelf: SharedShelf,
    boot: String,
    writer: Option<Writer>,
    looking: Looking,
    decider: Decider,
    ledger: Ledger,
    overview: Overview,
    last_tidied: Option<Instant>,
    thinning: Option<JoinHandle<()>>,
}

/// What tells it to end.
struct Ending {
    terminated: Signal,
    interrupted: Signal,
}

impl Ending {
    fn new() -> std::io::Result<Self> {
        let (terminated, interrupted) = (SignalKind::terminate(), SignalKind::interrupt());
        Ok(Self { terminated: signal(terminated)?, interrupted: signal(interrupted)? })
    }

    async fn wanted(&mut self) {
        tokio::select! {
            _ = self.terminated.recv() => {}
            _ = self.interrupted.recv() => {}
        }
    }
}

/// Runs until it is told to end.
///
/// # Errors
/// If it cannot start.
pub async fn run(path: &Path) -> Result<(), WatchError> {
    keep_memory_together();
    have_many_files_open();
    let config = Config::read(path)?;
    let manager = Manager::from_environment();
    let mut ending = Ending::new()?;
    let mut hung_up = signal(SignalKind::hangup())?;
    let (shelf, left) = tokio::select! {
        opened = open(&config.store, manager) => opened?,
        () = ending.wanted() => return Ok(()),
    };
    let shelf = SharedShelf::new(shelf);
    let boot = boot_id()?;
    let (deliveries, mut delivered) = mpsc::unbounded_channel();
    let ledger = Ledger::open(shelf.clone(), left, boot.clone(), deliveries).await?;
    let now_ms = jiff::Timestamp::now().as_millisecond();
    let history = history(&shelf, config.triggers.growth.window, now_ms, &boot).await?;
    let decider = Decider::new(history, ledger.last_begun_by(Trigger::Schedule).unwrap_or(now_ms));
    let (overview, view) = Overview::new(&config);
    let (asking, mut asked) = mpsc::channel(16);
    let web = serve(&config.web, &config.store, view, asking).await?;
    let looking = Looking::start(&config.census)?;
    info!("watching: store {}, {}", config.store.directory.display(), web);

    let mut service = Service {
        config,
        path: path.to_owned(),
        shelf,
        boot,
        writer: Some(Writer::default()),
        looking,
        decider,
        ledger,
        overview,
        last_tidied: None,
        thinning: None,
    };
    service.ledger.tell_again(&service.config);
    manager.ready();
    let mut heartbeat = interval(manager.period().unwrap_or(LONGEST_LOOK));
    let result = loop {
        tokio::select! {
            look = service.looking.next() => match look {
                Some(look) => {
                    service.looked(look).await;
                    manager.status(&service.overview.status_line(&service.ledger));
                }
                None => break Err(WatchError::Census),
            },
            _ = heartbeat.tick() => {
                if service.looking.is_alive() {
                    manager.alive();
                }
            }
            ended = service.ledger.next_end() => {
                service.ledger.ended(ended, &service.config).await;
                service.show();
            }
            Some(asked) = asked.recv() => service.asked(asked).await,
            Some(told) = delivered.recv() => service.ledger.told(told).await,
            _ = hung_up.recv() => {
                manager.reloading();
                service.reload();
                manager.ready();
            }
            () = ending.wanted() => break Ok(()),
        }
    };
    manager.stopping();
    // Who asks now is told that it is too late.
    drop(asked);
    let Service { ledger, config, .. } = service;
    ledger.leave(&config).await;
    info!("ended");
    result
}

/// Opens the store; where there is no room for that, as soon as there is some. However long it takes to make it agree with
/// its index, the service manager does not take this for one that does not start.
async fn open(config: &StoreConfig, manager: Manager) -> Result<(Shelf, Vec<Record>), ShelfError> {
    loop {
        let config = config.clone();
        let mut opening = spawn_blocking(move || Shelf::open(&config));
        let mut waiting = interval(STARTING_EVERY);
        let opened = loop {
            tokio::select! {
                opened = &mut opening => {
                    break opened.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
                }
                _ = waiting.tick() => manager.starting(),
            }
        };
        match opened {
            Err(error) if error.is_full() => {
                let seconds = ROOM_EVERY.as_secs();
                warn!("there is no room for the store: {error}; it is tried again in {seconds} s");
                // It does what it is there for as soon as it can.
                manager.ready();
                manager.status("waiting for room for the store");
                manager.alive();
                sleep(ROOM_EVERY).await;
            }
            result => return result,
        }
    }
}

/// What an earlier run has seen of processes that may still be there.
async fn history(
    shelf: &SharedShelf,
    window: Duration,
    now_ms: i64,
    boot: &str,
) -> Result<History, ShelfError> {
    let since_ms = now_ms - i64::try_from(window.as_millis()).unwrap_or(0);
    let boot = boot.to_owned();
    let courses = shelf.with(move |shelf| shelf.database.courses(since_ms, &boot)).await?;
    let mut history = History::new(window);
    courses.into_iter().for_each(|(id, course)| history.restore(id, course));
    Ok(history)
}

impl Service {
    async fn looked(&mut self, look: Look) {
        self.decider.history.add(&look);
        self.ledger.looked(&look);
        self.overview.looked(&look);
        let look = self.write(look).await;
        self.ledger.take_over().await;
        self.capture_what_grows(&look).await;
        self.capture_what_is_due(&look).await;
        if self.last_tidied.is_none_or(|last| last.elapsed() >= TIDY_EVERY) {
            self.tidy().await;
        }
        self.overview.keep(look);
        self.show();
    }

    /// Writes a look to the series, and gives it back.
    async fn write(&mut self, look: Look) -> Look {
        let (mut writer, boot) = (self.writer.take().unwrap_or_default(), self.boot.clone());
        let (writer, look, size) = self
            .shelf
            .with(move |shelf| {
                let written = writer.write(&mut shelf.database, &look, &boot);
                let size = written.and_then(|()| shelf.database.size());
                (writer, look, size)
            })
            .await;
        self.writer = Some(writer);
        self.overview.written(size);
        look
    }

    async fn capture_what_grows(&mut self, look: &Look) {
        for grower in self.decider.history.growers(look, &self.config.triggers) {
            if let Err(why) = self.capture_grower(&grower, look).await {
                self.decider.hold_grower_back(&grower, &why);
            }
        }
        self.decider.growers_are_through();
    }

    async fn capture_grower(&mut self, grower: &Grower, look: &Look) -> Result<(), String> {
        let how = &self.config.capture;
        let now = self.ledger.now(look.at_ms, &self.config, how.planned());
        // What was captured of late is no wish that could not be met.
        if now.is_news(grower).is_err() || now.running_of(grower.id).is_some() {
            return Ok(());
        }
        let Some(seen) = look.processes.iter().find(|seen| seen.id == grower.id) else { return Ok(()) };
        let begun = self.ledger.begin(Wish::of_grower(seen, grower, how), &self.config).await;
        begun.map(drop).map_err(|error| error.to_string())
    }

    async fn capture_what_is_due(&mut self, look: &Look) {
        let Some(schedule) = &self.config.triggers.schedule else { return };
        for wish in self.decider.due(look, schedule, &self.config.capture) {
            match self.ledger.begin(wish.clone(), &self.config).await {
                Ok(_) => {}
                Err(NotBegun::Refused(Refusal::TooMany(_))) => self.decider.wait(wish),
                Err(error) => self.decider.hold_back(&format!("the schedule: {error}")),
            }
        }
    }

    async fn asked(&mut self, asked: Asked) {
        let result = match Wish::of_request(&asked, &self.config) {
            Ok(wish) => self.ledger.begin(wish, &self.config).await.map_err(|error| error.to_string()),
            Err(why) => Err(why),
        };
        if let Err(why) = &result {
            self.decider.hold_back(&format!("a request by {}: {why}", asked.by));
        }
        // Whoever asked may be gone.
        let _ = asked.answer.send(result);
        self.show();
    }

    async fn tidy(&mut self) {
        self.last_tidied = Some(Instant::now());
        give_memory_back();
        self.ledger.expire(&self.config.store).await;
        if self.thinning.as_ref().is_some_and(|thinning| !thinning.is_finished()) {
            return;
        }
        let (keep, max_size) = (self.config.census.keep, self.config.census.max_size);
        let (shelf, now_ms) = (self.shelf.clone(), jiff::Timestamp::now().as_millisecond());
        self.thinning = Some(spawn_blocking(move || {
            if let Err(error) = thin_out(&shelf, now_ms, keep, max_size) {
                warn!("the series cannot be thinned out: {error}");
            }
        }));
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
        self.decider.history.set_window(config.triggers.growth.window);
        self.looking.follow(&config.census);
        self.config = config;
        info!("the configuration was read again");
    }

    fn show(&mut self) {
        self.overview.show(&self.config, &self.looking, &self.decider, &self.ledger, self.writer.as_ref());
    }
}
