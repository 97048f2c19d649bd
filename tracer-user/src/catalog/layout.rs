//! Memory contexts of each supported version: one table, a row a major.
//!
//! Read in `src/include/nodes/memnodes.h` of the release branches, and checked against the symbols, method tables and live `TopMemoryContext` of
//! builds of every major listed. Nothing here is extrapolated: a version without a row is
//! refused.

use tracer_ebpf::site::ChunkHeader;

use super::{
    Allocator, CatalogError, Function, Kind, OtherKinds, Product, ServerVersion,
    allocators::{CREATE, allocators},
    kinds::other_kinds,
};

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

/// All that pgleak knows of the allocators of one major version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Whose server.
    pub product: Product,
    /// The PostgreSQL major version.
    pub major: u32,
    /// The allocator of AllocSets.
    pub alloc_set: Allocator,
    /// Those of other kinds.
    pub other_allocators: [Option<Allocator>; 3],
    /// What every constructor of a context calls.
    pub create: Function,
    /// Where a context keeps what is read of it.
    pub context: ContextFields,
    /// Fields of contexts of other kinds.
    pub others: OtherKinds,
    /// Where a `PgBackendStatus` has `st_query_id` (`src/include/utils/backend_status.h`, 14 on;
    /// checked against `pg_stat_activity.query_id` on a server of each).
    pub query_id: Option<u64>,
}

impl Layout {
    /// The allocators of every kind of context, that of AllocSets first.
    pub fn allocators(&self) -> impl Iterator<Item = &Allocator> {
        std::iter::once(&self.alloc_set).chain(self.other_allocators.iter().flatten())
    }

    /// The allocator of a kind of context, if this version has it.
    pub fn allocator(&self, kind: Kind) -> Option<&Allocator> {
        self.allocators().find(|allocator| allocator.kind == kind)
    }

    /// What precedes a chunk of an AllocSet.
    pub fn chunk_header(&self) -> ChunkHeader {
        self.alloc_set.methods[0].function.header
    }
}

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

const fn postgresql(major: u32, context: ContextFields, node_tag: u32) -> Layout {
    let (product, create) = (Product::PostgreSql, CREATE);
    let (alloc_set, other_allocators) = allocators(major, node_tag);
    let others = other_kinds(major, context.size);
    let query_id = if major < 14 { None } else { Some(424) };
    Layout { product, major, alloc_set, other_allocators, create, context, others, query_id }
}

const LAYOUTS: [Layout; 7] = [
    postgresql(12, FIELDS_12, 214),
    postgresql(13, FIELDS_13, 217),
    postgresql(14, FIELDS_13, 222),
    postgresql(15, FIELDS_13, 223),
    postgresql(16, FIELDS_13, 450),
    postgresql(17, FIELDS_13, 469),
    postgresql(18, FIELDS_13, 474),
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
    use tracer_ebpf::site::{NO_ARG, Role, Tags};

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
    fn every_row_has_the_arguments_of_its_role() {
        let all = || layouts().iter().flat_map(|row| row.allocators().map(move |one| (row.major, one)));
        for (major, allocator) in all() {
            assert_eq!(allocator.methods[0].function.role, Role::Alloc);
            for method in allocator.methods {
                let function = method.function;
                let (role, what) = (function.role, format!("{major} {}", function.symbol));
                assert_eq!(allocator.method(role), Some(method), "{what}: one of each role");
                let has = |position| position != NO_ARG;
                assert_eq!(has(function.size_arg), role.needs_return(), "only what allocates has a size");
                assert_eq!(has(function.pointer_arg), matches!(role, Role::Free | Role::Realloc), "{what}");
                assert!(has(function.context_arg) || has(function.pointer_arg), "{what}");
                // To 15 a free and a realloc have the context, from 16 on the chunk's header leads to it.
                assert_eq!(has(function.context_arg), !has(function.pointer_arg) || major < 16, "{what}");
                let mut used: Vec<u8> = [function.context_arg, function.pointer_arg, function.size_arg]
                    .into_iter()
                    .filter(|position| *position != NO_ARG)
                    .collect();
                used.sort_unstable();
                assert!(
                    used.iter().enumerate().all(|(at, position)| at == usize::from(*position)),
                    "{used:?}"
                );
                if let Some(table) = allocator.static_table {
                    assert!(method.table_index < table.entries);
                }
            }
            // What is freed one by one can be given back: a reset and a delete have all.
            for role in [Role::Alloc, Role::Reset, Role::Delete] {
                assert!(allocator.method(role).is_some());
            }
            assert_eq!(allocator.method(Role::Free).is_none(), allocator.kind == Kind::Bump);
        }
    }

    #[test]
    fn rows_and_tags_are_unique_and_ordered() {
        for pair in layouts().windows(2) {
            assert!(pair[0].product != pair[1].product || pair[0].major < pair[1].major);
            // A tag that two rows share would prove nothing about the major.
            assert_ne!(pair[0].alloc_set.node_tag, pair[1].alloc_set.node_tag);
        }
        for row in layouts() {
            let tags: Vec<u32> = row.allocators().map(|allocator| allocator.node_tag).collect();
            let followed = Tags::of(&tags).expect("tags that fit into a cookie");
            assert_eq!(followed.followed.count_ones() as usize, tags.len(), "{tags:?}");
            let kinds: Vec<Kind> = row.allocators().map(|allocator| allocator.kind).collect();
            let all = [Kind::AllocSet, Kind::Generation, Kind::Slab, Kind::Bump];
            assert_eq!(kinds, all[..if row.major < 17 { 3 } else { 4 }]);
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
