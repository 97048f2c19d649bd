//! The checks: every program loads, every stack is exact, every call is counted.

use std::{collections::HashSet, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use pgleak::{
    addr::AbsAddr,
    bpf::{Attached, ContextNames, Limits, Mechanism, Probe, RawSnapshot, RawStack, Tracer, take_snapshot},
    session::Mappings,
    target::{LoadedModules, exe_link},
};
use tracer_ebpf::{
    abi::Phase,
    counters::{Class, Counter},
    foresee::SetFields,
    sampling::{ONE, Selection},
    site::{NO_ARG, Role, Site},
    unwind::WalkEnd,
};

use crate::chains::{Chain, Fixture};

/// Where the host puts the fixture.
const FIXTURE: &str = "/chains";
/// How often each chain runs with probes.
const ROUNDS: u64 = 200;
/// The most instructions that the verifier may look at in one program; it gives up at a million.
const MOST_VERIFIED: u32 = 100_000;
/// Offset of the name in the fixture's context.
const NAME_OFFSET: u64 = 8;

/// The chain that calls one function again and again.
const RECURSIVE: [&str; 13] = {
    let mut names = ["recursive"; 13];
    names[0] = "target_alloc";
    names
};
/// What each chain must be by its source, innermost first; `libc` stands for one or more frames.
const EXPECTED: [(&str, &[&str]); 4] = [
    ("plain", &["target_alloc", "plain_c", "plain_b", "plain_a"]),
    ("recursive", &RECURSIVE),
    ("qsort", &["target_alloc", "compare", "libc", "sort_two"]),
    ("library", &["target_alloc", "visited", "lib_visit", "lib_chain"]),
];
/// What is below every chain.
const BELOW: [&str; 4] = ["all_chains", "main", "libc", "_start"];

/// Runs them all; `say` hears how each ended.
///
/// # Errors
/// If something stands in the way of the checks themselves.
pub(crate) fn run(say: &mut impl FnMut(&str, Result<String>)) -> Result<()> {
    let mut fixture = Fixture::start(FIXTURE, ROUNDS)?;
    let mut mappings = Mappings::new(LoadedModules::read(fixture.pid())?, None)?;
    let (rows, pages) = mappings.table_sizes();
    let limits = Limits::within(64 << 20, rows, pages).context("64 MiB are enough for a small program")?;
    let mut tracer = Tracer::load(limits, NAMES)?;
    say("measure", tracer.load_measure().map(|()| "loads".to_owned()).map_err(Into::into));
    for (name, count) in tracer.verified_instructions() {
        say(&format!("program {name}"), verified(count));
    }

    mappings.upload(tracer.walks())?;
    tracer.watch_process()?;
    let attached = attach(&mut tracer, &fixture, Some(fixture.pid()), mappings.modules())?;
    record(&tracer, &mut fixture)?;
    let stacks = tracer.new_stacks();
    let snapshot = take_snapshot(&tracer, &HashSet::new(), &|| ())?;
    for chain in &fixture.chains {
        say(&format!("chain {}", chain.name), exact(chain, fixture.alloc, &stacks, &snapshot));
    }
    say("stacks", no_others(&fixture.chains, &stacks));
    say("counters", counted(&tracer));
    drop(attached);
    say("uprobe_multi links", by_links(Mechanism::Multi, (6, 6)));
    say("session links", by_links(Mechanism::Session, (6, 13)));
    say("several processes", several());
    say("sampling", sampling());
    say("foresight", foresight());
    Ok(())
}

/// The programs that choose allocations by their size: the verifier looks at more of them.
fn sampling() -> Result<String> {
    let fixture = Fixture::start(FIXTURE, ROUNDS)?;
    let mappings = Mappings::new(LoadedModules::read(fixture.pid())?, None)?;
    let (rows, pages) = mappings.table_sizes();
    let limits = Limits::within(64 << 20, rows, pages).context("64 MiB are enough for a small program")?;
    let limits = Limits { selection: Selection { min_size: 16, sample: 4096 }, ..limits };
    let tracer = Tracer::load(limits, NAMES)?;
    let most = tracer.verified_instructions().into_iter().map(|(_, count)| count).max();
    verified(most.context("no program was loaded")?)
}

/// The programs that foresee what is returned, of all allocations and of samples, on kernels that have session links.
fn foresight() -> Result<String> {
    let fixture = Fixture::start(FIXTURE, ROUNDS)?;
    let mappings = Mappings::new(LoadedModules::read(fixture.pid())?, None)?;
    let (rows, pages) = mappings.table_sizes();
    let limits = Limits::within(64 << 20, rows, pages).context("64 MiB are enough for a small program")?;
    let names =
        ContextNames { sets: Some(SetFields { start: 80, limit_word: 13, limit_shift: 32 }), ..NAMES };
    let mut most = 0;
    for selection in [Selection::default(), Selection { min_size: 16, sample: 4096 }] {
        match Tracer::load_for(Limits { selection, ..limits }, names, Mechanism::Session) {
            Err(_) if kernel_version()? < (6, 13) => return Ok("refused, as it should be".to_owned()),
            Err(error) => return Err(error.into()),
            Ok(tracer) => {
                let counts = tracer.verified_instructions();
                most = counts.into_iter().map(|(_, count)| count).fold(most, u32::max);
            }
        }
    }
    verified(most)
}

fn kernel_version() -> Result<(u32, u32)> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse().ok());
    numbers.next().zip(numbers.next()).with_context(|| format!("no version: {release}"))
}

const NAMES: ContextNames = ContextNames { offset: NAME_OFFSET, are_copies: 0, sets: None };

/// The same chains by another way to attach, on kernels that have it `since`; others must refuse it.
fn by_links(mechanism: Mechanism, since: (u32, u32)) -> Result<String> {
    let mut fixture = Fixture::start(FIXTURE, ROUNDS)?;
    let mut mappings = Mappings::new(LoadedModules::read(fixture.pid())?, None)?;
    let (rows, pages) = mappings.table_sizes();
    let limits = Limits::within(64 << 20, rows, pages).context("64 MiB are enough for a small program")?;
    let version = kernel_version()?;
    let mut tracer = match Tracer::load_for(limits, NAMES, mechanism) {
        Err(_) if version < since => return Ok(format!("refused by {version:?}, as it should be")),
        Err(error) => return Err(error.into()),
        Ok(tracer) => tracer,
    };
    mappings.upload(tracer.walks())?;
    let attached = attach(&mut tracer, &fixture, Some(fixture.pid()), mappings.modules())?;
    let said = all_exact(&mut tracer, &mut fixture);
    drop(attached);
    said
}

/// The programs for several processes, of which there is one.
fn several() -> Result<String> {
    let mut fixture = Fixture::start(FIXTURE, ROUNDS)?;
    let mut mappings = Mappings::new(LoadedModules::read(fixture.pid())?, None)?;
    let (rows, pages) = mappings.table_sizes();
    let limits = Limits::within_for_several(64 << 20, rows, pages, 1)
        .context("64 MiB are enough for a small program")?;
    let mut tracer = Tracer::load(limits, NAMES)?;
    let mapset = mappings.set_of(&Arc::clone(tracer.walks()), fixture.pid())?;
    tracer.follow(fixture.pid(), mapset)?.context("there is room for one process")?;
    let attached = attach(&mut tracer, &fixture, None, mappings.modules())?;
    let said = all_exact(&mut tracer, &mut fixture);
    drop(attached);
    said
}

/// Every chain, every count, and what the verifier had to do for it.
fn all_exact(tracer: &mut Tracer, fixture: &mut Fixture) -> Result<String> {
    let mut most = 0;
    for (name, count) in tracer.verified_instructions() {
        verified(count).with_context(|| name)?;
        most = most.max(count);
    }
    record(tracer, fixture)?;
    let stacks = tracer.new_stacks();
    let snapshot = take_snapshot(tracer, &HashSet::new(), &|| ())?;
    for chain in &fixture.chains {
        exact(chain, fixture.alloc, &stacks, &snapshot).with_context(|| chain.name.clone())?;
    }
    no_others(&fixture.chains, &stacks)?;
    counted(tracer)?;
    Ok(format!("{most} instructions verified at the most"))
}

fn verified(count: u32) -> Result<String> {
    ensure!(
        count > 0 && count < MOST_VERIFIED,
        "{count} instructions verified, the limit is {MOST_VERIFIED}"
    );
    Ok(format!("{count} instructions verified"))
}

/// Probes both functions of the fixture as pgleak does those of a server.
fn attach(
    tracer: &mut Tracer,
    fixture: &Fixture,
    pid: Option<u32>,
    modules: &LoadedModules,
) -> Result<Attached> {
    let main = modules.main().context("the fixture has code")?;
    let sites = [
        ("target_alloc", fixture.alloc, Role::Alloc, 0, NO_ARG, 1),
        ("target_free", fixture.free, Role::Free, NO_ARG, 0, NO_ARG),
    ];
    let mut attached = Attached::default();
    for (index, (function, at, role, context_arg, pointer_arg, size_arg)) in (0..).zip(sites) {
        let offset =
            main.image.file_offset(at.in_object(main.bias)).context("the function is in the file")?;
        let site = Site { role, context_arg, pointer_arg, size_arg, index, ..Site::PLAIN };
        let probe = Probe { function, role, is_outside: false, offset, cookie: site.pack() };
        attached.add(tracer, pid, &exe_link(fixture.pid()), probe)?;
    }
    Ok(attached)
}

/// Records while the fixture runs its chains.
fn record(tracer: &Tracer, fixture: &mut Fixture) -> Result<()> {
    let control = tracer.control();
    // An emulated machine may stand still for long.
    control.allow_until(u64::MAX);
    ensure!(control.advance(Phase::Off, Phase::Record), "the phase is {:?}", control.phase());
    fixture.run_chains()?;
    ensure!(control.advance(Phase::Record, Phase::Off), "the phase is {:?}", control.phase());
    Ok(())
}

/// Whether the chain is what its source says, its stack what libgcc says, and seen each time.
fn exact(chain: &Chain, alloc: AbsAddr, stacks: &[RawStack], snapshot: &RawSnapshot) -> Result<String> {
    let (_, own) =
        EXPECTED.iter().find(|(name, _)| *name == chain.name).context("no chain of this name is expected")?;
    let expected: Vec<&str> = own.iter().chain(&BELOW).copied().collect();
    let names = named(chain);
    ensure!(names == expected, "the fixture itself was at {names:?}, expected {expected:?}");

    let truth = addresses(chain, alloc);
    let seen: Vec<&RawStack> = stacks.iter().filter(|stack| stack.frames == truth).collect();
    let [stack] = seen[..] else {
        let all: Vec<String> = stacks.iter().map(|stack| format!("{stack:x?}")).collect();
        bail!("{} stacks are as libgcc says, {truth:x?}; recorded were\n{}", seen.len(), all.join("\n"));
    };
    ensure!(stack.end == Some(WalkEnd::Bottom), "the walk ended with {:?}", stack.end);
    let totals = snapshot.totals.get(&stack.id).context("nothing was booked to it")?;
    let [count, freed_count] = [totals.count, totals.freed_count].map(|count| count / ONE);
    ensure!(
        (count, freed_count) == (ROUNDS, ROUNDS),
        "{count} allocations and {freed_count} frees, {ROUNDS} of each were made"
    );
    Ok(format!("{} frames, {ROUNDS} times", truth.len()))
}

/// Symbols, with neighbouring frames of libc as one.
fn named(chain: &Chain) -> Vec<&str> {
    let mut names: Vec<&str> = chain.frames.iter().map(|(_, name)| name.as_str()).collect();
    names.dedup_by(|next, before| *next == "libc" && *before == "libc");
    names
}

/// A stack begins with the function's first instruction.
fn addresses(chain: &Chain, alloc: AbsAddr) -> Vec<AbsAddr> {
    std::iter::once(alloc).chain(chain.frames.iter().skip(1).map(|(at, _)| *at)).collect()
}

fn no_others(chains: &[Chain], stacks: &[RawStack]) -> Result<String> {
    ensure!(chains.len() == EXPECTED.len(), "{} chains, expected {}", chains.len(), EXPECTED.len());
    ensure!(
        stacks.len() == chains.len(),
        "{} different stacks of {} chains: {stacks:?}",
        stacks.len(),
        chains.len()
    );
    Ok(format!("{} different ones", stacks.len()))
}

fn counted(tracer: &Tracer) -> Result<String> {
    let calls = ROUNDS * EXPECTED.len() as u64;
    let hits = tracer.site_hits()?;
    let [alloc, free, ..] = hits[..] else { bail!("hits of {} sites", hits.len()) };
    ensure!(
        (alloc.entries, alloc.returns, free.entries) == (calls, calls, calls),
        "{alloc:?} at the allocation, {free:?} at the free; {calls} calls were made"
    );
    let counters = tracer.counters()?;
    let lost: Vec<_> = counters
        .iter()
        .filter(|(info, count)| info.class == Class::Loss && *count > 0)
        .map(|(info, count)| format!("{} {count}", info.name))
        .collect();
    ensure!(lost.is_empty(), "lost: {}", lost.join(", "));
    for counter in [Counter::Recorded, Counter::Freed, Counter::StacksWalked, Counter::WalkBottom] {
        let count = counters.get(counter);
        ensure!(count == calls, "{counter:?} is {count}, {calls} calls were made");
    }
    Ok(format!("{calls} entries, returns, records and frees, nothing lost"))
}
