//! `pgleak` on real servers of every build, with real probes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agreement;
mod blocks;
mod common;
mod containers;
mod contexts;
mod debugger;
mod differential;
mod exact;
mod foresight;
mod formats;
mod greenplum;
mod input;
mod leak;
mod lifecycle;
mod mappings;
mod mechanisms;
mod names;
mod outside;
mod overhead;
mod package;
mod page;
mod quiet;
mod reference;
mod running;
mod selection;
mod service;
mod serving;
mod several;
mod shapes;
mod sites;
mod top;
mod trail;
mod user;
