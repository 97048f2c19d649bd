//! `cargo xtask bench unwind`: what a stack costs, each way on one and the same stack.

use std::time::Duration;

use anyhow::Result;
use pgleak_tests::{
    Build, Server, ServerOptions, measure,
    workload::{Pgbench, Script, init_pgbench},
};
use tracer_ebpf::abi::Measured;

/// Every build is looked at this often, in turns.
const ROUNDS: u32 = 3;
const LENGTH: Duration = Duration::from_secs(3);

fn main() -> Result<()> {
    println!("pgbench -S; each stack is taken in every way, the clock's own time is taken off");
    println!(
        "build      stacks  frames | last walk: ns  ns/20 frames | anew: ns  /20 | bpf_get_stack: ns  frames | anew/last  helper/last"
    );
    let builds = [Build::packaged(15)?, Build::npm(15)?, Build::npm(17)?, Build::npm(18)?];
    for _ in 0..ROUNDS {
        for build in &builds {
            let server = Server::start(build, &ServerOptions::default())?;
            init_pgbench(&server)?;
            let bench = Pgbench::start(&server, Script::SelectOnly, 1, 60)?;
            let sums = measure::stacks(bench.backend_pid(), LENGTH)?;
            drop(bench);
            println!("{}", line(&build.name, &sums));
        }
    }
    Ok(())
}

fn line(name: &str, sums: &Measured) -> String {
    let hits = sums.hits.max(1) as f64;
    let each = |ns: u64| ns.saturating_sub(sums.nothing_ns) as f64 / hits;
    let (last, anew, helper) = (each(sums.trail_ns), each(sums.anew_ns), each(sums.helper_ns));
    let frames = sums.frames as f64 / hits;
    format!(
        "{name:9} {:7}  {frames:6.1} | {last:13.0}  {:12.0} | {anew:8.0}  {:3.0} | {helper:17.0}  {:6.1} | {:9.2}  {:11.2}{}",
        sums.hits,
        last / frames * 20.0,
        anew / frames * 20.0,
        sums.helper_frames as f64 / hits,
        anew / last,
        helper / last,
        if sums.differences > 0 { format!("  {} DIFFER", sums.differences) } else { String::new() },
    )
}
