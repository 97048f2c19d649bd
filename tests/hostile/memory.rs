//! How much memory a piece of work takes: an allocator that counts for each thread.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

thread_local! {
    /// Bytes that this thread has allocated and not freed, and the most that it ever had.
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

/// The system's allocator, with a count.
pub(crate) struct Counting;

fn count(bytes: isize) {
    // At a thread's end its count may be gone before its last memory is.
    let _ = HELD.try_with(|held| {
        let (now, most) = held.get();
        held.set((now + bytes, most.max(now + bytes)));
    });
}

// SAFETY: passes every call on as it is; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise is the one that is asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// What `work` gives, and the most bytes that it held at a time.
pub(crate) fn most_bytes<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.with(|held| {
        let (now, _) = held.get();
        held.set((now, now));
        now
    });
    let value = work();
    let (_, most) = HELD.with(Cell::get);
    (value, usize::try_from(most - before).expect("the most is no less than what there was"))
}

#[test]
fn memory_is_counted() {
    let (kept, bytes) = most_bytes(|| {
        drop(vec![0_u8; 100_000]);
        vec![0_u8; 10_000]
    });
    assert_eq!(kept.len(), 10_000);
    assert!((100_000..101_000).contains(&bytes), "{bytes}");
    // A vector that grows has its old place and the new one for a moment.
    let ((), bytes) = most_bytes(|| {
        drop((0..1000_u64).fold(Vec::new(), |mut all, n| {
            all.push(n);
            all
        }))
    });
    assert!(bytes >= 8 * 1024 + 8 * 512, "{bytes}");
}
