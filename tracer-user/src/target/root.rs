//! Files as a process sees them, which in a container are somebody else's.

use std::{
    fs::{self, File},
    io::Read as _,
};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

/// The first `most` bytes of a file below the root of a process; `None` if there is none that can be read as text. No link
/// leads out of that root, no pipe is waited for, and nothing but a regular file is read.
pub fn read_in_root(pid: u32, path: &str, most: u64) -> Option<String> {
    let beneath = File::open(format!("/proc/{pid}/root/")).ok()?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = File::from(openat2(&beneath, path, flags, Mode::empty(), how).ok()?);
    file.metadata().ok().filter(fs::Metadata::is_file)?;
    let mut text = Vec::new();
    file.take(most).read_to_end(&mut text).ok()?;
    String::from_utf8(text).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_the_beginning_of_regular_files_is_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let inside = |name: &str| directory.path().join(name);
        let read = |name: &str| {
            let path = inside(name);
            let path = path.to_str().and_then(|path| path.strip_prefix('/')).expect("an absolute one");
            read_in_root(std::process::id(), path, 5)
        };
        fs::write(inside("file"), "0123456789").expect("a file");
        symlink(inside("file"), inside("link")).expect("a link");
        rustix::fs::mkfifoat(rustix::fs::CWD, inside("pipe"), Mode::from_raw_mode(0o600)).expect("a pipe");
        assert_eq!(read("file").as_deref(), Some("01234"));
        assert_eq!(read("link").as_deref(), Some("01234"));
        // Nobody writes to it: whoever opened it to wait would do so for ever.
        assert_eq!(read("pipe"), None);
        assert_eq!(read("nothing"), None);
    }
}
