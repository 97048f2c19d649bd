//! What is foreseen is what is returned, and what it leaves in the kernel's maps.

use std::collections::HashSet;

use pgleak::{
    bpf::{Attached, ContextNames, Counters, Limits, Mechanism, Probe, Tracer, take_snapshot},
    session::prepare,
    target::exe_link,
};
use pgleak_tests::{
    Build, Server, Session,
    planted::{self, Call},
};
use tracer_ebpf::{
    abi::{NURSERY_SLOTS, Phase},
    counters::Counter,
    foresee::SetFields,
};

use crate::common::server;

/// A tracer of a backend of Debian's or npm's server, attached by session links; the map of live chunks has little room.
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
        let limits = Limits::within(Limits::least_bytes(rows, pages) + (4 << 20), rows, pages).unwrap();
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

/// Chunks begin in the nursery, and those that outlive their place there go into the map of live chunks. What freed ones
/// leave behind there makes room for others before any is lost, and is counted.
#[test]
fn records_of_freed_chunks_stay_and_go() {
    let mut bare = Bare::on(&Build::packaged(15).unwrap(), |_| {});
    let snapshot = |bare: &Bare| take_snapshot(&bare.tracer, &HashSet::new(), &|| {}).unwrap();
    let entries = |bare: &Bare| {
        let records = snapshot(bare).records as u64;
        assert_eq!(bare.tracer.control().entries(), records, "each entry is counted");
        records
    };
    let of_size = |bare: &Bare, size| {
        let snapshot = snapshot(bare);
        let chunks = snapshot.processes.values().flat_map(|process| &process.chunks);
        chunks.filter(|chunk| chunk.requested == size).count() as u64
    };
    let of = |bare: &Bare, counter| bare.tracer.counters().unwrap().get(counter);
    let room = u64::from(bare.tracer.limits().live);
    assert!(room > 16_000, "{room}");
    bare.record();
    // A few are all in the nursery, but for those that want the place of another.
    Call::PALLOC.run(&mut bare.session, &[500, 40]).unwrap();
    assert!(of_size(&bare, 40) >= 500 && entries(&bare) < 300, "{}", entries(&bare));
    // More than it has places. Every one is there once.
    Call::PALLOC.run(&mut bare.session, &[11_500, 40]).unwrap();
    let planted = of_size(&bare, 40);
    assert!((12_000..12_100).contains(&planted), "{planted}");
    let grown = of(&bare, Counter::GrownUp);
    assert!(grown >= 12_000 - u64::from(NURSERY_SLOTS) && entries(&bare) <= grown, "{grown}");
    // Freed one by one, a quarter of the room is kept, and no more. The next ones are where these were.
    Call::PFREE.run(&mut bare.session, &[12_000]).unwrap();
    let kept = entries(&bare);
    assert!(kept > room / 8 && kept <= room / 4 + 16, "{kept} of {room}");
    assert!(of_size(&bare, 40) < 100);
    Call::PALLOC.run(&mut bare.session, &[2000, 40]).unwrap();
    Call::PFREE.run(&mut bare.session, &[2000]).unwrap();
    assert!(entries(&bare) <= kept + 100, "they are written over");
    // Chunks of contexts that are reset stay until they are looked for.
    Call::PALLOC.run(&mut bare.session, &[12_000, 72]).unwrap();
    Call::RESET.run(&mut bare.session, &[]).unwrap();
    let full = entries(&bare);
    assert!(full > room / 3, "{full} of {room}");
    bare.tracer.sweep_when_filling(&|_| {}).unwrap();
    let held = Call::PALLOC.run(&mut bare.session, &[1000, 24]).unwrap();
    assert!(entries(&bare) < full - 500, "{} after {full}", entries(&bare));
    assert!(of(&bare, Counter::SweptDead) > 1000);
    assert_eq!((of(&bare, Counter::LiveFull), of(&bare, Counter::OverwroteLive)), (0, 0));
    let last = snapshot(&bare);
    let live: Vec<_> = last.processes.values().flat_map(|process| &process.chunks).collect();
    let planted: u64 = live.iter().filter(|chunk| chunk.requested == 24).map(|chunk| chunk.held).sum();
    assert!(planted >= held.unsigned_abs() && planted < held.unsigned_abs() + 4000, "{planted} of {held}");
    bare.counters();
    bare.attached = Attached::default();
    bare.tracer.clear_chunks().unwrap();
    assert_eq!((entries(&bare), bare.tracer.records()), (0, 0));
}

/// A server whose sets are not where they should be: what is foreseen of it is compared before anything is recorded by it.
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
