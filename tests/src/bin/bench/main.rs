//! `cargo xtask bench overhead`: what tracing adds to a transaction, beside its rivals in the same rounds.
//!
//! In each round one backend works without a pause while one rival after another is attached to it, in an order by
//! chance. A figure is a ratio of two times of one round; intervals are over rounds.

mod load;
mod options;
mod page;
mod ratio;
mod rivals;
mod rounds;

use std::process::ExitCode;

use anyhow::Result;

use crate::{options::Options, rounds::Round};

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
    print!("{}", page::table(&rounds));
    Ok(())
}
