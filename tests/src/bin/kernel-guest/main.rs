//! The first and only program of a virtual machine that `cargo xtask test --kernels` boots: checks
//! pgleak on that kernel, says one line a check on the console, and ends the machine.
//!
//! Lines are `guest: ok NAME: DETAIL` or `guest: failed NAME: WHY`, and `guest: end` at last. What
//! the host makes of them is in `xtask/src/kernels/judge.rs`.

mod chains;
mod checks;
mod machine;

use anyhow::Result;

fn main() {
    let result = machine::mount_all().and_then(|()| checks::run(&mut say));
    if let Err(error) = result {
        say("machine", Err(error));
    }
    println!("guest: end");
    machine::end();
}

/// Tells the host how a check ended.
fn say(name: &str, result: Result<String>) {
    match result {
        Ok(detail) => println!("guest: ok {name}: {detail}"),
        // One line, whatever the error: a verifier's log follows on lines of its own.
        Err(error) => {
            let text = format!("{error:#}");
            let (first, log) = text.split_once('\n').unwrap_or((&text, ""));
            println!("guest: failed {name}: {first}");
            log.lines().for_each(|line| println!("  {line}"));
        }
    }
}
