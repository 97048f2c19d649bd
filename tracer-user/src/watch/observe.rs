//! One look at every server process of the host: memory of each, contexts of those that the budget is enough for.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt as _,
    time::{Duration, Instant},
};

use super::config::CensusConfig;
use crate::{
    census::{Limits, Observed},
    target::{Finder, Memory, ProcessId, ServerProcess, exe_link, read_in_root, server_process},
};

/// Contexts of so many names of a process are kept: those with most bytes.
pub(super) const MOST_LABELS: usize = 16;

/// A process that gained less than this since its contexts were read has hardly others.
const NOTABLE_BYTES: u64 = 64 << 10;

/// Contexts of a process that does not grow are read again after so long all the same.
const READ_AGAIN_AFTER: Duration = Duration::from_secs(300);

/// What is not used is no credit for later than this: a host that was idle for an hour must not be busy for the next
/// minute.
const MOST_CREDIT: Duration = Duration::from_millis(100);

/// A server whose contexts cannot be found is not tried again for so long.
const BLIND_FOR: Duration = Duration::from_secs(600);

/// What one look saw.
#[derive(Clone, Debug, Default)]
pub(super) struct Look {
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// The processes, by pid.
    pub processes: Vec<Seen>,
    /// Bytes of other processes' memory that were read.
    pub read_bytes: u64,
    /// Contexts that were not read, by reason.
    pub unread: Unread,
    /// Processes that could not be looked at: they may be servers' or not.
    pub unseen: u64,
}

/// Why contexts of a process are not in a look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Unread {
    /// They were read a while ago, and the process has hardly changed.
    pub unchanged: u64,
    /// The budget was used up.
    pub budget: u64,
    /// The server is not known, or not to be read.
    pub unknown: u64,
    /// The process had ended, or changed them all the time.
    pub failed: u64,
}

/// A process as it was seen.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// Which.
    pub id: ProcessId,
    /// What it is.
    pub process: ServerProcess,
    /// The server that it belongs to.
    pub server: String,
    /// Bytes of contexts by name, the largest first; `None` if they were not read this time.
    pub contexts: Option<Vec<ContextBytes>>,
}

impl Seen {
    /// Its memory.
    pub(super) fn memory(&self) -> Memory {
        self.process.memory
    }
}

/// Contexts of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ContextBytes {
    /// The name, with what they are for if the name does not tell.
    pub label: String,
    /// Bytes of their blocks.
    pub bytes: u64,
    /// How many they are.
    pub contexts: u64,
}

/// What looks, and what it remembers from look to look.
#[derive(Debug)]
pub(super) struct Observer {
    finder: Finder,
    known: HashMap<ProcessId, Known>,
    /// By postmaster: what its children have at the same addresses.
    families: HashMap<ProcessId, Family>,
    /// Nanoseconds of processor time that contexts may be read for; less than none after a large one.
    credit_ns: i128,
    share: f64,
    /// Data directories; all servers if there are none.
    servers: Vec<String>,
    last: Option<Instant>,
}

/// What is remembered of a process.
#[derive(Debug)]
struct Known {
    server: String,
    observed: Option<Observed>,
    /// When its contexts were read, and what it held then; before that, when it came, and nothing.
    read: (Instant, u64),
}

#[derive(Debug)]
enum Family {
    Observed(Box<Observed>),
    /// It cannot be read, as was found at that time.
    Blind(Instant),
}

impl Observer {
    /// Of all servers, and reading no contexts, until it is told.
    pub(super) fn new() -> Self {
        Self {
            finder: Finder::default(),
            known: HashMap::new(),
            families: HashMap::new(),
            credit_ns: MOST_CREDIT.as_nanos() as i128,
            share: 0.0,
            servers: Vec::new(),
            last: None,
        }
    }

    /// Says which servers are looked at, and the part of one core that reading contexts may take.
    pub(super) fn follow(&mut self, config: &CensusConfig) {
        self.share = config.contexts_share;
        if self.servers != config.servers {
            self.servers.clone_from(&config.servers);
        }
    }

    /// Looks at all processes.
    pub(super) fn look(&mut self) -> Look {
        let now = Instant::now();
        let mut look = Look { at_ms: jiff::Timestamp::now().as_millisecond(), ..Look::default() };
        let found = self.finder.find();
        look.unseen = self.finder.unseen();
        let alive: HashMap<u32, ProcessId> = found.iter().map(|server| (server.pid, server.id())).collect();
        self.known.retain(|id, _| alive.get(&id.pid) == Some(id));
        self.families.retain(|id, _| alive.get(&id.pid) == Some(id));
        for process in found.into_iter().map(harmless) {
            let id = process.id();
            let root = process.postmaster.and_then(|pid| alive.get(&pid)).copied().unwrap_or(id);
            let server = match self.known.get(&id) {
                Some(known) => known.server.clone(),
                None => {
                    let server = match self.known.get(&root) {
                        Some(root) => root.server.clone(),
                        None => server_name(root.pid, &process),
                    };
                    self.known.insert(id, Known { server: server.clone(), observed: None, read: (now, 0) });
                    server
                }
            };
            if self.servers.is_empty() || self.servers.contains(&server) {
                look.processes.push(Seen { id, process, server, contexts: None });
            }
        }
        self.read_contexts(&mut look, &alive, now);
        look
    }

    /// Reads contexts of those that changed most since they were read, as long as there is credit.
    fn read_contexts(&mut self, look: &mut Look, alive: &HashMap<u32, ProcessId>, now: Instant) {
        let since = self.last.replace(now).map_or(Duration::ZERO, |last| now.duration_since(last));
        let earned = since.mul_f64(self.share).as_nanos() as i128;
        self.credit_ns = (self.credit_ns + earned).min(MOST_CREDIT.as_nanos() as i128);
        let mut order: Vec<(u64, Duration, usize)> = Vec::new();
        for (index, seen) in look.processes.iter().enumerate() {
            let Some(known) = self.known.get(&seen.id) else { continue };
            let (at, held) = known.read;
            let (changed, age) = (seen.memory().own().abs_diff(held), now.duration_since(at));
            if changed < NOTABLE_BYTES && age < READ_AGAIN_AFTER {
                look.unread.unchanged += 1;
            } else {
                order.push((changed, age, index));
            }
        }
        // What was passed over for long goes before what changed: a busy few must not hide all others.
        order.sort_by_key(|(changed, age, _)| std::cmp::Reverse((*age >= READ_AGAIN_AFTER, *changed, *age)));
        for (_, _, index) in order {
            if self.credit_ns <= 0 {
                look.unread.budget += 1;
                continue;
            }
            let cpu = thread_time();
            let seen = &mut look.processes[index];
            match self.contexts_of(seen, alive, now) {
                Ok((contexts, bytes)) => {
                    look.read_bytes += bytes;
                    seen.contexts = Some(contexts);
                    if let Some(known) = self.known.get_mut(&seen.id) {
                        known.read = (now, seen.memory().own());
                    }
                }
                Err(Blindness::Unknown) => look.unread.unknown += 1,
                Err(Blindness::Failed) => look.unread.failed += 1,
            }
            self.credit_ns -= thread_time().saturating_sub(cpu).as_nanos() as i128;
        }
    }

    fn contexts_of(
        &mut self,
        seen: &Seen,
        alive: &HashMap<u32, ProcessId>,
        now: Instant,
    ) -> Result<(Vec<ContextBytes>, u64), Blindness> {
        let root = seen.process.postmaster.and_then(|pid| alive.get(&pid)).copied().unwrap_or(seen.id);
        let known = self.known.get_mut(&seen.id).ok_or(Blindness::Failed)?;
        if known.observed.is_none() {
            let is_blind = |at: &Instant| now.duration_since(*at) < BLIND_FOR;
            known.observed = match self.families.get(&root) {
                Some(Family::Blind(at)) if is_blind(at) => return Err(Blindness::Unknown),
                Some(Family::Observed(family)) => Some(family.sibling(seen.id)),
                _ => match Observed::of(seen.id.pid) {
                    Ok(observed) => {
                        self.families.insert(root, Family::Observed(Box::new(observed.sibling(root))));
                        Some(observed)
                    }
                    // A process that has just ended says nothing of its server.
                    Err(_) if !seen.id.is_same() => return Err(Blindness::Failed),
                    Err(error) => {
                        tracing::info!("contexts of {} are not read: {error}", seen.server);
                        self.families.insert(root, Family::Blind(now));
                        return Err(Blindness::Unknown);
                    }
                },
            };
        }
        let observed = known.observed.as_ref().ok_or(Blindness::Failed)?;
        let limits = Limits { usage: false, time: MOST_CREDIT, ..Limits::default() };
        let census = observed.census(limits).map_err(|_| Blindness::Failed)?;
        if census.troubles.torn + census.troubles.cut > 0 {
            // Half of it would look like memory that went.
            return Err(Blindness::Failed);
        }
        let mut sums: HashMap<String, (u64, u64)> = HashMap::new();
        for context in &census.contexts {
            let sum = sums.entry(plain(&context.label())).or_default();
            *sum = (sum.0 + context.total.unwrap_or(0), sum.1 + 1);
        }
        let mut contexts: Vec<ContextBytes> = sums
            .into_iter()
            .map(|(label, (bytes, contexts))| ContextBytes { label, bytes, contexts })
            .collect();
        contexts.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.label.cmp(&b.label)));
        contexts.truncate(MOST_LABELS);
        Ok((contexts, census.read_bytes))
    }
}

enum Blindness {
    /// The server's contexts cannot be found.
    Unknown,
    /// Not this time.
    Failed,
}

/// A server process as it is now, without its contexts; `None` if that pid has none.
pub(super) fn seen_now(pid: u32) -> Option<Seen> {
    let process = harmless(server_process(pid).ok().flatten()?);
    let server = server_name(process.postmaster.unwrap_or(pid), &process);
    Some(Seen { id: process.id(), process, server, contexts: None })
}

/// A name that stays the same when a server is started again: its data directory, and for one in another mount
/// namespace, the name of its host.
fn server_name(postmaster: u32, process: &ServerProcess) -> String {
    // A server changes into its data directory (ChangeToDataDir in src/backend/utils/init/miscinit.c).
    let directory = fs::read_link(format!("/proc/{postmaster}/cwd"));
    let directory = directory.map_or_else(
        |_| process.exe.as_deref().unwrap_or(&exe_link(postmaster)).display().to_string(),
        |path| path.display().to_string(),
    );
    match container_name(postmaster) {
        Some(host) => plain(&format!("{host}:{directory}")),
        None => plain(&directory),
    }
}

/// The name of the host that a process thinks it is on, if it has another root than the host's own: a container's.
fn container_name(pid: u32) -> Option<String> {
    let root =
        |pid: &str| fs::metadata(format!("/proc/{pid}/root/")).ok().map(|root| (root.dev(), root.ino()));
    // A service's own root may be one that its manager has made for it.
    if root(&pid.to_string())? == root("1")? {
        return None;
    }
    let name = read_in_root(pid, "etc/hostname", MOST_HOST_NAME)?;
    let name = name.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

/// A host name has no more (`HOST_NAME_MAX`).
const MOST_HOST_NAME: u64 = 64;

/// Names of others are cut at so many characters.
const MOST_NAME: usize = 128;

/// What a process says of itself, fit to be shown.
fn harmless(mut process: ServerProcess) -> ServerProcess {
    let title = &mut process.parsed;
    title.kind = plain(&title.kind);
    title.database = title.database.as_deref().map(plain);
    title.user = title.user.as_deref().map(plain);
    process
}

/// Text of another process, for pages and logs: without control characters, and not for ever.
fn plain(text: &str) -> String {
    text.chars().take(MOST_NAME).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Processor time of this thread.
fn thread_time() -> Duration {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Processor time of this process, its children aside.
pub(super) fn process_time() -> Duration {
    clock(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn clock(which: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes one timespec, which is there.
    let result = unsafe { libc::clock_gettime(which, &raw mut time) };
    if result != 0 {
        return Duration::ZERO;
    }
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_is_made_harmless() {
        assert_eq!(plain("/data\u{1b}[31m/15"), "/data?[31m/15");
    }

    #[test]
    fn clocks_go_forward() {
        let before = process_time();
        let mut sum = 0_u64;
        while process_time() == before {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(thread_time() > Duration::ZERO);
    }
}
