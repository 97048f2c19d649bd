//! What is attached, one after another: a row each.

mod bpftrace;
mod empty;
mod events;
mod heaptrack;
mod memleak;
mod perf;
mod pgleak;
mod plan;
mod tool;
mod watch;

use std::time::Duration;

use ::pgleak::bpf::Mechanism;
use anyhow::{Context as _, Result};

use crate::{load::Load, rivals::perf::Stacks};

/// A rival works for so long before it is looked at.
const WARM_UP: Duration = Duration::from_millis(300);
/// The longest that a rival may take to begin, or to end.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A way to trace, or not to.
pub(crate) struct Rival {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    /// Where it is measured if nobody says otherwise.
    pub(crate) at: At,
    kind: Kind,
}

/// What is traced, and so under which loads it is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// Everywhere.
    All,
    /// Memory contexts.
    Contexts,
    /// The C library's malloc.
    Malloc,
    /// Nowhere, unless it is named.
    Asked,
}

enum Kind {
    Nothing,
    /// Programs that do nothing, where pgleak has its probes.
    Empty {
        mechanism: Mechanism,
        only_frees: bool,
    },
    /// `pgleak capture` with these arguments.
    Pgleak(&'static [&'static str]),
    /// The same in windows, which take their time.
    Windows(&'static [&'static str]),
    /// The service, at rest.
    Watch,
    /// The same job as far as bpftrace's language allows, at the first instructions of the functions.
    Bpftrace,
    Memleak,
    Perf(Stacks),
    Heaptrack,
}

/// Nothing attached: what all others are measured against.
pub(crate) const NOTHING: &str = "nothing";
/// See [`RIVALS`].
pub(crate) const FLOOR: &str = "floor";
/// See [`RIVALS`].
pub(crate) const BPFTRACE: &str = "bpftrace";
/// See [`RIVALS`].
pub(crate) const MEMLEAK: &str = "memleak";
/// pgleak as it is when it is told nothing; see [`RIVALS`].
pub(crate) const FULL: &str = "pgleak";
/// See [`RIVALS`].
pub(crate) const LOW: &str = "pgleak-low";
/// See [`RIVALS`].
pub(crate) const OF_MALLOC: &str = "pgleak-malloc";

/// All of them. A mode of pgleak is a row, and nothing else.
pub(crate) const RIVALS: &[Rival] = &[
    Rival { name: NOTHING, what: "nothing attached", at: At::All, kind: Kind::Nothing },
    Rival {
        name: FLOOR,
        what: "the floor: empty programs where pgleak has its probes, at entry and return of allocations and \
               reallocations, at entry of the rest; perf links",
        at: At::Contexts,
        kind: Kind::Empty { mechanism: Mechanism::PerfLinks, only_frees: false },
    },
    Rival {
        name: "floor-multi",
        what: "the same by uprobe_multi links",
        at: At::Contexts,
        kind: Kind::Empty { mechanism: Mechanism::Multi, only_frees: false },
    },
    Rival {
        name: "floor-session",
        what: "the same by session links",
        at: At::Contexts,
        kind: Kind::Empty { mechanism: Mechanism::Session, only_frees: false },
    },
    Rival {
        name: "floor-frees",
        what: "the floor without allocations and reallocations",
        at: At::Contexts,
        kind: Kind::Empty { mechanism: Mechanism::PerfLinks, only_frees: true },
    },
    Rival {
        name: FULL,
        what: "pgleak capture: every allocation",
        at: At::Contexts,
        kind: Kind::Pgleak(&["--overhead", "full"]),
    },
    Rival {
        name: "pgleak-multi",
        what: "the same by uprobe_multi links",
        at: At::Contexts,
        kind: Kind::Pgleak(&["--overhead", "full", "--attach", "multi"]),
    },
    Rival {
        name: "pgleak-perf",
        what: "the same by perf links",
        at: At::Contexts,
        kind: Kind::Pgleak(&["--overhead", "full", "--attach", "perf"]),
    },
    Rival {
        name: LOW,
        what: "pgleak capture --overhead low, for half a minute",
        at: At::Contexts,
        kind: Kind::Windows(&["--overhead", "low"]),
    },
    Rival {
        name: "pgleak-watch",
        what: "pgleak watch, which looks each five seconds and captures nothing",
        at: At::Asked,
        kind: Kind::Watch,
    },
    Rival {
        name: OF_MALLOC,
        what: "pgleak capture --allocator malloc: every malloc and mmap",
        at: At::Malloc,
        kind: Kind::Pgleak(&["--allocator", "malloc"]),
    },
    Rival {
        name: BPFTRACE,
        what: "bpftrace: sizes, user stacks, live pointers, no context resets; at the functions' first instruction",
        at: At::Contexts,
        kind: Kind::Bpftrace,
    },
    Rival {
        name: "perf",
        what: "perf record of AllocSet's functions at pgleak's instructions: arguments, return values, stacks by \
               frame pointers (two frames in builds without)",
        at: At::Contexts,
        kind: Kind::Perf(Stacks::FramePointers),
    },
    Rival {
        name: "perf-dwarf",
        what: "the same with --call-graph dwarf: 8 KiB of stack copied at each hit",
        at: At::Asked,
        kind: Kind::Perf(Stacks::Dwarf),
    },
    Rival {
        name: MEMLEAK,
        what: "memleak of libbpf-tools: every malloc of the C library, stacks by frame pointers",
        at: At::Malloc,
        kind: Kind::Memleak,
    },
    Rival {
        name: "heaptrack",
        what: "heaptrack: every malloc, in the process itself, into which gdb loads it; never taken out again, and so \
               always the last of a round, on a backend that ends with it",
        at: At::Malloc,
        kind: Kind::Heaptrack,
    },
];

pub(crate) fn named(name: &str) -> Result<&'static Rival> {
    RIVALS.iter().find(|rival| rival.name == name).with_context(|| {
        let known: Vec<&str> = RIVALS.iter().map(|rival| rival.name).collect();
        format!("no rival is called {name}; there are: {}", known.join(", "))
    })
}

/// Something at work on a process, until it is ended.
pub(crate) trait Working {
    /// Takes it away, and says what it has lost, if it says such things.
    fn end(self: Box<Self>) -> Result<Option<u64>>;
}

struct Nothing;

impl Working for Nothing {
    fn end(self: Box<Self>) -> Result<Option<u64>> {
        Ok(None)
    }
}

impl Rival {
    /// Whether it is measured under a load without being named.
    pub(crate) fn is_usual(&self, load: Load) -> bool {
        match self.at {
            At::All => true,
            At::Contexts => load != Load::Malloc,
            At::Malloc => load == Load::Malloc,
            At::Asked => false,
        }
    }

    /// Whether it stays in the process to its end.
    pub(crate) fn stays(&self) -> bool {
        matches!(self.kind, Kind::Heaptrack)
    }

    /// How long it works before it is looked at, and how long it is looked at where others are for so long.
    pub(crate) fn times(&self, others: Duration) -> (Duration, Duration) {
        match self.kind {
            // There is nothing to warm up.
            Kind::Nothing => (Duration::ZERO, others),
            // Several looks.
            Kind::Watch => (WARM_UP, watch::LOOKED_AT),
            // What comes before the first window is a part of it.
            Kind::Windows(_) => (Duration::ZERO, pgleak::WINDOWS),
            _ => (WARM_UP, others),
        }
    }

    /// Attaches it to a process; it works when this returns.
    pub(crate) fn begin(&self, pid: u32) -> Result<Box<dyn Working>> {
        match self.kind {
            Kind::Nothing => Ok(Box::new(Nothing)),
            Kind::Empty { mechanism, only_frees } => empty::begin(pid, mechanism, only_frees),
            Kind::Pgleak(arguments) => pgleak::begin(pid, arguments),
            Kind::Windows(arguments) => pgleak::begin_windows(pid, arguments),
            Kind::Watch => watch::begin(),
            Kind::Bpftrace => bpftrace::begin(pid),
            Kind::Memleak => memleak::begin(pid),
            Kind::Perf(stacks) => perf::begin(pid, stacks),
            Kind::Heaptrack => heaptrack::begin(pid),
        }
    }
}

pub(crate) use memleak::package as memleak_package;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_of_one_row_each() {
        for rival in RIVALS {
            assert_eq!(RIVALS.iter().filter(|other| other.name == rival.name).count(), 1, "{}", rival.name);
            assert!(named(rival.name).is_ok());
        }
        assert!(named("pgleek").is_err());
    }

    #[test]
    fn each_load_has_what_its_ratios_are_of() {
        let usual = |name: &str, load| named(name).is_ok_and(|rival| rival.is_usual(load));
        for load in Load::ALL {
            assert!(usual(NOTHING, load));
            let (other, own) = if load == Load::Malloc { (MEMLEAK, OF_MALLOC) } else { (FLOOR, FULL) };
            assert!(usual(other, load) && usual(own, load), "{load:?}");
        }
    }
}
