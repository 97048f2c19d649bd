//! Stacks of the kernel with the bytes that they were made from.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use pgleak::addr::FileOffset;
use pgleak::bpf::{ContextNames, Limits, RawSample, Sampler, Tracer};
use pgleak::probe::{ProbePlan, ProbeSite};
use pgleak::session::Mappings;
use pgleak::target::LoadedModules;
use tracer_ebpf::{abi::Phase, sample::Sample, site::Role};

/// Room for nearly two thousand samples: more than a run of the statements that gdb follows takes.
const RING_BYTES: u32 = 128 << 20;
/// Kernel memory for tables and maps; enough for a server with LLVM loaded.
const MAP_BYTES: u64 = 128 << 20;

/// Where a server allocates.
pub fn alloc_site(plan: &ProbePlan) -> Result<&ProbeSite> {
    plan.sites.iter().find(|site| site.site.role == Role::Alloc).context("no plan is without one")
}

/// A process whose stacks are sampled. Dropping it takes the probes away.
pub struct Sampling {
    /// The maps and programs.
    pub tracer: Tracer,
    /// The sampling programs.
    pub sampler: Sampler,
    /// What the process has mapped.
    pub mappings: Mappings,
    pid: u32,
}

impl Sampling {
    /// Looks at a process and gives the kernel its tables. Samples are taken from
    /// [`Self::begin`] on.
    pub fn of(pid: u32) -> Result<Self> {
        let mut mappings = Mappings::new(LoadedModules::read(pid)?, None)?;
        let (rows, pages) = mappings.table_sizes();
        let limits = Limits::within(MAP_BYTES, rows, pages).context("the tables need more memory")?;
        let mut tracer =
            Tracer::load(Limits { sample_bytes: RING_BYTES, ..limits }, ContextNames::default())?;
        let sampler = tracer.load_sampler()?;
        mappings.upload(tracer.walks())?;
        Ok(Self { tracer, sampler, mappings, pid })
    }

    /// Samples at an instruction of a file, or at the return of the function that begins there.
    pub fn attach(&mut self, path: &Path, offset: FileOffset, is_return: bool, cookie: u64) -> Result<()> {
        Ok(self.sampler.attach(&mut self.tracer, self.pid, path, offset, is_return, cookie)?)
    }

    /// Lets the programs work.
    pub fn begin(&self) {
        self.tracer.control().allow_until(u64::MAX);
        assert!(self.tracer.control().advance(Phase::Off, Phase::Record), "it has begun before");
    }

    /// The next sample.
    pub fn next(&mut self, patience: Duration) -> Result<RawSample> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(sample) = self.sampler.next_sample() {
                return Ok(sample);
            }
            if Instant::now() > deadline {
                bail!("no sample of process {} within {patience:?}", self.pid);
            }
            self.wait(Duration::from_millis(100))?;
        }
    }

    /// Forgets the samples that have arrived.
    pub fn skip(&mut self) {
        let full = RING_BYTES as usize / size_of::<Sample>();
        for _ in 0..full {
            if self.sampler.next_sample().is_none() {
                return;
            }
        }
    }

    /// Waits until there is a sample, or for so long.
    fn wait(&self, most: Duration) -> Result<()> {
        let mut ring = libc::pollfd { fd: self.sampler.ring_fd(), events: libc::POLLIN, revents: 0 };
        let milliseconds = i32::try_from(most.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one descriptor, which lives through the call.
        if unsafe { libc::poll(&raw mut ring, 1, milliseconds) } < 0 {
            return Err(std::io::Error::last_os_error()).context("cannot wait for samples");
        }
        Ok(())
    }
}
