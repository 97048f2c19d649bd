//! Our own C extension, whose functions allocate in exact patterns; see `planted/planted.c`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use xtask::postgres::{Build, Server};
use xtask::process::output;

use crate::Session;

/// The context that all patterns work in.
pub const CONTEXT: &str = "planted leak";
/// Contexts below it: of [`Call::NESTED`], of the kept, and of the dropped ones.
pub const NESTED_CONTEXT: &str = "planted nested";
/// See [`Call::KEEP_CONTEXT`].
pub const KEPT_CONTEXT: &str = "planted kept";
/// See [`Call::CHURN`].
pub const DROPPED_CONTEXT: &str = "planted dropped";

/// A SQL function of the extension. All return `bigint`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its name in SQL, and of the C function that SQL calls.
    pub name: &'static str,
    /// Types of its arguments; `count`, `size` in bytes, and a third one.
    pub arguments: &'static str,
    /// The C function below it that calls the allocator, by its symbol.
    pub frame: &'static str,
}

const fn call(name: &'static str, arguments: &'static str, frame: &'static str) -> Call {
    Call { name, arguments, frame }
}

impl Call {
    /// `(count, size)`: keeps chunks of `palloc`; bytes held.
    pub const PALLOC: Self = call("planted_palloc", "int, bigint", "planted_leak_palloc");
    /// `(count, size)`: keeps chunks of `palloc0`; bytes held.
    pub const PALLOC0: Self = call("planted_palloc0", "int, bigint", "planted_leak_palloc0");
    /// `(count, size)`: keeps chunks of `MemoryContextAllocHuge`; bytes held.
    pub const HUGE: Self = call("planted_huge", "int, bigint", "planted_leak_huge");
    /// `(count, size)`: `repalloc` of the newest kept chunks, oldest of them first; bytes they hold after.
    pub const REPALLOC: Self = call("planted_repalloc", "int, bigint", "planted_leak_repalloc");
    /// `(count)`: `pfree` of the newest kept chunks, newest first; bytes they held.
    pub const PFREE: Self = call("planted_pfree", "int", "planted_free");
    /// `(count, size, depth)`: as PALLOC, below `depth` + 1 frames of one function; bytes held.
    pub const DEEP: Self = call("planted_deep", "int, bigint, int", "planted_leak_deep");
    /// `(count, size, depth)`: so many contexts in one another, each with chunks; bytes held.
    pub const NESTED: Self = call("planted_nested", "int, bigint, int", "planted_leak_nested");
    /// `(count, size, rounds)`: contexts made, filled and deleted; bytes that were held for a moment.
    pub const CHURN: Self = call("planted_churn", "int, bigint, int", "planted_dropped_context");
    /// `(count, size)`: a context of its own that stays, at an address that CHURN has used; bytes held.
    pub const KEEP_CONTEXT: Self = call("planted_keep_context", "int, bigint", "planted_leak_context");
    /// `(count, size)`: a Generation, a Slab and from 17 on a Bump context below [`CONTEXT`], with so many chunks
    /// each; the first quarter and a third of the others are freed again, but in the last. Bytes held in the Slab.
    pub const KINDS: Self = call("planted_kinds", "int, bigint", "planted_other_kinds");
    /// `(count, size, kind)`: a context of a kind below [`CONTEXT`] with so many chunks: 0 Generation, 1 Slab,
    /// 2 Bump (17 on), 3 AllocSet with chunks that are aligned to [`ALIGNMENT`] (16 on). A third of them is freed
    /// (not in a Bump), another third is doubled by [`GROWN`] (not in a Bump or Slab). Bytes held.
    pub const KIND: Self = call("planted_kind", "int, bigint, int", "planted_new");
    /// The same, but all go with a reset, and as many again with their context; how many there were.
    pub const NO_KIND: Self = call("planted_no_kind", "int, bigint, int", "planted_dropped_kind");
    /// `(count, size)`: chunks outside of contexts by [`MALLOC_ONE`], at most 4,000, whose size is a multiple of
    /// 64: of each ten, two are freed and two are doubled by [`MALLOC_GROWN`]. Bytes held, as glibc counts them.
    pub const MALLOC: Self = call("planted_malloc", "int, bigint", "planted_leak_malloc");
    /// `(count, size)`: four threads at once, each with so many chunks that stay and as many that go, by
    /// [`MALLOC_ONE`]; how many stay.
    pub const THREADS: Self = call("planted_threads", "int, bigint", "planted_malloc_one");
    /// `(count, size)`: mappings, of each three of which one goes and one loses its first page, and as many that are
    /// shared; bytes held in those that are not.
    pub const MMAP: Self = call("planted_mmap", "int, bigint", "planted_leak_mmap");
    /// `(count, size)`: each chunk freed before the next is made; bytes that were held for a moment.
    pub const IN_FLIGHT: Self = call("planted_in_flight", "int, bigint", "planted_transient");
    /// `(count, size)`: each hundredth of so many chunks stays, the others are freed; bytes held.
    pub const SPARSE: Self = call("planted_sparse", "int, bigint", "planted_leak_sparse");
    /// `(count, size)`: as PALLOC by each of `planted_path_00` … `39`, through `planted_hub`; bytes held.
    pub const MANY_PATHS: Self = call("planted_many_paths", "int, bigint", "planted_leak_palloc");
    /// `(count, size)`: as PALLOC by each of `planted_leaf_00` … `39`, below `planted_root`; bytes held.
    pub const MANY_LEAVES: Self = call("planted_many_leaves", "int, bigint", "planted_leak_palloc");
    /// `(count, size, depth)`: a chunk that stays by each of `count` different stacks of `depth` frames and some, at
    /// most two to the power of `depth`; bytes held.
    pub const BRANCHES: Self = call("planted_branches", "int, bigint, int", "planted_leak_palloc");
    /// `(count, size, path)`: chunks that stay in `CacheMemoryContext` for good, two for each of `count`, by
    /// one of `planted_fetch_00` … `39`, through `planted_policy_fetch`; bytes held.
    pub const FETCH: Self = call("planted_fetch", "int, bigint, int", "planted_policy_fetch");
    /// `(count)`: requests that get NULL, and no error; how many got it.
    pub const NULL: Self = call("planted_null", "int", "planted_null");
    /// `()`: resets [`CONTEXT`], which deletes those below it; kept chunks that ended.
    pub const RESET: Self = call("planted_reset", "", "planted_reset");
    /// `()`: deletes it, with those below it; kept chunks that ended.
    pub const DELETE: Self = call("planted_delete", "", "planted_delete");
    /// `(seconds)`: the process becomes another program; the session ends without an answer.
    pub const EXEC: Self = call("planted_exec", "int", "planted_exec");
    /// `()`: bytes of all kept chunks.
    pub const LIVE: Self = call("planted_live", "", "planted_live");
    /// `()`: number of kept chunks.
    pub const CHUNKS: Self = call("planted_chunks", "", "planted_chunks");
    /// `(count, size, kind)`: as PALLOC, then an error that ends the statement: 0 of `palloc` and 1 of
    /// `repalloc` of a gigabyte (invalid size, XX000), 2 of an impossible size (out of memory, 53200).
    pub const ERROR: Self = call("planted_error", "int, bigint, int", "planted_leak_palloc");
    /// The same, the error being caught by `PG_TRY`; bytes held.
    pub const CAUGHT: Self = call("planted_caught", "int, bigint, int", "planted_leak_palloc");
    /// The same inside a subtransaction, which is rolled back; bytes held.
    pub const SUBTRANSACTION: Self =
        call("planted_subtransaction", "int, bigint, int", "planted_leak_palloc");

    /// Every function there is.
    pub const ALL: [Self; 30] = [
        Self::PALLOC,
        Self::PALLOC0,
        Self::HUGE,
        Self::REPALLOC,
        Self::PFREE,
        Self::DEEP,
        Self::NESTED,
        Self::CHURN,
        Self::KEEP_CONTEXT,
        Self::KINDS,
        Self::KIND,
        Self::NO_KIND,
        Self::MALLOC,
        Self::THREADS,
        Self::MMAP,
        Self::IN_FLIGHT,
        Self::SPARSE,
        Self::MANY_PATHS,
        Self::MANY_LEAVES,
        Self::BRANCHES,
        Self::FETCH,
        Self::NULL,
        Self::RESET,
        Self::DELETE,
        Self::EXEC,
        Self::LIVE,
        Self::CHUNKS,
        Self::ERROR,
        Self::CAUGHT,
        Self::SUBTRANSACTION,
    ];

    /// The statement that calls it.
    pub fn sql(&self, arguments: &[i64]) -> String {
        let list: Vec<String> = arguments.iter().map(i64::to_string).collect();
        format!("select {}({})", self.name, list.join(", "))
    }

    /// Calls it in a session.
    pub fn run(&self, session: &mut Session, arguments: &[i64]) -> Result<i64> {
        session.integer(&self.sql(arguments))
    }
}

/// The function below [`Call::MALLOC`] that allocates.
pub const MALLOC_ONE: &str = "planted_malloc_one";
/// The one that calls `realloc`.
pub const MALLOC_GROWN: &str = "planted_malloc_grown";
/// What the chunks of [`Call::KIND`] are aligned to where they are.
pub const ALIGNMENT: u64 = 256;
/// The function below [`Call::KIND`] that calls `repalloc`.
pub const GROWN: &str = "planted_grown";

/// Compiles the extension for the server's build and creates its functions in `postgres`.
pub fn install(server: &Server) -> Result<()> {
    let library = compile(server.build(), server.dir(), "planted")?;
    let statements: Vec<String> = Call::ALL
        .iter()
        .map(|call| {
            format!(
                "create function {}({}) returns bigint language c strict as '{}', '{}'",
                call.name,
                call.arguments,
                library.display(),
                call.name
            )
        })
        .collect();
    Session::open(server)?.run(&statements.join(";\n"))
}

/// A session with the library loaded and its functions called once, so that what they need in the
/// server's caches is there before a capture begins.
pub fn session(server: &Server) -> Result<Session> {
    let mut session = Session::open(server)?;
    Call::PALLOC.run(&mut session, &[1, 8])?;
    Call::REPALLOC.run(&mut session, &[1, 16])?;
    Call::DELETE.run(&mut session, &[])?;
    Ok(session)
}

/// Compiles `redo.c`, which needs the server's headers, into a directory.
pub fn compile_redo(build: &Build, dir: &Path) -> Result<PathBuf> {
    compile(build, dir, "redo")
}

fn compile(build: &Build, dir: &Path, name: &str) -> Result<PathBuf> {
    let library = dir.join(format!("{name}.so"));
    let mut command = Command::new("cc");
    // Sibling calls would take the frames away that tests look for.
    command
        .args(["-shared", "-fPIC", "-O2", "-g", "-fno-optimize-sibling-calls", "-Wall", "-Werror", "-o"])
        .arg(&library);
    match &build.headers {
        Some(headers) => command.arg("-DPLANTED_HEADERS").arg("-isystem").arg(headers),
        None => command.arg(format!("-DPG_MAJOR={}", build.major)),
    };
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("planted/{name}.c")));
    output(&mut command)
        .with_context(|| format!("cannot compile the planted extension for {}", build.name))?;
    Ok(library)
}
