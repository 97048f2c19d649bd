//! A throw-away server: own directory, Unix socket only, gone with whoever started it.
//!
//! The server is the child of a small shell script, the supervisor, which waits on a pipe whose
//! other end only this process holds. However this process ends, `kill -9` included, the pipe
//! closes, and the supervisor stops the server and removes the directory. (PR_SET_PDEATHSIG would
//! not do: it fires when the *thread* that started the child ends.)

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::ready::accepts_connections;
use super::{Build, OsUser};
use crate::process::is_running;

/// Part of the socket's name; each server has a directory of its own, so that one number does.
const PORT: u16 = 5432;
/// `sockaddr_un` holds 108 bytes, of which the socket's own name and its lock file take 21.
const LONGEST_SOCKET_DIR: usize = 80;
/// A first start on a loaded machine, recovery excluded.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// An immediate stop takes milliseconds; after ten seconds the supervisor kills.
const STOP_DEADLINE: Duration = Duration::from_secs(20);
/// How often a starting server is asked again.
const POLL: Duration = Duration::from_millis(10);

/// `$1` bin directory, `$2` own directory; `$3` the directory of the server's socket whose standby it
/// becomes, `$4` where pg_basebackup is, or both empty. Says `started PID` or `failed`, then waits for the end of
/// its input. No signal of the terminal reaches it, since it has its own process group.
const SUPERVISOR: &str = r#"
server=
create() {
    if [ -n "$3" ]; then
        "$4/pg_basebackup" -h "$3" -p 5432 -U postgres -D "$2/data" --write-recovery-conf --checkpoint=fast --no-sync
    else
        "$1/initdb" -D "$2/data" -U postgres -A trust --no-sync --locale=C --encoding=UTF8
    fi
}
if create "$@" >"$2/server.log" 2>&1 </dev/null && cat "$2/extra.conf" >>"$2/data/postgresql.conf"
then
    "$1/postgres" -D "$2/data" >>"$2/server.log" 2>&1 </dev/null &
    server=$!
    echo "started $server"
else
    echo failed
fi
exec >&-
while read -r _; do :; done
if [ -n "$server" ]; then
    tries=0
    while [ $tries -lt 100 ]; do
        case "$(cut -d ' ' -f 3 "/proc/$server/stat" 2>/dev/null)" in '' | Z) break ;; esac
        [ $((tries % 20)) -ne 0 ] || kill -QUIT "$server" 2>/dev/null
        sleep 0.1
        tries=$((tries + 1))
    done
    kill -KILL "$server" 2>/dev/null
    wait "$server"
fi
rm -rf "$2"
"#;

/// Allocators that servers are run with in the place of the C library's: the file, and its package.
pub const ALLOCATORS: [(&str, &str); 2] = [
    ("/usr/lib/x86_64-linux-gnu/libjemalloc.so.2", "libjemalloc2"),
    ("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4", "libtcmalloc-minimal4"),
];

/// How a server is set up.
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    settings: BTreeMap<String, String>,
    /// The socket directory of the primary.
    primary: Option<PathBuf>,
    /// A library that is loaded before all others.
    preload: Option<PathBuf>,
}

impl ServerOptions {
    /// Adds a line `name = 'value'` to `postgresql.conf`, or replaces one of ours.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Makes it a standby of another server, which must live longer.
    #[must_use]
    pub fn standby_of(mut self, primary: &Server) -> Self {
        self.primary = Some(primary.socket_dir().to_owned());
        self
    }

    /// Loads a library before all others (`LD_PRELOAD`), so that its functions stand in for theirs.
    #[must_use]
    pub fn preload(mut self, library: &Path) -> Self {
        self.preload = Some(library.to_owned());
        self
    }

    fn conf(&self, socket_dir: &Path) -> String {
        let socket_dir = socket_dir.display().to_string();
        let mut settings: BTreeMap<&str, &str> = BTreeMap::from([
            ("listen_addresses", ""),
            ("unix_socket_directories", socket_dir.as_str()),
            ("fsync", "off"),
            ("jit", "off"),
            ("shared_buffers", "32MB"),
            ("max_wal_size", "256MB"),
            ("log_line_prefix", "%m [%p] "),
            ("log_checkpoints", "off"),
            // Its background work would be noise in what tests measure.
            ("autovacuum", "off"),
        ]);
        settings.extend(self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        settings.iter().map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''"))).collect()
    }
}

/// A running server. Dropping it stops it and removes its directory.
#[derive(Debug)]
pub struct Server {
    build: Build,
    user: OsUser,
    dir: PathBuf,
    postmaster: u32,
    supervisor: Child,
}

impl Server {
    /// Creates a cluster and starts its server; returns once it takes connections.
    pub fn start(build: &Build, options: &ServerOptions) -> Result<Self> {
        let user = OsUser::for_servers()?;
        let dir = new_directory(&user)?;
        let mut supervisor = match supervise(build, &user, &dir, options) {
            Ok(child) => child,
            Err(error) => {
                let _ = fs::remove_dir_all(&dir);
                return Err(error);
            }
        };
        let stdout = supervisor.stdout.take().expect("the supervisor was started with a pipe");
        // From here on, dropping `server` closes the pipe and so cleans up.
        let mut server = Self { build: build.clone(), user, dir, postmaster: 0, supervisor };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).context("cannot hear the supervisor")?;
        match line.trim_end().strip_prefix("started ").map(str::parse) {
            Some(Ok(pid)) => server.postmaster = pid,
            _ => bail!("making the cluster of {} failed:\n{}", build.name, server.log_tail()),
        }
        server.wait_until_ready()?;
        Ok(server)
    }

    /// The build that runs.
    pub fn build(&self) -> &Build {
        &self.build
    }

    /// Pid of the postmaster.
    pub fn postmaster_pid(&self) -> u32 {
        self.postmaster
    }

    /// Directory of this server, its owner's; holds `data`, `server.log` and the socket.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The user that the server runs as.
    pub fn user(&self) -> &OsUser {
        &self.user
    }

    /// Its data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Where its socket is: `host` of a connection.
    pub fn socket_dir(&self) -> &Path {
        &self.dir
    }

    /// `port` of a connection.
    pub fn port(&self) -> u16 {
        PORT
    }

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        fs::read(self.dir.join("server.log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// A client program (`psql`, `pgbench`, …) with the environment that leads it to this server.
    pub fn client(&self, program: &str) -> Command {
        let mut command = Command::new(self.build.client_bin.join(program));
        without_libpq_environment(&mut command)
            .env("PGHOST", self.socket_dir())
            .env("PGPORT", PORT.to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres");
        command
    }

    fn wait_until_ready(&self) -> Result<()> {
        let socket = self.dir.join(format!(".s.PGSQL.{PORT}"));
        let deadline = Instant::now() + START_DEADLINE;
        while !accepts_connections(&socket) {
            if !is_running(self.postmaster) {
                bail!("server {} ended while starting:\n{}", self.build.name, self.log_tail());
            }
            if Instant::now() > deadline {
                bail!(
                    "server {} takes no connections after {START_DEADLINE:?}:\n{}",
                    self.build.name,
                    self.log_tail()
                );
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// A failing test keeps the log; everything else of the server goes.
    fn keep_log(&self) {
        let kept = env::temp_dir().join(format!("pgleak-{}-{}.log", self.build.name, self.postmaster));
        match fs::copy(self.dir.join("server.log"), &kept) {
            Ok(_) => eprintln!("log of server {}: {}", self.build.name, kept.display()),
            Err(error) => eprintln!("log of server {} is lost: {error}", self.build.name),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if thread::panicking() {
            self.keep_log();
        }
        drop(self.supervisor.stdin.take());
        let deadline = Instant::now() + STOP_DEADLINE;
        while matches!(self.supervisor.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                eprintln!(
                    "server {} does not stop; its directory is {}",
                    self.build.name,
                    self.dir.display()
                );
                return;
            }
            thread::sleep(POLL);
        }
    }
}

/// A directory that only the servers' user sees, with a path short enough for a socket.
fn new_directory(user: &OsUser) -> Result<PathBuf> {
    let temporary = env::temp_dir();
    let parent = if temporary.as_os_str().len() <= LONGEST_SOCKET_DIR - 12 && user.may_reach(&temporary) {
        temporary
    } else {
        PathBuf::from("/tmp")
    };
    let dir = tempfile::Builder::new()
        .prefix("pgl-")
        .tempdir_in(&parent)
        .with_context(|| format!("cannot make a directory in {}", parent.display()))?;
    user.owns(dir.path())
        .with_context(|| format!("cannot give {} to {}", dir.path().display(), user.name))?;
    Ok(dir.keep())
}

fn supervise(build: &Build, user: &OsUser, dir: &Path, options: &ServerOptions) -> Result<Child> {
    let conf = dir.join("extra.conf");
    fs::write(&conf, options.conf(dir)).with_context(|| format!("cannot write {}", conf.display()))?;
    user.owns(&conf)?;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", SUPERVISOR, "pgleak-supervisor"]).arg(&build.bin).arg(dir);
    if let Some(primary) = &options.primary {
        command.arg(primary).arg(&build.client_bin);
    }
    if let Some(library) = &options.preload {
        command.env("LD_PRELOAD", library);
    }
    without_libpq_environment(&mut command)
        .env("LC_ALL", "C")
        .env_remove("LD_LIBRARY_PATH")
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    user.runs(&mut command).spawn().context("cannot start the supervisor of a server")
}

/// Settings of the caller's own database must not lead us there.
fn without_libpq_environment(command: &mut Command) -> &mut Command {
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("PG")) {
            command.env_remove(&name);
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_replaces_a_default_and_is_quoted() {
        let conf = ServerOptions::default().set("jit", "on").set("x.y", "it's").conf(Path::new("/tmp/d"));
        assert!(conf.contains("jit = 'on'\n") && !conf.contains("jit = 'off'"), "{conf}");
        assert!(conf.contains("x.y = 'it''s'\n"), "{conf}");
        assert!(conf.contains("unix_socket_directories = '/tmp/d'\n"), "{conf}");
    }
}
