//! The service: watches every server process of the host, and captures what leaks while it happens.
//!
//! `observe` looks, `history` and `growth` see what keeps growing, `triggers` decides, `run` captures with a program of its
//! own, `shelf` puts away, `deliver` tells, `web` shows. `service` is the only one that sees them all.

mod config;
mod host;
mod manager;

mod observe;

mod database;
mod series;
mod thin;

mod growth;
mod history;

mod record;
mod triggers;

mod captures;
mod program;
mod run;
mod shelf;
mod store;

mod deliver;
mod ticket;

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
