//! One capture of one backend that does one thing, from its beginning to its end.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pgleak_tests::pgleak::Running;

use crate::{
    axis::{Axis, Unit},
    stages::times,
    watch::{Usage, Watch},
};

/// The longest that anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(900);
/// What is said when recording begins.
pub(crate) const BEGUN: &str = "recording begins";
/// And when it has ended.
const ENDED: &str = "recording has ended";

/// What a capture cost.
pub(crate) struct Cost {
    pub(crate) usage: Usage,
    /// From the end of the recording to the end of pgleak.
    pub(crate) after_ms: f64,
    pub(crate) stderr: String,
    pub(crate) json_bytes: u64,
}

impl Cost {
    /// Of the last of the stages that say so.
    pub(crate) fn stage(&self, text: &str) -> f64 {
        times(&self.stderr, text).last().copied().unwrap_or(f64::NAN)
    }

    /// Of all of them together.
    pub(crate) fn stages(&self, text: &str) -> f64 {
        times(&self.stderr, text).iter().sum()
    }

    /// Memory, as a curve of each kind.
    pub(crate) fn add_memory(&self, axis: &mut Axis, x: u64) {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        axis.add("pgleak, peak RSS", Unit::MiB, x, mib(self.usage.peak_bytes));
        axis.add("pgleak, memory of its own", Unit::MiB, x, mib(self.usage.anon_bytes));
        axis.add("kernel maps", Unit::MiB, x, mib(self.usage.map_bytes));
        if self.json_bytes > 0 {
            axis.add("capture.json", Unit::MiB, x, mib(self.json_bytes));
        }
    }
}

/// Captures a process while `work` is done, and ends the recording then.
pub(crate) fn of(pid: u32, map_bytes: u64, work: impl FnOnce() -> Result<()>) -> Result<Cost> {
    let memory = format!("{}M", map_bytes >> 20);
    let arguments = [
        "-vv",
        "--force",
        "--duration",
        "1h",
        "--settle",
        "0s",
        "--map-memory",
        &memory,
        "--allocator",
        "contexts",
    ];
    let running = Running::capture(pid, &arguments)?;
    let watch = Watch::start(running.pid());
    running.wait_for(BEGUN, PATIENCE)?;
    work()?;
    running.signal(libc::SIGINT)?;
    running.wait_for(ENDED, PATIENCE)?;
    let ended = Instant::now();
    let finished = running.finish()?;
    let after_ms = ended.elapsed().as_secs_f64() * 1e3;
    let usage = watch.end();
    let json = std::fs::metadata(finished.dir()?.join("capture.json"))
        .with_context(|| format!("no capture.json:\n{}", finished.stderr))?;
    Ok(Cost { usage, after_ms, json_bytes: json.len(), stderr: finished.stderr })
}

/// Of several of the same, the one that took no more and no less time than the others.
pub(crate) fn middle(mut costs: Vec<Cost>) -> Result<Cost> {
    costs.sort_by(|a, b| a.after_ms.total_cmp(&b.after_ms));
    let middle = costs.len() / 2;
    costs.into_iter().nth(middle).context("--rounds is at least 1")
}
