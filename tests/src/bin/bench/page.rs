//! What was measured, for people: docs/benchmarks.md.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::{
    conditions::Conditions, group::Group, load::Load, rivals::RIVALS, rounds::Round, table, targets,
};

/// Where the picture is, from the page.
pub(crate) const PICTURE: &str = "benchmarks.svg";

const HOW: &str = "\
In each round one backend works without a pause under `pgbench`, which logs the end of each transaction. One rival after the
other is attached to that backend, in an order by chance, warms up and is looked at, with nothing attached at the beginning, in
the middle and at the end; the next one begins when no breakpoint is left in the process. The backend has one processor for
itself, everything else the others. A transaction's time is that from one
end to the next, on average over a rival's window; throughput is of that. What a rival adds is what a transaction takes of the backend's
processor less what it takes with nothing in the same round: waiting for the client, and what the host takes away meanwhile, are no part of it. Only
ratios within a round are compared. A figure is the geometric mean of the rounds' ratios with its 95 % interval, by Student's t
on their logarithms. `noise` stands where a rival was faster than nothing in a round. `lost` is what the rival itself says
that it has lost, in all rounds; `–` if it says no such thing. What failed is counted, and is no time.
";

/// The whole page.
pub(crate) fn page(rounds: &[Round]) -> String {
    let groups = Group::all(rounds);
    let mut page = String::from("# Benchmarks\n\n");
    let _ = writeln!(
        page,
        "What tracing adds to a transaction. Written by `cargo xtask bench overhead --write`{}; do not edit.\n",
        days(rounds)
    );
    let _ = writeln!(page, "![What each rival adds to a transaction]({PICTURE})\n");
    let _ = writeln!(
        page,
        "## Targets\n\nThe bad end of the 95 % interval of each.\n\n{}",
        targets::table(&groups)
    );
    let _ = writeln!(page, "## How it was measured\n\n{HOW}\nLoads:\n");
    for load in Load::ALL {
        let _ = writeln!(page, "* {}: {}", load.name(), load.what());
    }
    let _ = writeln!(page, "\nRivals:\n");
    for rival in RIVALS {
        let _ = writeln!(page, "* {}: {}", rival.name, rival.what);
    }
    let _ = writeln!(page, "\n## On what\n\n{}", conditions(rounds));
    page.push_str("## Figures\n");
    for group in &groups {
        let _ = writeln!(page, "\n### {}, {}: {} rounds\n", group.build, group.load, group.rounds());
        page.push_str(&table::table(group));
    }
    page
}

/// When they were measured.
fn days(rounds: &[Round]) -> String {
    let day = |seconds: u64| {
        let time =
            i64::try_from(seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())?;
        Some(time.strftime("%Y-%m-%d").to_string())
    };
    let known = || rounds.iter().map(|round| round.began).filter(|began| *began > 0);
    match (known().min().and_then(day), known().max().and_then(day)) {
        (Some(first), Some(last)) if first == last => format!(" from rounds of {first}"),
        (Some(first), Some(last)) => format!(" from rounds of {first} to {last}"),
        _ => String::new(),
    }
}

fn conditions(rounds: &[Round]) -> String {
    let all: BTreeSet<&Conditions> = rounds.iter().filter_map(|round| round.conditions.as_ref()).collect();
    let mut text = String::new();
    for on in all {
        let kind = if on.is_virtual { "a virtual machine" } else { "no virtual machine" };
        let _ = writeln!(text, "* {}, {} cores, {kind}; Linux {}", on.processor, on.cores, on.kernel);
        for (name, version) in &on.versions {
            let _ = writeln!(text, "    * {name}: {version}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::testing::rounds;

    #[test]
    fn the_page_has_all_parts() {
        let mut rounds = rounds("npm-15.18", "select", &[("nothing", Some(10.0)), ("floor", Some(20.0))]);
        rounds[0].conditions = Some(Conditions {
            processor: "A processor".into(),
            cores: 2,
            is_virtual: true,
            kernel: "6.12.0".into(),
            versions: [("perf".to_owned(), "perf version 6.1".to_owned())].into(),
        });
        rounds[5].began += 86_400;
        let page = page(&rounds);
        for text in [
            "# Benchmarks\n",
            "from rounds of 2027-01-15 to 2027-01-16",
            "* A processor, 2 cores, a virtual machine; Linux 6.12.0\n    * perf: perf version 6.1\n",
            "### npm-15.18, select: 6 rounds\n",
            "* heaptrack: ",
            "(benchmarks.svg)",
        ] {
            assert!(page.contains(text), "{text} is not in\n{page}");
        }
    }
}
