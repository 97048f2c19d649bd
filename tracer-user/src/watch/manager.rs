//! What a service manager is told: `sd_notify(3)`. Without one, nobody.

use std::time::Duration;

use sd_notify::NotifyState;
use tracing::debug;

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

    /// Everything is there.
    pub(super) fn ready(self) {
        tell(&[NotifyState::Ready]);
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

    /// It is alive, and this is what it does.
    pub(super) fn alive(self, what: &str) {
        tell(&[NotifyState::Status(what)]);
        if self.watchdog.is_some() {
            tell(&[NotifyState::Watchdog]);
        }
    }
}

fn tell(what: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(what) {
        debug!("the service manager cannot be told: {error}");
    }
}
