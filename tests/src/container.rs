//! A server of another Debian in a container: its own root directory, mounts and pids.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use xtask::{debian, postgres::OsUser, workspace};

use crate::pgleak::{Finished, Running, binary};

/// What runs as the first process of the container, in the root directory: `$1` is what host and container
/// share, `$2` and `$3` the user and group of the server, `$4` its programs. It ends with its standard input.
const INIT: &str = r#"
set -e
mount --make-rprivate /
mkdir -p proc sys dev run tmp mnt etc
mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount --bind "$1" mnt
grep -q "^postgres:" etc/passwd 2>/dev/null || echo "postgres:x:$2:$3::/mnt:/bin/sh" >> etc/passwd
chroot . /usr/sbin/ldconfig
[ -e bin/sh ] || ln -s dash bin/sh
export LC_ALL=C
chroot --userspec="$2:$3" . "$4/initdb" -D /mnt/data -U postgres -A trust --no-sync > mnt/initdb.log 2>&1
chroot --userspec="$2:$3" . "$4/postgres" -D /mnt/data -c listen_addresses= -c unix_socket_directories=/mnt \
    -c autovacuum=off -c fsync=off -c jit=off > mnt/server.log 2>&1 &
tries=0
until [ -S mnt/.s.PGSQL.5432 ]; do
    tries=$((tries + 1))
    [ $tries -lt 600 ] || exit 1
    sleep 0.1
done
echo ready
# Until whoever started this is gone.
read -r _ || true
"#;

/// A server in a container. Dropping it ends all processes in there.
#[derive(Debug)]
pub struct Container {
    child: Child,
    /// Host's view of `/mnt`.
    shared: TempDir,
    /// The first process, as the host numbers it.
    init: u32,
    /// What the server is.
    pub name: String,
}

impl Container {
    /// Unpacks the PostgreSQL of Debian suites, if that was not done yet, and starts it.
    ///
    /// # Errors
    /// If the archive cannot be reached, or the server does not start.
    pub fn start(suites: &[&str], major: u32) -> Result<Self> {
        let package = format!("postgresql-{major}");
        // Of what is in two suites, apt takes that which is no trial, and the server wants its own.
        let packages = [&package, "libpq5=", "libc-bin", "dash"];
        let root = debian::unpacked(suites, &packages, &workspace::target().join("debian"))?;
        let user = OsUser::for_servers()?;
        let shared = tempfile::Builder::new().prefix("pgleak-container-").tempdir()?;
        fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o755))?;
        user.owns(shared.path())?;
        fs::copy(binary()?, shared.path().join("pgleak"))?;
        let mut child = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", INIT, "sh"])
            .arg(shared.path())
            .args([user.uid.to_string(), user.gid.to_string()])
            .arg(format!("/usr/lib/postgresql/{major}/bin"))
            .current_dir(root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start unshare")?;
        let stdout = child.stdout.take().context("it was started with a pipe")?;
        let mut container = Self { child, shared, init: 0, name: format!("{} {major}", suites.concat()) };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        if line.trim_end() != "ready" {
            let log = |name: &str| fs::read_to_string(container.shared.path().join(name)).unwrap_or_default();
            bail!("{} did not start:\n{}{}", container.name, log("initdb.log"), log("server.log"));
        }
        container.init = first_child(container.child.id())?;
        Ok(container)
    }

    /// Where its socket is, for the host.
    pub fn socket_dir(&self) -> &Path {
        self.shared.path()
    }

    /// Its postmaster, as the container numbers it.
    ///
    /// # Errors
    /// If it has ended.
    pub fn postmaster(&self) -> Result<u32> {
        let text = fs::read_to_string(self.shared.path().join("data/postmaster.pid"))?;
        text.lines().next().and_then(|pid| pid.parse().ok()).context("no pid in postmaster.pid")
    }

    /// The process that the container numbers so, as the host does.
    ///
    /// # Errors
    /// If there is none.
    pub fn on_host(&self, pid: u32) -> Result<u32> {
        let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid"));
        let own = namespace(self.init)?;
        let pids =
            fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let is_it = |host: &u32| {
            let status = fs::read_to_string(format!("/proc/{host}/status")).unwrap_or_default();
            let mut numbers =
                status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or("").split_whitespace();
            numbers.next_back() == Some(&pid.to_string()) && namespace(*host).is_ok_and(|at| at == own)
        };
        pids.into_iter().find(is_it).with_context(|| format!("{} has no process {pid}", self.name))
    }

    /// Runs pgleak inside. Its artifacts go to a directory of that name below `/mnt`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn pgleak(&self, arguments: &[&str]) -> Result<Running> {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.init.to_string(), "--mount", "--pid", "--root=."])
            .current_dir(format!("/proc/{}/cwd", self.init))
            .arg("--wd=.")
            .args(["/mnt/pgleak"])
            .args(arguments)
            .stdin(Stdio::null());
        Running::spawn(&mut command)
    }

    /// What pgleak has written inside.
    ///
    /// # Errors
    /// If it has not.
    pub fn artifact(&self, finished: &Finished, path: &str) -> Result<PathBuf> {
        let path = self.shared.path().join(path);
        if !path.exists() {
            bail!("{} is not there: {}", path.display(), finished.stderr);
        }
        Ok(path)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // The end of its input ends the first process, and with it all others.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn first_child(pid: u32) -> Result<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    children.split_whitespace().next().and_then(|pid| pid.parse().ok()).context("unshare has no child")
}
