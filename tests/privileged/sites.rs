//! Probes count each call once, wherever in the function they sit.

use pgleak::{
    bpf::{Attached, ContextNames, Limits, Probe, Tracer},
    session::prepare,
    target::exe_link,
};
use pgleak_tests::{
    Build, Session,
    planted::{self, Call},
};
use tracer_ebpf::{abi::Phase, site::Site};

use crate::common::{on_builds, server};

/// Where the sites at the functions' first instructions are counted.
const AT_ENTRY: u8 = 32;

/// Some calls of each function, thousands of most, none of them left by an error.
fn work(session: &mut Session, major: u32) {
    for _ in 0..20 {
        Call::PALLOC.run(session, &[50, 40]).unwrap();
        Call::REPALLOC.run(session, &[50, 400]).unwrap();
        Call::REPALLOC.run(session, &[10, 50_000]).unwrap();
        Call::PFREE.run(session, &[20]).unwrap();
        Call::CHURN.run(session, &[5, 40, 50]).unwrap();
        Call::RESET.run(session, &[]).unwrap();
        for kind in 0..if major < 17 { 2 } else { 3 } {
            Call::KIND.run(session, &[30, 40, kind]).unwrap();
            Call::NO_KIND.run(session, &[30, 40, kind]).unwrap();
        }
        session.text("select string_agg(relname, ',' order by relname) from pg_class").unwrap();
    }
}

fn on(build: &Build) {
    let server = server(build);
    planted::install(&server).unwrap();
    let mut session = planted::session(&server).unwrap();
    let pid = session.backend_pid();
    let prepared = prepare(pid, None).unwrap();
    let (rows, pages) = prepared.mappings.table_sizes();
    let limits = Limits::within(64 << 20, rows, pages).unwrap();
    let mut tracer = Tracer::load(limits, ContextNames::of(&prepared.plan.layout)).unwrap();
    let mut attached = Attached::default();
    for site in &prepared.plan.sites {
        let chosen = Probe::of(site);
        attached.add(&mut tracer, Some(pid), &exe_link(pid), chosen).unwrap();
        let cookie = Site { index: site.site.index + AT_ENTRY, skew: 0, ..site.site }.pack();
        let offset = prepared.image.file_offset(site.function.address).unwrap();
        attached.add(&mut tracer, Some(pid), &exe_link(pid), Probe { offset, cookie, ..chosen }).unwrap();
    }
    // The session is idle when counting begins and when it ends: no call is cut in two.
    assert!(tracer.control().advance(Phase::Off, Phase::Count));
    work(&mut session, build.major);
    assert!(tracer.control().advance(Phase::Count, Phase::Off));
    let hits = tracer.site_hits().unwrap();
    drop(attached);
    for site in &prepared.plan.sites {
        let chosen = hits[usize::from(site.site.index)];
        let at_entry = hits[usize::from(site.site.index + AT_ENTRY)];
        let what = format!("{} of {} at +{}", site.function.name(), build.name, site.site.skew);
        println!("{what}: {chosen:?}");
        assert!(chosen.entries >= 20, "{what}: {chosen:?}");
        assert_eq!(chosen, at_entry, "{what}");
        let returns = if site.site.role.needs_return() { chosen.entries } else { 0 };
        assert_eq!(chosen.returns, returns, "{what}");
    }
}

on_builds! { on: debian_15 npm_12 12 npm_13 13 npm_14 14 npm_15 15 npm_16 16 npm_17 17 npm_18 18 }
