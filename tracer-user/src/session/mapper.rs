//! Keeps what walks know of mappings current while recording.
//!
//! A process that loads a library waits some milliseconds until that is known. It does so in the kernel, and
//! where the kernel cannot be preempted (`PREEMPT_NONE`, `PREEMPT_VOLUNTARY`), whatever is to run on the same
//! processor waits, too. So there are threads that do nothing else, each on a processor of its own, one of
//! which is at hand.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::{
    CaptureError, Mappings,
    urgency::{hurry, some_processors},
};
use crate::{
    addr::Bias,
    bpf::{Loads, SeenProcess, Walks},
};

/// So many processors are not all held by processes that wait.
const THREADS: usize = 4;

/// The mappings of the processes that are traced, kept current until it ends.
#[derive(Debug)]
pub struct Mapper {
    mappings: Arc<Mutex<Mappings>>,
    walks: Arc<Walks>,
    is_one: bool,
    end: Arc<OwnedFd>,
    threads: Vec<JoinHandle<()>>,
}

impl Mapper {
    /// Begins. `is_one`: a capture of one process.
    ///
    /// # Errors
    /// If there can be no other thread.
    pub fn start(mappings: Mappings, walks: Arc<Walks>, loads: Loads, is_one: bool) -> io::Result<Self> {
        let mappings = Arc::new(Mutex::new(mappings));
        let end = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let loads = Arc::new(Mutex::new(loads));
        let mut threads = Vec::new();
        for processor in some_processors(THREADS) {
            let (mappings, walks) = (Arc::clone(&mappings), Arc::clone(&walks));
            let (loads, end) = (Arc::clone(&loads), Arc::clone(&end));
            let work = move || {
                hurry(processor);
                serve(&mappings, &walks, &loads, &end, is_one);
            };
            threads.push(thread::Builder::new().name("mappings".to_owned()).spawn(work)?);
        }
        Ok(Self { mappings, walks, is_one, end, threads })
    }

    /// The mappings as they are now.
    pub fn lock(&self) -> MutexGuard<'_, Mappings> {
        lock(&self.mappings)
    }

    /// How far the program is from its own addresses in processes with a set of mappings.
    pub fn main_bias(&self, mapset: u32) -> Bias {
        self.lock().main_bias(mapset)
    }

    /// Reads the mappings of a process again.
    pub fn look_at(&self, seen: &SeenProcess) {
        look_at(&mut self.lock(), &self.walks, seen, self.is_one);
    }

    /// Ends, and gives the mappings back.
    pub fn end(mut self) -> Mappings {
        self.stop();
        std::mem::replace(&mut *self.lock(), Mappings::none())
    }

    fn stop(&mut self) {
        // Cannot fail: the counter is far from full. Nobody reads it, so that all see it.
        let _ = rustix::io::write(&self.end, &1_u64.to_ne_bytes());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves a list that is older than it could be.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(mappings: &Mutex<Mappings>, walks: &Walks, loads: &Mutex<Loads>, end: &OwnedFd, is_one: bool) {
    let Ok(events) = lock(loads).fd().try_clone_to_owned() else { return };
    loop {
        let ready = {
            let of = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
            let mut wanted = [of(events.as_fd()), of(end.as_fd())];
            match poll(&mut wanted, None) {
                Ok(_) => wanted.map(|wanted| !wanted.revents().is_empty()),
                Err(rustix::io::Errno::INTR) => continue,
                // What is loaded from here on is noticed when a stack leads there.
                Err(_) => return,
            }
        };
        if ready[1] {
            return;
        }
        lock(loads).clear();
        let waits = |seen: &SeenProcess| seen.loads != seen.loads_known && seen.is_followed();
        for seen in walks.processes().all().filter(waits) {
            let mut mappings = lock(mappings);
            // Another thread may have been there.
            if let Some(seen) = walks.processes().seen(seen.number).filter(waits) {
                look_at(&mut mappings, walks, &seen, is_one);
                walks.processes().loads_are_known(seen.number, seen.loads);
            }
        }
    }
}

fn look_at(mappings: &mut Mappings, walks: &Walks, seen: &SeenProcess, is_one: bool) {
    if is_one {
        mappings.look_now(walks);
        return;
    }
    match mappings.set_of(walks, seen.pid) {
        Ok(mapset) => walks.processes().use_mapset(seen.number, mapset),
        // Its end is noticed elsewhere.
        Err(CaptureError::Process(_)) => {}
        Err(error) => {
            mappings.note(format!("stacks may end at libraries that were loaded while recording: {error}"));
        }
    }
}
