//! Allocations chosen by their size: samples that stand for all, and large ones only.

use pgleak::profile::{Capture, Class, What, judge};
use pgleak_tests::{
    Build, Session,
    findings::{counter, groups, losses, made, survived},
    planted::{self, CONTEXT, Call, KEPT_CONTEXT},
};

use crate::common::{assert_no_probe_is_left, on_builds, recording, server};

/// What is planted: so many chunks of so many bytes, by two functions.
const SMALL: [i64; 2] = [200_000, 40];
const LARGE: [i64; 2] = [500, 10_000];
/// Bytes between two samples.
const SAMPLE: f64 = 4096.0;

/// Records `work` with further arguments; what was captured, and the report.
fn captured(session: &mut Session, arguments: &[&str], work: impl FnOnce(&mut Session)) -> (Capture, String) {
    let all = [&["--duration", "4s", "--settle", "0", "--force"], arguments].concat();
    let running = recording(session.backend_pid(), &all);
    work(session);
    let finished = running.finish().unwrap().success().unwrap();
    let capture = finished.capture().unwrap();
    assert_eq!(losses(&capture), [], "nothing may be lost");
    (capture, finished.stdout)
}

fn on(build: &Build) {
    let server = server(build);
    planted::install(&server).unwrap();
    let mut session = planted::session(&server).unwrap();
    samples_stand_for_all(build, &mut session);
    what_is_resized_is_estimated(build, &mut session);
    only_large_ones(&mut session);
    blocks_of_what_is_left_out_are_no_malloc(&mut session);
    assert_no_probe_is_left(session.backend_pid());
}

/// The standard error of an estimate of `count` chunks of `size` bytes, in chunks.
fn standard_error(count: f64, size: f64) -> f64 {
    let p = -(-size / SAMPLE).exp_m1();
    (count * (1.0 - p) / p).sqrt()
}

/// Fails unless an estimate is within five of its standard errors.
fn assert_near(what: &str, is: f64, should: f64, error: f64) {
    println!("{what}: {is:.0} instead of {should:.0}, {:+.2} standard errors", (is - should) / error);
    assert!((is - should).abs() <= 5.0 * error + 1.0, "{what}: {is} instead of {should}, error {error}");
}

fn samples_stand_for_all(build: &Build, session: &mut Session) {
    let mut held = [0, 0];
    let (capture, report) = captured(session, &["--sample", "4K"], |session| {
        held[0] = Call::PALLOC.run(session, &SMALL).unwrap();
        held[1] = Call::PALLOC0.run(session, &LARGE).unwrap();
        Call::IN_FLIGHT.run(session, &[100_000, 40]).unwrap();
        Call::KEEP_CONTEXT.run(session, &[20, 64]).unwrap();
    });
    for ((call, [count, size]), held) in [(Call::PALLOC, SMALL), (Call::PALLOC0, LARGE)].into_iter().zip(held)
    {
        let what = format!("{}, {size} bytes", build.name);
        let (count, each) = (count as f64, held as f64 / count as f64);
        let error = standard_error(count, size as f64);
        let found = survived(&capture, CONTEXT, call.frame);
        assert_near(&what, found.count as f64, count, error);
        assert_near(&what, found.held as f64, held as f64, error * each);
        assert_near(&what, found.requested as f64, count * size as f64, error * size as f64);
        // So is the error itself: its own is about one in as many as the root of the samples.
        let variance: u64 = groups(&capture, CONTEXT, call.frame).map(|group| group.variance).sum();
        let ratio = (variance as f64).sqrt() / (error * each);
        assert!((0.8..1.25).contains(&ratio), "{what}: {ratio}");
        let seen: u64 = groups(&capture, CONTEXT, call.frame)
            .flat_map(|group| &group.slices)
            .map(|slice| slice.count)
            .sum();
        let p = -(-(size as f64) / SAMPLE).exp_m1();
        assert!(
            (seen as f64 - count * p).abs() <= 5.0 * (count * p * (1.0 - p)).sqrt() + 1.0,
            "{what}: {seen}"
        );
    }
    // What has gone is estimated as well, and by the same samples each time.
    let freed = pgleak_tests::findings::freed(&capture, Call::IN_FLIGHT.frame);
    assert_near("freed", freed.count as f64, 100_000.0, standard_error(100_000.0, 40.0));
    assert_eq!(survived(&capture, CONTEXT, Call::IN_FLIGHT.frame).count, 0);
    // Contexts are exact.
    assert_eq!(made(&capture, KEPT_CONTEXT, Call::KEEP_CONTEXT.frame).count, 1);
    let sampling = capture.window.sampling.as_ref().unwrap();
    assert_eq!((sampling.min_size, sampling.mean_bytes), (0, 4096));
    assert!(sampling.recorded * 50 < sampling.left_out, "{sampling:?}");
    assert_eq!(counter(&capture, "left_out"), sampling.left_out);
    // Nothing is called missing for having been left out.
    let memory = capture.memory.as_ref().unwrap();
    let growth = memory.by_label.iter().find(|growth| growth.label == CONTEXT).unwrap();
    assert_eq!(growth.untraced, None, "{growth:?}");
    assert!((growth.traced as f64 / (held[0] + held[1]) as f64 - 1.0).abs() < 0.2, "{growth:?}");
    for words in ["are estimates from", "All of it is estimated", "--sample 4096"] {
        assert!(report.contains(words), "{words}: {report}");
    }
    Call::DELETE.run(session, &[]).unwrap();
}

/// What grows or shrinks, sampled or not.
fn what_is_resized_is_estimated(build: &Build, session: &mut Session) {
    const COUNT: f64 = 20_000.0;
    let (mut first, mut grown, mut shrunk) = (0, 0, 0);
    let (capture, _) = captured(session, &["--sample", "4K"], |session| {
        let count = COUNT as i64;
        first = Call::PALLOC.run(session, &[count, 256]).unwrap();
        grown = Call::REPALLOC.run(session, &[count, 2048]).unwrap();
        // To less than they had at first, for half of them.
        shrunk = Call::REPALLOC.run(session, &[count / 2, 64]).unwrap();
    });
    // On 12 and 13 as on others, chunks up to 8 KiB keep their place; what is held does not shrink then.
    let what = |part: &str| format!("{}, {part}", build.name);
    let palloc = survived(&capture, CONTEXT, "planted_palloc");
    let growth = survived(&capture, CONTEXT, Call::REPALLOC.frame);
    let of_first = standard_error(COUNT, 256.0);
    assert_near(&what("first"), palloc.count as f64, COUNT, of_first);
    // Half of them lose 192 of their first 256 bytes.
    assert_near(&what("first"), palloc.requested as f64, COUNT / 2.0 * (256.0 + 64.0), of_first * 256.0);
    let of_growth = standard_error(COUNT, 1792.0);
    // What shrank keeps nothing of its growth.
    assert_near(&what("growth"), growth.requested as f64, COUNT / 2.0 * 1792.0, of_growth * 1792.0);
    let held = palloc.held + growth.held;
    println!(
        "{}: {first} bytes first, {grown} grown, {shrunk} of those that shrank; {held} estimated",
        build.name
    );
    Call::DELETE.run(session, &[]).unwrap();
}

/// The block that an allocation takes from malloc is its context's, recorded or not, by each way to attach.
fn blocks_of_what_is_left_out_are_no_malloc(session: &mut Session) {
    for how in ["session", "multi"] {
        let arguments = ["--min-size", "1000", "--allocator", "all", "--attach", how];
        let (capture, _) = captured(session, &arguments, |session| {
            Call::PALLOC.run(session, &SMALL).unwrap();
            Call::PALLOC0.run(session, &LARGE).unwrap();
        });
        for call in [Call::PALLOC, Call::PALLOC0] {
            assert_eq!(survived(&capture, "malloc", call.frame).count, 0, "{how}: {}", call.frame);
        }
        let found = survived(&capture, CONTEXT, Call::PALLOC0.frame);
        assert_eq!(found.count, LARGE[0].unsigned_abs(), "{how}");
        Call::DELETE.run(session, &[]).unwrap();
    }
}

fn only_large_ones(session: &mut Session) {
    let mut held = 0;
    let (capture, report) = captured(session, &["--min-size", "1000"], |session| {
        Call::PALLOC.run(session, &SMALL).unwrap();
        held = Call::PALLOC0.run(session, &LARGE).unwrap();
    });
    let [count, size] = LARGE.map(i64::unsigned_abs);
    let found = survived(&capture, CONTEXT, Call::PALLOC0.frame);
    assert_eq!((found.count, found.requested, found.held as i64), (count, count * size, held));
    assert_eq!(survived(&capture, CONTEXT, Call::PALLOC.frame).count, 0);
    let is_small = |group: &&pgleak::profile::Group| {
        group.what == What::Chunks && group.recorded.requested < 1000 * group.recorded.count
    };
    assert_eq!(capture.profile.groups.iter().filter(is_small).count(), 0);
    assert!(counter(&capture, "left_out") >= SMALL[0].unsigned_abs());
    assert!(
        report.contains("less than 1,000 bytes") && report.contains("too small for --min-size"),
        "{report}"
    );
    Call::DELETE.run(session, &[]).unwrap();
}

on_builds! { on: debian_15 npm_12 12 npm_17 17 npm_18 18 }

/// A leak of eight bytes at a time is one by its real samples, at the rate that it has.
#[test]
fn a_leak_of_small_chunks_is_named() {
    let server = server(&Build::npm(17).unwrap());
    planted::install(&server).unwrap();
    let sql = format!("{}; {}", Call::PALLOC.sql(&[500, 8]), Call::IN_FLIGHT.sql(&[2000, 40]));
    let leak = pgleak_tests::workload::Loop::start(&server, &sql).unwrap();
    let running =
        recording(leak.backend_pid(), &["--duration", "5s", "--settle", "1s", "--sample", "4K", "--force"]);
    let before = leak.rounds();
    let (begun, finished) = (std::time::Instant::now(), running.finish().unwrap().success().unwrap());
    println!("{:.0} rounds a second", (leak.rounds() - before) as f64 / begun.elapsed().as_secs_f64());
    leak.stop().unwrap();
    let capture = finished.capture().unwrap();
    let verdict = judge(&capture);
    let first = verdict.suspects.first().unwrap_or_else(|| panic!("{}", finished.stdout));
    assert_eq!(
        (first.head.as_str(), first.course.class),
        (Call::PALLOC.frame, Class::Leak),
        "{}",
        finished.stdout
    );
    let [low, high] = first.course.interval.expect("it is known");
    assert!(low < first.course.growth_per_second && first.course.growth_per_second < high);
    // A chunk of 8 bytes takes 16 here; nothing else is allocated by that function. Each figure is rounded by itself.
    let by_bytes = first.survived.held / 16;
    assert!(first.survived.count.abs_diff(by_bytes) <= 1, "{}", finished.stdout);
}

/// The same choice outside of contexts, and in windows.
#[test]
fn samples_of_malloc_and_in_windows() {
    let server = server(&Build::packaged(15).unwrap());
    planted::install(&server).unwrap();
    let mut session = planted::session(&server).unwrap();
    let (capture, _) = captured(&mut session, &["--sample", "4K", "--allocator", "malloc"], |session| {
        assert_eq!(Call::THREADS.run(session, &[20_000, 192]).unwrap(), 80_000);
    });
    let found = survived(&capture, "malloc", Call::THREADS.frame);
    assert_near("malloc", found.count as f64, 80_000.0, standard_error(80_000.0, 192.0));

    let sql = format!("{}; {}", Call::PALLOC.sql(&[20, 200]), Call::IN_FLIGHT.sql(&[3000, 40]));
    let leak = pgleak_tests::workload::Loop::start(&server, &sql).unwrap();
    let arguments = ["--overhead", "10", "--duration", "12s", "--sample", "1K"];
    let finished = pgleak_tests::pgleak::capture(leak.backend_pid(), &arguments).unwrap().success().unwrap();
    leak.stop().unwrap();
    let capture = finished.capture().unwrap();
    assert!(capture.window.windows.is_some() && capture.window.sampling.is_some());
    assert_eq!(judge(&capture).suspects[0].head, Call::PALLOC.frame, "{}", finished.stdout);
}
