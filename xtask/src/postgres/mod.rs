//! Throw-away PostgreSQL servers for the demonstration and the tests.

mod build;
pub mod headers;
mod leak;
mod npm;
mod os_user;
mod ready;
mod server;

pub use build::{Build, BuildKind};
pub use leak::LEAKING_ROUND;
pub use npm::{NPM_BUILDS, NpmBuild};
pub use os_user::OsUser;
pub use server::{ALLOCATORS, Server, ServerOptions};
