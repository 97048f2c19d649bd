//! Every stack of the kernel's walk is what framehop makes of the same registers and bytes.
//! `cargo xtask test --differential` compares 100,000 stacks of each build, CI fewer.

use std::{env, time::Duration};

use pgleak_tests::{
    Build, LEAKING_ROUND, Server,
    differential::{Compared, MODES, Mode, compare},
    workload::{Loop, Pgbench, Script, init_pgbench},
};

use crate::common::server;

/// PL/pgSQL below the executor, and functions of extensions below the sort and the aggregate that
/// call them.
const EXTENSIONS: &str = "do $$ declare h hstore := ''; begin
    for i in 1..50 loop h := h || hstore(i::text, repeat('x', i)); end loop;
    perform string_agg(similarity(relname, 'pg_class')::text, ',' order by similarity(relname, 'pg'))
        from pg_class;
    perform encode(digest(relname::text, 'sha256'), 'hex') from pg_class limit 50;
    perform avg(length(hstore_to_json(h)::text));
end $$";

fn hits() -> u64 {
    match env::var("PGLEAK_DIFFERENTIAL_HITS") {
        Ok(text) => text.parse().expect("PGLEAK_DIFFERENTIAL_HITS is a number"),
        Err(_) => 8_000,
    }
}

fn on(build: &Build) {
    let server = server(build);
    init_pgbench(&server).unwrap();
    let mut all = 0;
    // An eighth of the stacks each: four ways, with and without extensions on the stack.
    let part = hits().div_ceil(8);
    for mode in MODES {
        let bench = Pgbench::start(&server, Script::TpcB, 1, 600).unwrap();
        all += compared(build, mode, bench.backend_pid(), part);
        drop(bench);
        all += with_extensions(build, &server, mode, part);
    }
    assert!(all >= hits());
}

fn with_extensions(build: &Build, server: &Server, mode: Mode, wanted: u64) -> u64 {
    let setup = "create extension if not exists hstore; create extension if not exists pg_trgm;
        create extension if not exists pgcrypto";
    let mut session = pgleak_tests::Session::open(server).unwrap();
    session.run(setup).unwrap();
    drop(session);
    let work = Loop::start(server, &format!("{EXTENSIONS};{LEAKING_ROUND}")).unwrap();
    let all = compared(build, mode, work.backend_pid(), wanted);
    work.stop().unwrap();
    all
}

fn compared(build: &Build, mode: Mode, pid: u32, wanted: u64) -> u64 {
    let found = compare(pid, mode, wanted, Duration::from_secs(300)).unwrap();
    println!("{}, {mode:?}: {found:?}", build.name);
    let Compared { whole, cut, taken_over, frames } = found;
    assert!(cut * 100 <= whole, "too many stacks are cut to be compared whole: {found:?}");
    assert!(frames > whole * 8, "{found:?}");
    assert_eq!(taken_over == 0, mode.anew, "{found:?}");
    whole + cut
}

#[test]
fn debian_15() {
    on(&Build::packaged(15).unwrap());
}

macro_rules! on_npm_builds {
    ($($name:ident $major:literal)*) => {$(
        #[test]
        fn $name() {
            on(&Build::npm($major).unwrap());
        }
    )*};
}

on_npm_builds! {
    npm_12 12
    npm_15 15
    npm_17 17
    npm_18 18
}
