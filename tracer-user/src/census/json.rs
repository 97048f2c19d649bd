//! A census as JSON: docs/contexts-json.md says what each field is.

use serde::Serialize;

use super::{Census, MemoryContext, Observed, Usage, text::masked};

/// Version of this format.
const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    pid: u32,
    server: &'a str,
    took_us: u64,
    complete: bool,
    troubles: String,
    contexts: Vec<Row<'a>>,
}

#[derive(Serialize)]
struct Row<'a> {
    address: String,
    parent: Option<usize>,
    name: &'a str,
    ident: Option<String>,
    kind: String,
    total: Option<u64>,
    used: Option<u64>,
    free: Option<u64>,
    blocks: Option<usize>,
    free_chunks: Option<u64>,
}

/// One line of JSON; without the literals of statements unless they are wanted.
///
/// # Errors
/// Never in practice: what serde says.
pub fn json(observed: &Observed, census: &Census, show_literals: bool) -> serde_json::Result<String> {
    let row = |context| row(context, show_literals);
    serde_json::to_string(&Document {
        schema: SCHEMA,
        pid: observed.process.pid,
        server: &observed.version.full,
        took_us: u64::try_from(census.took.as_micros()).unwrap_or(u64::MAX),
        complete: census.troubles.none(),
        troubles: census.troubles.to_string(),
        contexts: census.contexts.iter().map(row).collect(),
    })
}

fn row(context: &MemoryContext, show_literals: bool) -> Row<'_> {
    let usage = context.usage.as_ref();
    Row {
        address: context.address.to_string(),
        parent: context.parent,
        name: &context.name,
        ident: context.ident.as_ref().map(|ident| if show_literals { ident.clone() } else { masked(ident) }),
        kind: context.kind.to_string(),
        total: context.total,
        used: usage.map(Usage::used),
        free: usage.map(Usage::free),
        blocks: usage.map(|usage| usage.blocks.len()),
        free_chunks: usage.map(|usage| usage.free_chunks),
    }
}
