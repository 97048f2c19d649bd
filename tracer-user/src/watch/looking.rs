//! The thread that looks at processes, and whether it does.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, watch};

use super::{
    config::CensusConfig,
    observe::{Look, Observer},
};

/// A look at all processes takes no longer than that; if it does, the thread that looks hangs.
pub(super) const LONGEST_LOOK: Duration = Duration::from_secs(60);

/// The thread, from outside. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Looking {
    looks: mpsc::Receiver<Look>,
    census: watch::Sender<CensusConfig>,
    left_out: Arc<AtomicU64>,
    last: Instant,
}

impl Looking {
    /// Begins to look.
    ///
    /// # Errors
    /// If there can be no thread.
    pub(super) fn start(config: &CensusConfig) -> io::Result<Self> {
        let (census, followed) = watch::channel(config.clone());
        let (sender, looks) = mpsc::channel(1);
        let left_out = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&left_out);
        thread::Builder::new()
            .name("census".to_owned())
            .spawn(move || look_on(followed, &sender, &counter))?;
        Ok(Self { looks, census, left_out, last: Instant::now() })
    }

    /// The next look; `None` if the thread has ended, which it should not.
    pub(super) async fn next(&mut self) -> Option<Look> {
        let look = self.looks.recv().await?;
        self.last = Instant::now();
        Some(look)
    }

    /// Looks by another configuration from now on.
    pub(super) fn follow(&self, config: &CensusConfig) {
        self.census.send_replace(config.clone());
    }

    /// Looks that nobody had the time for.
    pub(super) fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }

    /// Whether it looks as often as it should.
    pub(super) fn is_alive(&self) -> bool {
        self.last.elapsed() < self.census.borrow().interval + LONGEST_LOOK
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
