//! What a process has mapped: `/proc/PID/maps`.

use std::{ffi::OsString, os::unix::ffi::OsStringExt as _, path::PathBuf};

use super::process::{ProcessError, read_proc, strip_deleted};
use crate::addr::{AbsAddr, FileOffset};

/// Which file a mapping is of, by numbers. Only good for telling files of one process apart:
/// on some file systems (btrfs, overlayfs) the device is not the one that `stat(2)` gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceInode {
    /// Major number of the device.
    pub major: u32,
    /// Minor number of the device.
    pub minor: u32,
    /// Inode.
    pub inode: u64,
}

/// What is mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MappingPath {
    /// A file.
    File {
        /// Its path in the mount namespace of the process.
        path: PathBuf,
        /// Whether that path no longer leads to it.
        deleted: bool,
    },
    /// The code that the kernel gives to each process.
    Vdso,
    /// The page that the kernel puts copies of probed instructions on.
    Uprobes,
    /// Memory without a name.
    Anonymous,
    /// Anything else, as written: `[heap]`, `[stack]`, `[vsyscall]`, `anon_inode:…`.
    Other(String),
}

impl MappingPath {
    /// Whether the process itself wrote what is in it: memory without a file.
    pub fn is_written_by_process(&self) -> bool {
        match self {
            Self::Anonymous => true,
            Self::Other(name) => name.starts_with("[anon"),
            Self::File { path, .. } => {
                path.components().any(|part| part.as_os_str().as_encoded_bytes().starts_with(b"memfd:"))
            }
            Self::Vdso | Self::Uprobes => false,
        }
    }
}

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First byte.
    pub start: AbsAddr,
    /// One past the last byte.
    pub end: AbsAddr,
    /// Where it begins in the file.
    pub offset: FileOffset,
    /// Whether it is executable.
    pub executable: bool,
    /// Which file; all zero for none.
    pub device_inode: DeviceInode,
    /// What it is.
    pub path: MappingPath,
}

impl Mapping {
    /// Whether `address` lies in it.
    pub fn contains(&self, address: AbsAddr) -> bool {
        self.start <= address && address < self.end
    }
}

/// The mappings of a process by address, and the number of lines that were not understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maps {
    /// Sorted by start.
    pub mappings: Vec<Mapping>,
    /// Lines that are no mapping; zero on every kernel known.
    pub odd_lines: usize,
}

impl Maps {
    /// The mapping that `address` lies in.
    pub fn at(&self, address: AbsAddr) -> Option<&Mapping> {
        let after = self.mappings.partition_point(|mapping| mapping.start <= address);
        self.mappings[..after].last().filter(|mapping| mapping.contains(address))
    }
}

/// Reads `/proc/PID/maps`.
///
/// # Errors
/// If there is no such process or the privilege is missing.
pub fn read_maps(pid: u32) -> Result<Maps, ProcessError> {
    Ok(parse_maps(&read_proc(pid, "maps")?))
}

/// Parses `/proc/PID/maps` (proc_pid_maps(5)).
pub fn parse_maps(text: &[u8]) -> Maps {
    let mut maps = Maps::default();
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match parse_line(line) {
            Some(mapping) => maps.mappings.push(mapping),
            None => maps.odd_lines += 1,
        }
    }
    // The kernel writes them in order, but a process may map while they are being written.
    maps.mappings.sort_by_key(|mapping| mapping.start);
    maps
}

fn parse_line(line: &[u8]) -> Option<Mapping> {
    let mut rest = line;
    let range = field(&mut rest)?;
    let rights = field(&mut rest)?;
    let offset = field(&mut rest)?;
    let device = field(&mut rest)?;
    let inode = field(&mut rest)?;
    let (start, end) = range.split_once('-')?;
    let (major, minor) = device.split_once(':')?;
    let device_inode = DeviceInode {
        major: u32::from_str_radix(major, 16).ok()?,
        minor: u32::from_str_radix(minor, 16).ok()?,
        inode: inode.parse().ok()?,
    };
    let start = AbsAddr(u64::from_str_radix(start, 16).ok()?);
    let end = AbsAddr(u64::from_str_radix(end, 16).ok()?);
    (start < end && rights.len() == 4).then_some(())?;
    Some(Mapping {
        start,
        end,
        offset: FileOffset(u64::from_str_radix(offset, 16).ok()?),
        executable: rights.as_bytes()[2] == b'x',
        device_inode,
        path: parse_path(rest.trim_ascii_start()),
    })
}

/// Takes the next field off the line. A path may begin with blanks of its own, so at most the
/// blank behind the field goes with it.
fn field<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let end = rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len());
    let (field, after) = rest.split_at(end);
    *rest = after.get(1..).unwrap_or_default();
    str::from_utf8(field).ok().filter(|field| !field.is_empty())
}

fn parse_path(bytes: &[u8]) -> MappingPath {
    match bytes {
        b"" => MappingPath::Anonymous,
        b"[vdso]" => MappingPath::Vdso,
        b"[uprobes]" => MappingPath::Uprobes,
        [b'/', ..] => {
            let (path, deleted) = strip_deleted(bytes);
            let path = unescape_newlines(path.into_os_string().into_vec());
            MappingPath::File { path: OsString::from_vec(path).into(), deleted }
        }
        _ => MappingPath::Other(String::from_utf8_lossy(bytes).into_owned()),
    }
}

/// The kernel writes a newline in a path as `\012`. It escapes nothing else here, not even the
/// backslash (`show_map_vma` in fs/proc/task_mmu.c), so other digits are meant as they stand.
fn unescape_newlines(path: Vec<u8>) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path.as_slice();
    while let [first, after @ ..] = rest {
        match rest.strip_prefix(br"\012") {
            Some(after) => {
                out.push(b'\n');
                rest = after;
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORDED: &[u8] = b"\
55d6d5c00000-55d6d5cc9000 r--p 00000000 fe:00 152345                     /usr/lib/postgresql/15/bin/postgres
55d6d5cc9000-55d6d6231000 r-xp 000c9000 fe:00 152345                     /usr/lib/postgresql/15/bin/postgres
55d6d71f4000-55d6d7236000 rw-p 00000000 00:00 0                          [heap]
7f04fb000000-7f04fb001000 r-xp 00000000 00:00 0 
7f0503bf1000-7f0504a36000 rw-s 00000000 00:01 2052                       /dev/zero (deleted)
7f0504a36000-7f0504a37000 r-xp 00001000 fe:00 77                         /tmp/my lib\\012x\\101.so (deleted)
7fffffffe000-7ffffffff000 --xp 00000000 00:00 0                          [uprobes]
7ffd34b9a000-7ffd34b9c000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    #[test]
    fn recorded_lines_become_mappings() {
        let maps = parse_maps(RECORDED);
        assert_eq!(maps.odd_lines, 0);
        assert_eq!(maps.mappings.len(), 9);
        let code = maps.at(AbsAddr(0x55d6_d5cc_9001)).expect("mapped");
        assert_eq!(
            *code,
            Mapping {
                start: AbsAddr(0x55d6_d5cc_9000),
                end: AbsAddr(0x55d6_d623_1000),
                offset: FileOffset(0xc9000),
                executable: true,
                device_inode: DeviceInode { major: 0xfe, minor: 0, inode: 152_345 },
                path: MappingPath::File {
                    path: "/usr/lib/postgresql/15/bin/postgres".into(),
                    deleted: false
                },
            }
        );
        assert_eq!(maps.at(AbsAddr(0x55d6_d623_1000)), None);
        assert_eq!(maps.at(AbsAddr(0)), None);
    }

    #[test]
    fn special_names_and_escapes_are_understood() {
        let at = |address| parse_maps(RECORDED).at(AbsAddr(address)).map(|mapping| mapping.path.clone());
        assert_eq!(at(0x55d6_d71f_4000), Some(MappingPath::Other("[heap]".into())));
        assert_eq!(at(0x7f04_fb00_0000), Some(MappingPath::Anonymous));
        assert_eq!(at(0x7f05_03bf_1000), Some(MappingPath::File { path: "/dev/zero".into(), deleted: true }));
        assert_eq!(
            at(0x7f05_04a3_6000),
            Some(MappingPath::File { path: "/tmp/my lib\nx\\101.so".into(), deleted: true })
        );
        assert_eq!(at(0x7fff_ffff_e000), Some(MappingPath::Uprobes));
        assert_eq!(at(0x7ffd_34b9_a000), Some(MappingPath::Vdso));
        assert_eq!(at(0xffff_ffff_ff60_0000), Some(MappingPath::Other("[vsyscall]".into())));
    }

    #[test]
    fn odd_lines_are_counted_and_harm_nothing() {
        let maps = parse_maps(
            b"\nnonsense\n10-20 r-xp 0 0:0\n20-10 r-xp 00000000 00:00 0\n10-20 rx 00000000 00:00 0\n\
              2000-3000 r-xp 00000000 00:00 0 \xff\xfe\n1000-2000 r--p 00000000 00:00 0\n",
        );
        assert_eq!(maps.odd_lines, 4);
        let starts: Vec<u64> = maps.mappings.iter().map(|mapping| mapping.start.0).collect();
        assert_eq!(starts, [0x1000, 0x2000]);
    }

    #[test]
    fn own_code_is_mapped_executable() -> Result<(), ProcessError> {
        let maps = read_maps(std::process::id())?;
        assert_eq!(maps.odd_lines, 0);
        let here = AbsAddr(own_code_is_mapped_executable as fn() -> Result<(), ProcessError> as usize as u64);
        assert!(maps.at(here).is_some_and(|mapping| mapping.executable));
        Ok(())
    }
}
