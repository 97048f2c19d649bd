//! A directory tree whose modes and times do not depend on who makes it, and when.

use std::{
    fs::{self, File, Permissions},
    io::{Seek as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::process::output;

/// Files below a temporary directory.
#[derive(Debug)]
pub(super) struct Tree {
    root: TempDir,
}

impl Tree {
    pub(super) fn new() -> Result<Self> {
        let root = tempfile::Builder::new().prefix("pgleak-package-").tempdir()?;
        set_mode(root.path(), 0o755)?;
        Ok(Self { root })
    }

    pub(super) fn root(&self) -> &Path {
        self.root.path()
    }

    /// A file, with the directories above it.
    pub(super) fn add(&self, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        let mut directory = self.root().to_owned();
        let parents = Path::new(path).parent().into_iter().flat_map(Path::components);
        for part in parents {
            directory.push(part);
            if !directory.exists() {
                fs::create_dir(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
                set_mode(&directory, 0o755)?;
            }
        }
        let file = self.root().join(path);
        fs::write(&file, bytes).with_context(|| format!("cannot write {}", file.display()))?;
        set_mode(&file, mode)
    }

    /// A file for reading, compressed as Debian wants it, under its name and `.gz`.
    pub(super) fn add_compressed(&self, path: &str, bytes: &[u8]) -> Result<()> {
        self.add(&format!("{path}.gz"), 0o644, &gzip(bytes)?)
    }

    /// The paths of all files below a directory, from the root, in order.
    pub(super) fn files(&self, below: &str) -> Result<Vec<PathBuf>> {
        let all = entries(&self.root().join(below))?;
        let files = all.into_iter().filter(|path| path.is_file());
        files.map(|path| Ok(path.strip_prefix(self.root())?.to_owned())).collect()
    }

    /// How much it takes when it is installed, as `deb-substvars(5)` has it: files in whole KiB, one for anything else.
    pub(super) fn installed_kib(&self) -> Result<u64> {
        let kib = |path: PathBuf| -> Result<u64> {
            let metadata = path.symlink_metadata()?;
            Ok(if metadata.is_file() { metadata.len().div_ceil(1024) } else { 1 })
        };
        entries(self.root())?.into_iter().map(kib).sum()
    }

    /// `md5sums` of the files: what `dpkg --verify` compares.
    pub(super) fn md5sums(&self, files: &[PathBuf]) -> Result<String> {
        output(Command::new("md5sum").args(files).current_dir(self.root()))
    }

    /// Sets one time for everything.
    pub(super) fn set_times(&self, epoch: u64) -> Result<()> {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(epoch);
        let all = entries(self.root())?;
        all.iter().map(PathBuf::as_path).chain([self.root()]).try_for_each(|path| {
            let set = File::open(path).and_then(|file| file.set_modified(time));
            set.with_context(|| format!("cannot set the time of {}", path.display()))
        })
    }
}

/// All that is below a directory, in order.
fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    let read = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in read {
        let path = entry?.path();
        if path.is_dir() {
            all.extend(entries(&path)?);
        }
        all.push(path);
    }
    all.sort();
    Ok(all)
}

/// Whatever the umask says.
fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}

/// Without a name and a time inside.
fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut input = tempfile::tempfile().context("cannot make a temporary file")?;
    input.write_all(bytes)?;
    input.rewind()?;
    let compressed = Command::new("gzip").args(["--best", "--no-name"]).stdin(Stdio::from(input)).output();
    let compressed = compressed.context("cannot start gzip")?;
    if !compressed.status.success() {
        bail!(
            "gzip failed: {}\n{}",
            compressed.status,
            String::from_utf8_lossy(&compressed.stderr).trim_end()
        );
    }
    Ok(compressed.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_as_it_was_said_to_be() {
        let tree = Tree::new().expect("a directory");
        tree.add("usr/bin/one", 0o755, &[1; 1025]).expect("written");
        tree.add("etc/two", 0o640, b"two").expect("written");
        tree.add_compressed("usr/share/three", b"three").expect("written");
        let files = tree.files("").expect("read");
        assert_eq!(files, ["etc/two", "usr/bin/one", "usr/share/three.gz"].map(PathBuf::from));
        assert_eq!(tree.files("usr/bin").expect("read"), [PathBuf::from("usr/bin/one")]);
        // Four directories, and 1, 2 and 1 for the files.
        assert_eq!(tree.installed_kib().expect("read"), 8);
        let sums = tree.md5sums(&files[..1]).expect("md5sum");
        assert_eq!(sums, "b8a9f715dbb64fd5c56e7783c6820a61  etc/two\n");
        tree.set_times(86_400).expect("it is ours");
        let metadata = tree.root().join("etc/two").metadata().expect("there");
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o640);
        assert_eq!(
            metadata.modified().expect("a time"),
            SystemTime::UNIX_EPOCH + Duration::from_secs(86_400)
        );
    }
}
