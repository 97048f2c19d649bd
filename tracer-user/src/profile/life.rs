//! How long the memory of a context lives, by where it stands in the tree.

use super::ContextPlace;

/// What ends a context, and with it everything that is in it or below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Life {
    /// The next message of the client.
    Message,
    /// The end of a query or cursor.
    Query,
    /// The end of a call of a function that runs queries.
    Call,
    /// The end of the transaction.
    Transaction,
    /// The next record or message of a stream of changes.
    Change,
    /// The next table of an autovacuum worker.
    Table,
    /// The end of the process, as far as is known.
    Process,
}

impl Life {
    /// What ends it, in words.
    pub fn end(self) -> &'static str {
        match self {
            Self::Message => "the statement",
            Self::Query => "the query or cursor",
            Self::Call => "the call of the function",
            Self::Transaction => "the transaction",
            Self::Change => "the next change of the stream",
            Self::Table => "the next table",
            Self::Process => "the process",
        }
    }
}

/// Contexts whose end is known (`src/backend/utils/mmgr/README`, and where they are made). The
/// outermost in a path decides, since its end takes the others with it.
const ENDS: &[(&str, Life)] = &[
    ("MessageContext", Life::Message),
    ("PortalContext", Life::Query),
    ("PortalHoldContext", Life::Query),
    ("PortalHeapMemory", Life::Query),
    ("ExecutorState", Life::Query),
    ("Autovacuum Portal", Life::Table),
    ("TopTransactionContext", Life::Transaction),
    ("CurTransactionContext", Life::Transaction),
    ("SPI Proc", Life::Call),
    ("SPI Exec", Life::Call),
    ("ApplyMessageContext", Life::Change),
    ("ErrorContext", Life::Message),
];

/// The same by their own names, where the path is not known.
const ENDS_BY_NAME: &[(&str, Life)] = &[
    ("ExprContext", Life::Query),
    ("HashTableContext", Life::Query),
    ("HashBatchContext", Life::Query),
    ("HashAgg hash entries", Life::Query),
    ("HashAgg meta context", Life::Query),
    ("TupleSort main", Life::Query),
    ("TupleSort sort", Life::Query),
    ("Caller tuples", Life::Query),
    ("TupleHashTable", Life::Query),
    ("Subplan HashTable Context", Life::Query),
    ("Subplan HashTable Temp Context", Life::Query),
    ("AfterTriggerEvents", Life::Transaction),
];

/// How long what is in such contexts lives.
pub fn life(place: &ContextPlace) -> Life {
    let ends = |table: &[(&str, Life)], name: &str| {
        table.iter().find(|(context, _)| *context == name).map(|(_, life)| *life)
    };
    let found = match &place.path {
        Some(path) => path.iter().chain([&place.name]).find_map(|name| ends(ENDS, name)),
        None => ends(ENDS, &place.name).or_else(|| ends(ENDS_BY_NAME, &place.name)),
    };
    found.unwrap_or(Life::Process)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outermost_end_counts() {
        let place = |name: &str, path: Option<&[&str]>| ContextPlace {
            name: name.to_owned(),
            ident: None,
            path: path.map(|path| path.iter().map(|name| (*name).to_owned()).collect()),
        };
        let top = "TopMemoryContext";
        for (name, path, expected) in [
            ("index info", Some(&[top, "CacheMemoryContext"][..]), Life::Process),
            ("ExprContext", Some(&[top, "TopPortalContext", "PortalContext", "ExecutorState"]), Life::Query),
            ("SPI Exec", Some(&[top, "TopTransactionContext", "SPI Proc"]), Life::Transaction),
            ("MessageContext", Some(&[top]), Life::Message),
            // A sort of a process that has no queries.
            ("TupleSort main", Some(&[top]), Life::Process),
            ("TupleSort main", None, Life::Query),
            ("ReorderBuffer", None, Life::Process),
        ] {
            assert_eq!(life(&place(name, path)), expected, "{name} {path:?}");
        }
    }
}
