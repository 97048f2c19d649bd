//! The operating system's user that servers run as: they refuse to run as root.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::is_root;

/// A user who may run a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OsUser {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Id of the user's own group.
    pub gid: u32,
}

impl OsUser {
    /// For root `postgres`, or else `nobody`; for everybody else themselves.
    pub fn for_servers() -> Result<Self> {
        let accounts = fs::read_to_string("/etc/passwd").context("cannot read the list of users")?;
        if is_root() {
            return ["postgres", "nobody"]
                .iter()
                .find_map(|name| find(&accounts, |user| user.name == *name && user.uid != 0))
                .context("no user `postgres` or `nobody`: a server refuses to run as root");
        }
        // SAFETY: geteuid and getegid take nothing and cannot fail.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        let known = find(&accounts, |user| user.uid == uid);
        // A user of a directory service or of a container has no line there, and needs none.
        Ok(Self { name: known.map_or_else(|| uid.to_string(), |user| user.name), uid, gid })
    }

    /// Makes the command run as this user, without the groups of the caller.
    pub fn runs<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        if is_root() {
            command.uid(self.uid).gid(self.gid);
        }
        command
    }

    /// Gives a file or directory to this user.
    pub fn owns(&self, path: &Path) -> io::Result<()> {
        if is_root() { std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid)) } else { Ok(()) }
    }

    /// Whether this user may reach what lies below the directory: everybody may pass every
    /// directory on the way.
    pub fn may_reach(&self, directory: &Path) -> bool {
        use std::os::unix::fs::PermissionsExt;
        !is_root()
            || directory.ancestors().all(|part| {
                // What does not exist yet is made by us with ordinary permissions.
                part.metadata().map_or(true, |meta| meta.permissions().mode() & 0o001 != 0)
            })
    }
}

fn find(accounts: &str, wanted: impl Fn(&OsUser) -> bool) -> Option<OsUser> {
    accounts.lines().filter_map(parse).find(wanted)
}

/// One line of `/etc/passwd`.
fn parse(line: &str) -> Option<OsUser> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some(OsUser { name, uid, gid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_user_among_others() {
        let accounts = "root:x:0:0:root:/root:/bin/sh\n# broken\npostgres:x:101:104::/var/lib:/bin/sh\n";
        let user = find(accounts, |user| user.name == "postgres").expect("it is there");
        assert_eq!((user.uid, user.gid), (101, 104));
        assert_eq!(find(accounts, |user| user.name == "nobody"), None);
    }

    #[test]
    fn servers_never_run_as_root() {
        assert_ne!(OsUser::for_servers().expect("some user").uid, 0);
    }

    #[test]
    fn a_private_directory_cannot_be_reached_by_others() {
        use std::os::unix::fs::PermissionsExt;
        let private = tempfile::tempdir().expect("temporary directory");
        fs::set_permissions(private.path(), fs::Permissions::from_mode(0o700)).expect("chmod");
        let user = OsUser::for_servers().expect("some user");
        assert_eq!(user.may_reach(&private.path().join("a/b")), !is_root());
        fs::set_permissions(private.path(), fs::Permissions::from_mode(0o711)).expect("chmod");
        assert!(user.may_reach(&private.path().join("a/b")));
    }
}
