//! One boot: qemu by software emulation, its console as text, within a time limit.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use xtask::process::shown;

use super::emulator::Emulator;

/// A boot takes about half a minute on two processors, and those may be busy.
const LIMIT: Duration = Duration::from_secs(240);

/// What the kernel is told: nothing but its own end on the console, and a panic ends the machine.
const COMMAND_LINE: &str = "console=ttyS0 rdinit=/init quiet loglevel=1 panic=-1";

/// Boots the kernel; what its console said, until the machine ended.
///
/// # Errors
/// If qemu cannot be run, or the machine does not end in time.
pub(super) fn run(qemu: &Emulator, kernel: &Path, initramfs: &Path) -> Result<String> {
    let mut command = qemu.command();
    command
        // A host with KVM would run another processor's code than one without.
        .args(["-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "1024"])
        .args(["-nodefaults", "-nographic", "-serial", "stdio", "-no-reboot"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", COMMAND_LINE])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    eprintln!("+ {}", shown(&command));
    let mut machine = Machine(command.spawn().context("cannot start qemu")?);
    let lines = lines_of(machine.0.stdout.take().context("started with a pipe")?);
    let console = read(&lines, Instant::now() + LIMIT)?;
    let status = machine.0.wait().context("cannot wait for qemu")?;
    if !status.success() {
        bail!("qemu failed: {status}; the console said:\n{console}");
    }
    Ok(console)
}

/// The process of qemu, which ends with this.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // Fails if it has ended, which is as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn lines_of(stdout: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || send_lines(stdout, &sender));
    receiver
}

fn send_lines(stdout: ChildStdout, sender: &Sender<String>) {
    for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        println!("{line}");
        if sender.send(line).is_err() {
            return;
        }
    }
}

fn read(lines: &Receiver<String>, limit: Instant) -> Result<String> {
    let mut console = String::new();
    loop {
        match lines.recv_timeout(limit.saturating_duration_since(Instant::now())) {
            Ok(line) => console.extend([&line, "\n"]),
            Err(RecvTimeoutError::Disconnected) => return Ok(console),
            Err(RecvTimeoutError::Timeout) => {
                bail!("the machine did not end within {} s; it said:\n{console}", LIMIT.as_secs())
            }
        }
    }
}
