//! Reading the memory of a live process, without stopping or touching it.

use std::{io, mem};

use crate::addr::AbsAddr;

/// Memory that can be read at an address: a process, or a recording of one in tests.
pub trait ReadMemory {
    /// Fills `into` from `address`.
    ///
    /// # Errors
    /// If not all of it can be read.
    fn read(&self, address: AbsAddr, into: &mut [u8]) -> io::Result<()>;

    /// The 8 bytes at `address`.
    ///
    /// # Errors
    /// If they cannot be read.
    fn word(&self, address: AbsAddr) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The NUL-terminated string at `address`, cut at `most` bytes; bytes that are not UTF-8 are
    /// replaced.
    ///
    /// # Errors
    /// If its first byte cannot be read.
    fn string(&self, address: AbsAddr, most: usize) -> io::Result<String> {
        let mut text = Vec::new();
        let mut byte = [0];
        while text.len() < most {
            match self.read(address.offset(text.len() as u64), &mut byte) {
                Ok(()) if byte[0] == 0 => break,
                Ok(()) => text.push(byte[0]),
                Err(error) if text.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// The memory of a running process, read with `process_vm_readv(2)`.
#[derive(Clone, Copy, Debug)]
pub struct ProcessMemory {
    pid: libc::pid_t,
}

impl ProcessMemory {
    /// The memory of `pid`. Nothing is checked until the first read.
    pub fn new(pid: u32) -> Self {
        // Linux pids fit into an i32 (PID_MAX_LIMIT is 2^22).
        Self { pid: pid as libc::pid_t }
    }
}

impl ReadMemory for ProcessMemory {
    fn read(&self, address: AbsAddr, into: &mut [u8]) -> io::Result<()> {
        let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
        let remote = libc::iovec { iov_base: address.0 as *mut libc::c_void, iov_len: into.len() };
        // SAFETY: `local` describes `into`, which is borrowed for the call; the kernel checks
        // the remote side and writes nothing there.
        let read = unsafe { libc::process_vm_readv(self.pid, &local, 1, &remote, 1, 0) };
        match usize::try_from(read) {
            Err(_) => Err(io::Error::last_os_error()),
            Ok(read) if read == into.len() => Ok(()),
            Ok(_) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the memory ends there")),
        }
    }
}

const _: () = assert!(mem::size_of::<libc::pid_t>() == 4);
