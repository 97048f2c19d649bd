//! Which processes are asked for, and which of those on this host they are.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::{
    addr::{AbsAddr, Bias},
    census::text,
    elf::Image,
    probe::exported_variable,
    target::{
        CLIENT_BACKEND, Images, KINDS, LoadedModules, POSTMASTER, ProcessMemory, ReadMemory as _,
        ServerProcess, Title, find_servers,
    },
};

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// These processes.
    pub pids: Vec<u32>,
    /// The children of these postmasters, also those to come.
    pub postmasters: Vec<u32>,
    /// The same, by their data directories.
    pub data_dirs: Vec<PathBuf>,
    /// The postmasters themselves, too.
    pub with_postmaster: bool,
    /// Which of the children.
    pub filter: Filter,
}

/// What a process must be. Empty lists ask for nothing.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// One of these kinds.
    pub kinds: Vec<Kinds>,
    /// Connected to one of these databases.
    pub databases: Vec<String>,
    /// For one of these users.
    pub users: Vec<String>,
    /// With one of these application names.
    pub applications: Vec<String>,
    /// Of this session of Greenplum.
    pub session: Option<u64>,
}

/// Kinds of processes whose names hold the same words: `client`, `walsender`, `parallel worker`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kinds(Vec<&'static str>);

impl std::str::FromStr for Kinds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let squeeze = |text: &str| -> String {
            text.chars().filter(|c| c.is_ascii_alphanumeric()).collect::<String>().to_ascii_lowercase()
        };
        let wanted = squeeze(text);
        let kinds = KINDS.iter().copied().filter(|kind| squeeze(kind).contains(&wanted));
        let exact: Vec<_> = KINDS.iter().copied().filter(|kind| squeeze(kind) == wanted).collect();
        let kinds: Vec<_> = if exact.is_empty() { kinds.collect() } else { exact };
        if wanted.is_empty() || kinds.is_empty() {
            return Err(format!("'{text}' is no kind of process; there are: {}", KINDS.join(", ")));
        }
        Ok(Self(match text.trim() {
            // Not those that are turned away.
            "client" => vec![CLIENT_BACKEND],
            _ => kinds,
        }))
    }
}

/// A session of Greenplum, as its titles have it: `con123`.
pub fn session_number(text: &str) -> Result<u64, String> {
    text.strip_prefix("con").unwrap_or(text).parse().map_err(|_| {
        format!("'{text}' is no session of Greenplum; write it like con123, as in process titles")
    })
}

/// Why nothing can be chosen.
#[derive(Debug, thiserror::Error)]
pub enum ScopeError {
    /// The process is none.
    #[error("process {pid} is no postmaster of PostgreSQL or Greenplum{hint}")]
    NoPostmaster {
        /// Which.
        pid: u32,
        /// What it is.
        hint: String,
    },
    /// The directory cannot be used.
    #[error("cannot read the data directory {path}: {source}")]
    DataDir {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No server works in it.
    #[error(
        "no server with the data directory {path} runs on this host; `pgleak list` shows what does, and --postmaster takes a pid"
    )]
    NoServer {
        /// Which.
        path: PathBuf,
    },
    /// There is no such session.
    #[error("no process of session con{session} is on this host; `pgleak list` shows titles")]
    NoSession {
        /// Which.
        session: u64,
    },
    /// Different programs have their functions at different places.
    #[error(
        "process {first} runs {first_program} and process {other} runs {other_program}: capture those of one program at a time"
    )]
    DifferentPrograms {
        /// One.
        first: u32,
        /// What it runs.
        first_program: PathBuf,
        /// Another.
        other: u32,
        /// What that runs.
        other_program: PathBuf,
    },
    /// The server does not have what tells its children.
    #[error("new processes of postmaster {pid} cannot be told from others: {why}; name processes with --pid")]
    NoFamily {
        /// Which.
        pid: u32,
        /// What is missing.
        why: String,
    },
    /// More servers than there is room for.
    #[error("more than 16 servers in one capture; name fewer with --postmaster")]
    TooManyServers,
    /// More processes than there is room for.
    #[error(
        "{count} processes are too many for one capture; choose with --backend-type, --database or --user"
    )]
    TooMany {
        /// How many.
        count: usize,
    },
}

/// The processes that are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// Those that are there, by pid.
    pub pids: Vec<u32>,
    /// Children of the postmasters that are not asked for, and the postmasters themselves likewise.
    pub left_out: Vec<u32>,
    /// The postmasters whose new children are asked for, if they fit.
    pub postmasters: Vec<u32>,
}

impl Scope {
    /// One process.
    pub fn of(pid: u32) -> Self {
        Self { pids: vec![pid], ..Self::default() }
    }

    /// The one process that is asked for, if it is one by its pid.
    pub fn only_one(&self) -> Option<u32> {
        let has_servers =
            !self.postmasters.is_empty() || !self.data_dirs.is_empty() || self.filter.session.is_some();
        match &self.pids[..] {
            [pid] if !has_servers => Some(*pid),
            _ => None,
        }
    }

    /// Looks for them.
    ///
    /// # Errors
    /// If there are none that could be meant.
    pub fn choose(&self) -> Result<Chosen, ScopeError> {
        self.choose_among(&find_servers())
    }

    fn choose_among(&self, servers: &[ServerProcess]) -> Result<Chosen, ScopeError> {
        let mut postmasters: BTreeSet<u32> = BTreeSet::new();
        for pid in &self.postmasters {
            postmasters.insert(postmaster(servers, *pid)?);
        }
        for path in &self.data_dirs {
            postmasters.insert(postmaster_of(servers, path)?);
        }
        if let Some(session) = self.filter.session.filter(|_| postmasters.is_empty() && self.pids.is_empty())
        {
            // Any segment of this host may get a process of it.
            let has_it = |server: &&ServerProcess| is_of_session(&server.parsed, session);
            let of = servers.iter().find(has_it).ok_or(ScopeError::NoSession { session })?;
            let same = servers.iter().filter(|server| server.is_postmaster && server.exe == of.exe);
            postmasters.extend(same.map(|server| server.pid));
        }
        let children = servers
            .iter()
            .filter(|server| server.postmaster.is_some_and(|parent| postmasters.contains(&parent)));
        let images = Images::default();
        let mut chosen = Chosen { postmasters: postmasters.iter().copied().collect(), ..Chosen::default() };
        let mut pids: BTreeSet<u32> = self.pids.iter().copied().collect();
        for child in children {
            let leader = leader_of(child, servers);
            if self.filter.allows(&child.parsed, &leader.parsed, || application_of(leader.pid, &images)) {
                pids.insert(child.pid);
            } else {
                chosen.left_out.push(child.pid);
            }
        }
        if self.with_postmaster {
            pids.extend(&postmasters);
        } else {
            // It has what its children inherit.
            chosen.left_out.extend(&postmasters);
        }
        chosen.left_out.retain(|pid| !pids.contains(pid));
        chosen.pids = pids.into_iter().collect();
        Ok(chosen)
    }
}

impl Filter {
    /// Whether anything is asked.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
            && self.databases.is_empty()
            && self.users.is_empty()
            && self.applications.is_empty()
            && self.session.is_none()
    }

    /// Whether a process is asked for. What a parallel worker is for is said of its `leader`, which for
    /// all others is the process itself.
    pub fn allows(
        &self,
        title: &Title,
        leader: &Title,
        application: impl FnOnce() -> Option<String>,
    ) -> bool {
        let is_one = |wanted: &[String], has: &Option<String>| {
            wanted.is_empty() || has.as_ref().is_some_and(|has| wanted.contains(has))
        };
        let is_kind = |kinds: &Kinds| kinds.0.contains(&title.kind.as_str());
        (self.kinds.is_empty() || self.kinds.iter().any(is_kind))
            && is_one(&self.databases, &leader.database)
            && is_one(&self.users, &leader.user)
            && self.session.is_none_or(|session| is_of_session(title, session))
            && (self.applications.is_empty() || is_one(&self.applications, &application()))
    }
}

/// `con123` among the words of the activity.
fn is_of_session(title: &Title, session: u64) -> bool {
    let has = |text: &str| {
        text.split_ascii_whitespace()
            .any(|word| word.strip_prefix("con").and_then(|n| n.parse().ok()) == Some(session))
    };
    has(&title.activity) || title.host.as_deref().is_some_and(has)
}

/// The process that a parallel worker works for; otherwise itself.
fn leader_of<'a>(server: &'a ServerProcess, servers: &'a [ServerProcess]) -> &'a ServerProcess {
    let pid = leader_pid(&server.parsed);
    pid.and_then(|pid| servers.iter().find(|other| other.pid == pid)).unwrap_or(server)
}

/// `parallel worker for PID 4711`.
pub(super) fn leader_pid(title: &Title) -> Option<u32> {
    title.activity.strip_prefix("for PID ")?.trim().parse().ok()
}

/// Its `application_name` as it is now.
fn application_of(pid: u32, images: &Images) -> Option<String> {
    let modules = LoadedModules::read_sharing(pid, images.clone()).ok()?;
    let main = modules.main()?;
    application_name(pid, &main.image, main.bias)
}

/// The same, of a process whose program is known.
pub(super) fn application_name(pid: u32, image: &Image, bias: Bias) -> Option<String> {
    /// `NAMEDATALEN`.
    const MOST_BYTES: usize = 64;
    let variable = exported_variable(image, "application_name")?.in_process(bias);
    let memory = ProcessMemory::new(pid);
    let at = memory.word(variable).ok().filter(|at| *at != 0)?;
    text(&memory, AbsAddr(at), MOST_BYTES).filter(|name| !name.is_empty())
}

fn postmaster(servers: &[ServerProcess], pid: u32) -> Result<u32, ScopeError> {
    let found = servers.iter().find(|server| server.pid == pid);
    match found {
        Some(server) if server.is_postmaster => Ok(pid),
        Some(ServerProcess { postmaster: Some(parent), parsed, .. }) => Err(ScopeError::NoPostmaster {
            pid,
            hint: format!("; it is a {} of postmaster {parent}", parsed.kind),
        }),
        _ => Err(ScopeError::NoPostmaster { pid, hint: "; `pgleak list` shows them".to_owned() }),
    }
}

/// A postmaster works in its data directory.
fn postmaster_of(servers: &[ServerProcess], path: &Path) -> Result<u32, ScopeError> {
    let identity = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino()));
    let wanted = identity(path).map_err(|source| ScopeError::DataDir { path: path.to_owned(), source })?;
    let works_there = |server: &&ServerProcess| {
        server.is_postmaster
            && identity(Path::new(&format!("/proc/{}/cwd", server.pid))).is_ok_and(|at| at == wanted)
    };
    let found = servers.iter().find(works_there);
    found.map(|server| server.pid).ok_or_else(|| ScopeError::NoServer { path: path.to_owned() })
}

/// Whether a title says already what its process is: one that was just forked has its postmaster's, and
/// then that of one that logs in.
pub(super) fn is_settled(title: &Title) -> bool {
    let begins = ["authentication", "initializing", "startup", "starting"];
    title.kind != POSTMASTER && !begins.contains(&title.activity.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::parse_title;

    fn kinds(text: &str) -> Vec<&'static str> {
        text.parse::<Kinds>().map(|kinds| kinds.0).unwrap_or_default()
    }

    #[test]
    fn kinds_are_named_as_people_do() {
        assert_eq!(kinds("client"), ["client backend"]);
        assert_eq!(kinds("Walsender"), ["wal sender", "walsender"]);
        assert_eq!(kinds("startup"), ["startup"]);
        assert_eq!(kinds("parallel"), ["logical replication parallel apply worker", "parallel worker"]);
        assert_eq!(kinds("parallel worker"), ["parallel worker"]);
        assert_eq!(kinds("autovacuum"), ["autovacuum launcher", "autovacuum worker"]);
        let error = "backend_of_mine".parse::<Kinds>().expect_err("no kind");
        assert!(error.contains("checkpointer"), "{error}");
        assert!("".parse::<Kinds>().is_err());
    }

    #[test]
    fn a_filter_asks_the_leader_of_a_parallel_worker() {
        let client = parse_title("postgres: ann sales [local] SELECT");
        let worker = parse_title("postgres: parallel worker for PID 77 ");
        assert_eq!(leader_pid(&worker), Some(77));
        let filter = Filter {
            kinds: vec!["client".parse().expect("a kind"), "parallel worker".parse().expect("a kind")],
            databases: vec!["sales".to_owned()],
            applications: vec!["psql".to_owned()],
            ..Filter::default()
        };
        let psql = || Some("psql".to_owned());
        assert!(filter.allows(&client, &client, psql));
        assert!(filter.allows(&worker, &client, psql));
        assert!(!filter.allows(&worker, &worker, psql), "its own title has no database");
        assert!(!filter.allows(&client, &client, || None));
        let other = parse_title("postgres: ann stock [local] idle");
        assert!(!filter.allows(&other, &other, psql));
        assert!(Filter::default().allows(&other, &other, || None));
    }

    #[test]
    fn sessions_of_greenplum_are_words_of_titles() {
        let title = parse_title(
            "postgres:  7000, gpadmin sales 10.0.0.1(41500) con1213 seg0 cmd5 slice1 MPPEXEC SELECT",
        );
        assert!(is_of_session(&title, 1213));
        assert!(!is_of_session(&title, 121));
        assert_eq!(session_number("con1213"), Ok(1213));
        assert_eq!(session_number("1213"), Ok(1213));
        assert!(session_number("seg0").is_err());
    }

    #[test]
    fn a_process_that_logs_in_is_not_known_yet() {
        for (title, settled) in [
            ("/usr/lib/postgresql/15/bin/postgres -D /data", false),
            ("postgres: ann sales [local] authentication", false),
            ("postgres: ann sales [local] idle", true),
            ("postgres: parallel worker for PID 77 ", true),
        ] {
            assert_eq!(is_settled(&parse_title(title)), settled, "{title}");
        }
    }
}
