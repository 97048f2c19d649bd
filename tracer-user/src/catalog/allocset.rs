//! The AllocSet allocator of each supported version: one table, a row a major.
//!
//! Read in `src/backend/utils/mmgr/aset.c` and `src/include/nodes/memnodes.h` of the release
//! branches, and checked against the symbols, method tables and live `TopMemoryContext` of
//! builds of every major listed. Nothing here is extrapolated: a version without a row is
//! refused.

use tracer_ebpf::site::{ChunkHeader, NO_ARG, Role};

use super::{CatalogError, OtherKinds, Product, ServerVersion, kinds::other_kinds};

/// A function of the allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its symbol.
    pub symbol: &'static str,
    /// What it does to memory.
    pub role: Role,
    /// Position of the `MemoryContext` argument, from zero, or [`NO_ARG`].
    pub context_arg: u8,
    /// Position of the chunk pointer argument, or [`NO_ARG`].
    pub pointer_arg: u8,
    /// Position of the size argument, or [`NO_ARG`].
    pub size_arg: u8,
    /// Position of the argument that is a context's name, or [`NO_ARG`].
    pub name_arg: u8,
    /// Position of the argument that is a context's node tag, or [`NO_ARG`].
    pub tag_arg: u8,
}

/// A function of an allocator's method table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// The function.
    pub function: Function,
    /// Its index in the table, in pointers.
    pub table_index: usize,
}

/// Where a `MemoryContextData` has its methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodsAt {
    /// A pointer to the table, at this offset.
    Pointer(u64),
    /// The table itself, from this offset on (Greenplum 6).
    Embedded(u64),
}

/// The fields of a `MemoryContextData` that are read from outside: byte offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextFields {
    /// Bytes of all its blocks, where it counts them (`mem_allocated`).
    pub allocated: Option<u64>,
    /// The method table.
    pub methods: MethodsAt,
    /// The parent context, a pointer.
    pub parent: u64,
    /// The first child, a pointer.
    pub first_child: u64,
    /// The next child of the same parent, a pointer.
    pub next_child: u64,
    /// The name, a pointer to a constant string.
    pub name: u64,
    /// What tells contexts of one name apart, a pointer to a string, or null.
    pub ident: u64,
    /// Where the fields of the kind begin.
    pub size: u64,
}

/// How the code of a stripped server gives the method table away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticTable {
    /// The exported function that passes the table as third argument to `MemoryContextCreate`.
    pub constructor: &'static str,
    /// Entries of the table, all of them functions.
    pub entries: usize,
    /// An exported function that the Delete method calls.
    pub called_by_delete: &'static str,
}

/// All that pgleak knows of the allocator of one major version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Whose server.
    pub product: Product,
    /// The PostgreSQL major version.
    pub major: u32,
    /// The allocator's methods, one of each role, in the order of [`Role::METHODS`].
    pub methods: &'static [Method; 5],
    /// What every constructor of a context calls.
    pub create: Function,
    /// How chunks describe themselves.
    pub header: ChunkHeader,
    /// Where a context keeps what is read of it.
    pub context: ContextFields,
    /// `T_AllocSetContext`, the first four bytes of such a context.
    pub node_tag: u32,
    /// Contexts of other kinds.
    pub others: OtherKinds,
    /// Where a `PgBackendStatus` has `st_query_id` (`src/include/utils/backend_status.h`, 14 on;
    /// checked against `pg_stat_activity.query_id` on a server of each).
    pub query_id: Option<u64>,
    /// How to find the functions without symbols or process; none where the constructor hands
    /// over an index instead of the table (16 on), and where the functions are exported anyway.
    pub static_table: Option<StaticTable>,
}

impl Layout {
    /// The function of a role.
    pub fn function(&self, role: Role) -> &Function {
        match role {
            Role::Create => &self.create,
            // The order is an invariant of the table; a test holds it.
            _ => &self.methods[role as usize].function,
        }
    }
}

const fn method(
    symbol: &'static str,
    role: Role,
    table_index: usize,
    [context_arg, pointer_arg, size_arg]: [u8; 3],
) -> Method {
    let (name_arg, tag_arg) = (NO_ARG, NO_ARG);
    let function = Function { symbol, role, context_arg, pointer_arg, size_arg, name_arg, tag_arg };
    Method { function, table_index }
}

/// 12 on: node, tag, methods (an index into the array of them from 16 on), parent, name
/// (`src/backend/utils/mmgr/mcxt.c`). Exported by every server.
const CREATE: Function = Function {
    symbol: "MemoryContextCreate",
    role: Role::Create,
    context_arg: 0,
    pointer_arg: NO_ARG,
    size_arg: NO_ARG,
    name_arg: 4,
    tag_arg: 1,
};

/// 12 to 15: every method gets the context first.
const CONTEXT_FIRST: [Method; 5] = [
    method("AllocSetAlloc", Role::Alloc, 0, [0, NO_ARG, 1]),
    method("AllocSetFree", Role::Free, 1, [0, 1, NO_ARG]),
    method("AllocSetRealloc", Role::Realloc, 2, [0, 1, 2]),
    method("AllocSetReset", Role::Reset, 3, [0, NO_ARG, NO_ARG]),
    method("AllocSetDelete", Role::Delete, 4, [0, NO_ARG, NO_ARG]),
];

/// 16 on: the chunk's header leads to its context, so Free and Realloc get the chunk only. (17
/// added flags behind the size of Alloc and Realloc, which moves nothing.)
const CHUNK_ONLY: [Method; 5] = [
    method("AllocSetAlloc", Role::Alloc, 0, [0, NO_ARG, 1]),
    method("AllocSetFree", Role::Free, 1, [NO_ARG, 0, NO_ARG]),
    method("AllocSetRealloc", Role::Realloc, 2, [NO_ARG, 0, 1]),
    method("AllocSetReset", Role::Reset, 3, [0, NO_ARG, NO_ARG]),
    method("AllocSetDelete", Role::Delete, 4, [0, NO_ARG, NO_ARG]),
];

const FIELDS_12: ContextFields = ContextFields {
    allocated: None,
    methods: MethodsAt::Pointer(8),
    parent: 16,
    first_child: 24,
    next_child: 40,
    name: 48,
    ident: 56,
    size: 72,
};
/// 13 put `mem_allocated` before the methods.
const FIELDS_13: ContextFields = ContextFields {
    allocated: Some(8),
    methods: MethodsAt::Pointer(16),
    parent: 24,
    first_child: 32,
    next_child: 48,
    name: 56,
    ident: 64,
    size: 80,
};

const TABLE_12: Option<StaticTable> = Some(StaticTable {
    constructor: "AllocSetContextCreateInternal",
    entries: 8,
    called_by_delete: "MemoryContextResetOnly",
});

const fn postgresql(
    major: u32,
    methods: &'static [Method; 5],
    header: ChunkHeader,
    context: ContextFields,
    node_tag: u32,
    static_table: Option<StaticTable>,
) -> Layout {
    let (product, create) = (Product::PostgreSql, CREATE);
    let others = other_kinds(major, node_tag, context.size);
    let query_id = if major < 14 { None } else { Some(424) };
    Layout { product, major, methods, create, header, context, node_tag, others, query_id, static_table }
}

const LAYOUTS: [Layout; 7] = [
    postgresql(12, &CONTEXT_FIRST, ChunkHeader::SizeContext, FIELDS_12, 214, TABLE_12),
    postgresql(13, &CONTEXT_FIRST, ChunkHeader::SizeContext, FIELDS_13, 217, TABLE_12),
    postgresql(14, &CONTEXT_FIRST, ChunkHeader::SizeContext, FIELDS_13, 222, TABLE_12),
    postgresql(15, &CONTEXT_FIRST, ChunkHeader::SizeContext, FIELDS_13, 223, TABLE_12),
    postgresql(16, &CHUNK_ONLY, ChunkHeader::Packed16, FIELDS_13, 450, None),
    postgresql(17, &CHUNK_ONLY, ChunkHeader::Packed17, FIELDS_13, 469, None),
    postgresql(18, &CHUNK_ONLY, ChunkHeader::Packed17, FIELDS_13, 474, None),
];

/// Every row of the catalog.
pub fn layouts() -> &'static [Layout] {
    const { &LAYOUTS }
}

/// The row of a server.
///
/// # Errors
/// If the catalog has none: an unsupported product, an unknown major or a pre-release.
pub fn layout(version: &ServerVersion) -> Result<&'static Layout, CatalogError> {
    let &ServerVersion { product, ref number, ref full, .. } = version;
    let (number, full, supported) = (number.clone(), full.clone(), supported());
    if !layouts().iter().any(|row| row.product == product) {
        return Err(CatalogError::UnsupportedProduct { product, full, supported });
    }
    let row = layouts().iter().find(|row| row.product == product && row.major == version.major);
    match row {
        None => Err(CatalogError::UnknownVersion { product, number, full, supported }),
        Some(_) if version.is_pre_release() => {
            Err(CatalogError::PreRelease { product, number, full, supported })
        }
        Some(row) => Ok(row),
    }
}

/// What the catalog has, for messages: `PostgreSQL 12, 13, …`.
fn supported() -> String {
    let mut text = String::new();
    let mut product = None;
    for row in layouts() {
        if product == Some(row.product) {
            text.push_str(&format!(", {}", row.major));
        } else {
            let separator = if text.is_empty() { "" } else { "; " };
            text.push_str(&format!("{separator}{} {}", row.product, row.major));
            product = Some(row.product);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(product: Product, number: &str) -> ServerVersion {
        let digits = number.split(|character: char| !character.is_ascii_digit()).next();
        ServerVersion {
            product,
            major: digits.and_then(|digits| digits.parse().ok()).expect("a number"),
            number: number.to_owned(),
            full: format!("PostgreSQL {number} on x86_64, compiled by gcc"),
            greenplum: None,
        }
    }

    #[test]
    fn every_row_has_each_role_in_its_place() {
        for row in layouts() {
            for (role, method) in Role::METHODS.into_iter().zip(row.methods) {
                let function = row.function(role);
                assert_eq!(function.role, role, "{} {}", row.product, row.major);
                let has = |position| position != NO_ARG;
                assert_eq!(has(function.size_arg), role.needs_return(), "only what allocates has a size");
                assert_eq!(has(function.pointer_arg), matches!(role, Role::Free | Role::Realloc));
                assert!(has(function.context_arg) || has(function.pointer_arg));
                let mut used: Vec<u8> = [function.context_arg, function.pointer_arg, function.size_arg]
                    .into_iter()
                    .filter(|position| *position != NO_ARG)
                    .collect();
                used.sort_unstable();
                assert!(
                    used.iter().enumerate().all(|(at, position)| at == usize::from(*position)),
                    "{used:?}"
                );
                if let Some(table) = row.static_table {
                    assert!(method.table_index < table.entries);
                }
            }
        }
    }

    #[test]
    fn rows_and_tags_are_unique_and_ordered() {
        for pair in layouts().windows(2) {
            assert!(pair[0].product != pair[1].product || pair[0].major < pair[1].major);
            // A tag that two rows share would prove nothing about the major.
            assert_ne!(pair[0].node_tag, pair[1].node_tag);
        }
    }

    #[test]
    fn a_free_has_a_context_up_to_15_only() {
        for row in layouts().iter().filter(|row| row.product == Product::PostgreSql) {
            assert_eq!(row.function(Role::Free).context_arg == NO_ARG, row.major >= 16);
            assert_eq!(row.header == ChunkHeader::SizeContext, row.major < 16);
        }
    }

    #[test]
    fn releases_of_the_range_are_known() {
        for major in 12..=18 {
            let row = layout(&version(Product::PostgreSql, &format!("{major}.1"))).expect("a row");
            assert_eq!(row.major, major);
        }
    }

    #[test]
    fn what_is_not_known_is_refused_with_the_range() {
        let range = "PostgreSQL 12, 13, 14, 15, 16, 17, 18";
        let refusal = |product, number| layout(&version(product, number)).expect_err("a refusal");
        for number in ["11.22", "19.0", "19rc1", "9.4.26"] {
            let error = refusal(Product::PostgreSql, number);
            assert!(matches!(error, CatalogError::UnknownVersion { .. }), "{error}");
            assert!(error.to_string().contains(range), "{error}");
        }
        assert!(matches!(refusal(Product::PostgreSql, "18beta1"), CatalogError::PreRelease { .. }));
        for product in [Product::Greenplum, Product::Cloudberry] {
            let error = refusal(product, "12.12");
            assert!(matches!(error, CatalogError::UnsupportedProduct { .. }), "{error}");
            assert!(error.to_string().contains(range), "{error}");
        }
    }
}
