//! Memory outside of contexts: malloc, mmap, and both together with contexts.

use std::path::Path;

use pgleak::profile::{Capture, What};
use pgleak_tests::{
    Build, Server, ServerOptions, Session,
    findings::{counter, losses, names, recorded, stack, survived},
    planted::{self, CONTEXT, Call, KEPT_CONTEXT, MALLOC_GROWN, MALLOC_ONE},
    workload::Loop,
};

use crate::common::{assert_no_probe_is_left, on_builds, recording, server};

/// The place of what malloc gave, of what mmap gave, and of what malloc gave for contexts.
const MALLOC: &str = "malloc";
const MMAP: &str = "mmap";
const BLOCKS: &str = "blocks of memory contexts";

const SIZE: u64 = 192;

fn captured(session: &mut Session, allocator: &str, work: impl FnOnce(&mut Session)) -> Capture {
    let arguments = ["--duration=2s", "--settle=0", "--force", "--allocator", allocator];
    let running = recording(session.backend_pid(), &arguments);
    work(session);
    let capture = running.finish().unwrap().success().unwrap().capture().unwrap();
    assert_eq!(losses(&capture), [], "nothing may be lost");
    capture
}

fn on(build: &Build) {
    let server = server(build);
    planted::install(&server).unwrap();
    let mut session = planted::session(&server).unwrap();
    malloc_alone(&mut session);
    everything(&mut session);
    threads(&mut session);
    assert_no_probe_is_left(session.backend_pid());
}

/// What 1,000 chunks of [`Call::MALLOC`] leave behind.
fn assert_malloc(capture: &Capture, held: i64) {
    let one = survived(capture, MALLOC, MALLOC_ONE);
    let grown = survived(capture, MALLOC, MALLOC_GROWN);
    assert_eq!((one.count, one.requested), (800, 800 * SIZE), "{one:?}");
    assert_eq!((grown.count, grown.requested), (200, 200 * SIZE), "{grown:?}");
    assert_eq!((one.held + grown.held) as i64, held, "{one:?} {grown:?}");
}

fn malloc_alone(session: &mut Session) {
    let (mut held, mut mapped) = (0, 0);
    let capture = captured(session, "malloc", |session| {
        held = Call::MALLOC.run(session, &[1000, SIZE as i64]).unwrap();
        mapped = Call::MMAP.run(session, &[30, 10_000]).unwrap();
        // Forty blocks or more.
        Call::PALLOC.run(session, &[10_000, 400]).unwrap();
    });
    assert_malloc(&capture, held);
    let mapping = survived(&capture, MMAP, Call::MMAP.frame);
    assert_eq!((mapping.count, mapping.held as i64), (20, mapped));
    assert_eq!(counter(&capture, "not_own_memory"), 30);
    // Blocks are told from what others have allocated.
    let blocks = survived(&capture, BLOCKS, Call::PALLOC.frame);
    assert!(blocks.held >= 4_000_000, "{blocks:?}");
    let with_contexts = capture.profile.groups.iter().filter(|group| group.what == What::Contexts);
    assert_eq!(with_contexts.count(), 0);
    Call::DELETE.run(session, &[]).unwrap();
}

fn everything(session: &mut Session) {
    let (mut held, mut of_palloc, mut of_kept) = (0, 0, 0);
    let capture = captured(session, "all", |session| {
        of_palloc = Call::PALLOC.run(session, &[10_000, 400]).unwrap();
        of_kept = Call::KEEP_CONTEXT.run(session, &[20, 64]).unwrap();
        held = Call::MALLOC.run(session, &[1000, SIZE as i64]).unwrap();
    });
    assert_malloc(&capture, held);
    let palloc = survived(&capture, CONTEXT, Call::PALLOC.frame);
    assert_eq!((palloc.count, palloc.held as i64), (10_000, of_palloc));
    assert_eq!(survived(&capture, KEPT_CONTEXT, Call::KEEP_CONTEXT.frame).held as i64, of_kept);
    // Neither the blocks nor the contexts themselves are counted again as malloc's.
    for place in [MALLOC, BLOCKS] {
        for frame in [Call::PALLOC.frame, Call::KEEP_CONTEXT.frame, "AllocSetAlloc"] {
            // What keeps the list of planted chunks is not part of the server.
            let found = survived(&capture, place, frame);
            assert!(found.count <= 1, "{place}, {frame}: {found:?}");
        }
    }
    assert!(counter(&capture, "nested_in_allocator") > 0);
    Call::DELETE.run(session, &[]).unwrap();
}

fn threads(session: &mut Session) {
    let capture = captured(session, "malloc", |session| {
        assert_eq!(Call::THREADS.run(session, &[5000, SIZE as i64]).unwrap(), 20_000);
    });
    let all = recorded(&capture, MALLOC, Call::THREADS.frame);
    assert_eq!((all.count, all.requested), (20_000, 20_000 * SIZE), "{all:?}");
    for site in &capture.sites {
        if let Some(returns) = site.returns {
            assert_eq!(returns, site.entries, "{}", site.function);
        }
    }
}

on_builds! { on: debian_15 npm_12 12 npm_13 13 npm_14 14 npm_15 15 npm_16 16 npm_17 17 npm_18 18 }

/// The allocator that the process really uses is traced, not the C library's that is there as well.
#[test]
fn other_allocators_are_found() {
    for (library, package) in xtask::postgres::ALLOCATORS {
        let options = ServerOptions::default().preload(Path::new(library));
        let server = Server::start(&Build::packaged(15).unwrap(), &options).unwrap();
        planted::install(&server).unwrap();
        let mut session = planted::session(&server).unwrap();
        let capture = captured(&mut session, "malloc", |session| {
            Call::MALLOC.run(session, &[1000, SIZE as i64]).unwrap();
        });
        let malloc = capture.sites.iter().find(|site| site.function == "malloc").unwrap();
        assert_eq!(
            malloc.library.as_deref().map(Path::new),
            Path::new(library).canonicalize().ok().as_deref()
        );
        let one = survived(&capture, MALLOC, MALLOC_ONE);
        // Of realloc(p, 0) jemalloc and tcmalloc make what they like.
        assert_eq!((one.count, one.requested), (800, 800 * SIZE), "{package}: {one:?}");
        let grown = survived(&capture, MALLOC, MALLOC_GROWN);
        assert_eq!((grown.count, grown.requested), (200, 200 * SIZE), "{package}: {grown:?}");
    }
}

/// What LLVM allocates while it compiles a query, and the code that it makes.
#[test]
fn the_compiler_of_expressions_is_named() {
    let server = server(&Build::packaged(15).unwrap());
    let query = "set jit = on; set jit_above_cost = 0; set jit_inline_above_cost = -1; set jit_optimize_above_cost = -1;
        select sum(length(relname::text || oid::text)) from pg_class where relname::text like '%a%'";
    let work = Loop::start(&server, query).unwrap();
    let arguments = ["--duration=3s", "--settle=0", "--force", "--allocator=malloc", "--map-memory=256M"];
    let finished = recording(work.backend_pid(), &arguments).finish().unwrap().success().unwrap();
    work.stop().unwrap();
    let capture = finished.capture().unwrap();
    println!("{}", finished.stdout);
    let below = |place: &str, name: &str| {
        let groups = capture.profile.groups.iter().filter(|group| capture.profile.place(group).name == place);
        let through =
            groups.filter(|group| names(&capture, stack(&capture, group)).any(|label| label.contains(name)));
        through.map(|group| group.recorded.requested).sum::<u64>()
    };
    assert!(below(MALLOC, "llvm::") > 100_000, "{}", below(MALLOC, "llvm::"));
    assert!(below(MALLOC, "llvm_compile_module") + below(MALLOC, "llvm_compile_expr") > 0);
}
