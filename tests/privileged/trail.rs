//! A walk by way of the last one finds what a walk anew finds, on every hit.

use std::time::Duration;

use pgleak_tests::{
    Build, LEAKING_ROUND, measure,
    workload::{Loop, Pgbench, Script, init_pgbench},
};

use crate::common::{on_builds, server};

fn on(build: &Build) {
    let server = server(build);
    init_pgbench(&server).unwrap();
    let bench = Pgbench::start(&server, Script::TpcB, 1, 60).unwrap();
    let transactions = measure::stacks(bench.backend_pid(), Duration::from_secs(3)).unwrap();
    drop(bench);
    // PL/pgSQL: another object on the stack, recursion, errors, everything that is compiled.
    let leak = Loop::start(&server, LEAKING_ROUND).unwrap();
    let functions = measure::stacks(leak.backend_pid(), Duration::from_secs(3)).unwrap();
    leak.stop().unwrap();
    for sums in [transactions, functions] {
        println!("{}: {sums:?}", build.name);
        assert!(sums.hits > 20_000, "{}: {sums:?}", build.name);
        assert_eq!(sums.differences, 0, "{}", build.name);
    }
}

on_builds! { on: debian_15 npm_12 12 npm_15 15 npm_17 17 npm_18 18 }
