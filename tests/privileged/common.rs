//! What the tests of this binary share.

use std::time::Duration;

use pgleak::{
    addr::VirtAddr,
    elf::Image,
    target::{LoadedModules, ProcessMemory, ReadMemory as _},
};
use pgleak_tests::{Build, Server, ServerOptions, pgleak::Running};

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
