//! `cargo xtask bench overhead`: what tracing adds to a transaction, beside its rivals in the same rounds.
//!
//! In each round one backend works without a pause while one rival after another is attached to it, in an order by
//! chance. A figure is a ratio of two times of one round; intervals are over rounds.

mod code;
mod conditions;
mod group;
mod load;
mod options;
mod ratio;
mod rivals;
mod rounds;
mod table;

use std::process::ExitCode;

use anyhow::Result;

use crate::{group::Group, options::Options, rounds::Round};

fn main() -> ExitCode {
    match options::parse().and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    if options.measures {
        rounds::measure(options)?;
    }
    let rounds: Vec<Round> = rounds::read(&options.file)?;
    show(&rounds);
    Ok(())
}

fn show(rounds: &[Round]) {
    let groups = Group::all(rounds);
    for group in &groups {
        println!("\n{}, {}, {} rounds\n\n{}", group.build, group.load, group.rounds(), table::table(group));
    }
}
