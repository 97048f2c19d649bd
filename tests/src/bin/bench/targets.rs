//! What is to be reached, and whether it is: by the bad end of each interval.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};

use crate::{
    group::Group,
    load::Load,
    options::BUILDS,
    ratio::Summary,
    rivals::{BPFTRACE, FLOOR, FULL, LOW, MEMLEAK, OF_MALLOC},
};

/// One of them.
struct Target {
    what: &'static str,
    rival: &'static str,
    wanted: Wanted,
    /// Without the minor version; empty for all.
    builds: &'static [&'static str],
    loads: &'static [Load],
}

enum Wanted {
    /// What it adds, as a part of what another one adds, at most.
    Added(&'static str, f64),
    /// Throughput as a part of that without anything, at least.
    Throughput(f64),
    /// It says that it has lost nothing.
    LosesNothing,
}

const CONTEXTS: &[Load] = &[Load::Select, Load::TpcB, Load::Query];
const OUTSIDE: &[Load] = &[Load::Malloc];

const TARGETS: [Target; 8] = [
    Target {
        what: "full: added ÷ the floor's",
        rival: FULL,
        wanted: Wanted::Added(FLOOR, 1.5),
        builds: &[],
        loads: CONTEXTS,
    },
    Target {
        what: "full: added ÷ bpftrace's",
        rival: FULL,
        wanted: Wanted::Added(BPFTRACE, 0.6),
        builds: &["debian-15", "npm-15"],
        loads: CONTEXTS,
    },
    Target {
        what: "full: added ÷ bpftrace's",
        rival: FULL,
        wanted: Wanted::Added(BPFTRACE, 0.25),
        builds: &["npm-17", "npm-18"],
        loads: CONTEXTS,
    },
    Target {
        what: "low: throughput ÷ nothing",
        rival: LOW,
        wanted: Wanted::Throughput(0.90),
        builds: &[],
        loads: CONTEXTS,
    },
    Target {
        what: "malloc: added ÷ memleak's",
        rival: OF_MALLOC,
        wanted: Wanted::Added(MEMLEAK, 0.7),
        builds: &[],
        loads: OUTSIDE,
    },
    Target { what: "full: lost", rival: FULL, wanted: Wanted::LosesNothing, builds: &[], loads: CONTEXTS },
    Target { what: "low: lost", rival: LOW, wanted: Wanted::LosesNothing, builds: &[], loads: CONTEXTS },
    Target {
        what: "malloc: lost",
        rival: OF_MALLOC,
        wanted: Wanted::LosesNothing,
        builds: &[],
        loads: OUTSIDE,
    },
];

/// Whether it is reached, with the bad end of what was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Reached(f64),
    NotReached(f64),
    /// What was added is lost in what drifts.
    Noise,
    NotMeasured,
}

impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Losses are whole numbers.
        let shown = |end: f64| if end.fract() == 0.0 { format!("{end}") } else { format!("{end:.2}") };
        match self {
            Self::Reached(end) => write!(out, "{} reached", shown(*end)),
            Self::NotReached(end) => write!(out, "**{} not reached**", shown(*end)),
            Self::Noise => out.write_str("**noise**"),
            Self::NotMeasured => out.write_str("not measured"),
        }
    }
}

/// A row for each target and build, a column for each load.
pub(crate) fn table(groups: &[Group<'_>]) -> String {
    let loads = Load::ALL.map(Load::name);
    let mut table =
        format!("| target | wanted | build | {} |\n|{}\n", loads.join(" | "), "---|".repeat(3 + loads.len()));
    let measured = groups.iter().map(|group| release(group.build));
    let all: BTreeSet<&str> = BUILDS.into_iter().chain(measured).collect();
    for target in &TARGETS {
        for build in all.iter().filter(|build| target.builds.is_empty() || target.builds.contains(build)) {
            let cells = Load::ALL.map(|load| match target.loads.contains(&load) {
                true => target.outcome(groups, build, load).to_string(),
                false => String::new(),
            });
            let _ =
                writeln!(table, "| {} | {} | {build} | {} |", target.what, target.wanted, cells.join(" | "));
        }
    }
    table
}

/// `npm-17` of `npm-17.10`.
fn release(build: &str) -> &str {
    build.split_once('.').map_or(build, |(release, _)| release)
}

impl fmt::Display for Wanted {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added(_, bound) => write!(out, "≤ {bound}"),
            Self::Throughput(bound) => write!(out, "≥ {bound:.2}"),
            Self::LosesNothing => out.write_str("0"),
        }
    }
}

impl Target {
    fn outcome(&self, groups: &[Group<'_>], build: &str, load: Load) -> Outcome {
        let mut groups = groups.iter();
        let Some(group) = groups.find(|group| release(group.build) == build && group.load == load.name())
        else {
            return Outcome::NotMeasured;
        };
        match self.wanted {
            Wanted::Added(other, bound) => match group.added_to(self.rival, other) {
                Summary::Known(estimate) if estimate.high <= bound => Outcome::Reached(estimate.high),
                Summary::Known(estimate) => Outcome::NotReached(estimate.high),
                Summary::Noise => Outcome::Noise,
                Summary::Nothing | Summary::Few(..) => Outcome::NotMeasured,
            },
            Wanted::Throughput(bound) => match group.throughput(self.rival) {
                Summary::Known(estimate) if estimate.low >= bound => Outcome::Reached(estimate.low),
                Summary::Known(estimate) => Outcome::NotReached(estimate.low),
                Summary::Noise => Outcome::Noise,
                Summary::Nothing | Summary::Few(..) => Outcome::NotMeasured,
            },
            Wanted::LosesNothing => match group.lost(self.rival) {
                Some(0) if group.failed(self.rival) == 0 => Outcome::Reached(0.0),
                Some(lost) => Outcome::NotReached(lost as f64),
                None => Outcome::NotMeasured,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{group::testing::rounds, rivals::NOTHING};

    fn of(build: &str, load: &str, times: &[(&str, Option<f64>)]) -> String {
        table(&Group::all(&rounds(build, load, times)))
    }

    #[test]
    fn the_bad_end_decides() {
        let times = |pgleak, low| {
            [
                (NOTHING, Some(10.0)),
                (FLOOR, Some(30.0)),
                (BPFTRACE, Some(90.0)),
                (FULL, Some(pgleak)),
                (LOW, Some(low)),
            ]
        };
        let good = of("npm-17.10", "select", &times(28.0, 10.2));
        for line in [
            "| full: added ÷ the floor's | ≤ 1.5 | npm-17 | 0.90 reached | not measured | not measured |  |",
            "| full: added ÷ bpftrace's | ≤ 0.25 | npm-17 | 0.23 reached | not measured | not measured |  |",
            "| low: throughput ÷ nothing | ≥ 0.90 | npm-17 | 0.96 reached | not measured | not measured |  |",
            "| full: lost | 0 | npm-17 | 0 reached | not measured | not measured |  |",
            "| malloc: added ÷ memleak's | ≤ 0.7 | npm-17 |  |  |  | not measured |",
        ] {
            assert!(good.lines().any(|found| found == line), "{line} is not in\n{good}");
        }
        let bad = of("npm-17.10", "select", &times(41.0, 11.5));
        for cell in ["**1.55 not reached**", "**0.39 not reached**", "**0.85 not reached**"] {
            assert!(bad.contains(cell), "{cell} is not in\n{bad}");
        }
    }

    #[test]
    fn each_build_has_its_own_bound() {
        let empty = table(&[]);
        let rows = |start: &str| empty.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!(rows("| full: added ÷ bpftrace's | ≤ 0.6 |"), 2);
        assert_eq!(rows("| full: added ÷ bpftrace's | ≤ 0.25 |"), 2);
        assert_eq!(rows("| full: added ÷ the floor's | ≤ 1.5 |"), 4);
        assert!(!empty.contains("reached"), "nothing was measured:\n{empty}");
    }

    #[test]
    fn what_has_failed_has_not_lost_nothing() {
        let mut rounds = rounds("debian-15", "select", &[(NOTHING, Some(10.0)), (FULL, Some(20.0))]);
        rounds[0].times[1].each_us = None;
        assert!(table(&Group::all(&rounds)).contains("| full: lost | 0 | debian-15 | **0 not reached** |"));
        rounds[1].times[1].lost = Some(3);
        assert!(table(&Group::all(&rounds)).contains("**3 not reached**"));
    }
}
