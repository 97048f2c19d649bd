//! Stacks: one chunk by each of ever more different ones.

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

const POINTS: [u64; 8] = [10, 30, 100, 300, 1000, 3000, 10_000, 30_000];
/// Frames that two stacks may differ in.
const DEPTH: i64 = 15;
const MAP_BYTES: u64 = 64 << 20;

pub(crate) fn measure(options: &Options) -> Result<Axis> {
    let mut axis = Axis::new(
        "stacks",
        "different stacks",
        "One backend (the planted extension) allocates one chunk by each of so many stacks of some 40 frames, which \
         differ in 15 of them; then the recording is interrupted.",
    );
    let server = Server::start(&Build::packaged(15)?, &ServerOptions::default())?;
    planted::install(&server)?;
    for count in POINTS.into_iter().filter(|count| *count <= options.most) {
        let costs: Vec<Cost> = (0..options.rounds).map(|_| one(&server, count)).collect::<Result<_>>()?;
        let cost = capture::middle(costs)?;
        let (named, written) = (cost.stage("named in"), cost.stages(" written in"));
        eprintln!(
            "{count} stacks: named {named:.0} ms, written {written:.0} ms, all {:.0} ms, {:?}",
            cost.after_ms, cost.usage
        );
        axis.add("naming", Unit::Milliseconds, count, named);
        axis.add("writing all artifacts", Unit::Milliseconds, count, written);
        axis.add("all after the recording", Unit::Milliseconds, count, cost.after_ms);
        axis.add("processor time of it all", Unit::Milliseconds, count, cost.usage.cpu_ns as f64 / 1e6);
        cost.add_memory(&mut axis, count);
    }
    Ok(axis)
}

fn one(server: &Server, count: u64) -> Result<Cost> {
    let mut session = planted::session(server)?;
    let pid = session.backend_pid();
    capture::of(pid, MAP_BYTES, || Call::BRANCHES.run(&mut session, &[count as i64, 16, DEPTH]).map(drop))
}
