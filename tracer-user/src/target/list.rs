//! The server processes of this host, and how fast each one grows.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use object::{Object as _, ObjectSymbol as _};
use serde::Serialize;

use super::{
    process::{self, Binary, Memory, ProcessError, ProcessId, exe_link},
    resident::ResidentMemory,
    title::{POSTMASTER, Title, parse_title},
};
use crate::elf::Image;

/// Names that a server binary has.
const BINARY_NAMES: &[&str] = &["postgres", "postmaster", "edb-postgres"];

/// What every server binary exports from 9.4 to 18, Greenplum included, and nothing else does:
/// extensions need it.
const MARKER: &str = "TopMemoryContext";

/// Bytes that a process grew by in a second; negative when it shrank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Growth {
    /// Anonymous memory.
    pub rss_anon_per_s: i64,
    /// Touched shared memory.
    pub rss_shmem_per_s: i64,
}

/// A process of a PostgreSQL or Greenplum server.
#[derive(Clone, Debug, Serialize)]
pub struct ServerProcess {
    /// Its pid.
    pub pid: u32,
    /// Its title, or its command line.
    pub title: String,
    /// The title, taken apart: kind, database, user …
    #[serde(flatten)]
    pub parsed: Title,
    /// Resident memory.
    pub memory: Memory,
    /// The binary; `None` without the privilege to see it.
    pub exe: Option<PathBuf>,
    /// Whether it is the first process of its server.
    pub is_postmaster: bool,
    /// The first process of its server, for all others.
    pub postmaster: Option<u32>,
    /// How fast it grows; `None` until [`measure_growth`] has seen it twice.
    pub growth: Option<Growth>,
    #[serde(skip)]
    start_ticks: u64,
    #[serde(skip)]
    sampled: Instant,
}

impl ServerProcess {
    /// What it cannot be mistaken by.
    pub fn id(&self) -> ProcessId {
        ProcessId { pid: self.pid, start_ticks: self.start_ticks }
    }
}

/// Finds the server processes of this host, in containers too, by pid. A process that ends
/// meanwhile is left out. Empty if `/proc` cannot be read.
pub fn find_servers() -> Vec<ServerProcess> {
    Finder::default().find()
}

/// A pid that had no server process is not looked at again for so long.
const NO_SERVER_FOR: Duration = Duration::from_secs(30);

/// A title is read again after so long: what a process is stays the same once it has said it.
const TITLE_FOR: Duration = Duration::from_secs(10);

/// Finds the server processes again and again, without doing again what does not change.
#[derive(Debug, Default)]
pub struct Finder {
    /// Which binaries are those of a server, by device and inode.
    marked: HashMap<(u64, u64), bool>,
    /// Pids that had something else, and since when that is known.
    others: HashMap<u32, Instant>,
    /// Server processes, and their parents.
    known: BTreeMap<u32, Known>,
    /// Processes that could not be looked at the last time, though they were there.
    unseen: u64,
}

#[derive(Debug)]
struct Known {
    server: ServerProcess,
    parent: u32,
    memory: ResidentMemory,
    titled: Instant,
}

impl Known {
    /// What it is now; `None` once it has ended.
    fn again(&mut self, now: Instant) -> Option<(ServerProcess, u32)> {
        self.server.memory = self.memory.read()?;
        self.server.sampled = now;
        let has_said = self.server.parsed.kind != POSTMASTER || self.server.is_postmaster;
        if !has_said || now.duration_since(self.titled) >= TITLE_FOR {
            self.titled = now;
            self.server.title = process::command_line(self.server.pid).ok()?;
            self.server.parsed = parse_title(&self.server.title);
        }
        Some((self.server.clone(), self.parent))
    }
}

impl Finder {
    /// The server processes of this host as they are now, as [`find_servers`] gives them. One with the pid of another
    /// process that has just ended, or that was another program a moment ago, may be found half a minute late; a new
    /// title is seen ten seconds late.
    pub fn find(&mut self) -> Vec<ServerProcess> {
        let now = Instant::now();
        self.others.retain(|_, since| now.duration_since(*since) < NO_SERVER_FOR);
        // A few binaries; upgrades in containers make new ones.
        if self.marked.len() > MOST_BINARIES {
            self.marked.clear();
        }
        let mut servers: Vec<(ServerProcess, u32)> = Vec::with_capacity(self.known.len());
        self.known.retain(|_, known| match known.again(now) {
            Some(server) => {
                servers.push(server);
                true
            }
            None => false,
        });
        let pids = match fs::read_dir("/proc") {
            Ok(entries) => entries
                .flatten()
                .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
                .collect(),
            Err(_) => Vec::new(),
        };
        self.unseen = u64::from(pids.is_empty());
        let most_open = most_kept_open();
        for pid in pids {
            if self.known.contains_key(&pid) || self.others.contains_key(&pid) {
                continue;
            }
            // Opened first: what is found out then is of this very process, or it has ended.
            let memory = ResidentMemory::open(pid);
            match look_at(pid, &mut self.marked) {
                Ok(Some((server, parent))) => {
                    // One more than may be kept open is found anew each time.
                    if self.known.len() < most_open
                        && let Ok(memory) = memory
                        && memory.read().is_some()
                    {
                        let known = Known { server: server.clone(), parent, memory, titled: now };
                        self.known.insert(pid, known);
                    }
                    servers.push((server, parent));
                }
                Ok(None) => drop(self.others.insert(pid, now)),
                // It has ended meanwhile.
                Err(ProcessError::NoSuchProcess { .. } | ProcessError::Ended { .. }) => {}
                Err(_) => self.unseen += 1,
            }
        }
        servers.sort_by_key(|(server, _)| server.pid);
        let related = relate(servers);
        for server in related.iter().filter(|server| server.is_postmaster) {
            if let Some(known) = self.known.get_mut(&server.pid) {
                known.server.is_postmaster = true;
            }
        }
        related
    }
}

impl Finder {
    /// Processes that could not be looked at the last time, though they were there.
    pub fn unseen(&self) -> u64 {
        self.unseen
    }
}

/// So many files are kept open: a half of what this process may have.
fn most_kept_open() -> usize {
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    most.map_or(usize::MAX, |most| (most / 2) as usize)
}

/// Binaries that are remembered.
const MOST_BINARIES: usize = 1000;

/// The server process with that pid; `None` if the process is something else.
///
/// # Errors
/// If there is no such process.
pub fn server_process(pid: u32) -> Result<Option<ServerProcess>, ProcessError> {
    let mut marked = HashMap::new();
    let Some((server, parent)) = look_at(pid, &mut marked)? else { return Ok(None) };
    let parent = look_at(parent, &mut marked).ok().flatten();
    let related = relate(parent.into_iter().chain([(server, parent_of(pid))]).collect());
    Ok(related.into_iter().find(|server| server.pid == pid))
}

fn parent_of(pid: u32) -> u32 {
    process::stat(pid).map_or(0, |stat| stat.parent)
}

/// Tells postmasters from their children: a child has a parent among the servers.
fn relate(found: Vec<(ServerProcess, u32)>) -> Vec<ServerProcess> {
    let titled = |server: &ServerProcess| server.parsed.kind != POSTMASTER;
    let roots: HashMap<u32, bool> = found.iter().map(|(server, _)| (server.pid, titled(server))).collect();
    let mut servers = Vec::with_capacity(found.len());
    for (mut server, parent) in found {
        server.postmaster = roots.contains_key(&parent).then_some(parent);
        server.is_postmaster = server.postmaster.is_none() && !titled(&server);
        if server.postmaster.is_some() && !titled(&server) {
            // Just forked: it has not written its title yet.
            server.parsed.kind = "starting".to_owned();
        }
        servers.push(server);
    }
    servers
}

/// Looks whether a process is a server's. Gives it with its parent.
fn look_at(
    pid: u32,
    marked: &mut HashMap<(u64, u64), bool>,
) -> Result<Option<(ServerProcess, u32)>, ProcessError> {
    let stat = process::stat(pid)?;
    if stat.has_ended() || stat.is_kernel_thread() {
        return Ok(None);
    }
    let title = process::command_line(pid)?;
    let exe = match Binary::of(pid) {
        Ok(binary) => {
            let titled = title.starts_with("postgres:");
            if !(titled || has_server_name(&binary.path)) {
                return Ok(None);
            }
            let is_server = match marked.get(&binary.identity) {
                Some(known) => *known,
                // One that cannot be read now may be read the next time.
                None => {
                    let found = is_server_binary(pid, &binary.path).map_err(|source| {
                        let path = exe_link(pid);
                        // What cannot be read because it is gone is another matter.
                        match process::stat(pid) {
                            Ok(stat) if !stat.has_ended() => ProcessError::Read { path, source },
                            _ => ProcessError::NoSuchProcess { pid },
                        }
                    })?;
                    marked.insert(binary.identity, found);
                    found
                }
            };
            if !is_server {
                return Ok(None);
            }
            Some(binary.path)
        }
        // Another user's process: its title has to do.
        Err(ProcessError::NotPermitted { .. }) => {
            let program = title.split(' ').next().unwrap_or_default();
            if !(program == "postgres:" || has_server_name(Path::new(program))) {
                return Ok(None);
            }
            None
        }
        Err(error) => return Err(error),
    };
    let Some(memory) = process::status(pid)?.memory else { return Ok(None) };
    let server = ServerProcess {
        pid,
        parsed: parse_title(&title),
        title,
        memory,
        exe,
        is_postmaster: false,
        postmaster: None,
        growth: None,
        start_ticks: stat.start_ticks,
        sampled: Instant::now(),
    };
    Ok(Some((server, stat.parent)))
}

fn has_server_name(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| BINARY_NAMES.contains(&name))
}

/// A server exports some ten thousand names. A file that says to have many more is not read to its end.
const MOST_SYMBOLS: usize = 1 << 20;

/// Whether a binary exports what only a server exports.
fn is_server_binary(pid: u32, path: &Path) -> io::Result<bool> {
    let image = Image::open(&exe_link(pid), path).map_err(io::Error::other)?;
    let Ok(elf) = image.elf() else { return Ok(false) };
    let mut symbols = elf.dynamic_symbols().take(MOST_SYMBOLS);
    Ok(symbols.any(|symbol| symbol.is_definition() && symbol.name() == Ok(MARKER)))
}

/// Waits for `interval` and fills in how fast each process grew. Processes that have ended
/// meanwhile are taken out.
pub fn measure_growth(servers: &mut Vec<ServerProcess>, interval: Duration) {
    thread::sleep(interval);
    servers.retain_mut(|server| {
        let is_same = process::stat(server.pid)
            .is_ok_and(|stat| stat.start_ticks == server.start_ticks && !stat.has_ended());
        let memory = process::status(server.pid).ok().and_then(|status| status.memory);
        let Some(memory) = memory.filter(|_| is_same) else { return false };
        let now = Instant::now();
        server.growth = growth(server.memory, memory, now.duration_since(server.sampled));
        server.memory = memory;
        server.sampled = now;
        true
    });
}

/// What became of memory in some time, by the second; `None` for no time at all.
fn growth(before: Memory, after: Memory, elapsed: Duration) -> Option<Growth> {
    let nanoseconds = i128::try_from(elapsed.as_nanos()).ok().filter(|ns| *ns > 0)?;
    let rate = |before: u64, after: u64| {
        let per_s = (i128::from(after) - i128::from(before)) * 1_000_000_000 / nanoseconds;
        i64::try_from(per_s).unwrap_or(if per_s < 0 { i64::MIN } else { i64::MAX })
    };
    Some(Growth {
        rss_anon_per_s: rate(before.rss_anon, after.rss_anon),
        rss_shmem_per_s: rate(before.rss_shmem, after.rss_shmem),
    })
}

/// Puts what grows most first, by anonymous memory; among equals, what is largest.
pub fn sort_by_growth(servers: &mut [ServerProcess]) {
    servers.sort_by_key(|server| {
        let growth = server.growth.unwrap_or_default();
        std::cmp::Reverse((growth.rss_anon_per_s, server.memory.rss_anon, std::cmp::Reverse(server.pid)))
    });
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A process with that title and memory.
    pub(crate) fn server(pid: u32, title: &str, memory: Memory, growth: Option<Growth>) -> ServerProcess {
        ServerProcess {
            pid,
            title: title.to_owned(),
            parsed: parse_title(title),
            memory,
            exe: Some("/usr/lib/postgresql/15/bin/postgres".into()),
            is_postmaster: false,
            postmaster: None,
            growth,
            start_ticks: 0,
            sampled: Instant::now(),
        }
    }

    #[test]
    fn children_are_told_from_postmasters() {
        let at = |pid, title| server(pid, title, Memory::default(), None);
        let related = relate(vec![
            (at(10, "/usr/lib/postgresql/15/bin/postgres -D /data"), 1),
            (at(11, "postgres: checkpointer "), 10),
            (at(12, "/usr/lib/postgresql/15/bin/postgres -D /data"), 10),
            (at(13, "postgres: a b [local] idle"), 1),
        ]);
        let seen: Vec<_> = related
            .iter()
            .map(|server| (server.parsed.kind.as_str(), server.is_postmaster, server.postmaster))
            .collect();
        assert_eq!(
            seen,
            [
                ("postmaster", true, None),
                ("checkpointer", false, Some(10)),
                ("starting", false, Some(10)),
                ("client backend", false, None),
            ]
        );
    }

    #[test]
    fn growth_is_by_the_second_and_may_be_negative() {
        let before = Memory { rss_anon: 1000, rss_shmem: 5000, ..Memory::default() };
        let after = Memory { rss_anon: 4000, rss_shmem: 4000, rss_file: 9, swap: 0 };
        assert_eq!(
            growth(before, after, Duration::from_millis(500)),
            Some(Growth { rss_anon_per_s: 6000, rss_shmem_per_s: -2000 })
        );
        assert_eq!(growth(before, after, Duration::ZERO), None);
    }

    #[test]
    fn the_fastest_then_the_largest_come_first() {
        let grows = |rss_anon_per_s| Some(Growth { rss_anon_per_s, rss_shmem_per_s: 0 });
        let anon = |rss_anon| Memory { rss_anon, ..Memory::default() };
        let mut servers = vec![
            server(1, "postgres: logger ", anon(10), grows(0)),
            server(2, "postgres: walwriter ", anon(20), grows(0)),
            server(3, "postgres: a b [local] idle", anon(5), grows(7)),
            server(4, "postgres: a b [local] idle", anon(99), grows(-7)),
        ];
        sort_by_growth(&mut servers);
        assert_eq!(servers.iter().map(|server| server.pid).collect::<Vec<_>>(), [3, 2, 1, 4]);
    }

    #[test]
    fn this_test_is_no_server() {
        assert!(matches!(server_process(std::process::id()), Ok(None)));
        assert!(!find_servers().iter().any(|server| server.pid == std::process::id()));
    }
}
