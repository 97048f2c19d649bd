//! `cargo xtask bench scale`: what a capture costs as processes, live chunks and stacks become more.
//!
//! Writes `docs/scale.svg` and `docs/scale.md`, and says of each curve how steep it is where it is largest: nothing
//! may cost more than in proportion.

mod axis;
mod capture;
mod fit;
mod live;
mod machine;
mod options;
mod page;
mod plot;
mod processes;
mod stacks;
mod stages;
mod watch;

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};
use xtask::workspace;

use crate::{axis::Measured, options::Options};

fn main() -> ExitCode {
    match options::parse().and_then(|options| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("error: something costs more than in proportion; the table says what");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<bool> {
    let mut measured = Measured::read(&options.file)?;
    for name in &options.axes {
        let axis = match name.as_str() {
            "processes" => processes::measure(options)?,
            "live" => live::measure(options)?,
            _ => stacks::measure(options)?,
        };
        measured.put(axis);
        measured.machine = machine::describe();
        measured.write(&options.file)?;
    }
    let (svg, md) = (options.out.join("scale.svg"), options.out.join("scale.md"));
    fs::write(&svg, plot::draw(&measured)?).with_context(|| format!("cannot write {}", svg.display()))?;
    fs::write(&md, page::page(&measured)).with_context(|| format!("cannot write {}", md.display()))?;
    println!("{}", page::table(&measured));
    let shown =
        |path: &std::path::Path| path.strip_prefix(workspace::root()).unwrap_or(path).display().to_string();
    println!("wrote {} and {}", shown(&svg), shown(&md));
    Ok(page::is_linear(&measured))
}
