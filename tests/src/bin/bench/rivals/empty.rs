//! Programs that do nothing, where pgleak has its probes: what no tracer by uprobes can be cheaper than.

use ::pgleak::{
    bpf::{Attached, ContextNames, Limits, Mechanism, Probe, Tracer},
    session::prepare,
    target::exe_link,
};
use anyhow::{Context as _, Result};

use super::Working;

struct Empty {
    attached: Attached,
    tracer: Box<Tracer>,
}

pub(super) fn begin(pid: u32, mechanism: Mechanism, only_frees: bool) -> Result<Box<dyn Working>> {
    let prepared = prepare(pid, None)?;
    let (rows, pages) = prepared.mappings.table_sizes();
    let limits = Limits::within(64 << 20, rows, pages).context("64 MiB are enough for any server")?;
    let names = ContextNames::of(&prepared.plan.layout);
    let mut tracer = Box::new(Tracer::load_for(limits, names, mechanism)?);
    tracer.load_nothing()?;
    let mut attached = Attached::default();
    for site in &prepared.plan.sites {
        let probe = Probe::of(site);
        if !(only_frees && probe.role.needs_return()) {
            attached.add_nothing(&mut tracer, Some(pid), &exe_link(pid), probe)?;
        }
    }
    Ok(Box::new(Empty { attached, tracer }))
}

impl Working for Empty {
    fn end(self: Box<Self>) -> Result<Option<u64>> {
        // The links before the programs.
        drop(self.attached);
        drop(self.tracer);
        Ok(None)
    }
}
