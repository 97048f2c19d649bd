//! `pgleak top`: the server processes of this host on a terminal, as they grow; of one of them its memory contexts,
//! and a capture of it.
//!
//! Threads look, read contexts, keys and signals, and what a capture says; all of it comes as events to one loop
//! (`run`), which changes the model and draws it. Nothing else touches the terminal, and the model knows neither clock
//! nor process.

mod error;
mod text;

mod capturing;
mod contexts;
mod series;
mod stacks;

mod acting;
mod action;
mod model;

mod draw;
mod input;
mod layout;

mod budget;
mod child;
mod event;
mod reader;
mod run;
mod screen;
mod watch;

pub use error::TopError;
pub use run::{Made, TopOptions, top};

#[cfg(test)]
mod testing;
