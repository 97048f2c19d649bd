//! What keeps pgleak from doing harm: it runs on production servers in their worst hour.

mod calibrate;
mod lock;
mod memory;
mod sacrifice;
mod slowdown;
mod watchdog;

pub use calibrate::{CalibrateError, ProbeCosts, measure as measure_probe_costs};
pub(crate) use lock::try_lock;
pub use lock::{CaptureLock, LockError};
pub use memory::{MemoryError, check as check_memory, go_first_when_memory_is_short};
pub use sacrifice::{
    SUBCOMMAND as SACRIFICE_SUBCOMMAND, SeccompError, prove as prove_return_probes,
    run_child as run_sacrifice,
};
pub use slowdown::{Decision, EventRates, Yardstick, decide, expected_slowdown, observed_slowdown};
pub use watchdog::{Manner, SUBCOMMAND as WATCHDOG_SUBCOMMAND, Watchdog, run_child as run_watchdog};
