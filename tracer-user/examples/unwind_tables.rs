//! Builds the unwind tables of the given ELF files, prints what they hold and how long it took,
//! and compares every row with gimli. Ends with status 1 if any differs.

use std::{path::Path, process::ExitCode, time::Instant};

use pgleak::{
    elf::Image,
    unwind::{Atlas, UnwindTable, check},
};

fn main() -> anyhow::Result<ExitCode> {
    let mut wrong = 0;
    let mut atlas = Atlas::new();
    for path in std::env::args().skip(1) {
        let image = Image::open(Path::new(&path), Path::new(&path))?;
        let began = Instant::now();
        let Some(table) = UnwindTable::build(&image)? else {
            println!("{path}: no FDEs");
            continue;
        };
        let took = began.elapsed();
        let fullest = table.pages.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
        let placement = atlas.add(&table)?;
        println!("{path}: {:?}, {} pages, {fullest} rows in one, {took:.1?}", table.stats, table.pages.len());
        let found = check::compare(&image, &atlas, placement)?;
        println!(
            "    {} addresses, {} steps, {} unsupported, wrong rows {:?}, wrong steps {:?}",
            found.addresses, found.steps, found.unsupported, found.wrong_rows, found.wrong_steps
        );
        wrong += found.wrong_rows.len() + found.wrong_steps.len();
    }
    println!("atlas: {} rows, {} pages", atlas.rows().len(), atlas.pages().len());
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
