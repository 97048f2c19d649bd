//! What a capture costs the process, before and while recording; and whether it was hit at all.

use std::time::Duration;

use tracer_ebpf::{
    abi::{Phase, SiteHits},
    counters::Counter,
};

use super::{Recorder, Stop};
use crate::{
    guard::{Decision, decide, expected_slowdown},
    session::{
        CaptureError,
        cost::{CostWatch, Sample},
    },
};

/// How long hits are counted before recording.
const COUNT_FOR: Duration = Duration::from_millis(500);

/// Of so many returns, one will be awaited where most are foreseen. In `pgbench -S` it is one in thirty.
const AWAITED: u64 = 4;

impl Recorder<'_> {
    /// Counts hits for a moment and decides whether recording is affordable.
    pub(super) async fn count(&mut self) -> Result<Option<f64>, CaptureError> {
        let pid = self.prepared.process.pid;
        let before = self.processes.cpu();
        self.tracer.control().advance(Phase::Off, Phase::Count);
        match self.phase("counting", COUNT_FOR, false).await? {
            Stop::TimeOver | Stop::TooSlow | Stop::MapFull => {}
            Stop::Interrupted => return Err(CaptureError::InterruptedTooEarly),
            Stop::Exited | Stop::Replaced => return Err(CaptureError::GoneTooEarly { pid }),
        }
        let cpu = self.processes.cpu().since(before);
        if self.processes.are_one() && !self.prepared.is_there() {
            return Err(CaptureError::GoneTooEarly { pid });
        }
        let mut rates = self.prepared.rates(&self.tracer.site_hits()?, cpu);
        if self.tracer.foresees() {
            // All are awaited while calls are only counted.
            rates.returns /= AWAITED;
        }
        let Some(slowdown) = expected_slowdown(&rates, &self.yardstick) else {
            self.progress
                .say("the process is nearly idle now: its slowdown cannot be foreseen and will be watched");
            return Ok(None);
        };
        let per_second = rates.allocations as f64 / COUNT_FOR.as_secs_f64();
        self.progress.say(&format!(
            "{per_second:.0} allocations a second: while recording, the process will take about {slowdown:.1} times as long for its work; no other process is slowed down"
        ));
        let most = self.options.max_slowdown;
        match decide(slowdown, most, self.options.duration) {
            Decision::Go => {}
            _ if self.options.force => {
                self.progress.say("that is more than --max-slowdown, and --force was given");
            }
            Decision::Shorten(shorter) => {
                let note = format!(
                    "recording was shortened to {:.1} s: it was expected to make the process {slowdown:.0} times slower, and --max-slowdown is {most}",
                    shorter.as_secs_f64()
                );
                self.say_and_note(note);
                self.options.duration = shorter;
            }
            Decision::Refuse => return Err(CaptureError::TooSlow { pid, slowdown, most }),
        }
        Ok(Some(slowdown))
    }

    /// Whether recording costs more than is allowed, by what was seen since the last look.
    pub(super) fn is_too_slow(&mut self, cost: &mut CostWatch) -> Result<bool, CaptureError> {
        if self.options.force || !cost.is_due() {
            return Ok(false);
        }
        let sample = self.sample()?;
        let allowed = self.options.max_slowdown;
        let Some(slowdown) = cost.look(sample, allowed, |hits, cpu| self.prepared.rates(hits, cpu)) else {
            return Ok(false);
        };
        self.say_and_note(format!(
            "recording ended early: it made the process about {slowdown:.0} times slower (--max-slowdown {allowed})"
        ));
        Ok(true)
    }

    pub(super) fn sample(&mut self) -> Result<Sample, CaptureError> {
        let counters = self.tracer.counters()?;
        Ok(Sample::new(
            self.processes.cpu(),
            self.tracer.site_hits()?,
            counters.get(Counter::RecordTimed),
            counters.get(Counter::RecordNs),
        ))
    }
}

/// Tells a process that waits from probes that do not work.
pub(super) fn check_hits(
    pid: u32,
    hits: &[SiteHits],
    cpu_ns: u64,
    has_contexts: bool,
    notes: &mut Vec<String>,
) -> Result<(), CaptureError> {
    /// Less CPU time than this is a process that waits: there may be nothing to see.
    const BUSY: Duration = Duration::from_millis(200);
    let entries: u64 = hits.iter().map(|hits| hits.entries).sum();
    if entries > 0 {
        return Ok(());
    }
    if !has_contexts {
        notes.push("the process made no call of malloc or mmap while it was recorded".to_owned());
        return Ok(());
    }
    if u128::from(cpu_ns) >= BUSY.as_nanos() {
        return Err(CaptureError::NeverHit { pid, cpu_ms: cpu_ns / 1_000_000 });
    }
    notes.push(
        "the process was idle: it made no call of its allocator, so this says nothing about a leak"
            .to_owned(),
    );
    Ok(())
}
