//! Access to one BPF map by raw `bpf(2)`: single elements and whole maps in batches, which aya
//! does not offer.

use std::{
    io,
    mem::{self, MaybeUninit},
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use tracer_ebpf::{
    abi::{Context, Live, MapSet, Measured, Name, Parts, SiteHits, StackKey, StackTotals, Task},
    unwind::Row,
};

/// Types whose every bit pattern is a value and that have no padding: the layouts of
/// `tracer_ebpf::abi`, which assert their sizes.
///
/// # Safety
/// Only for `repr(C)` or primitive types without padding, references or invalid values.
pub(super) unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($type:ty),*) => {
        $(
            // SAFETY: a primitive, or `repr(C)` of primitives with its padding spelled out.
            unsafe impl Plain for $type {}
        )*
    };
}
plain!(u32, u64, SiteHits, Live, Parts, Context, Name, StackKey, StackTotals, Row, MapSet, Measured, Task);

/// A map operation that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} the kernel map {map}: {source}")]
pub struct MapError {
    /// Which map.
    pub map: &'static str,
    /// `read`, `write`.
    pub operation: &'static str,
    /// The errno.
    pub source: io::Error,
}

/// `bpf(2)` commands (`include/uapi/linux/bpf.h`).
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
const BPF_MAP_DELETE_BATCH: libc::c_int = 27;

/// Elements a batch call moves.
const BATCH: usize = 4096;

#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<()> {
    // SAFETY: `attr` is one of the two layouts above, zero-padded by the kernel to its own size;
    // the pointers in it are to buffers that the callers keep borrowed.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), mem::size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A map with keys `K` and values `V`.
#[derive(Debug)]
pub(super) struct RawMap<K, V> {
    fd: OwnedFd,
    name: &'static str,
    types: std::marker::PhantomData<(K, V)>,
}

impl<K: Plain, V: Plain> RawMap<K, V> {
    /// The map behind `fd`; the caller knows its layout.
    ///
    /// # Errors
    /// If the descriptor cannot be duplicated.
    pub(super) fn new(fd: BorrowedFd<'_>, name: &'static str) -> Result<Self, MapError> {
        let fd =
            fd.try_clone_to_owned().map_err(|source| MapError { map: name, operation: "open", source })?;
        Ok(Self { fd, name, types: std::marker::PhantomData })
    }

    fn error(&self, operation: &'static str, source: io::Error) -> MapError {
        MapError { map: self.name, operation, source }
    }

    fn raw_fd(&self) -> u32 {
        self.fd.as_raw_fd().unsigned_abs()
    }

    /// Sets the value of `key`.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn set(&self, key: &K, value: &V) -> Result<(), MapError> {
        let mut attr = ElementAttr {
            map_fd: self.raw_fd(),
            pad: 0,
            key: std::ptr::from_ref(key) as u64,
            value: std::ptr::from_ref(value) as u64,
            flags: 0,
        };
        bpf(BPF_MAP_UPDATE_ELEM, &mut attr).map_err(|source| self.error("write", source))
    }

    /// Removes elements; those that are not there are passed over. Gives how many were there.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn remove(&self, keys: &[K]) -> Result<u64, MapError> {
        let (mut rest, mut missing) = (keys, 0);
        while !rest.is_empty() {
            let mut attr = BatchAttr {
                in_batch: 0,
                out_batch: 0,
                keys: rest.as_ptr() as u64,
                values: 0,
                count: rest.len() as u32,
                map_fd: self.raw_fd(),
                elem_flags: 0,
                flags: 0,
            };
            match bpf(BPF_MAP_DELETE_BATCH, &mut attr) {
                Ok(()) => break,
                // The kernel stops at one that is not there, and says how far it came.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    missing += 1;
                    rest = rest.get(attr.count as usize + 1..).unwrap_or(&[]);
                }
                Err(error) => return Err(self.error("clear", error)),
            }
        }
        Ok(keys.len() as u64 - missing)
    }

    /// Every key.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn keys(&self) -> Result<Vec<K>, MapError> {
        let mut keys = Vec::new();
        self.for_each(|key, _| keys.push(key))?;
        Ok(keys)
    }

    /// Every element. Elements that come or go meanwhile may or may not be among them.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn all(&self) -> Result<Vec<(K, V)>, MapError> {
        let mut found = Vec::new();
        self.for_each(|key, value| found.push((key, value)))?;
        Ok(found)
    }

    /// The first elements of an array.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn first(&self, count: u32) -> Result<Vec<(K, V)>, MapError> {
        let mut keys: Vec<MaybeUninit<K>> = vec![MaybeUninit::uninit(); count as usize];
        let mut values: Vec<MaybeUninit<V>> = vec![MaybeUninit::uninit(); count as usize];
        let mut next: u64 = 0;
        let mut attr = BatchAttr {
            in_batch: 0,
            out_batch: &raw mut next as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count,
            map_fd: self.raw_fd(),
            elem_flags: 0,
            flags: 0,
        };
        match bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) {
            Ok(()) => {}
            // It has no more.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(self.error("read", error)),
        }
        let read = keys.into_iter().zip(values).take(attr.count.min(count) as usize);
        // SAFETY: the kernel has filled as many of both.
        Ok(read.map(|(key, value)| unsafe { (key.assume_init(), value.assume_init()) }).collect())
    }

    /// The same one by one, as they are read: a million of them are not to be held twice.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn for_each(&self, visit: impl FnMut(K, V)) -> Result<(), MapError> {
        self.for_each_with(&|| (), visit)
    }

    /// The same with a sign of life after each batch: ten million records take seconds.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn for_each_with(
        &self,
        sign_of_life: &dyn Fn(),
        mut visit: impl FnMut(K, V),
    ) -> Result<(), MapError> {
        let mut capacity = BATCH;
        let mut keys: Vec<MaybeUninit<K>> = Vec::new();
        let mut values: Vec<MaybeUninit<V>> = Vec::new();
        // The kernel's cursor: for hash maps a bucket number.
        let mut cursor: u64 = 0;
        let mut first = true;
        loop {
            keys.resize(capacity, MaybeUninit::uninit());
            values.resize(capacity, MaybeUninit::uninit());
            let mut next: u64 = 0;
            let mut attr = BatchAttr {
                in_batch: if first { 0 } else { &raw const cursor as u64 },
                out_batch: &raw mut next as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: capacity as u32,
                map_fd: self.raw_fd(),
                elem_flags: 0,
                flags: 0,
            };
            let result = bpf(BPF_MAP_LOOKUP_BATCH, &mut attr);
            let done = match result {
                Ok(()) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                // A bucket holds more than the buffers do.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && capacity < BATCH << 8 => {
                    capacity *= 2;
                    continue;
                }
                Err(error) => return Err(self.error("read", error)),
            };
            let count = (attr.count as usize).min(capacity);
            for (key, value) in keys.iter().zip(&values).take(count) {
                // SAFETY: the kernel has filled the first `count` of both.
                let (key, value) = unsafe { (key.assume_init(), value.assume_init()) };
                visit(key, value);
            }
            sign_of_life();
            if done {
                return Ok(());
            }
            cursor = next;
            first = false;
        }
    }
}

impl<V: Plain> RawMap<u32, V> {
    /// Writes `values` to the elements from `first` on.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn fill(&self, first: u32, values: &[V]) -> Result<(), MapError> {
        let mut index = first;
        for chunk in values.chunks(1 << 16) {
            let keys: Vec<u32> = (index..).take(chunk.len()).collect();
            let mut attr = BatchAttr {
                in_batch: 0,
                out_batch: 0,
                keys: keys.as_ptr() as u64,
                values: chunk.as_ptr() as u64,
                count: chunk.len() as u32,
                map_fd: self.raw_fd(),
                elem_flags: 0,
                flags: 0,
            };
            bpf(BPF_MAP_UPDATE_BATCH, &mut attr).map_err(|source| self.error("write", source))?;
            index += chunk.len() as u32;
        }
        Ok(())
    }
}
