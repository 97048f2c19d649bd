//! The headers of Debian's servers, which the tests' own extension is compiled against.
//!
//! The package that holds them wants a whole clang and LLVM beside it. Only the headers are needed,
//! so they are unpacked below `target` and nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{output, run};
use crate::workspace;

/// Where `postgres.h` of that major lies: installed, or unpacked by us.
pub(super) fn find(major: u32) -> Option<PathBuf> {
    let inside = format!("usr/include/postgresql/{major}/server");
    [Path::new("/").join(&inside), unpacked(major).join(&inside)]
        .into_iter()
        .find(|dir| dir.join("postgres.h").is_file())
}

/// Gets the headers if they are not there. Of the same package version as the server, if the
/// registry still has that, otherwise of the newest: the layouts do not change within a major.
pub fn fetch(major: u32) -> Result<()> {
    if find(major).is_some() {
        return Ok(());
    }
    let package = format!("postgresql-server-dev-{major}");
    let server = output(
        Command::new("dpkg-query").args(["-W", "-f", "${Version}"]).arg(format!("postgresql-{major}")),
    )?;
    let dir = unpacked(major);
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let exact = format!("{package}={}", server.trim());
    let download = |what: &str| run(Command::new("apt-get").args(["download", what]).current_dir(&dir));
    download(&exact).or_else(|_| download(&package))?;
    let archive = fs::read_dir(&dir)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("`apt-get download {package}` left no package in {}", dir.display()))?;
    run(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(&dir))?;
    fs::remove_file(&archive)?;
    if find(major).is_none() {
        bail!("{package} holds no postgres.h where it was looked for: below {}", dir.display());
    }
    Ok(())
}

fn unpacked(major: u32) -> PathBuf {
    workspace::root().join(format!("target/postgres/headers-{major}"))
}
