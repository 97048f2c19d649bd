//! Planted patterns: exactly the bytes and chunks that there should be, on every build.

use pgleak::profile::{Capture, Tally};
use pgleak_tests::{
    Build, Session,
    findings::{counter, losses, recorded, survived},
    planted::{self, CONTEXT, Call, DROPPED_CONTEXT, KEPT_CONTEXT, NESTED_CONTEXT},
};

use crate::common::{assert_no_probe_is_left, on_builds, recording, server};

/// Runs `work` while its session is recorded, and gives what was captured.
fn captured<T>(session: &mut Session, settle: &str, work: impl FnOnce(&mut Session) -> T) -> (Capture, T) {
    let running = recording(session.backend_pid(), &["--duration", "2s", "--settle", settle, "--force"]);
    let result = work(session);
    let capture = running.finish().unwrap().success().unwrap().capture().unwrap();
    assert_eq!(losses(&capture), [], "nothing may be lost");
    (capture, result)
}

fn tally(count: u64, requested: u64, held: i64) -> Tally {
    Tally { count, requested, held: held.unsigned_abs() }
}

fn on(build: &Build) {
    let server = server(build);
    planted::install(&server).unwrap();
    let mut session = planted::session(&server).unwrap();
    let pid = session.backend_pid();
    allocations_and_frees(&mut session);
    reallocs(&mut session);
    contexts(&mut session);
    errors(&mut session);
    inherited(&mut session);
    kinds(&mut session, build.major);
    assert_no_probe_is_left(pid);
}

fn allocations_and_frees(session: &mut Session) {
    let (capture, held) = captured(session, "0", |session| {
        let mut call = |call: Call, arguments: &[i64]| call.run(session, arguments).unwrap();
        let palloc = call(Call::PALLOC, &[100, 40]);
        let palloc0 = call(Call::PALLOC0, &[10, 1000]);
        // Larger than any free list: a block of its own.
        let huge = call(Call::HUGE, &[3, 100_000]);
        let deep = call(Call::DEEP, &[5, 200, 60]);
        call(Call::IN_FLIGHT, &[1000, 40]);
        call(Call::NULL, &[3]);
        // Forty newest chunks of another forty paths go again.
        let paths = call(Call::MANY_PATHS, &[2, 40]);
        let freed = call(Call::PFREE, &[40]);
        (palloc, palloc0, huge, deep, paths - freed)
    });
    let (palloc, palloc0, huge, deep, paths) = held;
    assert_eq!(survived(&capture, CONTEXT, "planted_palloc"), tally(100, 4000, palloc));
    assert_eq!(survived(&capture, CONTEXT, Call::PALLOC0.frame), tally(10, 10_000, palloc0));
    assert_eq!(survived(&capture, CONTEXT, Call::HUGE.frame), tally(3, 300_000, huge));
    assert_eq!(survived(&capture, CONTEXT, Call::DEEP.frame), tally(5, 1000, deep));
    assert_eq!(survived(&capture, CONTEXT, "planted_hub"), tally(40, 1600, paths));
    assert_eq!(survived(&capture, CONTEXT, Call::IN_FLIGHT.frame), Tally::default());
    let stack = pgleak_tests::findings::groups(&capture, CONTEXT, Call::DEEP.frame).next().unwrap();
    let frames = pgleak_tests::findings::names(&capture, pgleak_tests::findings::stack(&capture, stack));
    assert_eq!(frames.filter(|name| *name == Call::DEEP.frame).count(), 61);
    assert_eq!(counter(&capture, "null_return"), 3);
    // Freed again without a trace but in the totals.
    let freed = pgleak_tests::findings::freed(&capture, Call::IN_FLIGHT.frame);
    assert_eq!((freed.count, freed.requested), (1000, 40_000));
    entries_and_returns_are_equal(&capture, 0);
    Call::RESET.run(session, &[]).unwrap();
}

fn reallocs(session: &mut Session) {
    let (capture, (first, grown, shrunk)) = captured(session, "0", |session| {
        let first = Call::PALLOC.run(session, &[10, 100]).unwrap();
        // Larger, much larger, and back to a size above the first.
        let grown = Call::REPALLOC.run(session, &[10, 300]).unwrap();
        Call::REPALLOC.run(session, &[5, 100_000]).unwrap();
        let shrunk = Call::REPALLOC.run(session, &[5, 50_000]).unwrap();
        (first, grown, shrunk)
    });
    // The first bytes stay with palloc, the growth is the realloc's, and what a realloc gave back
    // is nobody's.
    assert_eq!(survived(&capture, CONTEXT, "planted_palloc"), tally(10, 1000, first));
    let growth = survived(&capture, CONTEXT, Call::REPALLOC.frame);
    assert_eq!(growth.requested, 5 * (300 - 100) + 5 * (50_000 - 100));
    assert_eq!(growth.held, (grown / 2 + shrunk - first).unsigned_abs());
    // Two call sites can share a stack or not, but each chunk has at most one part a stack.
    assert_eq!(counter(&capture, "realloc_shrunk"), 5);
    assert_eq!(counter(&capture, "realloc_grown"), 15);
    Call::RESET.run(session, &[]).unwrap();

    // Settling: a known chunk is resized with its birth kept, and nothing new begins.
    let running = recording(session.backend_pid(), &["--duration", "1s", "--settle", "2s", "--force"]);
    Call::PALLOC.run(session, &[10, 100]).unwrap();
    running.wait_for("settling for", crate::common::PATIENCE).unwrap();
    let later = Call::REPALLOC.run(session, &[10, 5000]).unwrap();
    Call::PALLOC0.run(session, &[7, 100]).unwrap();
    let capture = running.finish().unwrap().success().unwrap().capture().unwrap();
    assert_eq!(survived(&capture, CONTEXT, "planted_palloc"), tally(10, 50_000, later));
    assert_eq!(survived(&capture, CONTEXT, Call::PALLOC0.frame), Tally::default());
    Call::RESET.run(session, &[]).unwrap();
}

fn contexts(session: &mut Session) {
    let (capture, (nested, kept)) = captured(session, "0", |session| {
        let mut call = |call: Call, arguments: &[i64]| call.run(session, arguments).unwrap();
        // Gone with the reset, the nested ones too.
        call(Call::PALLOC, &[50, 64]);
        call(Call::NESTED, &[50, 64, 4]);
        call(Call::RESET, &[]);
        // The addresses of deleted contexts are used again by those that stay.
        call(Call::CHURN, &[20, 64, 300]);
        let kept = call(Call::KEEP_CONTEXT, &[20, 64]);
        let nested = call(Call::NESTED, &[3, 64, 2]);
        (nested, kept)
    });
    assert_eq!(survived(&capture, CONTEXT, "planted_palloc"), Tally::default());
    assert_eq!(survived(&capture, DROPPED_CONTEXT, Call::CHURN.frame), Tally::default());
    assert_eq!(survived(&capture, KEPT_CONTEXT, Call::KEEP_CONTEXT.frame), tally(20, 1280, kept));
    assert_eq!(survived(&capture, NESTED_CONTEXT, Call::NESTED.frame), tally(6, 384, nested));
    let reset = pgleak_tests::findings::reset(&capture, Call::CHURN.frame);
    assert_eq!((reset.count, reset.requested), (6000, 384_000));
    Call::DELETE.run(session, &[]).unwrap();
}

/// Errors that leave an allocation by longjmp: nothing of the call is recorded, and what was
/// allocated around it is.
fn errors(session: &mut Session) {
    let (capture, held) = captured(session, "0", |session| {
        let mut held = 0;
        for kind in 0..3 {
            assert_ne!(session.sqlstate(&Call::ERROR.sql(&[2, 40, kind])).unwrap(), "");
            held += Call::CAUGHT.run(session, &[3, 40, kind]).unwrap();
            held += Call::SUBTRANSACTION.run(session, &[4, 40, kind]).unwrap();
        }
        // The two of each failed statement are kept as well; all chunks are equal.
        held / 21 * 27
    });
    let kept = survived(&capture, CONTEXT, Call::ERROR.frame);
    assert_eq!(kept, tally(27, 27 * 40, held));
    // On 17 and later an error leaves AllocSetAlloc itself: a return is missing for each.
    let left = counter(&capture, "left_by_error");
    entries_and_returns_are_equal(&capture, left);
    Call::DELETE.run(session, &[]).unwrap();
}

/// Chunks that are older than the capture: only what they grow by counts.
fn inherited(session: &mut Session) {
    let before = Call::PALLOC.run(session, &[4, 1024]).unwrap();
    let (capture, after) = captured(session, "0", |session| Call::REPALLOC.run(session, &[4, 4096]).unwrap());
    let growth = survived(&capture, CONTEXT, Call::REPALLOC.frame);
    assert_eq!((growth.count, growth.requested), (4, 4 * (4096 - 1024)));
    assert_eq!(growth.held, (after - before).unsigned_abs());
    assert_eq!(counter(&capture, "realloc_unknown"), 4);
    let (capture, freed) = captured(session, "0", |session| Call::PFREE.run(session, &[4]).unwrap());
    assert_eq!(freed, after);
    assert_eq!(recorded(&capture, CONTEXT, Call::PFREE.frame), Tally::default());
    assert!(counter(&capture, "free_unknown") >= 4);
}

/// Contexts of every other kind that the major has, and aligned chunks.
fn kinds(session: &mut Session, major: u32) {
    const SIZE: u64 = 104;
    let all = [("planted generation", 0), ("planted slab", 1), ("planted bump", 2), ("planted aligned", 3)];
    let has = |kind: i64| kind < 2 || major >= 17 || kind == 3 && major == 16;
    let of_major: Vec<(&str, i64)> = all.into_iter().filter(|(_, kind)| has(*kind)).collect();
    let (capture, held) = captured(session, "0", |session| {
        let mut held = Vec::new();
        for (_, kind) in &of_major {
            Call::NO_KIND.run(session, &[300, SIZE as i64, *kind]).unwrap();
            held.push(Call::KIND.run(session, &[300, SIZE as i64, *kind]).unwrap());
        }
        held
    });
    for ((context, kind), held) in of_major.iter().zip(held) {
        let made = survived(&capture, context, Call::KIND.frame);
        let grown = survived(&capture, context, planted::GROWN);
        let what = format!("{context}: {made:?}, {grown:?}, the server says {held}");
        assert_eq!((made.held + grown.held) as i64, held, "{what}");
        let expected = match kind {
            // Those that have grown are the same chunks.
            0 => ((200, 200 * SIZE), (100, 100 * SIZE)),
            1 => ((200, 200 * SIZE), (0, 0)),
            2 => ((300, 300 * SIZE), (0, 0)),
            // Those that have grown are others.
            _ => ((100, 100 * (SIZE + planted::ALIGNMENT)), (100, 100 * (2 * SIZE + planted::ALIGNMENT))),
        };
        assert_eq!(((made.count, made.requested), (grown.count, grown.requested)), expected, "{what}");
    }
    // By a reset, and with their contexts, all but those.
    let reset = pgleak_tests::findings::reset(&capture, Call::NO_KIND.frame);
    let each = of_major.iter().map(|(_, kind)| if *kind == 3 { SIZE + planted::ALIGNMENT } else { SIZE });
    assert_eq!((reset.count, reset.requested), (600 * of_major.len() as u64, 600 * each.sum::<u64>()));
    entries_and_returns_are_equal(&capture, 0);
    Call::RESET.run(session, &[]).unwrap();
}

/// Recording may begin or end inside of a call, once each.
fn entries_and_returns_are_equal(capture: &Capture, left_by_error: u64) {
    for site in &capture.sites {
        if let Some(returns) = site.returns {
            let missing = site.entries.abs_diff(returns + site.unawaited);
            assert!(
                missing <= left_by_error,
                "{}: {} entries, {returns} returns, {left_by_error} left by an error",
                site.function,
                site.entries
            );
        }
    }
}

on_builds! { on: debian_15 npm_12 12 npm_13 13 npm_14 14 npm_15 15 npm_16 16 npm_17 17 npm_18 18 }
