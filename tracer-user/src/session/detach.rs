//! Probes on their way out, and into the watchdog's hands before.

use std::{io, sync::Arc, thread::JoinHandle};

use crate::{
    bpf::Attached,
    guard::{Manner, Watchdog},
};

/// Gives the watchdog duplicates of all probes but the first `known`.
pub(super) fn hand_over(attached: &Attached, known: usize, watchdog: &Watchdog) -> io::Result<()> {
    attached.descriptors().skip(known).try_for_each(|(number, descriptor)| watchdog.keep(descriptor, number))
}

/// Takes the probes away while the result is made; dropping it waits until they are gone.
#[derive(Debug)]
pub struct Detaching(Option<JoinHandle<()>>);

impl Detaching {
    pub(super) fn start(attached: Attached, watchdog: Arc<Watchdog>, manner: Manner) -> Self {
        Self(Some(std::thread::spawn(move || watchdog.release(attached.let_go(), manner))))
    }
}

impl Drop for Detaching {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // A panic there has nothing to tell: the links are gone either way.
            let _ = thread.join();
        }
    }
}
