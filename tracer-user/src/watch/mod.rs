//! The service: watches every server process of the host, and captures what leaks while it happens.
//!
//! `looking` looks (`observe`), `history` and `growth` see what keeps growing, `decide` says what is to be captured and
//! `triggers` whether it may be, `ledger` has the captures: `run` makes one with a program of its own, `shelf` puts it away,
//! `deliver` tells of it. `overview` puts together what `web` shows. `service` is the only one that sees them all.

mod config;
mod host;
mod manager;

mod looking;
mod observe;

mod database;
mod series;
mod thin;

mod growth;
mod history;

mod record;
mod triggers;

mod captures;
mod decide;
mod ledger;
mod run;
mod shelf;
mod store;

mod deliver;
mod ticket;

mod labels;
mod overview;
mod own;
mod service;
mod view;
mod web;

mod client;
mod log;

#[cfg(test)]
mod testing;

pub use client::{Client, ClientError, Place};
pub use config::{Config, ConfigError};
pub use log::JournalFormat;
pub use record::{CaptureNumber, Record, Status};
pub use service::{WatchError, run};
pub use web::CaptureRequest;
