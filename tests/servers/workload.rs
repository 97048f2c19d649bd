//! The workloads run, and fail when they should.

use pgleak_tests::workload::{Loop, Pgbench, Script, init_pgbench};
use pgleak_tests::{Build, LEAKING_ROUND, Server, ServerOptions, Session};

fn server(build: &Build) -> Server {
    Server::start(build, &ServerOptions::default()).unwrap()
}

fn rss_anon(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn pgbench_runs_on_the_oldest_and_the_newest_major() {
    for build in [Build::npm(12).unwrap(), Build::npm(18).unwrap()] {
        let server = server(&build);
        init_pgbench(&server).unwrap();
        for script in [Script::SelectOnly, Script::TpcB] {
            let bench = Pgbench::start(&server, script, 2, 1).unwrap();
            assert_eq!(bench.backend_pids().len(), 2);
            let result = bench.finish().unwrap();
            assert!(result.transactions > 10 && result.failed == 0 && result.tps > 10.0, "{result:?}");
        }
    }
}

#[test]
fn a_pgbench_whose_backend_ends_has_failed() {
    let server = server(&Build::packaged(15).unwrap());
    init_pgbench(&server).unwrap();
    let bench = Pgbench::start(&server, Script::SelectOnly, 1, 30).unwrap();
    let end = format!("select pg_terminate_backend({})", bench.backend_pid());
    Session::open(&server).unwrap().run(&end).unwrap();
    let error = bench.finish().unwrap_err();
    assert!(error.to_string().contains("pgbench failed"), "{error}");
}

#[test]
fn the_demonstration_leaks_in_every_major() {
    for build in Build::all().unwrap() {
        let server = server(&build);
        let leak = Loop::start(&server, LEAKING_ROUND).unwrap();
        // Caches fill in the first rounds; what grows after them is the leak.
        while leak.rounds() < 50 {
            std::thread::yield_now();
        }
        let (before, rounds) = (rss_anon(leak.backend_pid()), leak.rounds());
        while leak.rounds() < rounds + 100 {
            std::thread::yield_now();
        }
        let (after, more) = (rss_anon(leak.backend_pid()), leak.rounds() - rounds);
        let each = after.saturating_sub(before) / more;
        println!("{}: {each} bytes a round", build.name);
        assert!(each > 10_000, "{}: {each} bytes a round", build.name);
        leak.stop().unwrap();
    }
}
