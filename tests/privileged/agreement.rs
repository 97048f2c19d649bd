//! The same work on two builds of the same version, by different compilers with different options,
//! has the same stacks, but for what a compiler inlined or left by a jump.

use std::collections::{BTreeSet, HashSet};

use pgleak::session::prepare;
use pgleak_tests::{Build, sampling::alloc_site, tables::Tables};

use crate::{common::server, debugger::sampled, differential::warm_session};

/// Functions of one stack, innermost first.
type Names = Vec<String>;

/// Frames that only one of two equal stacks may have: functions that one compiler inlined where
/// the other did not.
const INLINED: usize = 4;

/// The different stacks of the work, by the functions that have names.
fn stacks(build: &Build) -> BTreeSet<Names> {
    let server = server(build);
    let mut session = warm_session(&server);
    let prepared = prepare(session.backend_pid(), None).unwrap();
    let site = alloc_site(&prepared.plan).unwrap();
    let modules = prepared.mappings.modules();
    let tables = Tables::of(modules).unwrap();
    let named = |frames: &Vec<u64>| {
        let names = tables.names(modules, frames, true);
        // A part that the compiler split off is the function.
        let whole = names.iter().map(|name| name.split('.').next().unwrap_or(name).to_owned());
        whole.filter(|name| !name.starts_with('[')).collect()
    };
    sampled(&mut session, site).iter().map(named).collect()
}

/// Only the functions that both builds have as functions with a name.
fn projected(stacks: &BTreeSet<Names>, common: &HashSet<&str>) -> BTreeSet<Names> {
    let keep = |stack: &Names| stack.iter().filter(|name| common.contains(name.as_str())).cloned().collect();
    stacks.iter().map(keep).collect()
}

/// Frames that are in one of two stacks only, when the others are in the same order.
fn differing(a: &Names, b: &Names) -> usize {
    let mut longest = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, x) in a.iter().enumerate() {
        for (j, y) in b.iter().enumerate() {
            longest[i + 1][j + 1] =
                if x == y { longest[i][j] + 1 } else { longest[i][j + 1].max(longest[i + 1][j]) };
        }
    }
    a.len() + b.len() - 2 * longest[a.len()][b.len()]
}

#[test]
fn debian_15_and_npm_15_have_the_same_stacks() {
    let [debian, npm] = [Build::packaged(15).unwrap(), Build::npm(15).unwrap()].map(|build| stacks(&build));
    let names = |stacks: &BTreeSet<Names>| -> HashSet<String> { stacks.iter().flatten().cloned().collect() };
    let (in_debian, in_npm) = (names(&debian), names(&npm));
    let common: HashSet<&str> = in_debian.intersection(&in_npm).map(String::as_str).collect();
    let (debian, npm) = (projected(&debian, &common), projected(&npm, &common));
    let equal = debian.intersection(&npm).count();
    let mut unexplained = Vec::new();
    for (ours, theirs) in [(&debian, &npm), (&npm, &debian)] {
        for stack in ours.difference(theirs) {
            let nearest = theirs.iter().min_by_key(|other| differing(stack, other)).unwrap();
            if differing(stack, nearest) > INLINED {
                unexplained.push((stack, nearest));
            }
        }
    }
    println!(
        "{} and {} different stacks of {} common functions, {equal} equal frame for frame, {} not near any",
        debian.len(),
        npm.len(),
        common.len(),
        unexplained.len()
    );
    for (stack, nearest) in &unexplained {
        println!("  {}\n  {}\n", stack.join(" < "), nearest.join(" < "));
    }
    assert!(equal > 100 && common.len() > 100);
    assert!(unexplained.is_empty());
    // The innermost and the outermost frames are everybody's.
    for stack in debian.iter().chain(&npm) {
        assert!(stack.iter().any(|name| name == "main"), "{stack:?}");
    }
}
