//! What a process title says: kind, database, user, host, activity.
//!
//! PostgreSQL writes `postgres: [CLUSTER_NAME: ]KIND [DETAIL]`, and for whatever serves a client
//! `postgres: [CLUSTER_NAME: ][walsender ]USER [DATABASE] HOST ACTIVITY` (`init_ps_display` in
//! src/backend/utils/misc/ps_status.c, `BackendInitialize` for the latter). Greenplum puts its
//! port in front, and session, segment and command into the activity. Nothing in it is quoted,
//! so names with blanks can make it ambiguous; what is ambiguous is left out.

use serde::Serialize;

/// A process title, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Title {
    /// `client backend`, `checkpointer`, `walsender`, `postmaster` …
    pub kind: String,
    /// Database, for whatever is connected to one and shows it.
    pub database: Option<String>,
    /// User, for whatever serves a client.
    pub user: Option<String>,
    /// `[local]`, or the client's address with its port: `127.0.0.1(48122)`.
    pub host: Option<String>,
    /// The rest: `idle in transaction`, `SELECT`, `for subscription 16398`; may be empty.
    pub activity: String,
    /// `cluster_name`, if it is set.
    pub cluster: Option<String>,
    /// Greenplum's port.
    pub port: Option<u16>,
}

/// The kind of a process whose command line is that of a server that has not been told what it is.
pub const POSTMASTER: &str = "postmaster";

/// The kind of a process that serves a client.
pub const CLIENT_BACKEND: &str = "client backend";

/// Kinds that a title may begin with: `GetBackendTypeDesc` in src/backend/utils/init/miscinit.c
/// and the names that background workers of the server register, 9.4 (Greenplum 6) to 18.
pub const KINDS: &[&str] = &[
    "archiver",
    "autovacuum launcher",
    "autovacuum worker",
    "background worker",
    "background writer",
    "bgworker",
    "checkpointer",
    "client backend",
    "dead-end client backend",
    "io worker",
    "logger",
    "logical replication apply worker",
    "logical replication launcher",
    "logical replication parallel apply worker",
    "logical replication tablesync worker",
    "logical replication worker",
    "parallel worker",
    "slotsync worker",
    "standalone backend",
    "startup",
    "stats collector",
    "wal receiver",
    "wal sender",
    "wal writer",
    "walreceiver",
    "walsender",
    "walsummarizer",
    "walwriter",
    "writer",
];

/// Takes a process title apart. A text that is no title is the command line of a postmaster, or
/// of a server in single-user mode.
pub fn parse_title(text: &str) -> Title {
    let Some(rest) = text.strip_prefix("postgres:") else { return of_command_line(text) };
    let (port, rest) = split_port(rest.trim());
    match split_at_host(rest) {
        Some((head, host, activity)) => of_client(port, head, host, activity),
        None => of_server(port, rest),
    }
}

fn of_command_line(text: &str) -> Title {
    let has = |wanted: &[&str]| text.split_ascii_whitespace().any(|argument| wanted.contains(&argument));
    let kind = if has(&["--single"]) {
        "standalone backend"
    } else if has(&["--boot", "--check"]) {
        "bootstrap"
    } else {
        POSTMASTER
    };
    Title { kind: kind.to_owned(), ..Title::default() }
}

/// Greenplum: `postgres:  7000, …`, five places wide; `port  7000, …` before 6.
fn split_port(rest: &str) -> (Option<u16>, &str) {
    let digits = rest.strip_prefix("port").unwrap_or(rest).trim_start();
    match digits.split_once(", ").map(|(port, rest)| (port.parse(), rest)) {
        Some((Ok(port), rest)) => (Some(port), rest.trim_start()),
        _ => (None, rest),
    }
}

/// Parts the title at the client's host, which only processes that serve a client show.
fn split_at_host(rest: &str) -> Option<(&str, &str, &str)> {
    let mut from = 0;
    for token in rest.split(' ') {
        if is_host(token) {
            return Some((rest[..from].trim(), token, rest[from + token.len()..].trim()));
        }
        from += token.len() + 1;
    }
    None
}

fn is_host(token: &str) -> bool {
    let port = || token.strip_suffix(')')?.rsplit_once('(').filter(|(host, _)| !host.is_empty());
    token == "[local]"
        || port().is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

fn of_client(port: Option<u16>, head: &str, host: &str, activity: &str) -> Title {
    // A cluster name may hold ": "; that a user or a database does is less likely.
    let (cluster, names) = match head.rsplit_once(": ") {
        Some((cluster, names)) => (Some(cluster.to_owned()), names),
        None => (None, head),
    };
    let (kind, names) =
        match ["walsender ", "wal sender process "].iter().find_map(|kind| names.strip_prefix(kind)) {
            Some(names) => ("walsender", names),
            None => (CLIENT_BACKEND, names),
        };
    let names: Vec<&str> = names.split_ascii_whitespace().collect();
    let (user, database) = match names[..] {
        [user] => (Some(user.to_owned()), None),
        [user, database] => (Some(user.to_owned()), Some(database.to_owned())),
        _ => (None, None),
    };
    Title {
        kind: kind.to_owned(),
        database,
        user,
        host: Some(host.to_owned()),
        activity: activity.to_owned(),
        cluster,
        port,
    }
}

fn of_server(port: Option<u16>, rest: &str) -> Title {
    let mut from = 0;
    loop {
        if let Some(kind) = KINDS.iter().find(|kind| begins_with_words(&rest[from..], kind)) {
            let cluster = rest[..from].strip_suffix(": ").map(str::to_owned);
            // Before version 10 the word "process" followed the kind.
            let detail = rest[from + kind.len()..].trim();
            let detail = detail.strip_prefix("process").unwrap_or(detail).trim();
            let mut title = Title {
                kind: (*kind).to_owned(),
                cluster,
                port,
                activity: detail.to_owned(),
                ..Title::default()
            };
            if *kind == "autovacuum worker" && !detail.is_empty() {
                title.database = Some(std::mem::take(&mut title.activity));
            }
            return title;
        }
        match rest[from..].find(": ") {
            Some(at) => from += at + 2,
            None => break,
        }
    }
    // A background worker of an extension names itself. Debian always sets a cluster name.
    let (cluster, kind) = match rest.split_once(": ") {
        Some((cluster, kind)) => (Some(cluster.to_owned()), kind),
        None => (None, rest),
    };
    let kind = if kind.is_empty() { "server process" } else { kind.trim() };
    Title { kind: kind.to_owned(), cluster, port, ..Title::default() }
}

fn begins_with_words(text: &str, words: &str) -> bool {
    text.strip_prefix(words).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// kind, database, user, host, activity, cluster name.
    type Row<'a> = (&'a str, Option<&'a str>, Option<&'a str>, Option<&'a str>, &'a str, Option<&'a str>);

    fn check(text: &str, row: Row<'_>) {
        let title = parse_title(text);
        let seen = (
            title.kind.as_str(),
            title.database.as_deref(),
            title.user.as_deref(),
            title.host.as_deref(),
            title.activity.as_str(),
            title.cluster.as_deref(),
        );
        assert_eq!(seen, row, "{text}");
    }

    /// Recorded on PostgreSQL 12.22, 15.18 and 18.4; one cluster was named `mäin db` (the server
    /// turns the ä into ??), another one `postgres: x`.
    #[test]
    fn recorded_server_processes() {
        check("postgres: logger ", ("logger", None, None, None, "", None));
        check(
            "postgres: m??in db: background writer   ",
            ("background writer", None, None, None, "", Some("m??in db")),
        );
        check("postgres: postgres: x: walwriter ", ("walwriter", None, None, None, "", Some("postgres: x")));
        check(
            "postgres: m??in db: stats collector   ",
            ("stats collector", None, None, None, "", Some("m??in db")),
        );
        check("postgres: io worker 1", ("io worker", None, None, None, "1", None));
        check(
            "postgres: autovacuum worker postgres",
            ("autovacuum worker", Some("postgres"), None, None, "", None),
        );
        check(
            "postgres: m??in db: autovacuum worker   postgres",
            ("autovacuum worker", Some("postgres"), None, None, "", Some("m??in db")),
        );
        check(
            "postgres: postgres: x: parallel worker for PID 12216 ",
            ("parallel worker", None, None, None, "for PID 12216", Some("postgres: x")),
        );
        check(
            "postgres: m??in db: logical replication worker for subscription 16393   ",
            ("logical replication worker", None, None, None, "for subscription 16393", Some("m??in db")),
        );
        check(
            "postgres: logical replication apply worker for subscription 16398 ",
            ("logical replication apply worker", None, None, None, "for subscription 16398", None),
        );
        check(
            "postgres: logical replication launcher ",
            ("logical replication launcher", None, None, None, "", None),
        );
    }

    #[test]
    fn recorded_client_backends() {
        check(
            "postgres: postgres postgres [local] idle in transaction",
            (
                CLIENT_BACKEND,
                Some("postgres"),
                Some("postgres"),
                Some("[local]"),
                "idle in transaction",
                None,
            ),
        );
        check(
            "postgres: m??in db: postgres postgres 127.0.0.1(48154) LOCK TABLE waiting",
            (
                CLIENT_BACKEND,
                Some("postgres"),
                Some("postgres"),
                Some("127.0.0.1(48154)"),
                "LOCK TABLE waiting",
                Some("m??in db"),
            ),
        );
        check(
            "postgres: postgres: x: postgres postgres 127.0.0.1(52686) SELECT",
            (
                CLIENT_BACKEND,
                Some("postgres"),
                Some("postgres"),
                Some("127.0.0.1(52686)"),
                "SELECT",
                Some("postgres: x"),
            ),
        );
        // The user `my user` in the database `my db` could be four other pairs of names.
        check(
            "postgres: my user my db 127.0.0.1(46248) idle",
            (CLIENT_BACKEND, None, None, Some("127.0.0.1(46248)"), "idle", None),
        );
    }

    #[test]
    fn recorded_walsenders() {
        check(
            "postgres: m??in db: walsender postgres [local] idle",
            ("walsender", None, Some("postgres"), Some("[local]"), "idle", Some("m??in db")),
        );
        check(
            "postgres: walsender postgres postgres 127.0.0.1(46242) START_REPLICATION",
            (
                "walsender",
                Some("postgres"),
                Some("postgres"),
                Some("127.0.0.1(46242)"),
                "START_REPLICATION",
                None,
            ),
        );
        check(
            "postgres: 15/main: walsender repl 127.0.0.1(39020) sending backup \"a: b\"",
            (
                "walsender",
                None,
                Some("repl"),
                Some("127.0.0.1(39020)"),
                "sending backup \"a: b\"",
                Some("15/main"),
            ),
        );
    }

    #[test]
    fn command_lines() {
        check("/opt/pg/12.22/bin/postgres -D /srv/n12", (POSTMASTER, None, None, None, "", None));
        check(
            "/usr/lib/postgresql/15/bin/postgres --single -D /srv",
            ("standalone backend", None, None, None, "", None),
        );
    }

    /// Written after the format in the sources, not recorded.
    #[test]
    fn other_titles() {
        check(
            "postgres: startup recovering 000000010000000000000001",
            ("startup", None, None, None, "recovering 000000010000000000000001", None),
        );
        check(
            "postgres: startup app [local] idle",
            (CLIENT_BACKEND, Some("app"), Some("startup"), Some("[local]"), "idle", None),
        );
        check(
            "postgres: app db fe80::1(5555) idle",
            (CLIENT_BACKEND, Some("db"), Some("app"), Some("fe80::1(5555)"), "idle", None),
        );
        check(
            "postgres: 15/main: pg_cron launcher ",
            ("pg_cron launcher", None, None, None, "", Some("15/main")),
        );
        check("postgres: wal writer process  ", ("wal writer", None, None, None, "", None));
        check("postgres: ", ("server process", None, None, None, "", None));
        check("", (POSTMASTER, None, None, None, "", None));
    }

    #[test]
    fn greenplum_shows_its_port_and_session() {
        let text = "postgres:  7000, gpadmin sales 10.0.0.1(41500) con12 seg0 cmd5 slice1 MPPEXEC SELECT";
        let activity = "con12 seg0 cmd5 slice1 MPPEXEC SELECT";
        check(
            text,
            (CLIENT_BACKEND, Some("sales"), Some("gpadmin"), Some("10.0.0.1(41500)"), activity, None),
        );
        assert_eq!(parse_title(text).port, Some(7000));
        let text = "postgres: 10000, checkpointer process";
        check(text, ("checkpointer", None, None, None, "", None));
        assert_eq!(parse_title(text).port, Some(10_000));
    }
}
