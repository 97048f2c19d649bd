//! The walk in the kernel against framehop, on the stacks of real servers: frame for frame, from
//! the same bytes. One difference is a failure.

use std::{collections::HashSet, env, fmt};

use pgleak::{
    addr::AbsAddr,
    bpf::RawSample,
    probe::ProbePlan,
    session::prepare,
    target::{LoadedModules, exe_link},
};
use pgleak_tests::{
    Build, BuildKind, Server, Session,
    replay::Recording,
    sampling::{Sampling, alloc_site},
    tables::Tables,
    workload::{Loop, Pgbench, Script, init_pgbench},
};
use tracer_ebpf::unwind::WalkEnd;

use crate::{
    common::{PATIENCE, on_builds, server},
    reference::{End, Reference},
};

/// Stacks of each build that are compared, unless this variable says how many.
const SAMPLES: &str = "PGLEAK_DIFFERENTIAL";
const FEW: usize = 5_000;

/// Extensions whose libraries, with plpgsql's, will be on the stacks.
const EXTENSIONS: [&str; 5] = ["pgcrypto", "pg_trgm", "hstore", "ltree", "tablefunc"];

/// plpgsql with a caught error, sorts through libc's and the server's own qsort, a recursion, and
/// functions of every extension.
const WORK: &str = r"
    select work(20);
    select count(*) from pg_class a join pg_attribute b on b.attrelid = a.oid where a.relname ~ '^pg_(a|c)';
    select string_agg(relname || '-' || oid, ',' order by relname) from pg_class;
    select * from crosstab('select relname::text, relkind::text, relpages from pg_class order by 1, 2')
        as t(relname text, r int, i int) limit 3;
    with recursive up(n) as (select 1 union all select n + 1 from up where n < 20) select sum(n) from up;
    select jsonb_agg(to_jsonb(c)) from (select relname, reltuples, relacl from pg_class limit 20) c;
";

/// Less of it, and each time the same.
pub(crate) const WORK_ONCE: &str = r"
    select work(1);
    select string_agg(relname, ',' order by relname) from pg_class where relname like 'pg_a%';
    select * from crosstab('select n, n, n from generate_series(1, 3) n') as t(n int, a int, b int);
";

const FUNCTION: &str = r"
    create function work(rounds int) returns int language plpgsql as $$
    declare
        n int := 0;
        words text[];
    begin
        for i in 1 .. rounds loop
            n := n + length(encode(digest('some text ' || i, 'sha256'), 'hex'));
            n := n + length(pgp_sym_decrypt(pgp_sym_encrypt('secret', 'key', 's2k-mode=0'), 'key'));
            n := n + (similarity('wording ' || i, 'words ' || i) * 10)::int;
            n := n + array_length(akeys(hstore('a=>1, b=>' || i) || hstore('c', 'x')), 1);
            n := n + nlevel(('top.middle.' || i)::ltree || 'leaf'::ltree);
            words := array(select w from unnest(string_to_array('the quick brown fox jumps', ' ')) w order by w);
            n := n + array_length(words, 1);
            begin
                n := n / (i - i);
            exception when division_by_zero then
                n := n + length(sqlerrm);
            end;
        end loop;
        return n;
    end $$";

/// After so many stacks the ring is emptied, so that those that are compared come from all of the work.
const IN_A_ROW: usize = 20;
/// Samples that a recording is chosen from.
const MOST_KEPT: usize = 400;

/// What was compared.
#[derive(Default)]
struct Tally {
    different: HashSet<Vec<u64>>,
    whole: usize,
    partial: usize,
    frames: usize,
    reused: usize,
    deepest: usize,
    returns: usize,
    libraries: usize,
    /// The first samples of some different stacks, for a recording.
    kept: Vec<RawSample>,
}

impl fmt::Debug for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { different, whole, partial, frames, reused, deepest, returns, libraries, .. } = self;
        let different = different.len();
        write!(f, "{whole} whole stacks and {partial} as far as was copied, {different} different ones, ")?;
        write!(f, "{returns} at returns, {libraries} through libraries; {frames} frames, {reused} of them ")?;
        write!(f, "reused, at the most {deepest} in a stack")
    }
}

impl Tally {
    fn total(&self) -> usize {
        self.whole + self.partial
    }
}

fn samples() -> usize {
    env::var(SAMPLES).map_or(FEW, |count| count.parse().expect("PGLEAK_DIFFERENTIAL is a number"))
}

fn on(build: &Build) {
    let server = server(build);
    init_pgbench(&server).unwrap();
    install(&server);
    let quarter = samples().div_ceil(4);
    {
        let bench = Pgbench::start(&server, Script::SelectOnly, 1, 3600).unwrap();
        both_ways(build, "pgbench -S", bench.backend_pid(), quarter);
    }
    let extensions = Loop::start(&server, WORK).unwrap();
    let tally = both_ways(build, "extensions", extensions.backend_pid(), quarter);
    assert!(tally.libraries > tally.total() / 10, "few stacks go through libraries: {tally:?}");
    if env::var_os("PGLEAK_BLESS").is_some() {
        record(build, extensions.backend_pid(), &tally.kept);
    }
    extensions.stop().unwrap();
}

/// Writes what `it::replay` walks again.
fn record(build: &Build, pid: u32, samples: &[RawSample]) {
    let modules = LoadedModules::read(pid).unwrap();
    let tables = Tables::of(&modules).unwrap();
    let name = match build.kind {
        BuildKind::Package => format!("debian-{}", build.major),
        BuildKind::Npm => format!("npm-{}", build.major),
    };
    Recording::of(&name, &modules, &tables, samples).write().unwrap();
}

/// Creates the extensions and the function that the work calls.
fn install(server: &Server) {
    let mut session = Session::open(server).unwrap();
    for extension in EXTENSIONS {
        session.run(&format!("create extension {extension}")).unwrap();
    }
    session.run(FUNCTION).unwrap();
}

/// A session that has done the work often enough: caches fill, libraries are loaded, and plans become
/// generic at their sixth run.
pub(crate) fn warm_session(server: &Server) -> Session {
    install(server);
    let mut session = Session::open(server).unwrap();
    for _ in 0..12 {
        session.run(WORK_ONCE).unwrap();
    }
    session
}

/// The same work by way of what is remembered of the last walk, then without.
fn both_ways(build: &Build, work: &str, pid: u32, count: usize) -> Tally {
    let plan = prepare(pid, None).unwrap().plan;
    let mut sampling = Sampling::of(pid).unwrap();
    attach(&mut sampling, pid, &plan);
    sampling.begin();
    let incremental = compare(&mut sampling, count);
    println!("{} {work} incremental: {incremental:?}", build.name);
    sampling.tracer.control().walk_anew(true);
    // What is in the ring was walked before.
    sampling.skip();
    let anew = compare(&mut sampling, count);
    println!("{} {work} anew: {anew:?}", build.name);
    assert!(incremental.reused > incremental.frames / 2, "{incremental:?}");
    // One walk may have been under way.
    assert!(anew.reused <= anew.deepest, "{anew:?}");
    for tally in [&incremental, &anew] {
        assert!(
            tally.whole * 100 >= tally.total() * 99,
            "too many stacks are longer than the copy: {tally:?}"
        );
        // Entries and returns, both of them often.
        assert!(tally.returns * 3 > tally.total() && tally.returns * 3 < tally.total() * 2, "{tally:?}");
    }
    incremental
}

fn attach(sampling: &mut Sampling, pid: u32, plan: &ProbePlan) {
    let site = alloc_site(plan).unwrap();
    for is_return in [true, false] {
        sampling.attach(&exe_link(pid), site.offset, is_return, site.site.pack()).unwrap();
    }
}

/// Compares so many stacks.
fn compare(sampling: &mut Sampling, count: usize) -> Tally {
    let mut reference = Reference::new(sampling.mappings.modules());
    let tables = Tables::of(sampling.mappings.modules()).unwrap();
    let mut tally = Tally::default();
    while tally.total() < count {
        if tally.total() % IN_A_ROW == IN_A_ROW - 1 {
            sampling.skip();
        }
        let sample = sampling.next(PATIENCE).unwrap();
        let (frames, end) = reference.stack(&sample);
        if !is_same(&sample, &frames, end) {
            differ(sampling, &sample, &frames, end);
        }
        if end != End::OutOfBytes {
            let again = tables.walk(&sample);
            assert_eq!(
                (again.frames, Some(again.end)),
                (frames.clone(), sample.end),
                "our own in user space"
            );
        }
        assert!(!is_same(&with_a_wrong_frame(&sample), &frames, end), "nothing was compared");
        match end {
            End::OutOfBytes => tally.partial += 1,
            _ => tally.whole += 1,
        }
        let main = sampling.mappings.modules().main().unwrap();
        // The outermost two are in libc always: __libc_start_main and what it calls.
        let inner = &frames[..frames.len().saturating_sub(3)];
        tally.libraries += usize::from(inner.iter().any(|pc| !main.contains(AbsAddr(*pc))));
        tally.frames += frames.len();
        tally.reused += sample.met as usize;
        tally.deepest = tally.deepest.max(frames.len());
        tally.returns += sample.regs.is_return as usize;
        if tally.different.insert(frames) && end == End::Bottom && tally.kept.len() < MOST_KEPT {
            tally.kept.push(sample);
        }
    }
    tally
}

/// Whether both agree. Where the copied bytes end, the kernel knows more than framehop can.
fn is_same(sample: &RawSample, frames: &[u64], end: End) -> bool {
    match end {
        End::Bottom => sample.end == Some(WalkEnd::Bottom) && sample.frames == frames,
        End::Truncated => sample.end == Some(WalkEnd::Truncated) && sample.frames == frames,
        End::OutOfBytes => sample.frames.len() > frames.len() && sample.frames.starts_with(frames),
        End::Failed(_) => false,
    }
}

fn with_a_wrong_frame(sample: &RawSample) -> RawSample {
    let mut wrong = sample.clone();
    wrong.frames[0] ^= 1;
    wrong
}

/// Prints both stacks, and fails.
fn differ(sampling: &Sampling, sample: &RawSample, frames: &[u64], end: End) -> ! {
    let regs = sample.regs;
    let (ours, theirs) = (&sample.frames, frames);
    for index in 0..ours.len().max(theirs.len()) {
        let shown = |frames: &[u64]| frames.get(index).map_or_else(String::new, |pc| named(sampling, *pc));
        let mark = if ours.get(index) == theirs.get(index) { ' ' } else { '!' };
        println!("{mark}{index:4} {:60} {:60}", shown(ours), shown(theirs));
    }
    panic!("the kernel's stack (left, {:?}) and framehop's (right, {end:?}) differ; {regs:x?}", sample.end);
}

fn named(sampling: &Sampling, pc: u64) -> String {
    match sampling.mappings.modules().at(AbsAddr(pc)) {
        Some(module) => {
            let name = module.path.file_name().unwrap_or_default().to_string_lossy();
            format!("{name}+{:#x}", pc.wrapping_sub(module.bias.0))
        }
        None => format!("{pc:#x}"),
    }
}

on_builds! { on: debian_15 npm_12 12 npm_15 15 npm_17 17 npm_18 18 }
