//! Keeps what walks know of mappings current while recording.
//!
//! A process that loads a library waits some milliseconds until that is known, so this is a thread that does
//! nothing else.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::{CaptureError, Mappings, urgency::hurry};
use crate::{
    addr::Bias,
    bpf::{Loads, SeenProcess, Walks},
};

/// The mappings of the processes that are traced, kept current until it ends.
#[derive(Debug)]
pub struct Mapper {
    mappings: Arc<Mutex<Mappings>>,
    walks: Arc<Walks>,
    is_one: bool,
    end: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Mapper {
    /// Begins. `is_one`: a capture of one process.
    ///
    /// # Errors
    /// If there can be no other thread.
    pub fn start(mappings: Mappings, walks: Arc<Walks>, loads: Loads, is_one: bool) -> io::Result<Self> {
        let mappings = Arc::new(Mutex::new(mappings));
        let end = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let work = {
            let (mappings, walks, end) = (Arc::clone(&mappings), Arc::clone(&walks), Arc::clone(&end));
            move || serve(&mappings, &walks, loads, &end, is_one)
        };
        let thread = thread::Builder::new().name("mappings".to_owned()).spawn(work)?;
        Ok(Self { mappings, walks, is_one, end, thread: Some(thread) })
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
        if let Some(thread) = self.thread.take() {
            // Cannot fail: the counter is far from full.
            let _ = rustix::io::write(&self.end, &1_u64.to_ne_bytes());
            let _ = thread.join();
        }
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock(mappings: &Mutex<Mappings>) -> MutexGuard<'_, Mappings> {
    // A panic elsewhere leaves a list that is older than it could be.
    mappings.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(mappings: &Mutex<Mappings>, walks: &Walks, mut loads: Loads, end: &OwnedFd, is_one: bool) {
    hurry();
    loop {
        let ready = {
            let fd = loads.fd();
            let mut wanted =
                [PollFd::from_borrowed_fd(fd, PollFlags::IN), PollFd::from_borrowed_fd(end.as_fd(), PollFlags::IN)];
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
        loads.clear();
        for seen in walks.processes().all() {
            if seen.loads != seen.loads_known && seen.is_followed() {
                look_at(&mut lock(mappings), walks, &seen, is_one);
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
