//! What a capture says of contexts: who made them, where they stand, what they take themselves; and
//! that all of it together is what the process has gained.

use pgleak::profile::{Capture, ContextGrowth, Group, Tally, What};
use pgleak_tests::{
    Build, Session,
    findings::{counter, losses, made, names, stack, survived},
    planted::{self, CONTEXT, Call, DROPPED_CONTEXT, KEPT_CONTEXT, NESTED_CONTEXT},
};

use crate::common::{assert_no_probe_is_left, on_builds, recording, server};

fn captured(session: &mut Session, settle: &str, work: impl FnOnce(&mut Session)) -> Capture {
    let running = recording(session.backend_pid(), &["--duration", "2s", "--settle", settle, "--force"]);
    work(session);
    let capture = running.finish().unwrap().success().unwrap().capture().unwrap();
    assert_eq!(losses(&capture), []);
    capture
}

fn growth<'c>(capture: &'c Capture, label: &str) -> &'c ContextGrowth {
    let memory = capture.memory.as_ref().expect("the contexts can be read");
    assert_eq!(memory.troubles, "");
    memory.by_label.iter().find(|growth| growth.label == label).unwrap_or_else(|| panic!("{memory:#?}"))
}

fn path(capture: &Capture, context: &str) -> Option<Vec<String>> {
    let contexts = &capture.profile.contexts;
    contexts.iter().find(|place| place.name == context).expect("it is in the capture").path.clone()
}

fn on(build: &Build) {
    let server = server(build);
    planted::install(&server).unwrap();
    let mut session = planted::session(&server).unwrap();
    // The context is there before; what is in it, too.
    Call::PALLOC.run(&mut session, &[300, 500]).unwrap();
    what_survives_and_its_overhead_are_the_growth(build, &mut session);
    contexts_of_other_kinds_grow_by_what_survives(build, &mut session);
    contexts_that_stay_have_a_maker(&mut session);
    blocks_that_few_chunks_keep(build, &mut session);
    assert_no_probe_is_left(session.backend_pid());
}

fn what_survives_and_its_overhead_are_the_growth(build: &Build, session: &mut Session) {
    let capture = captured(session, "0", |session| {
        Call::PALLOC.run(session, &[20_000, 40]).unwrap();
        Call::HUGE.run(session, &[5, 100_000]).unwrap();
        Call::REPALLOC.run(session, &[3, 300_000]).unwrap();
        Call::PALLOC.run(session, &[500, 3000]).unwrap();
        Call::IN_FLIGHT.run(session, &[1000, 40]).unwrap();
    });
    let of = growth(&capture, CONTEXT);
    let traced: u64 = (capture.profile.groups.iter())
        .filter(|group| group.what == What::Chunks && capture.profile.place(group).name == CONTEXT)
        .map(|group| group.recorded.held)
        .sum();
    assert_eq!((of.contexts_before, of.contexts_after), (1, 1));
    assert_eq!(of.traced, traced, "{of:?}");
    assert!(traced > 2_000_000, "{traced}");
    let untraced = of.untraced.expect("it was walked");
    println!("{}: {of:?}", build.name);
    assert!(untraced.unsigned_abs() * 50 <= traced, "more than 2 % was not traced: {of:?}");
    assert_eq!(of.after as i64 - of.before as i64, traced as i64 + of.overhead + untraced, "{of:?}");
    assert_eq!(path(&capture, CONTEXT), Some(vec!["TopMemoryContext".to_owned()]));
    // All contexts together are what the process has gained, but for its other memory.
    let memory = capture.memory.as_ref().unwrap();
    let contexts = memory.contexts_after - memory.contexts_before;
    let anon = memory.rss_anon_after.unwrap().saturating_sub(memory.rss_anon_before.unwrap());
    assert!(contexts.abs_diff(anon) < contexts / 2, "{contexts} of contexts, {anon} of the process");
}

fn contexts_of_other_kinds_grow_by_what_survives(build: &Build, session: &mut Session) {
    let capture = captured(session, "0", |session| {
        for kind in 0..if build.major < 17 { 2 } else { 3 } {
            Call::KIND.run(session, &[5000, 200, kind]).unwrap();
        }
    });
    for (context, is_exact) in [("planted generation", false), ("planted slab", true), ("planted bump", true)]
    {
        if context == "planted bump" && build.major < 17 {
            continue;
        }
        let of = growth(&capture, context);
        println!("{}: {of:?}", build.name);
        assert!(of.traced > 500_000, "{of:?}");
        // A freed chunk of a Generation counts as used until its block is empty.
        assert_eq!(of.untraced, is_exact.then_some(0), "{of:?}");
    }
    Call::RESET.run(session, &[]).unwrap();
}

fn contexts_that_stay_have_a_maker(session: &mut Session) {
    let capture = captured(session, "1s", |session| {
        Call::NESTED.run(session, &[2, 40, 12]).unwrap();
        Call::CHURN.run(session, &[5, 40, 50]).unwrap();
        Call::KEEP_CONTEXT.run(session, &[1, 40]).unwrap();
    });
    let nested = made(&capture, NESTED_CONTEXT, Call::NESTED.frame);
    assert_eq!((nested.count, nested.requested), (12, 0));
    // Each has a header, that of a block, and the rest of the page that it begins in.
    assert!((12 * 200..12 * 8192).contains(&nested.held), "{nested:?}");
    assert_eq!(made(&capture, KEPT_CONTEXT, Call::KEEP_CONTEXT.frame).count, 1);
    assert_eq!(made(&capture, DROPPED_CONTEXT, Call::CHURN.frame), Tally::default());
    assert!(counter(&capture, "creates") >= 63, "{}", counter(&capture, "creates"));
    let top = || "TopMemoryContext".to_owned();
    assert_eq!(path(&capture, KEPT_CONTEXT), Some(vec![top(), CONTEXT.to_owned()]));
    // Twelve in one another are twelve places of one name.
    let depths: Vec<usize> = (capture.profile.contexts.iter())
        .filter(|place| place.name == NESTED_CONTEXT)
        .filter_map(|place| place.path.as_ref().map(Vec::len))
        .collect();
    assert_eq!(depths, (2..14).collect::<Vec<_>>());
}

#[test]
fn only_contexts_of_one_name_are_recorded() {
    let server = server(&Build::packaged(15).unwrap());
    planted::install(&server).unwrap();
    let mut session = planted::session(&server).unwrap();
    let arguments = ["--duration", "2s", "--settle", "0", "--force", "--context", NESTED_CONTEXT];
    let running = recording(session.backend_pid(), &arguments);
    Call::PALLOC.run(&mut session, &[1000, 40]).unwrap();
    Call::NESTED.run(&mut session, &[2, 40, 12]).unwrap();
    let capture = running.finish().unwrap().success().unwrap().capture().unwrap();
    assert_eq!(survived(&capture, NESTED_CONTEXT, Call::NESTED.frame).count, 24);
    assert_eq!(made(&capture, NESTED_CONTEXT, Call::NESTED.frame).count, 12);
    let of = |group: &Group| &*capture.profile.place(group).name;
    for group in &capture.profile.groups {
        assert_eq!(of(group), NESTED_CONTEXT, "{group:?}");
    }
    // Nothing else had its stack walked.
    assert_eq!(counter(&capture, "stacks_walked"), 24 + 12);
    assert!(counter(&capture, "other_context") >= 1000);
    assert!(capture.notes.iter().any(|note| note.contains(NESTED_CONTEXT)), "{:?}", capture.notes);
}

/// Of ten thousand chunks a hundred stay: the places of the others are free, and no other context can
/// have them.
fn blocks_that_few_chunks_keep(build: &Build, session: &mut Session) {
    let capture = captured(session, "0", |session| {
        Call::SPARSE.run(session, &[10_000, 900]).unwrap();
    });
    let left = survived(&capture, CONTEXT, Call::SPARSE.frame);
    assert_eq!((left.count, left.requested), (100, 90_000));
    let below =
        |group: &&Group| names(&capture, stack(&capture, group)).any(|name| name == Call::SPARSE.frame);
    let pinned: u64 = capture.profile.groups.iter().filter(below).map(|group| group.pinned).sum();
    println!("{}: {} held, {pinned} pinned", build.name, left.held);
    // Some went to free lists of blocks that were there before.
    assert!(pinned > 90 * left.held && pinned < 100 * left.held, "{pinned} of {}", left.held);
}

on_builds! { on: debian_15 npm_12 12 npm_13 13 npm_14 14 npm_15 15 npm_16 16 npm_17 17 npm_18 18 }
