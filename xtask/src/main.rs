//! Developer commands of pgleak.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod build;
mod cases;
mod demo;
mod dist;
mod forward;
mod kernels;
mod licences;
mod setup;
mod soak;
#[path = "../../tracer-user/build/stamp.rs"]
mod stamp;
mod test;

/// Set-up, build, test, demonstration and package of pgleak.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Setup(setup::Setup),
    Build(build::Build),
    Bench(bench::Bench),
    Cases(cases::Cases),
    Demo(demo::Demo),
    Dist(dist::Dist),
    Soak(soak::Soak),
    Test(test::Test),
    Licences(licences::Licences),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup(command) => command.run(),
        Command::Build(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Cases(command) => command.run(),
        Command::Demo(command) => command.run(),
        Command::Dist(command) => command.run(),
        Command::Soak(command) => command.run(),
        Command::Test(command) => command.run(),
        Command::Licences(command) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
