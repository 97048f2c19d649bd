//! What the programs are made of.

pub(crate) mod call;
pub(crate) mod chunk;
pub(crate) mod context;
pub(crate) mod foresee;
pub(crate) mod loader;
pub(crate) mod maps;
pub(crate) mod measure;
pub(crate) mod process;
pub(crate) mod read;
pub(crate) mod realloc;
pub(crate) mod record;
pub(crate) mod sample;
pub(crate) mod sampling;
pub(crate) mod session;
pub(crate) mod stack;
pub(crate) mod task;
