//! The figures of one build and load.

use std::fmt::Write as _;

use crate::{
    group::Group,
    rivals::{BPFTRACE, FLOOR, MEMLEAK, NOTHING, RIVALS},
};

/// What others are compared with, where it was there; and how its column says it.
const YARDSTICKS: [(&str, &str); 3] =
    [(FLOOR, "added ÷ the floor's"), (BPFTRACE, "added ÷ bpftrace's"), (MEMLEAK, "added ÷ memleak's")];

/// A row for each rival that was looked at.
pub(crate) fn table(group: &Group<'_>) -> String {
    let yardsticks = YARDSTICKS.into_iter().filter(|(name, _)| group.known(name) > 0);
    let columns: Vec<(&str, &str)> = yardsticks.collect();
    let heads = ["rival", "µs a transaction", "throughput ÷ nothing"].into_iter();
    let heads: Vec<&str> =
        heads.chain(columns.iter().map(|(_, head)| *head)).chain(["rounds", "failed", "lost"]).collect();
    let mut table = format!("| {} |\n|{}\n", heads.join(" | "), "---|".repeat(heads.len()));
    for name in RIVALS.iter().map(|rival| rival.name).filter(|name| group.has(name)) {
        let mut cells =
            vec![name.to_owned(), group.median_us(name).map_or("–".into(), |us| format!("{us:.0}"))];
        cells.push(group.throughput(name).to_string());
        cells.extend(columns.iter().map(|(yardstick, _)| match name == NOTHING {
            true => "–".to_owned(),
            false => group.added_to(name, yardstick).to_string(),
        }));
        cells.push(group.known(name).to_string());
        cells.push(group.failed(name).to_string());
        cells.push(group.lost(name).map_or("–".into(), |lost| lost.to_string()));
        let _ = writeln!(table, "| {} |", cells.join(" | "));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::testing::rounds;

    #[test]
    fn a_rival_that_failed_has_a_row() {
        let rounds = rounds(
            "debian-15",
            "select",
            &[(NOTHING, Some(10.0)), (FLOOR, Some(30.0)), ("pgleak", Some(36.0)), ("perf", None)],
        );
        let table = table(&Group::all(&rounds)[0]);
        assert!(table.starts_with(
            "| rival | µs a transaction | throughput ÷ nothing | added ÷ the floor's | rounds | failed | lost |\n"
        ));
        assert!(table.contains("| perf | – | – | – | 0 | 6 | – |\n"), "{table}");
        let row = table.lines().find(|line| line.starts_with("| pgleak |")).expect("it was measured");
        assert!(row.contains("| 1.30 (1.30–1.30) | 6 | 0 | 0 |"), "{row}");
    }
}
