//! Live chunks: one stack, one context, and ever more chunks that stay.

use anyhow::Result;
use pgleak_tests::{
    Build, Server, ServerOptions,
    planted::{self, Call},
};

use crate::{
    axis::{Axis, Unit},
    capture::{self, Cost},
    options::Options,
};

const POINTS: [u64; 9] = [1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000];

/// Kernel memory of the default, and what a chunk takes of what is given.
const DEFAULT: u64 = 64 << 20;
const A_CHUNK: u64 = 210;

pub(crate) fn measure(options: &Options) -> Result<Axis> {
    let mut axis = Axis::new(
        "live",
        "live chunks",
        "One backend (the planted extension) keeps so many chunks of 16 bytes in one context, by one stack; then the \
         recording is interrupted. The map memory is the default, 64M, as long as that is enough.",
    );
    let server = Server::start(&Build::packaged(15)?, &ServerOptions::default())?;
    planted::install(&server)?;
    for count in POINTS.into_iter().filter(|count| *count <= options.most) {
        let rounds = if count > 1_000_000 { 1 } else { options.rounds };
        let costs: Vec<Cost> = (0..rounds).map(|_| one(&server, count)).collect::<Result<_>>()?;
        let cost = capture::middle(costs)?;
        let drained = cost.stage("records drained in");
        let assembled = cost.stage("groups assembled in");
        eprintln!(
            "{count} live: drained {drained:.0} ms, {assembled:.0} ms, all {:.0} ms, {:?}",
            cost.after_ms, cost.usage
        );
        axis.add("one drain", Unit::Milliseconds, count, drained);
        axis.add("assembling", Unit::Milliseconds, count, assembled);
        axis.add("all after the recording", Unit::Milliseconds, count, cost.after_ms);
        axis.add("processor time of it all", Unit::Milliseconds, count, cost.usage.cpu_ns as f64 / 1e6);
        cost.add_memory(&mut axis, count);
    }
    Ok(axis)
}

fn one(server: &Server, count: u64) -> Result<Cost> {
    let mut session = planted::session(server)?;
    let map_bytes = DEFAULT.max((40 << 20) + count * A_CHUNK);
    let pid = session.backend_pid();
    capture::of(pid, map_bytes, || Call::PALLOC.run(&mut session, &[count as i64, 16]).map(drop))
}
