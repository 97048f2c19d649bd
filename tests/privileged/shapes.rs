//! Stacks of odd shapes, each with its exact chain of functions: what the kernel walks at a call and
//! at its return, and what a capture keeps. See `planted/shapes.c`.

use pgleak_tests::shapes::{Chain, Seen, Shapes};
use tracer_ebpf::{
    abi::MAX_FRAMES,
    counters::Counter,
    unwind::{RowKind, WalkEnd},
};

const WITHOUT: &str = "-fomit-frame-pointer";
const WITH: &str = "-fno-omit-frame-pointer";
/// What is between `main` and the bottom.
const OUTERMOST: [&str; 3] = ["main", "[libc.so.6]", "_start"];

/// Shapes with what is between `target` and `main`, and a kind of row that must be on the way.
const WHOLE: [(&str, &[&str], RowKind); 8] = [
    ("plain", &["plain"], RowKind::Bottom),
    ("aligned", &["aligned"], RowKind::RbpOffset),
    ("aligned_alloca", &["aligned_further", "aligned_alloca"], RowKind::RbpDeref),
    ("sorted", &["compare", "[libc.so.6]", "sorted"], RowKind::RspOffset),
    ("signalled", &["on_signal", "[libc.so.6]", "signalled"], RowKind::SignalFrame),
    ("trapped", &["on_trap", "[libc.so.6]", "trap", "trapped"], RowKind::SignalFrame),
    ("large_frame", &["large_frame"], RowKind::Bottom),
    ("left_by_jump", &["never_returns", "ends_with_a_call", "left_by_jump"], RowKind::Bottom),
];

fn chain(inner: &[&str]) -> Vec<String> {
    ["target"].iter().chain(inner).chain(&OUTERMOST).map(|name| (*name).to_owned()).collect()
}

/// The stack at the call, that at its return, and that of the capture are one.
fn assert_whole(seen: &Seen, expected: &[String]) {
    let whole = Chain { names: expected.to_vec(), end: Some(WalkEnd::Bottom) };
    assert_eq!(seen.at_call, whole);
    assert_eq!(seen.at_return.names, expected[1..]);
    assert_eq!(seen.at_return.end, Some(WalkEnd::Bottom));
    for captured in &seen.captured {
        assert_eq!(*captured, whole);
    }
}

fn whole(frame_pointers: &str) {
    let mut shapes = Shapes::start(frame_pointers).unwrap();
    // By way of the last walk, which was another shape's, then of this one; then without.
    for round in 0..3 {
        shapes.sampling.tracer.control().walk_anew(round == 2);
        for (shape, inner, kind) in WHOLE {
            for again in [false, true] {
                let seen = shapes.run(shape).unwrap();
                assert_whole(&seen, &chain(inner));
                assert!(seen.kinds.contains(&(kind as u32)), "{shape}: {:?}", seen.kinds);
                assert_eq!(seen.captured.len(), usize::from(round == 0 && !again), "{shape}: new once");
            }
        }
        let deepest = shapes.run("deepest_whole").unwrap();
        assert_eq!(deepest.at_call.end, Some(WalkEnd::Bottom));
        // The capture's stack begins with the function, the sample's with the probe's cookie.
        assert_eq!(deepest.frames + 1, MAX_FRAMES);
    }
    assert_eq!(shapes.cut().unwrap(), []);
}

#[test]
fn whole_without_frame_pointers() {
    whole(WITHOUT);
}

#[test]
fn whole_with_frame_pointers() {
    whole(WITH);
}

#[test]
fn a_stack_past_the_limit_is_cut_there_and_counted() {
    for frame_pointers in [WITHOUT, WITH] {
        let mut shapes = Shapes::start(frame_pointers).unwrap();
        let seen = shapes.run("too_deep").unwrap();
        let mut names = vec!["deep".to_owned(); MAX_FRAMES - 1];
        names[0] = "target".to_owned();
        let cut = Chain { names, end: Some(WalkEnd::Truncated) };
        assert_eq!(seen.at_call, cut);
        let mut names = vec!["deep".to_owned(); MAX_FRAMES];
        names[0] = "target".to_owned();
        assert_eq!(seen.captured, [Chain { names, ..cut }]);
        assert_eq!(shapes.cut().unwrap(), [(Counter::WalkTruncated, 1)]);
    }
}

#[test]
fn pages_that_are_not_there_are_brought_in() {
    let expected: Vec<String> = ["target", "newest_frame"]
        .into_iter()
        .chain(["older_frame"; 3])
        .chain(["oldest_frame", "bottom"])
        .map(str::to_owned)
        .collect();
    for frame_pointers in [WITHOUT, WITH] {
        let mut shapes = Shapes::start(frame_pointers).unwrap();
        for round in 0..3 {
            shapes.sampling.tracer.control().walk_anew(round == 2);
            let before = shapes.counter(Counter::ReadFaulted).unwrap();
            assert_whole(&shapes.run("absent_pages").unwrap(), &expected);
            assert!(shapes.counter(Counter::ReadFaulted).unwrap() > before, "every page was there");
        }
        assert_eq!(shapes.cut().unwrap(), []);
    }
}

#[test]
fn in_the_stubs_of_the_plt() {
    for frame_pointers in [WITHOUT, WITH] {
        let mut shapes = Shapes::start(frame_pointers).unwrap();
        // The jump that leads to the next instruction, the push, the jump to the first stub, which
        // has pushed one more word before it jumps to the dynamic linker.
        let stub = shapes.stub("getppid").unwrap();
        let first = shapes.first_stub().unwrap();
        let places = [stub, stub + 6, stub + 11, first, first + 6];
        for place in places {
            shapes.sample_at(place).unwrap();
        }
        shapes.do_only("bound_lazily").unwrap();
        let names: Vec<String> =
            ["[shapes]", "bound_lazily"].iter().chain(&OUTERMOST).map(|name| (*name).to_owned()).collect();
        for place in places {
            // Other functions are bound by way of the first stub, too.
            let (at, seen, kind) = loop {
                let sample = shapes.next_chain().unwrap();
                assert_eq!(sample.1.end, Some(WalkEnd::Bottom), "{sample:?}");
                if sample.1.names.contains(&"bound_lazily".to_owned()) {
                    break sample;
                }
            };
            assert_eq!(at, place);
            assert_eq!(seen, Chain { names: names.clone(), end: Some(WalkEnd::Bottom) }, "{place:#x}");
            let expected = if place < first + 16 { RowKind::RspOffset } else { RowKind::Plt };
            assert_eq!(kind, expected as u32, "{place:#x}");
        }
    }
}

const AWAITED: [&str; 3] = ["awaited_inside", "awaited", "pending_return"];

#[test]
fn an_address_that_our_return_probe_hides_is_known() {
    for frame_pointers in [WITHOUT, WITH] {
        let mut shapes = Shapes::start(frame_pointers).unwrap();
        shapes.capture("awaited").unwrap();
        for anew in [false, false, true] {
            shapes.sampling.tracer.control().walk_anew(anew);
            let mut seen = shapes.run("pending_return").unwrap();
            // The call of `awaited` is captured as well.
            seen.captured.retain(|chain| chain.names[0] == "target");
            assert_whole(&seen, &chain(&AWAITED));
        }
        assert_eq!(shapes.cut().unwrap(), []);
    }
}

#[test]
fn an_address_that_somebody_elses_return_probe_hides_is_lost_and_counted() {
    for frame_pointers in [WITHOUT, WITH] {
        let mut shapes = Shapes::start(frame_pointers).unwrap();
        // Return probes have their own page in the process, from the first hit of a probe on.
        assert_whole(&shapes.run("plain").unwrap(), &chain(&["plain"]));
        shapes.look_again().unwrap();
        let _other = shapes.somebody_elses_return_probe("awaited").unwrap();
        let seen = shapes.run("pending_return").unwrap();
        let names = ["target", "awaited_inside", "awaited", "[unknown]"].map(str::to_owned).to_vec();
        let cut = Chain { names, end: Some(WalkEnd::LostReturn) };
        assert_eq!(seen.at_call, cut);
        assert_eq!(seen.captured, [cut]);
        assert_eq!(shapes.cut().unwrap(), [(Counter::WalkLostReturn, 1)]);
    }
}

#[test]
fn a_library_that_is_opened_meanwhile_cuts_stacks_until_it_is_looked_at() {
    for frame_pointers in [WITHOUT, WITH] {
        let mut shapes = Shapes::start(frame_pointers).unwrap();
        let seen = shapes.run("with_library").unwrap();
        let names = ["target", "from_library", "[unknown]"].map(str::to_owned).to_vec();
        let cut = Chain { names, end: Some(WalkEnd::UnknownMapping) };
        assert_eq!(seen.at_call, cut);
        assert_eq!(seen.captured, [cut]);
        shapes.look_again().unwrap();
        let expected = chain(&["from_library", "through", "with_library"]);
        assert_whole(&shapes.run("with_library").unwrap(), &expected);
        assert_eq!(shapes.cut().unwrap(), [(Counter::WalkUnknownMapping, 1)]);
    }
}
