//! One uprobe by `perf_event_open(2)` and a BPF link (Linux 5.15).
//!
//! By hand, because the descriptor must be handed on to the process that closes it last, and
//! aya's links keep theirs to themselves.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use crate::addr::FileOffset;

/// `struct perf_event_attr` up to its first extension (`PERF_ATTR_SIZE_VER1`,
/// `include/uapi/linux/perf_event.h`).
#[repr(C)]
#[derive(Default)]
struct PerfEventAttr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    path: u64,
    offset: u64,
}

const _: () = assert!(size_of::<PerfEventAttr>() == 72);

/// `bpf(2)` attributes of `BPF_LINK_CREATE` for a perf event.
#[repr(C)]
struct LinkCreateAttr {
    program_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    cookie: u64,
}

const BPF_LINK_CREATE: libc::c_int = 28;
/// `BPF_PERF_EVENT` of `enum bpf_attach_type`.
const BPF_PERF_EVENT: u32 = 41;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
/// Bit of `config` that asks for the return instead of the instruction.
const RETURN_BIT: &str = "/sys/bus/event_source/devices/uprobe/format/retprobe";
const KIND: &str = "/sys/bus/event_source/devices/uprobe/type";

/// Where a probe is set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// Whose; all processes' if none.
    pub(super) pid: Option<u32>,
    pub(super) path: &'a Path,
    pub(super) offset: FileOffset,
    pub(super) is_return: bool,
    pub(super) cookie: u64,
}

/// Sets a probe; it stays until the last duplicate of the descriptor is closed.
///
/// # Errors
/// What the kernel says, with the step that it refused.
pub(super) fn attach(program: BorrowedFd<'_>, place: Place<'_>) -> io::Result<OwnedFd> {
    let path = CString::new(place.path.as_os_str().as_bytes())?;
    let mut attr = PerfEventAttr {
        kind: number_in(KIND)?,
        size: size_of::<PerfEventAttr>() as u32,
        config: if place.is_return { 1 << return_bit()? } else { 0 },
        path: path.as_ptr() as u64,
        offset: place.offset.0,
        ..PerfEventAttr::default()
    };
    // An event of all processes has to name a processor, of which a program takes no notice.
    let (pid, processor) = match place.pid {
        Some(pid) => (libc::pid_t::try_from(pid).map_err(io::Error::other)?, -1),
        None => (-1, 0),
    };
    // SAFETY: `attr` and the path in it live through the call; no group.
    let event = unsafe {
        libc::syscall(libc::SYS_perf_event_open, &raw mut attr, pid, processor, -1, PERF_FLAG_FD_CLOEXEC)
    };
    let event = owned(event).map_err(|error| match error.kind() {
        // CAP_PERFMON, which is enough for other events, is not for these (`perf_uprobe_event_init`).
        io::ErrorKind::PermissionDenied => {
            step("perf_event_open", io::Error::new(error.kind(), format!("{error}; it takes CAP_SYS_ADMIN")))
        }
        _ => step("perf_event_open", error),
    })?;
    let mut link = LinkCreateAttr {
        program_fd: program.as_raw_fd().unsigned_abs(),
        target_fd: event.as_raw_fd().unsigned_abs(),
        attach_type: BPF_PERF_EVENT,
        flags: 0,
        cookie: place.cookie,
    };
    // SAFETY: `link` is the layout that the kernel expects, zero-padded by it to its own size. The
    // link holds the event, whose descriptor may go.
    let link =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, &raw mut link, size_of::<LinkCreateAttr>()) };
    owned(link).map_err(|error| step("BPF_LINK_CREATE", error))
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = libc::c_int::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn step(name: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{name}: {error}"))
}

fn number_in(path: &str) -> io::Result<u32> {
    let text = fs::read_to_string(path).map_err(|error| step(path, error))?;
    text.trim().parse().map_err(|_| io::Error::other(format!("{path} holds {text:?}, which is no number")))
}

/// The format file says `config:0`.
fn return_bit() -> io::Result<u32> {
    let text = fs::read_to_string(RETURN_BIT).map_err(|error| step(RETURN_BIT, error))?;
    text.trim()
        .strip_prefix("config:")
        .and_then(|bit| bit.parse().ok())
        .filter(|bit| *bit < u64::BITS)
        .ok_or_else(|| io::Error::other(format!("{RETURN_BIT} holds {text:?}, which is no bit of config")))
}
