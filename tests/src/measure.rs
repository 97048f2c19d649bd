//! Stacks of a real server, taken in several ways on the spot.

use std::time::Duration;

use anyhow::{Context, Result};
use pgleak::{
    bpf::{Attached, ContextNames, Limits, Probe, Tracer},
    session::prepare,
    target::exe_link,
};
use tracer_ebpf::abi::Measured;

use crate::sampling::alloc_site;

/// Takes the stacks of the process at `AllocSetAlloc` for so long.
pub fn stacks(pid: u32, length: Duration) -> Result<Measured> {
    let mut prepared = prepare(pid, None)?;
    let (rows, pages) = prepared.mappings.table_sizes();
    let limits = Limits::within(64 << 20, rows, pages).context("64 MiB are enough for any server")?;
    let mut tracer = Tracer::load(limits, ContextNames::of(&prepared.plan.layout))?;
    tracer.load_measure()?;
    prepared.mappings.upload(tracer.walks())?;
    let probe = Probe::of(alloc_site(&prepared.plan)?);
    let mut attached = Attached::default();
    attached.add_measure(&mut tracer, Some(pid), &exe_link(pid), probe)?;
    std::thread::sleep(length);
    drop(attached);
    Ok(tracer.measured()?)
}
