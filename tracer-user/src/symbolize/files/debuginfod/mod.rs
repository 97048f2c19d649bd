//! Debug files from debuginfod servers: only when asked for, verified, cached, and limited in time.

mod cache;
mod client;
mod download;
mod error;
mod settings;

pub use client::Debuginfod;
pub use error::{DebuginfodError, FetchError};
pub use settings::Settings;
