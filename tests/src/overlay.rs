//! This machine over again: an overlay over its root directory, in a namespace of mounts. What is installed there goes with it,
//! and the processes are those of the machine.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use xtask::process::output;

/// Makes it in the empty directory `$1`, with `$2` at `/mnt`. It ends with its standard input. Nothing of `/run` is there, so
/// that no service of the machine can be reached.
const INIT: &str = r#"
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
cd "$1/root"
for name in proc sys dev; do
    mount --rbind "/$name" "$name"
done
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount --bind "$2" mnt
echo ready
read -r _ || true
"#;

/// The overlay. Dropping it takes all that was written there away.
#[derive(Debug)]
pub struct Overlay {
    child: Child,
    shared: TempDir,
    _place: TempDir,
}

impl Overlay {
    /// Makes one.
    ///
    /// # Errors
    /// If this is not root, or the kernel has no overlays.
    pub fn new() -> Result<Self> {
        let directory = || tempfile::Builder::new().prefix("pgleak-overlay-").tempdir();
        let (shared, place) = (directory()?, directory()?);
        let mut child = Command::new("unshare")
            .args(["--mount", "sh", "-c", INIT, "sh"])
            .args([place.path(), shared.path()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start unshare")?;
        let stdout = child.stdout.take().context("it was started with a pipe")?;
        let overlay = Self { child, shared, _place: place };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        if line.trim_end() != "ready" {
            bail!("no overlay over the root directory: standard error says why");
        }
        Ok(overlay)
    }

    /// What is `/mnt` there.
    pub fn shared(&self) -> &Path {
        self.shared.path()
    }

    /// Where this machine finds a path of there.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/cwd", self.child.id())).join(path.trim_start_matches('/'))
    }

    /// A program that runs there.
    pub fn command<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.child.id().to_string(), "--mount", "--root=.", "--wd=."])
            .args(words)
            .current_dir(self.path("/"))
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null());
        command
    }

    /// What a program prints there.
    ///
    /// # Errors
    /// If it fails, with what it said.
    pub fn output<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Result<String> {
        output(&mut self.command(words))
    }

    /// Installs a package, with its manual pages even where the machine wants none.
    ///
    /// # Errors
    /// If dpkg does.
    pub fn install(&self, package: &Path) -> Result<String> {
        let name = package.file_name().and_then(|name| name.to_str()).context("a package has a name")?;
        std::fs::copy(package, self.shared().join(name))?;
        self.output(["dpkg", "--path-include=/usr/share/*", "--install", &format!("/mnt/{name}")])
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        // The end of its input ends the process that the namespace lives with.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
