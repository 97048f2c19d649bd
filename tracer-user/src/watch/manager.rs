//! What a service manager is told: `sd_notify(3)`. Without one, nobody.

use std::time::Duration;

use sd_notify::NotifyState;
use tracing::debug;

/// What is still starting says so this often.
pub(super) const STARTING_EVERY: Duration = Duration::from_secs(20);

/// The service manager, if one has started this.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manager {
    /// It wants a sign of life within this.
    watchdog: Option<Duration>,
}

impl Manager {
    /// As the environment says.
    pub(super) fn from_environment() -> Self {
        Self { watchdog: sd_notify::watchdog_enabled() }
    }

    /// How often it wants to hear that this is alive, with room for a late one.
    pub(super) fn period(self) -> Option<Duration> {
        self.watchdog.map(|watchdog| watchdog / 3)
    }

    /// Everything is there.
    pub(super) fn ready(self) {
        tell(&[NotifyState::Ready]);
    }

    /// It is still starting, and says so again after [`STARTING_EVERY`].
    pub(super) fn starting(self) {
        tell(&[NotifyState::ExtendTimeoutUsec(3 * STARTING_EVERY.as_micros() as u32)]);
        // One that waited for room is ready, and is watched.
        self.alive();
    }

    /// The configuration is read again.
    pub(super) fn reloading(self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(error) => debug!("no clock: {error}"),
        }
    }

    /// It comes to an end.
    pub(super) fn stopping(self) {
        tell(&[NotifyState::Stopping]);
    }

    /// It is alive.
    pub(super) fn alive(self) {
        if self.watchdog.is_some() {
            tell(&[NotifyState::Watchdog]);
        }
    }

    /// What it does.
    pub(super) fn status(self, what: &str) {
        tell(&[NotifyState::Status(what)]);
    }
}

fn tell(what: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(what) {
        debug!("the service manager cannot be told: {error}");
    }
}
