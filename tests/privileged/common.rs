//! What the tests of this binary share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use pgleak::{
    addr::VirtAddr,
    elf::Image,
    target::{LoadedModules, ProcessMemory, ReadMemory as _},
};
use pgleak_tests::{Build, Server, ServerOptions, Session, pgleak::Running, planted::Call};

/// How long anything may take on a slow machine before a test gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The same on Debian's PostgreSQL 15 and on npm builds of the majors that are named: a test for each,
/// which calls the function that is named first.
macro_rules! on_builds {
    ($on:ident: debian_15 $($name:ident $major:literal)*) => {
        #[test]
        fn debian_15() {
            $on(&Build::packaged(15).unwrap());
        }
        $(
            #[test]
            fn $name() {
                $on(&Build::npm($major).unwrap());
            }
        )*
    };
}
pub(crate) use on_builds;

/// A server of the build.
pub(crate) fn server(build: &Build) -> Server {
    Server::start(build, &ServerOptions::default()).unwrap()
}

/// Keeps a session leaking, some hundred kilobytes a second, until it is dropped.
pub(crate) struct Leaking {
    /// Its backend.
    pub(crate) pid: u32,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Leaking {
    /// In a session with planted functions.
    pub(crate) fn start(mut session: Session) -> Self {
        let (stop, pid) = (Arc::new(AtomicBool::new(false)), session.backend_pid());
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                Call::PALLOC.run(&mut session, &[50, 1000]).unwrap();
                // Not a handshake: a leak at a human rate.
                thread::sleep(Duration::from_millis(100));
            }
        });
        Self { stop, thread: Some(thread), pid }
    }
}

impl Drop for Leaking {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

/// Starts a capture and returns once it records.
pub(crate) fn recording(pid: u32, arguments: &[&str]) -> Running {
    let running = Running::capture(pid, arguments).unwrap();
    running.wait_for("recording for", PATIENCE).unwrap();
    running
}

/// Whether the process has a breakpoint at an instruction of its program: its code there is not
/// what the file says.
pub(crate) fn has_breakpoint(pid: u32, instruction: VirtAddr) -> bool {
    const INT3: u8 = 0xcc;
    let modules = LoadedModules::read(pid).unwrap();
    let main = modules.main().unwrap();
    let image: &Image = &main.image;
    let in_file = image.bytes_at(instruction, 1).unwrap()[0];
    let mut in_memory = [0];
    ProcessMemory::new(pid).read(instruction.in_process(main.bias), &mut in_memory).unwrap();
    assert!(in_memory[0] == in_file || in_memory[0] == INT3, "the code at {instruction} is neither");
    in_memory[0] != in_file
}

/// The probed instructions of a process, planned afresh.
pub(crate) fn probed_instructions(pid: u32) -> Vec<VirtAddr> {
    pgleak::session::prepare(pid, None).unwrap().plan.sites.iter().map(|site| site.probe).collect()
}

/// Fails if any probe is left in the process. The kernel takes the breakpoints of a process that
/// was killed away as it closes its files, which may take a moment.
pub(crate) fn assert_no_probe_is_left(pid: u32) {
    let instructions = probed_instructions(pid);
    let deadline = std::time::Instant::now() + PATIENCE;
    while instructions.iter().any(|instruction| has_breakpoint(pid, *instruction)) {
        assert!(std::time::Instant::now() < deadline, "process {pid} still has probes");
        std::thread::sleep(Duration::from_millis(20));
    }
}
