//! Every function of the planted extension, on every build, against what the server counts itself.

use pgleak_tests::planted::{self, Call};
use pgleak_tests::{Build, Server, ServerOptions, Session};

/// `invalid memory alloc request size` is an internal error.
const INVALID_SIZE: &str = "XX000";
const OUT_OF_MEMORY: &str = "53200";

fn on(build: Build) {
    let server = Server::start(&build, &ServerOptions::default()).unwrap();
    planted::install(&server).unwrap();
    let mut session = planted::session(&server).unwrap();
    keeps_and_frees(&mut session);
    contexts(&mut session);
    errors(&mut session);
    assert_eq!(session.integer("select 1").unwrap(), 1, "{}: the session is sound", build.name);
}

/// Bytes of a chunk with header and rounding: between the request and twice that, and a header.
fn fits(held: i64, count: i64, size: i64) {
    let each = held / count;
    assert_eq!(held % count, 0, "{count} equal chunks hold {held} bytes");
    assert!(each >= size + 8 && each <= size * 2 + 64, "a chunk of {size} bytes holds {each}");
}

fn keeps_and_frees(session: &mut Session) {
    let mut call = |call: Call, arguments: &[i64]| call.run(session, arguments).unwrap();
    let small = call(Call::PALLOC, &[100, 40]);
    fits(small, 100, 40);
    let zeroed = call(Call::PALLOC0, &[10, 1000]);
    fits(zeroed, 10, 1000);
    let huge = call(Call::HUGE, &[1, 2_000_000_000]);
    fits(huge, 1, 2_000_000_000);
    assert_eq!(call(Call::CHUNKS, &[]), 111);
    assert_eq!(call(Call::LIVE, &[]), small + zeroed + huge);
    assert_eq!(call(Call::PFREE, &[1]), huge);
    let grown = call(Call::REPALLOC, &[10, 100_000]);
    fits(grown, 10, 100_000);
    let shrunk = call(Call::REPALLOC, &[10, 50_000]);
    assert!(shrunk < grown);
    assert_eq!(call(Call::PFREE, &[10]), shrunk);
    assert_eq!(call(Call::LIVE, &[]), small);
    let deep = call(Call::DEEP, &[5, 40, 60]);
    assert_eq!(deep, small / 20);
    assert_eq!(call(Call::IN_FLIGHT, &[1000, 40]), small * 10);
    assert_eq!(call(Call::NULL, &[3]), 3);
    assert_eq!(call(Call::MANY_PATHS, &[2, 40]), small / 100 * 80);
    assert_eq!(call(Call::MANY_LEAVES, &[2, 40]), small / 100 * 80);
    assert_eq!(call(Call::CHUNKS, &[]), 265);
    assert_eq!(call(Call::PFREE, &[1_000_000]), small / 100 * 265);
    assert_eq!(call(Call::LIVE, &[]), 0);
}

fn contexts(session: &mut Session) {
    let mut call = |call: Call, arguments: &[i64]| call.run(session, arguments).unwrap();
    let one = call(Call::PALLOC, &[1, 40]);
    assert_eq!(call(Call::NESTED, &[7, 40, 5]), one * 35);
    assert_eq!(call(Call::CHURN, &[7, 40, 200]), one * 1400);
    assert_eq!(call(Call::KEEP_CONTEXT, &[7, 40]), one * 7);
    assert_eq!(call(Call::RESET, &[]), 1);
    assert_eq!(call(Call::LIVE, &[]), 0);
    assert_eq!(call(Call::PALLOC, &[3, 40]), one * 3);
    assert_eq!(call(Call::NESTED, &[1, 40, 3]), one * 3);
    assert_eq!(call(Call::DELETE, &[]), 3);
    assert_eq!(call(Call::DELETE, &[]), 0);
    assert_eq!(call(Call::PALLOC, &[3, 40]), one * 3);
    assert_eq!(call(Call::RESET, &[]), 3);
}

fn errors(session: &mut Session) {
    let one = Call::PALLOC.run(session, &[1, 40]).unwrap();
    let mut chunks = 1;
    for (kind, state) in [(0, INVALID_SIZE), (1, INVALID_SIZE), (2, OUT_OF_MEMORY)] {
        assert_eq!(session.sqlstate(&Call::ERROR.sql(&[2, 40, kind])).unwrap(), state);
        assert_eq!(Call::CAUGHT.run(session, &[3, 40, kind]).unwrap(), one * 3);
        assert_eq!(Call::SUBTRANSACTION.run(session, &[4, 40, kind]).unwrap(), one * 4);
        chunks += 9;
        assert_eq!(Call::CHUNKS.run(session, &[]).unwrap(), chunks, "after errors of kind {kind}");
        assert_eq!(Call::LIVE.run(session, &[]).unwrap(), one * chunks);
    }
    Call::DELETE.run(session, &[]).unwrap();
}

#[test]
fn debian_15() {
    let build = Build::packaged(15).unwrap();
    assert!(build.headers.is_some(), "it is compiled against the real headers");
    on(build);
}

macro_rules! on_npm_builds {
    ($($name:ident $major:literal)*) => {$(
        #[test]
        fn $name() {
            on(Build::npm($major).unwrap());
        }
    )*};
}

on_npm_builds! { npm_12 12 npm_13 13 npm_14 14 npm_15 15 npm_16 16 npm_17 17 npm_18 18 }
