//! Every way to attach probes gives the same.

use std::{collections::HashSet, time::Instant};

use pgleak::{
    bpf::{Attached, ContextNames, Counters, Limits, Mechanism, Probe, Tracer, take_snapshot},
    session::prepare,
    target::exe_link,
};
use pgleak_tests::{
    Build, Server, Session,
    findings::{counter, losses, survived},
    pgleak::Running,
    planted::{self, CONTEXT, Call},
};

use tracer_ebpf::{abi::Phase, counters::Counter, foresee::SetFields};

use crate::common::{PATIENCE, assert_no_probe_is_left, server};

/// What it allocates is seen exactly, whatever it calls; calls begin as often as they return.
fn exact_by(how: &str) {
    let server = server(&Build::npm(17).unwrap());
    planted::install(&server).unwrap();
    let mut session = planted::session(&server).unwrap();
    let pid = session.backend_pid();
    of_one(&server, &mut session, how);
    of_several(&server, &mut session, how);
    assert_no_probe_is_left(pid);
}

fn of_one(server: &Server, session: &mut Session, how: &str) {
    let pid = session.backend_pid();
    let arguments =
        ["--attach", how, "--allocator", "all", "--duration", "3s", "--settle", "1s", "--force", "-vv"];
    let running = Running::capture(pid, &arguments).unwrap();
    running.wait_for("recording for", PATIENCE).unwrap();
    let held = Call::PALLOC.run(session, &[100, 40]).unwrap();
    Call::IN_FLIGHT.run(session, &[1000, 40]).unwrap();
    Call::REPALLOC.run(session, &[10, 300]).unwrap();
    Call::CHURN.run(session, &[20, 40, 5]).unwrap();
    let kind = Call::KIND.run(session, &[30, 40, 2]).unwrap();
    let threads = Call::THREADS.run(session, &[50, 640]).unwrap();
    running.wait_for("settling for", PATIENCE).unwrap();
    Call::PFREE.run(session, &[50]).unwrap();
    let began = Instant::now();
    let finished = running.finish().unwrap().success().unwrap();
    eprintln!("{how}: {:?} to the end", began.elapsed());
    let capture = finished.capture().unwrap();
    assert_eq!(losses(&capture), [], "nothing may be lost");
    // The newest fifty went while settling, with what ten of them had grown by.
    let left = survived(&capture, CONTEXT, Call::PALLOC.frame);
    assert_eq!((left.count, left.requested), (50, 2000));
    assert!(held > 0 && kind > 0);
    assert_eq!(survived(&capture, CONTEXT, Call::REPALLOC.frame).count, 0);
    assert_eq!(survived(&capture, "malloc", Call::THREADS.frame).count, threads.unsigned_abs());
    for site in capture.sites.iter().filter(|site| site.entries > 0) {
        let Some(returns) = site.returns else { continue };
        // Calls that were open when recording began or ended.
        let awaited = site.entries - site.unawaited;
        assert!(awaited.abs_diff(returns) <= counter(&capture, "left_by_error") + 4, "{site:?}");
    }
    let [foreseen, checked] = ["foreseen", "foreseen_checked"].map(|name| counter(&capture, name));
    if how == "session" {
        // The first 256 are awaited all the same, of the thousand in flight and all that the server needs itself.
        assert!(foreseen > 500 && checked >= 256, "{foreseen} foreseen, {checked} checked");
        let alloc = capture.sites.iter().find(|site| site.function == "AllocSetAlloc").expect("it is probed");
        let most = foreseen + counter(&capture, "nested_in_realloc");
        assert!((foreseen..=most).contains(&alloc.unawaited), "{alloc:?}, {foreseen} foreseen");
    } else {
        assert_eq!((foreseen, checked), (0, 0));
    }
    let said = match how {
        "session" => "session links",
        "multi" => "uprobe_multi links",
        _ => "perf links",
    };
    assert!(finished.stderr.contains(&format!("probes by {said}")), "{}", finished.stderr);
    Call::RESET.run(session, &[]).unwrap();
    drop(server.log());
}

fn of_several(server: &Server, session: &mut Session, how: &str) {
    let postmaster = server.postmaster_pid().to_string();
    let running = Running::capture_of(
        &["--postmaster", &postmaster, "--backend-type", "client"],
        &["--attach", how, "--duration", "3s", "--settle", "0", "--force"],
    )
    .unwrap();
    running.wait_for("recording for", PATIENCE).unwrap();
    let held = Call::PALLOC.run(session, &[20, 64]).unwrap();
    let mut new = planted::session(server).unwrap();
    let held_by_new = Call::PALLOC.run(&mut new, &[30, 64]).unwrap();
    let capture = running.finish().unwrap().success().unwrap().capture().unwrap();
    assert_eq!(losses(&capture), [], "nothing may be lost");
    let left = survived(&capture, CONTEXT, Call::PALLOC.frame);
    assert_eq!((left.count, left.held), (50, (held + held_by_new).unsigned_abs()));
    assert_eq!(capture.processes.len(), 2);
}

/// A server whose sets are not where they should be: what is foreseen of it is compared before anything is recorded by it.
/// A tracer of a backend of Debian's or npm's server, attached by session links; the map of live chunks has the least
/// room there is.
struct Bare {
    tracer: Tracer,
    attached: Attached,
    session: Session,
    _server: Server,
}

impl Bare {
    fn on(build: &Build, change: impl FnOnce(&mut ContextNames)) -> Self {
        let server = server(build);
        planted::install(&server).unwrap();
        let session = planted::session(&server).unwrap();
        let pid = session.backend_pid();
        let mut prepared = prepare(pid, None).unwrap();
        let (rows, pages) = prepared.mappings.table_sizes();
        let limits = Limits::within(Limits::least_bytes(rows, pages), rows, pages).unwrap();
        let mut names = ContextNames::of(&prepared.plan.layout);
        change(&mut names);
        let mut tracer = Tracer::load_for(limits, names, Mechanism::Session).unwrap();
        prepared.mappings.upload(tracer.walks()).unwrap();
        let mut attached = Attached::default();
        for site in &prepared.plan.sites {
            attached.add(&mut tracer, Some(pid), &exe_link(pid), Probe::of(site)).unwrap();
        }
        tracer.control().allow_until(u64::MAX);
        Self { tracer, attached, session, _server: server }
    }

    fn record(&self) {
        assert!(self.tracer.control().advance(Phase::Off, Phase::Record));
    }

    /// Ends the recording.
    fn counters(&self) -> Counters {
        assert!(self.tracer.control().advance(Phase::Record, Phase::Off));
        self.tracer.counters().unwrap()
    }
}

/// Each chunk that is foreseen is compared with what is returned, in work of every kind: what is known of a set has to
/// survive it, or to be given up.
fn all_foresight_is_right(build: &Build) {
    let mut bare = Bare::on(build, |_| {});
    bare.tracer.control().check_all_foresight();
    bare.record();
    let session = &mut bare.session;
    for size in [8, 20, 100, 1000, 5000, 9000] {
        Call::PALLOC.run(session, &[30, size]).unwrap();
        Call::REPALLOC.run(session, &[10, size]).unwrap();
        Call::PFREE.run(session, &[25]).unwrap();
        Call::CHURN.run(session, &[5, size, 20]).unwrap();
        Call::CAUGHT.run(session, &[3, size, 2]).unwrap();
        Call::SUBTRANSACTION.run(session, &[3, size, 2]).unwrap();
        Call::IN_FLIGHT.run(session, &[100, size]).unwrap();
        for statement in [
            "select string_agg(relname || repeat('x', 500), ',' order by relname) from pg_class",
            "select count(*) from pg_class a join pg_attribute b on b.attrelid = a.oid group by a.relkind",
            "do $$ begin for i in 1..50 loop begin perform 1 / (i % 5); exception when others then null; \
             end; end loop; end $$",
            "create temp table made (a int, b text); insert into made select i, i::text from \
             generate_series(1, 200) i; update made set b = b || 'x'; drop table made",
        ] {
            session.run(statement).unwrap();
        }
        assert!(session.run("select 1 / 0").is_err());
    }
    Call::RESET.run(session, &[]).unwrap();
    let counters = bare.counters();
    let of = |counter| counters.get(counter);
    assert!(of(Counter::ForeseenChecked) > 50_000, "{counters:?}");
    assert_eq!((of(Counter::ForeseenWrongly), of(Counter::Foreseen)), (0, 0), "{counters:?}");
}

#[test]
fn all_foresight_is_right_on_debian_15() {
    all_foresight_is_right(&Build::packaged(15).unwrap());
}

#[test]
fn all_foresight_is_right_on_npm_12() {
    all_foresight_is_right(&Build::npm(12).unwrap());
}

#[test]
fn all_foresight_is_right_on_npm_16() {
    all_foresight_is_right(&Build::npm(16).unwrap());
}

#[test]
fn all_foresight_is_right_on_npm_18() {
    all_foresight_is_right(&Build::npm(18).unwrap());
}

/// What freed chunks leave behind makes room for others before any is lost, and is counted.
#[test]
fn records_of_freed_chunks_stay_and_go() {
    let mut bare = Bare::on(&Build::packaged(15).unwrap(), |_| {});
    let entries = |bare: &Bare| {
        let records = take_snapshot(&bare.tracer, &HashSet::new(), &|| {}).unwrap().records as u64;
        assert_eq!(bare.tracer.control().entries(), records, "each entry is counted");
        records
    };
    bare.record();
    // Freed one by one, a quarter of the room is kept, and no more. The next ones are where these were.
    Call::PALLOC.run(&mut bare.session, &[3000, 40]).unwrap();
    Call::PFREE.run(&mut bare.session, &[3000]).unwrap();
    let room = u64::from(bare.tracer.limits().live);
    let kept = entries(&bare);
    assert!(kept > room / 8 && kept <= room / 4 + 16, "{kept} of {room}");
    Call::PALLOC.run(&mut bare.session, &[500, 40]).unwrap();
    Call::PFREE.run(&mut bare.session, &[500]).unwrap();
    assert!(entries(&bare) <= kept + 100, "they are written over");
    // Chunks of contexts that are reset stay until they are looked for.
    Call::PALLOC.run(&mut bare.session, &[2000, 72]).unwrap();
    Call::RESET.run(&mut bare.session, &[]).unwrap();
    let full = entries(&bare);
    assert!(full > room / 2, "{full} of {room}");
    bare.tracer.sweep_when_filling(&|_| {}).unwrap();
    let held = Call::PALLOC.run(&mut bare.session, &[1000, 24]).unwrap();
    assert!(entries(&bare) < full - 500, "{} after {full}", entries(&bare));
    let of = |bare: &Bare, counter| bare.tracer.counters().unwrap().get(counter);
    assert!(of(&bare, Counter::SweptDead) > 1000);
    assert_eq!((of(&bare, Counter::LiveFull), of(&bare, Counter::OverwroteLive)), (0, 0));
    let last = take_snapshot(&bare.tracer, &HashSet::new(), &|| {}).unwrap();
    let live: Vec<_> = last.processes.values().flat_map(|process| &process.chunks).collect();
    let planted: u64 = live.iter().filter(|chunk| chunk.requested == 24).map(|chunk| chunk.held).sum();
    assert!(planted >= held.unsigned_abs() && planted < held.unsigned_abs() + 4000, "{planted} of {held}");
    bare.counters();
    bare.attached = Attached::default();
    bare.tracer.clear_chunks().unwrap();
    assert_eq!(entries(&bare), 0);
}

#[test]
fn wrong_foresight_ends_at_once() {
    let mut bare = Bare::on(&Build::packaged(15).unwrap(), |names| {
        let fields = names.sets.expect("known of 15");
        // Each free list is taken for that of the next smaller size.
        names.sets = Some(SetFields { start: fields.start + 8, ..fields });
    });
    bare.record();
    for size in [20, 40, 100, 300] {
        Call::CHURN.run(&mut bare.session, &[5, size, 50]).unwrap();
        Call::PALLOC.run(&mut bare.session, &[20, size]).unwrap();
        Call::PFREE.run(&mut bare.session, &[20]).unwrap();
        bare.session.text("select string_agg(relname, ',' order by relname) from pg_class").unwrap();
    }
    let counters = bare.counters();
    let of = |counter| counters.get(counter);
    assert_eq!(of(Counter::ForeseenWrongly), 1, "once, and no more");
    assert_eq!(of(Counter::Foreseen), 0, "nothing was recorded by it");
    assert!(of(Counter::Recorded) > 1000 && of(Counter::OverwroteLive) == 0, "{counters:?}");
}

#[test]
fn perf_links() {
    exact_by("perf");
}

#[test]
fn uprobe_multi_links() {
    exact_by("multi");
}

#[test]
fn session_links() {
    exact_by("session");
}
