//! The PostgreSQL builds that there are to run.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::OsUser;
use super::npm::NPM_BUILDS;
use crate::process::is_executable;

/// Where Debian and its relatives put each major version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// Where a build comes from, which says how it was compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildKind {
    /// A package of the distribution: stripped, with frame pointers.
    Package,
    /// The npm package: a symbol table, no frame pointers, no headers.
    Npm,
}

/// One build of PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    /// `debian-15` or `npm-17.10`.
    pub name: String,
    /// Where it comes from.
    pub kind: BuildKind,
    /// Major version.
    pub major: u32,
    /// Directory of `postgres` and `initdb`.
    pub bin: PathBuf,
    /// Directory of `psql` and `pgbench`, which may belong to another major.
    pub client_bin: PathBuf,
    /// Server headers (`postgres.h`), if there are any for this build.
    pub headers: Option<PathBuf>,
}

impl Build {
    /// The newest server that the distribution's packages have installed.
    pub fn newest_packaged() -> Result<Self> {
        packaged(Path::new(DEBIAN)).pop().with_context(|| {
            format!("no PostgreSQL server in {DEBIAN}/*/bin: `cargo xtask setup` installs one")
        })
    }

    /// The packaged server of one major version.
    pub fn packaged(major: u32) -> Result<Self> {
        packaged(Path::new(DEBIAN)).into_iter().find(|build| build.major == major).with_context(|| {
            format!("no server in {DEBIAN}/{major}/bin: `cargo xtask setup --tests` installs it")
        })
    }

    /// The npm build of one major version, as `cargo xtask setup --tests` unpacked it.
    pub fn npm(major: u32) -> Result<Self> {
        let npm = NPM_BUILDS
            .iter()
            .find(|build| build.major == major)
            .with_context(|| format!("there is no npm build of PostgreSQL {major}"))?;
        let bin = npm.directory(&OsUser::for_servers()?)?.join("bin");
        if !is_executable(&bin.join("postgres")) {
            anyhow::bail!("no server in {}: `cargo xtask setup --tests` unpacks it", bin.display());
        }
        Ok(Self {
            name: format!("npm-{}", npm.short()),
            kind: BuildKind::Npm,
            major,
            bin,
            client_bin: Self::newest_packaged()?.client_bin,
            headers: None,
        })
    }

    /// Every build that tests run on: Debian's 15 and the npm builds 12 to 18.
    pub fn all() -> Result<Vec<Self>> {
        std::iter::once(Self::packaged(15)).chain(NPM_BUILDS.iter().map(|npm| Self::npm(npm.major))).collect()
    }

    /// The server binary.
    pub fn postgres(&self) -> PathBuf {
        self.bin.join("postgres")
    }
}

/// Oldest first.
fn packaged(root: &Path) -> Vec<Build> {
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    let mut builds: Vec<Build> = entries
        .flatten()
        .filter_map(|entry| {
            let major: u32 = entry.file_name().to_str()?.parse().ok()?;
            let bin = entry.path().join("bin");
            let whole = ["postgres", "initdb", "psql"].iter().all(|name| is_executable(&bin.join(name)));
            whole.then(|| Build {
                name: format!("debian-{major}"),
                kind: BuildKind::Package,
                major,
                client_bin: bin.clone(),
                bin,
                headers: super::headers::find(major),
            })
        })
        .collect();
    builds.sort_by_key(|build| build.major);
    builds
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn executable(path: &Path) {
        fs::create_dir_all(path.parent().expect("in a directory")).expect("mkdir");
        fs::write(path, "").expect("write");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
    }

    #[test]
    fn majors_are_ordered_as_numbers_and_half_installed_ones_left_out() {
        let root = tempfile::tempdir().expect("temporary directory");
        for major in ["9", "15", "100"] {
            for name in ["postgres", "initdb", "psql"] {
                executable(&root.path().join(major).join("bin").join(name));
            }
        }
        executable(&root.path().join("16/bin/psql"));
        let majors: Vec<u32> = packaged(root.path()).iter().map(|build| build.major).collect();
        assert_eq!(majors, [9, 15, 100]);
        assert_eq!(packaged(&root.path().join("none")), []);
    }
}
