//! Two leaks that Greenplum had, in imitation: where they happened, and how hard they were to see.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use pgleak::{
    profile::{Class, judge},
    target::find_servers,
};
use pgleak_tests::{
    Build, Server, ServerOptions, Session,
    findings::losses,
    planted::{self, Call},
};

use crate::common::{PATIENCE, recording, server};

/// A path string for each record that a standby redoes (greenplum-db/gpdb issue 11202).
#[test]
fn a_standby_that_forgets_a_path_for_each_record() {
    let build = Build::packaged(15).unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let library = planted::compile_redo(&build, dir.path()).unwrap().display().to_string();
    let options = ServerOptions::default().set("shared_preload_libraries", &library);
    let primary = Server::start(&build, &options).unwrap();
    let standby = Server::start(&build, &options.clone().standby_of(&primary)).unwrap();
    let mut session = Session::open(&primary).unwrap();
    session
        .run(&format!("create function planted_records(bigint) returns bigint language c as '{library}'"))
        .unwrap();
    let startup = startup_process(&standby);
    let done = AtomicBool::new(false);
    let capture = thread::scope(|scope| {
        let done = &done;
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                session.run("select planted_records(50)").unwrap();
                thread::sleep(Duration::from_millis(50));
            }
        });
        let running = recording(startup, &["--duration", "5s", "--settle", "1s"]);
        let finished = running.finish();
        done.store(true, Ordering::Relaxed);
        finished.unwrap().success().unwrap().capture().unwrap()
    });
    assert_eq!(losses(&capture), []);
    assert_eq!(capture.target.kind, "startup");
    let verdict = judge(&capture);
    let first = &verdict.suspects[0];
    // GetDatabasePath itself ends in a jump to psprintf, and so is not on the stack.
    assert_eq!(first.head, "planted_truncate_replay", "{first:#?}");
    assert_eq!(first.course.class, Class::Leak);
    assert_eq!(first.callers[0], "planted_redo");
    assert_eq!(first.contexts[0].name, "TopMemoryContext");
    // What psprintf begins with.
    assert_eq!(first.survived.requested, first.survived.count * 128, "{:?}", first.survived);
    assert!(first.survived.count > 500, "{:?}", first.survived);
}

fn startup_process(server: &Server) -> u32 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let of_it = |process: &&pgleak::target::ServerProcess| {
            process.postmaster == Some(server.postmaster_pid()) && process.parsed.kind == "startup"
        };
        if let Some(process) = find_servers().iter().find(of_it) {
            return process.pid;
        }
        assert!(Instant::now() < deadline, "the standby has no startup process");
        thread::sleep(Duration::from_millis(50));
    }
}

/// One function leaks into the cache's context, by forty paths, while everything else allocates ten
/// thousand times as much (greenplum-db/gpdb issue 11244).
#[test]
fn one_function_by_forty_paths_in_heavy_noise() {
    for build in [Build::packaged(15).unwrap(), Build::npm(17).unwrap()] {
        let server = server(&build);
        planted::install(&server).unwrap();
        let mut session = planted::session(&server).unwrap();
        let noise = "select count(*) from (select relname, row_number() over (order by relname, oid) from pg_class) s;
            select string_agg(attname, ',' order by attname) from pg_attribute;
            create temp table n on commit drop as select g, md5(g::text) from generate_series(1, 200) g;
            select count(*) from n a join n b using (g)";
        session.run(noise).unwrap();
        let pid = session.backend_pid();
        let done = AtomicBool::new(false);
        let finished = thread::scope(|scope| {
            let done = &done;
            scope.spawn(move || {
                for path in (0..40).cycle() {
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                    Call::FETCH.run(&mut session, &[1, 100, path]).unwrap();
                    session.run(noise).unwrap();
                }
            });
            let running = recording(pid, &["--duration", "8s", "--settle", "1s", "--max-slowdown", "100"]);
            let finished = running.finish();
            done.store(true, Ordering::Relaxed);
            finished.unwrap().success().unwrap()
        });
        let (report, capture) = (&finished.stdout, finished.capture().unwrap());
        let verdict = judge(&capture);
        let leaks: Vec<_> =
            verdict.suspects.iter().filter(|place| place.course.class == Class::Leak).collect();
        let [first] = leaks[..] else { panic!("{}: {report}", build.name) };
        assert_eq!(verdict.suspects[0].head, first.head, "{}", build.name);
        assert_eq!(first.head, Call::FETCH.frame, "{}", build.name);
        assert_eq!(first.contexts[0].name, "CacheMemoryContext");
        let rounds = first.survived.count / 2;
        println!("{}: {rounds} rounds, {} paths, {:?}", build.name, first.paths, verdict.totals.recorded);
        assert_eq!(first.paths as u64, 2 * rounds.min(40), "each of them, and two chunks by each");
        assert!(verdict.totals.recorded.held > 1000 * first.survived.held, "{:?}", verdict.totals.recorded);
    }
}
