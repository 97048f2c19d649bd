//! What was measured, for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::{
    ratio::{Estimate, Times},
    rivals::RIVALS,
    rounds::Round,
};

/// Ratios by build, load and rival.
pub(crate) fn table(rounds: &[Round]) -> String {
    let mut groups: BTreeMap<(&str, &str), Vec<&Round>> = BTreeMap::new();
    for round in rounds {
        groups.entry((&round.build, &round.load)).or_default().push(round);
    }
    let mut page = String::from("Rivals:\n\n");
    for rival in &RIVALS {
        let _ = writeln!(page, "* {}: {}", rival.name, rival.what);
    }
    for ((build, load), rounds) in groups {
        let times: Vec<Times> = rounds.iter().map(|round| Times::of(round)).collect();
        let _ = writeln!(page, "\n{build}, {load}, {} rounds\n", rounds.len());
        let _ = writeln!(
            page,
            "| rival | us a transaction | throughput ÷ nothing | added ÷ the floor's | added ÷ bpftrace's | lost |"
        );
        let _ = writeln!(page, "|---|---|---|---|---|---|");
        for rival in &RIVALS {
            let each: Vec<f64> = times.iter().filter_map(|times| times.get(rival.name)).collect();
            if each.is_empty() {
                continue;
            }
            let column = |of: &dyn Fn(&Times) -> Option<f64>| {
                let ratios: Vec<f64> = times.iter().filter_map(of).collect();
                Estimate::of(&ratios).map_or_else(String::new, shown)
            };
            let lost: u64 = rounds
                .iter()
                .flat_map(|round| &round.times)
                .filter(|time| time.rival == rival.name)
                .filter_map(|time| time.lost)
                .sum();
            let _ = writeln!(
                page,
                "| {} | {:.0} | {} | {} | {} | {lost} |",
                rival.name,
                median(each),
                column(&|times| times.throughput(rival.name)),
                column(&|times| times.added_to_floor(rival.name)),
                column(&|times| times.added_to(rival.name, "bpftrace")),
            );
        }
    }
    page
}

fn shown(estimate: Estimate) -> String {
    format!("{:.2} ({:.2}–{:.2})", estimate.mean, estimate.low, estimate.high)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
