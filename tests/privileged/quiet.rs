//! Work that leaks nothing, of many kinds: no suspect is called a leak.

use std::env;

use pgleak::profile::{Class, Course, Place, judge};
use pgleak_tests::{
    Build, Server, Session,
    findings::losses,
    workload::{Loop, Pgbench, Script, init_pgbench},
};

use crate::common::{recording, server};

/// How often each is captured in the long form, which this variable asks for; else once, and shortly.
const ROUNDS: &str = "PGLEAK_QUIET";

/// What a server needs for all of it.
const SETUP: [&str; 9] = [
    "create table numbers (id int primary key, k int, v text, j jsonb, n numeric)",
    "insert into numbers select g, g % 97, repeat(md5(g::text), 4), jsonb_build_object('a', g), g * 1.5
        from generate_series(1, 8000) g",
    "create table names (k int primary key, name text)",
    "insert into names select g, 'name' || g from generate_series(0, 96) g",
    "create sequence touched",
    "do $$ begin
        for i in 1 .. 1500 loop
            execute format('create table many_%s (id int primary key, v text check (v <> ''''))', i);
        end loop;
    end $$",
    "create function caught(i int) returns int language plpgsql as $$
    declare a int[] := '{}';
    begin
        for x in 1 .. 100 loop a := a || x; end loop;
        begin
            if i % 3 = 0 then raise exception 'no'; end if;
        exception when others then return -1;
        end;
        return array_length(a, 1);
    end $$",
    "create function touch(count int) returns bigint language plpgsql as $$
    declare sum bigint := 0; one bigint;
    begin
        for i in 1 .. count loop
            execute format('select count(*) from many_%s', 1 + nextval('touched') % 1500) into one;
            sum := sum + one;
        end loop;
        return sum;
    end $$",
    "vacuum analyze numbers",
];

/// Statements that are run again and again.
const WORK: [(&str, &str); 14] = [
    ("sorts", "select count(*) from (select v, row_number() over (order by v, j) from numbers) s"),
    ("hash joins", "select count(*), sum(o.n) from numbers join names using (k) join numbers o using (id)"),
    (
        "aggregates",
        "select k, string_agg(v, ',' order by id), jsonb_agg(j) from numbers group by k order by 2 limit 1",
    ),
    // No `serial`: what a session knows of a sequence outlives it (test `leak::dropped_sequences`).
    (
        "ddl",
        "create table d (id int primary key, v text); create index on d (v); alter table d add c int; drop table d",
    ),
    (
        "temporary tables",
        "create temp table t on commit drop as select * from numbers limit 50; select count(*) from t",
    ),
    ("copy", "copy (select * from numbers) to program 'cat > /dev/null'"),
    ("plpgsql", "select sum(caught(g)) from generate_series(1, 100) g"),
    ("large lists", "LIST"),
    ("tables touched once", "select touch(3)"),
    (
        "prepared statements",
        "prepare p(int) as select * from numbers where id = $1; execute p(5); deallocate p",
    ),
    (
        "savepoints",
        "begin; savepoint a; insert into names values (1000, 'x'); savepoint b; update names set name = name || 'y' where k < 50; rollback to b; release a; rollback",
    ),
    (
        "cursors",
        "begin; declare c cursor for select * from numbers order by v desc; move 500 from c; fetch 3 from c; close c; rollback",
    ),
    ("texts", "select count(regexp_replace(v, '([a-f])', '\\1\\1', 'g')) from numbers where id < 300"),
    ("statistics", "analyze names"),
];

/// Captures it; gives what is called a leak.
fn leaks(server: &Server, what: &str, pid: u32) -> Vec<String> {
    let duration = if env::var_os(ROUNDS).is_some() { "4s" } else { "2500ms" };
    let running = recording(pid, &["--duration", duration, "--settle", "500ms", "--max-slowdown", "100"]);
    let capture = running.finish().unwrap().success().unwrap().capture().unwrap();
    let lost = losses(&capture);
    assert!(lost.iter().all(|(name, _)| *name != "live_full"), "{what}: {lost:?}");
    let verdict = judge(&capture);
    let said = |place: &Place| {
        let Course { class, confidence, reason, .. } = &place.course;
        let (build, bytes) = (&server.build().name, place.weight());
        format!("{build} {what}: {} {} {confidence:.2}, {bytes} bytes: {reason}", place.head, class.name())
    };
    verdict.suspects.iter().for_each(|place| println!("{}", said(place)));
    verdict.suspects.iter().filter(|place| place.course.class == Class::Leak).map(said).collect()
}

fn on(build: &Build) {
    let server = server(build);
    init_pgbench(&server).unwrap();
    let mut session = Session::open(&server).unwrap();
    for statement in SETUP {
        session.run(statement).unwrap();
    }
    let rounds = env::var(ROUNDS).map_or(1, |rounds| rounds.parse().expect("a number"));
    let list: Vec<String> = (0..2000).map(|i| i.to_string()).collect();
    let large_list = format!("select count(*) from numbers where id in ({})", list.join(","));
    let (mut captures, mut found) = (0, Vec::new());
    for _ in 0..rounds {
        for script in [Script::SelectOnly, Script::TpcB] {
            let bench = Pgbench::start(&server, script, 1, 20).unwrap();
            found.extend(leaks(&server, "pgbench", bench.backend_pid()));
            captures += 1;
            drop(bench);
        }
        for (what, sql) in WORK {
            let sql = if sql == "LIST" { &large_list } else { sql };
            let work = Loop::start(&server, &format!("{sql};\n")).unwrap();
            // Caches fill, plans become generic.
            while work.rounds() < 8 {
                std::thread::yield_now();
            }
            found.extend(leaks(&server, what, work.backend_pid()));
            captures += 1;
            work.stop().unwrap();
        }
    }
    println!("{}: {captures} captures", build.name);
    assert!(found.is_empty(), "{}: {} of {captures}: {found:#?}", build.name, found.len());
}

#[test]
fn debian_15() {
    on(&Build::packaged(15).unwrap());
}

#[test]
fn npm_17() {
    on(&Build::npm(17).unwrap());
}
