//! Memory contexts of each supported version: one table, a row a major.
//!
//! Read in `src/include/nodes/memnodes.h` of the release branches, and checked against the symbols, method tables and live `TopMemoryContext` of
//! builds of every major listed. Nothing here is extrapolated: a version without a row is
//! refused.

use tracer_ebpf::{foresee::SetFields, site::ChunkHeader};

use super::{
    Allocator, CatalogError, Function, Kind, NodeTag, OtherKinds, Product, ServerVersion,
    allocators::{ALLOC_SET_OF_GREENPLUM_6, CREATE, allocators, with_longer_tables},
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

/// Where a `MemoryContextData` counts the bytes of its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Nowhere.
    Nowhere,
    /// In one field (`mem_allocated`).
    At(u64),
    /// In two: what it has got, and what of it it has given back (`allBytesAlloc`, `allBytesFreed`).
    Difference(u64, u64),
}

/// The fields of a `MemoryContextData` that are read from outside: byte offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextFields {
    /// Bytes of all its blocks.
    pub allocated: Counted,
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
    pub ident: Option<u64>,
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
    /// What every constructor of a context calls with the memory that the context lies in. None in
    /// Greenplum 6, where that is a chunk of `TopMemoryContext` like others.
    pub create: Option<Function>,
    /// Where a context keeps what is read of it.
    pub context: ContextFields,
    /// Whether a context's name is its own copy, which ends with it.
    pub name_is_copy: bool,
    /// Whether blocks end at an address that they hold (`endptr`), so that they can be read.
    pub blocks_have_ends: bool,
    /// What decides where an AllocSet takes a chunk from; `None` where that was not tried on a server.
    pub set_fields: Option<SetFields>,
    /// Fields of contexts of other kinds.
    pub others: Option<OtherKinds>,
    /// What a `PgBackendStatus` says of the statement that runs, where that is known.
    pub activity: Option<ActivityFields>,
}

/// Fields of a `PgBackendStatus` (`src/include/pgstat.h`, `utils/backend_status.h`): byte offsets. Its first
/// counts changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActivityFields {
    /// `st_activity_start_timestamp`.
    pub started: u64,
    /// `st_query_id` (14 on; checked against `pg_stat_activity.query_id` on a server of each).
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

    /// The same with what the node tag of the process's `TopMemoryContext` says.
    #[must_use]
    pub fn with_top_tag(mut self, top: u32) -> Self {
        let all = std::iter::once(&mut self.alloc_set).chain(self.other_allocators.iter_mut().flatten());
        for allocator in all {
            if let NodeTag::AfterTop(after) = allocator.node_tag {
                allocator.node_tag = NodeTag::Is(top + after);
            }
        }
        self
    }

    /// What precedes a chunk of an AllocSet.
    pub fn chunk_header(&self) -> ChunkHeader {
        self.alloc_set.methods[0].function.header
    }
}

const FIELDS_12: ContextFields = ContextFields {
    allocated: Counted::Nowhere,
    methods: MethodsAt::Pointer(8),
    parent: 16,
    first_child: 24,
    next_child: 40,
    name: 48,
    ident: Some(56),
    size: 72,
};
/// 13 put `mem_allocated` before the methods.
const FIELDS_13: ContextFields = ContextFields {
    allocated: Counted::At(8),
    methods: MethodsAt::Pointer(16),
    parent: 24,
    first_child: 32,
    next_child: 48,
    name: 56,
    ident: Some(64),
    size: 80,
};

/// Greenplum 6: 9.4 with the methods by value and statistics. (Later 6X trees have a word more at the end.)
const FIELDS_OF_GREENPLUM_6: ContextFields = ContextFields {
    allocated: Counted::Difference(128, 136),
    methods: MethodsAt::Embedded(8),
    parent: 88,
    first_child: 96,
    next_child: 104,
    name: 112,
    ident: None,
    size: 160,
};

const fn postgresql(major: u32, context: ContextFields, node_tag: u32) -> Layout {
    let (alloc_set, other_allocators) = allocators(major, NodeTag::Is(node_tag));
    let query_id = if major < 14 { None } else { Some(424) };
    Layout {
        product: Product::PostgreSql,
        major,
        alloc_set,
        other_allocators,
        create: Some(CREATE),
        context,
        name_is_copy: false,
        blocks_have_ends: true,
        set_fields: Some(set_fields(major, context.size)),
        others: Some(other_kinds(major, context.size)),
        activity: Some(ActivityFields { started: 32, query_id }),
    }
}

/// `AllocSetContext` in `src/backend/utils/mmgr/aset.c`: blocks, eleven free lists, three sizes of blocks and
/// `allocChunkLimit`. From 17 on the sizes have 32 bits each.
const fn set_fields(major: u32, start: u64) -> SetFields {
    if major < 17 {
        SetFields { start, limit_word: 15, limit_shift: 0 }
    } else {
        SetFields { start, limit_word: 13, limit_shift: 32 }
    }
}

/// Greenplum 7 and Cloudberry: the PostgreSQL that they are based on, with longer method tables and
/// `AllocSetDelete(context, parent)`. Their node tags were never computed.
const fn of_the_greenplum_line(product: Product, major: u32, context: ContextFields) -> Layout {
    let (alloc_set, other_allocators) = with_longer_tables(allocators(major, NodeTag::AfterTop(0)));
    let set_fields = None;
    Layout {
        product,
        alloc_set,
        other_allocators,
        set_fields,
        activity: None,
        ..postgresql(major, context, 0)
    }
}

const GREENPLUM_6: Layout = Layout {
    product: Product::Greenplum,
    major: 9,
    alloc_set: ALLOC_SET_OF_GREENPLUM_6,
    other_allocators: [None; 3],
    create: None,
    context: FIELDS_OF_GREENPLUM_6,
    name_is_copy: true,
    blocks_have_ends: false,
    set_fields: None,
    others: None,
    activity: None,
};

/// Two rows of one version differ in the fields of a context only; the process tells which it is. Trees of
/// Greenplum 7 have `mem_allocated` of 13 or do not.
const LAYOUTS: [Layout; 12] = [
    postgresql(12, FIELDS_12, 214),
    postgresql(13, FIELDS_13, 217),
    postgresql(14, FIELDS_13, 222),
    postgresql(15, FIELDS_13, 223),
    postgresql(16, FIELDS_13, 450),
    postgresql(17, FIELDS_13, 469),
    postgresql(18, FIELDS_13, 474),
    // By the headers and the binary of its first release candidate. Of a backend's entry for
    // `pg_stat_activity`, nothing was looked at.
    Layout { activity: None, set_fields: None, ..postgresql(19, FIELDS_13, 482) },
    GREENPLUM_6,
    of_the_greenplum_line(Product::Greenplum, 12, FIELDS_13),
    of_the_greenplum_line(Product::Greenplum, 12, FIELDS_12),
    of_the_greenplum_line(Product::Cloudberry, 14, FIELDS_13),
];

/// Pre-releases that a row was made from.
const KNOWN_CANDIDATES: [&str; 1] = ["19rc1"];

/// Every row of the catalog.
pub fn layouts() -> &'static [Layout] {
    const { &LAYOUTS }
}

/// The rows of a server: one, or several that a process tells apart.
///
/// # Errors
/// If the catalog has none: an unsupported product, an unknown major or a pre-release.
pub fn layouts_of(version: &ServerVersion) -> Result<Vec<Layout>, CatalogError> {
    let &ServerVersion { product, ref number, ref full, .. } = version;
    let (number, full, supported) = (number.clone(), full.clone(), supported());
    let of_product = layouts().iter().filter(|row| row.product == product);
    let rows: Vec<Layout> = of_product.filter(|row| row.major == version.major).copied().collect();
    if rows.is_empty() {
        return Err(CatalogError::UnknownVersion { product, number, full, supported });
    }
    if version.is_pre_release() && !KNOWN_CANDIDATES.contains(&version.number.as_str()) {
        return Err(CatalogError::PreRelease { product, number, full, supported });
    }
    Ok(rows)
}

/// What the catalog has, for messages: `PostgreSQL 12, 13, …`.
fn supported() -> String {
    let mut text = String::new();
    let mut last: Option<(Product, u32)> = None;
    for row in layouts() {
        let version = if row.major == 9 { "9.4".to_owned() } else { row.major.to_string() };
        if last.as_ref() == Some(&(row.product, row.major)) {
            continue;
        }
        let same = last.is_some_and(|(product, _)| product == row.product);
        match row.product {
            _ if same => text.push_str(&format!(", {version}")),
            Product::PostgreSql => text.push_str(&format!("PostgreSQL {version}")),
            product => text.push_str(&format!("; {product} on PostgreSQL {version}")),
        }
        last = Some((row.product, row.major));
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
        let postgresql: Vec<&Layout> =
            layouts().iter().filter(|row| row.product == Product::PostgreSql).collect();
        for pair in postgresql.windows(2) {
            assert!(pair[0].major < pair[1].major);
            // A tag that two rows share would prove nothing about the major.
            assert_ne!(pair[0].alloc_set.node_tag, pair[1].alloc_set.node_tag);
        }
        for row in layouts() {
            let row = row.with_top_tag(300);
            let tags: Vec<u32> =
                row.allocators().filter_map(|allocator| allocator.node_tag.known()).collect();
            let followed = Tags::of(&tags).expect("tags that fit into a cookie");
            assert_eq!(followed.followed.count_ones() as usize, tags.len(), "{tags:?}");
            let kinds: Vec<Kind> = row.allocators().map(|allocator| allocator.kind).collect();
            let all = [Kind::AllocSet, Kind::Generation, Kind::Slab, Kind::Bump];
            assert_eq!(
                kinds,
                all[..if row.major == 9 {
                    1
                } else if row.major < 17 {
                    3
                } else {
                    4
                }]
            );
            assert_eq!(row.others.is_some(), kinds.len() > 1);
        }
    }

    #[test]
    fn what_only_a_process_tells_is_filled_in() {
        let rows = layouts_of(&version(Product::Cloudberry, "14.4")).expect("a row");
        let [row] = rows[..] else { panic!("{rows:?}") };
        assert_eq!(row.alloc_set.node_tag, NodeTag::AfterTop(0));
        let row = row.with_top_tag(240);
        let tags = [Kind::AllocSet, Kind::Slab, Kind::Generation]
            .map(|kind| row.allocator(kind).and_then(|allocator| allocator.node_tag.known()));
        assert_eq!(tags, [Some(240), Some(241), Some(242)]);
        // Greenplum 7 with and without mem_allocated.
        let rows = layouts_of(&version(Product::Greenplum, "12.12")).expect("rows");
        let at = |row: &Layout| row.context.methods;
        assert_eq!(rows.iter().map(at).collect::<Vec<_>>(), [MethodsAt::Pointer(16), MethodsAt::Pointer(8)]);
    }

    #[test]
    fn releases_of_the_range_are_known() {
        for major in 12..=19 {
            let rows = layouts_of(&version(Product::PostgreSql, &format!("{major}.1"))).expect("a row");
            assert_eq!(rows.iter().map(|row| row.major).collect::<Vec<_>>(), [major]);
        }
        let rows = layouts_of(&version(Product::Greenplum, "9.4.26")).expect("a row");
        assert_eq!(rows, [GREENPLUM_6]);
    }

    #[test]
    fn what_is_not_known_is_refused_with_the_range() {
        let range = "PostgreSQL 12, 13, 14, 15, 16, 17, 18, 19; Greenplum on PostgreSQL 9.4, 12; Cloudberry on PostgreSQL 14";
        let refusal = |product, number| layouts_of(&version(product, number)).expect_err("a refusal");
        let unknown = [
            (Product::PostgreSql, "11.22"),
            (Product::PostgreSql, "20.0"),
            (Product::PostgreSql, "20beta1"),
            (Product::PostgreSql, "9.4.26"),
            (Product::Greenplum, "8.3.23"),
            (Product::Cloudberry, "16.9"),
        ];
        for (product, number) in unknown {
            let error = refusal(product, number);
            assert!(matches!(error, CatalogError::UnknownVersion { .. }), "{error}");
            assert!(error.to_string().contains(range), "{error}");
        }
        for number in ["18beta1", "19beta2"] {
            assert!(
                matches!(refusal(Product::PostgreSql, number), CatalogError::PreRelease { .. }),
                "{number}"
            );
        }
    }
}
