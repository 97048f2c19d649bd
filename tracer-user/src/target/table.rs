//! What `pgleak list` prints.

use std::fmt::Write as _;

use super::list::{Growth, ServerProcess};

/// Growth by less than this in a second is not worth a line.
const NOTABLE_PER_S: i64 = 64 * 1024;

/// The processes as a table, in the order given, with what its numbers mean below.
pub fn render_table(servers: &[ServerProcess]) -> String {
    if servers.is_empty() {
        return "no PostgreSQL or Greenplum process runs on this host, or none that this user may see\n"
            .into();
    }
    let header = ["PID", "KIND", "DATABASE", "USER", "RssAnon", "RssShmem", "anon/s", "shmem/s"];
    let rows: Vec<[String; 8]> =
        std::iter::once(header.map(str::to_owned)).chain(servers.iter().map(row)).collect();
    let mut widths = [0; 8];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            // Words to the left, numbers to the right.
            let padding = " ".repeat(width - cell.chars().count());
            let (before, after) = if (1..=3).contains(&column) { ("", &*padding) } else { (&*padding, "") };
            line.extend([if column == 0 { "" } else { "  " }, before, cell, after]);
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out.push_str(
        "\nRssAnon is a process's own memory; a leak makes it grow. RssShmem is shared memory that the\n\
         process has touched, shared buffers mostly: it grows until each buffer was used once. No leak.\n",
    );
    for server in servers {
        if let Some(growth) = server.growth.filter(|growth| only_shared_grows(*growth)) {
            let _ = writeln!(
                out,
                "{}: what grows is shared memory ({}; its own: {}): it touches shared buffers for the first time, \
                 which is no leak",
                server.pid,
                human_rate(growth.rss_shmem_per_s),
                human_rate(growth.rss_anon_per_s)
            );
        }
    }
    out
}

/// Whether growth is that of shared memory. The work that touches it takes some own memory too:
/// an index scan through all shared buffers, 24 kB/s beside 29 MB/s.
fn only_shared_grows(growth: Growth) -> bool {
    growth.rss_shmem_per_s >= NOTABLE_PER_S
        && growth.rss_anon_per_s < NOTABLE_PER_S
        && growth.rss_anon_per_s <= growth.rss_shmem_per_s / 64
}

fn row(server: &ServerProcess) -> [String; 8] {
    let name = |name: &Option<String>| name.as_deref().map_or_else(|| "-".to_owned(), one_line);
    let rate = |rate: fn(Growth) -> i64| {
        server.growth.map_or_else(|| "-".to_owned(), |growth| human_rate(rate(growth)))
    };
    [
        server.pid.to_string(),
        one_line(&server.parsed.kind),
        name(&server.parsed.database),
        name(&server.parsed.user),
        human_bytes(server.memory.rss_anon),
        human_bytes(server.memory.rss_shmem),
        rate(|growth| growth.rss_anon_per_s),
        rate(|growth| growth.rss_shmem_per_s),
    ]
}

/// A title is the text of another process: control characters in it must not reach a terminal.
fn one_line(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '?' } else { character }).collect()
}

/// Bytes for people, in units of 1024 as PostgreSQL counts: `760 kB`, `12.3 MB`.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    // The next unit begins where rounding would show 1024 of this one.
    while value >= (if unit < 2 { 1023.5 } else { 1023.95 }) && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit < 2 { format!("{value:.0} {}", UNITS[unit]) } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A rate for people: `+1.5 MB/s`, `-8 kB/s`, `0`.
pub fn human_rate(bytes_per_s: i64) -> String {
    match bytes_per_s {
        0 => "0".to_owned(),
        rate => format!("{}{}/s", if rate < 0 { '-' } else { '+' }, human_bytes(rate.unsigned_abs())),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{list::tests::server, process::Memory},
        *,
    };

    #[test]
    fn the_table_explains_shared_memory() {
        let memory = |rss_anon, rss_shmem| Memory { rss_anon, rss_shmem, ..Memory::default() };
        let grows = |rss_anon_per_s, rss_shmem_per_s| Some(Growth { rss_anon_per_s, rss_shmem_per_s });
        let table = render_table(&[
            server(
                9810,
                "postgres: 15/main: app sales 10.0.0.9(48122) SELECT",
                memory(96 << 20, 8 << 20),
                grows(3 << 20, 1 << 20),
            ),
            server(
                123,
                "postgres: 15/main: autovacuum worker sales",
                memory(760 << 10, 100 << 20),
                grows(0, 9 << 20),
            ),
            server(99, "postgres: 15/main: checkpointer ", memory(500, 0), None),
        ]);
        assert_eq!(
            table,
            " PID  KIND               DATABASE  USER  RssAnon  RssShmem     anon/s    shmem/s\n\
             9810  client backend     sales     app   96.0 MB    8.0 MB  +3.0 MB/s  +1.0 MB/s\n \
             123  autovacuum worker  sales     -      760 kB  100.0 MB          0  +9.0 MB/s\n  \
             99  checkpointer       -         -       500 B       0 B          -          -\n\
             \n\
             RssAnon is a process's own memory; a leak makes it grow. RssShmem is shared memory that the\n\
             process has touched, shared buffers mostly: it grows until each buffer was used once. No leak.\n\
             123: what grows is shared memory (+9.0 MB/s; its own: 0): it touches shared buffers for the \
             first time, which is no leak\n"
        );
    }

    #[test]
    fn growth_of_both_is_not_explained_away() {
        let of =
            |rss_anon_per_s, rss_shmem_per_s| only_shared_grows(Growth { rss_anon_per_s, rss_shmem_per_s });
        assert!(of(24_275, 30_097_794) && of(-4096, NOTABLE_PER_S));
        assert!(!of(NOTABLE_PER_S, 1 << 30), "a leak beside a scan");
        assert!(!of(24_275, 1 << 20) && !of(0, NOTABLE_PER_S - 1) && !of(0, 0));
    }

    #[test]
    fn nothing_found_is_said() {
        assert!(render_table(&[]).starts_with("no PostgreSQL"));
    }

    #[test]
    fn a_title_cannot_steer_the_terminal() {
        let evil = server(1, "postgres: \u{1b}[2Jworker\n", Memory::default(), None);
        assert!(!render_table(&[evil]).contains('\u{1b}'));
    }

    #[test]
    fn units_are_those_of_postgresql() {
        let all = [0, 1023, 1024, 1_048_500, 1 << 20, 1 << 40, u64::MAX].map(human_bytes);
        assert_eq!(all, ["0 B", "1023 B", "1 kB", "1.0 MB", "1.0 MB", "1.0 TB", "16777216.0 TB"]);
        assert_eq!([0, -8192, 1_572_864].map(human_rate), ["0", "-8 kB/s", "+1.5 MB/s"]);
    }

    #[test]
    fn json_holds_the_same() {
        let one = server(7, "postgres: app sales [local] idle", Memory::default(), Some(Growth::default()));
        let json = serde_json::to_value(&one).expect("plain data");
        for key in [
            "pid",
            "title",
            "kind",
            "database",
            "user",
            "memory",
            "exe",
            "is_postmaster",
            "postmaster",
            "growth",
        ] {
            assert!(json.get(key).is_some(), "{key}");
        }
    }
}
