//! Programs for `uprobe_multi` links (Linux 6.6) and for session links (6.13).
//!
//! One link is many probes of one file: all of them come and go with one wait for the kernel, and it takes
//! CAP_PERFMON where perf events of uprobes take CAP_SYS_ADMIN. A session link has one program at the entry and
//! at the return. aya 0.14 loads neither, so they are loaded here, from the same object and for the same maps.

use std::{
    collections::{HashMap, HashSet},
    ffi::CString,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya::{Ebpf, maps::Map};
use aya_obj::{Object, ProgramSection};

use super::load::LoadError;
use crate::addr::FileOffset;

/// What probes are attached with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// A perf event and a link for each probe (Linux 5.15).
    PerfLinks,
    /// `uprobe_multi`: one link for all probes of a program and a file (Linux 6.6).
    Multi,
    /// Session links: the same, with one program for entries and returns (Linux 6.13).
    Session,
}

impl Mechanism {
    /// All of them, what costs least first. `foresees`: whether most returns need not be looked at, which spares session
    /// links a trap.
    pub fn by_cost(foresees: bool) -> [Self; 3] {
        if foresees {
            [Self::Session, Self::Multi, Self::PerfLinks]
        } else {
            [Self::Multi, Self::Session, Self::PerfLinks]
        }
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::PerfLinks => "perf links",
            Self::Multi => "uprobe_multi links",
            Self::Session => "session links",
        }
    }
}

/// `BPF_TRACE_UPROBE_MULTI` and `BPF_TRACE_UPROBE_SESSION` of `enum bpf_attach_type`
/// (`include/uapi/linux/bpf.h`): what has one side only needs no session.
fn attach_type(program: &str) -> u32 {
    if program.ends_with(SESSION_SUFFIX) { 57 } else { 48 }
}

/// Names of programs for both sides of a function end so.
pub(super) const SESSION_SUFFIX: &str = "_session";

/// `bpf(2)` commands.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_BTF_LOAD: libc::c_int = 18;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_PROG_TYPE_KPROBE: u32 = 2;
const BPF_F_SLEEPABLE: u32 = 1 << 4;
const BPF_F_UPROBE_MULTI_RETURN: u32 = 1;
/// `BPF_LOG_STATS`.
const LOG_STATS: u32 = 4;

#[repr(C)]
#[derive(Default)]
struct ProgLoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
}

#[repr(C)]
#[derive(Default)]
struct BtfLoadAttr {
    btf: u64,
    log_buf: u64,
    btf_size: u32,
    log_size: u32,
    log_level: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Default)]
struct MultiLinkAttr {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    path: u64,
    offsets: u64,
    ref_ctr_offsets: u64,
    cookies: u64,
    count: u32,
    multi_flags: u32,
    pid: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

/// `struct bpf_prog_info` up to what the verifier looked at.
#[repr(C)]
struct ProgInfo {
    before: [u8; 216],
    verified_insns: u32,
    after: u32,
}

const _: () = assert!(size_of::<ProgLoadAttr>() == 112 && size_of::<MultiLinkAttr>() == 64);

fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is one of the layouts above, zero-padded by the kernel to its own size; what it points to
    // is borrowed by the callers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Loaded programs, by name.
#[derive(Debug, Default)]
pub(super) struct MultiPrograms(HashMap<&'static str, OwnedFd>);

impl MultiPrograms {
    /// Loads programs of the object for the maps that `ebpf` has made from it.
    ///
    /// # Errors
    /// If the object does not fit, or the kernel refuses one.
    pub(super) fn load(
        data: &[u8],
        ebpf: &Ebpf,
        mechanism: Mechanism,
        names: &[&'static str],
    ) -> Result<Self, LoadError> {
        let unusable = |why: String| LoadError::Object { why };
        let mut object = Object::parse(data).map_err(|error| unusable(error.to_string()))?;
        let features = aya::features();
        let btf = match features.btf() {
            Some(features) => object
                .fixup_and_sanitize_btf(features)
                .map_err(|error| unusable(error.to_string()))?
                .map(aya_obj::btf::Btf::to_bytes),
            None => None,
        };
        let btf =
            btf.map(|bytes| load_btf(&bytes)).transpose().map_err(|error| unusable(error.to_string()))?;
        let maps: Vec<(String, RawFd, aya_obj::Map)> = (object.maps.iter())
            .filter_map(|(name, map)| match ebpf.map(name)? {
                Map::Array(data) | Map::HashMap(data) | Map::RingBuf(data) => {
                    Some((name.clone(), data.fd().as_fd().as_raw_fd(), map.clone()))
                }
                _ => None,
            })
            .collect();
        let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        object
            .relocate_maps(maps.iter().map(|(name, fd, map)| (name.as_str(), *fd, map)), &sections)
            .map_err(|error| unusable(error.to_string()))?;
        object.relocate_calls(&sections).map_err(|error| unusable(error.to_string()))?;
        object.sanitize_functions(features);
        let mut programs = HashMap::new();
        for name in names {
            let fd = load_program(&object, name, mechanism, btf.as_ref())?;
            programs.insert(*name, fd);
        }
        Ok(Self(programs))
    }

    /// Keeps more of them.
    pub(super) fn add(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    /// Whether the kernel attaches them: it loads programs for whatever, also for what it does not know. A link to
    /// a directory is refused for being that only if everything else is well.
    pub(super) fn can_be_attached(&self) -> bool {
        let places =
            Places { pid: None, path: Path::new("/"), is_return: false, offsets: &[(FileOffset(0), 0)] };
        self.0.iter().all(|(name, program)| {
            create_link((name, program.as_fd()), places)
                .is_err_and(|error| error.raw_os_error() == Some(libc::EBADF))
        })
    }

    /// One of them.
    pub(super) fn get(&self, name: &str) -> Option<BorrowedFd<'_>> {
        self.0.get(name).map(|fd| fd.as_fd())
    }

    /// Instructions that the verifier had to look at, by program.
    pub(super) fn verified_instructions(&self) -> Vec<(String, u32)> {
        let of = |(name, fd): (&&'static str, &OwnedFd)| Some(((*name).to_owned(), verified(fd)?));
        self.0.iter().filter_map(of).collect()
    }
}

fn load_btf(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut attr =
        BtfLoadAttr { btf: bytes.as_ptr() as u64, btf_size: bytes.len() as u32, ..BtfLoadAttr::default() };
    bpf(BPF_BTF_LOAD, &mut attr).and_then(owned)
}

fn load_program(
    object: &Object,
    name: &'static str,
    mechanism: Mechanism,
    btf: Option<&OwnedFd>,
) -> Result<OwnedFd, LoadError> {
    let program = object.programs.get(name).ok_or(LoadError::Missing { name })?;
    let function = object.functions.get(&program.function_key()).ok_or(LoadError::Missing { name })?;
    let is_sleepable = matches!(
        program.section,
        ProgramSection::UProbe { sleepable: true } | ProgramSection::URetProbe { sleepable: true }
    );
    let (functions, lines) = (function.func_info.func_info_bytes(), function.line_info.line_info_bytes());
    let mut attr = ProgLoadAttr {
        prog_type: BPF_PROG_TYPE_KPROBE,
        insn_cnt: function.instructions.len() as u32,
        insns: function.instructions.as_ptr() as u64,
        license: program.license.as_ptr() as u64,
        prog_flags: if is_sleepable { BPF_F_SLEEPABLE } else { 0 },
        expected_attach_type: attach_type(name),
        ..ProgLoadAttr::default()
    };
    let kept = name.len().min(attr.prog_name.len() - 1);
    attr.prog_name[..kept].copy_from_slice(&name.as_bytes()[..kept]);
    if let Some(btf) = btf {
        attr.prog_btf_fd = btf.as_raw_fd().unsigned_abs();
        if function.func_info_rec_size > 0 {
            attr.func_info = functions.as_ptr() as u64;
            attr.func_info_cnt = function.func_info.len() as u32;
            attr.func_info_rec_size = function.func_info_rec_size as u32;
        }
        if function.line_info_rec_size > 0 {
            attr.line_info = lines.as_ptr() as u64;
            attr.line_info_cnt = function.line_info.len() as u32;
            attr.line_info_rec_size = function.line_info_rec_size as u32;
        }
    }
    match bpf(BPF_PROG_LOAD, &mut attr).and_then(owned) {
        Ok(fd) => Ok(fd),
        Err(source) => {
            // Again, for what the verifier says of it.
            let mut log = vec![0_u8; 1 << 16];
            (attr.log_buf, attr.log_size) = (log.as_mut_ptr() as u64, log.len() as u32);
            attr.log_level = LOG_STATS | 1;
            let _ = bpf(BPF_PROG_LOAD, &mut attr).and_then(owned);
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            let log = String::from_utf8_lossy(&log[..end]);
            let last: Vec<&str> = log.lines().rev().take(8).collect();
            let log = last.into_iter().rev().collect::<Vec<_>>().join("; ");
            Err(LoadError::Refused { program: name.to_owned(), mechanism: mechanism.name(), source, log })
        }
    }
}

fn verified(program: &OwnedFd) -> Option<u32> {
    let mut info = ProgInfo { before: [0; 216], verified_insns: 0, after: 0 };
    let mut attr = InfoAttr {
        fd: program.as_raw_fd().unsigned_abs(),
        length: size_of::<ProgInfo>() as u32,
        info: &raw mut info as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr).ok()?;
    Some(info.verified_insns)
}

/// Where probes of one program are set: all in one file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places<'a> {
    /// Whose; all processes' if none.
    pub(super) pid: Option<u32>,
    pub(super) path: &'a Path,
    pub(super) is_return: bool,
    /// With the cookie of each.
    pub(super) offsets: &'a [(FileOffset, u64)],
}

/// Sets probes; they stay until the last duplicate of the descriptor is closed.
///
/// # Errors
/// What the kernel says.
pub(super) fn attach(program: (&str, BorrowedFd<'_>), places: Places<'_>) -> io::Result<OwnedFd> {
    create_link(program, places).map_err(|error| {
        // The directory is its owner's, and `proc_map_files_get_link` (fs/proc/base.c) asks for the other.
        let takes = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                "; links to the libraries of a process take CAP_DAC_READ_SEARCH and CAP_CHECKPOINT_RESTORE"
            }
            _ => "",
        };
        io::Error::new(error.kind(), format!("BPF_LINK_CREATE: {error}{takes}"))
    })
}

fn create_link((name, program): (&str, BorrowedFd<'_>), places: Places<'_>) -> io::Result<OwnedFd> {
    let path = CString::new(places.path.as_os_str().as_bytes())?;
    let offsets: Vec<u64> = places.offsets.iter().map(|(offset, _)| offset.0).collect();
    let cookies: Vec<u64> = places.offsets.iter().map(|(_, cookie)| *cookie).collect();
    let mut attr = MultiLinkAttr {
        prog_fd: program.as_raw_fd().unsigned_abs(),
        attach_type: attach_type(name),
        path: path.as_ptr() as u64,
        offsets: offsets.as_ptr() as u64,
        cookies: cookies.as_ptr() as u64,
        count: offsets.len() as u32,
        multi_flags: if places.is_return { BPF_F_UPROBE_MULTI_RETURN } else { 0 },
        pid: places.pid.unwrap_or(0),
        ..MultiLinkAttr::default()
    };
    bpf(BPF_LINK_CREATE, &mut attr).and_then(owned)
}
