//! The thread that looks at processes, and whether it does.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

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
    orders: Sender<CensusConfig>,
    interval: Duration,
    left_out: Arc<AtomicU64>,
    /// When the last look came, or was ordered.
    last: Instant,
}

impl Looking {
    /// Begins to look.
    ///
    /// # Errors
    /// If there can be no thread.
    pub(super) fn start(config: &CensusConfig) -> io::Result<Self> {
        let (orders, ordered) = channel();
        let (sender, looks) = mpsc::channel(1);
        let left_out = Arc::new(AtomicU64::new(0));
        let (counter, first) = (Arc::clone(&left_out), config.clone());
        thread::Builder::new()
            .name("census".to_owned())
            .spawn(move || look_on(first, &ordered, &sender, &counter))?;
        Ok(Self { looks, orders, interval: config.interval, left_out, last: Instant::now() })
    }

    /// The next look; `None` if the thread has ended, which it should not.
    pub(super) async fn next(&mut self) -> Option<Look> {
        let look = self.looks.recv().await?;
        self.last = Instant::now();
        Some(look)
    }

    /// Looks by another configuration from now on, at once.
    pub(super) fn follow(&mut self, config: &CensusConfig) {
        // It has ended, as the next look would tell.
        let _ = self.orders.send(config.clone());
        (self.interval, self.last) = (config.interval, Instant::now());
    }

    /// Looks that nobody had the time for.
    pub(super) fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }

    /// Whether it looks as often as it should.
    pub(super) fn is_alive(&self) -> bool {
        self.last.elapsed() < self.interval + LONGEST_LOOK
    }
}

/// Looks again and again, until nobody wants to know.
fn look_on(
    mut config: CensusConfig,
    orders: &Receiver<CensusConfig>,
    looks: &mpsc::Sender<Look>,
    left_out: &AtomicU64,
) {
    let mut observer = Observer::new();
    let mut next = Instant::now();
    loop {
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
        match orders.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(other) => (config, next) = (other, Instant::now()),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn another_interval_holds_at_once() {
        let every =
            |seconds| CensusConfig { interval: Duration::from_secs(seconds), ..CensusConfig::default() };
        let mut looking = Looking::start(&every(600)).expect("a thread");
        looking.next().await.expect("the first look");
        looking.follow(&every(1));
        for _ in 0..2 {
            let next = tokio::time::timeout(Duration::from_secs(60), looking.next()).await;
            next.expect("not in ten minutes").expect("a look");
        }
        assert!(looking.is_alive());
        looking.last = Instant::now().checked_sub(LONGEST_LOOK * 2).expect("the host is up for longer");
        assert!(!looking.is_alive());
    }
}
