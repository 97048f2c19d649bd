//! Whether a process's code is what its files say: the kernel takes breakpoints away some time after who set them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The longest that the kernel may need.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked.
const POLL: Duration = Duration::from_millis(20);
/// Compared at once.
const PIECE: usize = 1 << 20;

/// Waits until no breakpoint is left.
pub(crate) fn wait_until_untouched(pid: u32) -> Result<()> {
    let begun = Instant::now();
    while is_touched(pid)? {
        if begun.elapsed() > PATIENCE {
            bail!("process {pid} still has breakpoints after {PATIENCE:?}");
        }
        thread::sleep(POLL);
    }
    Ok(())
}

fn is_touched(pid: u32) -> Result<bool> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))
        .with_context(|| format!("process {pid} has no mappings"))?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    for code in maps.lines().filter_map(Code::of) {
        let file = File::open(format!("/proc/{pid}/map_files/{}", code.range))
            .with_context(|| format!("cannot open what process {pid} has mapped at {}", code.range))?;
        if code.differs(&memory, &file) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Executable memory that is mapped from a file.
#[derive(Debug, PartialEq, Eq)]
struct Code<'a> {
    range: &'a str,
    start: u64,
    length: u64,
    offset: u64,
}

impl<'a> Code<'a> {
    /// From a line of `/proc/PID/maps`: range, permissions, offset, device, inode, path.
    fn of(line: &'a str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (range, permissions, offset) = (words.next()?, words.next()?, words.next()?);
        let path = words.nth(2)?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let (start, end) = range.split_once('-')?;
        let (start, end) = (hex(start)?, hex(end)?);
        let is_code = permissions.starts_with("r-x") && path.starts_with('/');
        let length = end.checked_sub(start)?;
        is_code.then_some(Self { range, start, length, offset: hex(offset)? })
    }

    /// What lies behind the end of the file, or cannot be read, does not differ.
    fn differs(&self, memory: &File, file: &File) -> bool {
        let (mut now, mut then) = (vec![0; PIECE], vec![0; PIECE]);
        (0..self.length).step_by(PIECE).any(|at| {
            let wanted = PIECE.min(usize::try_from(self.length - at).unwrap_or(PIECE));
            let read = |from: &File, at, into: &mut [u8]| from.read_at(&mut into[..wanted], at).unwrap_or(0);
            let length = read(memory, self.start + at, &mut now).min(read(file, self.offset + at, &mut then));
            now[..length] != then[..length]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_what_is_executable_and_from_a_file() {
        let line =
            "55d0c0a00000-55d0c0f28000 r-xp 000cf000 fe:00 1234    /usr/lib/postgresql/15/bin/postgres";
        assert_eq!(
            Code::of(line),
            Some(Code {
                range: "55d0c0a00000-55d0c0f28000",
                start: 0x55d0_c0a0_0000,
                length: 0x52_8000,
                offset: 0xc_f000
            })
        );
        for other in [
            "7ffd0000-7ffd1000 r-xp 00000000 00:00 0 [vdso]",
            "7ffd0000-7ffd1000 r--p 00000000 fe:00 12 /lib/libc.so.6",
            "7ffd0000-7ffd1000 r-xp 00000000 00:00 0",
            "",
        ] {
            assert_eq!(Code::of(other), None, "{other}");
        }
    }

    #[test]
    fn this_process_has_no_breakpoint() {
        assert!(!is_touched(std::process::id()).expect("its own process may be read"));
    }
}
