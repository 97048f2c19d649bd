//! The allocators of memory contexts: their functions, chunk headers and node tags, for each
//! generation of PostgreSQL.
//!
//! Read in `aset.c`, `generation.c`, `slab.c` and `bump.c` of `src/backend/utils/mmgr`, and checked
//! against the symbols and method tables of builds of every major. `AlignedAllocFree` and
//! `AlignedAllocRealloc` (16 on) are no rows: they free and allocate by way of these.

use std::fmt;

use tracer_ebpf::site::{ChunkHeader, NO_ARG, Pool, Role};

/// A kind of memory context: which allocator it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `aset.c`.
    AllocSet,
    /// `generation.c`.
    Generation,
    /// `slab.c`.
    Slab,
    /// `bump.c`.
    Bump,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AllocSet => "AllocSet",
            Self::Generation => "Generation",
            Self::Slab => "Slab",
            Self::Bump => "Bump",
        })
    }
}

/// A function of an allocator, or of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its symbol.
    pub symbol: &'static str,
    /// What it does to memory.
    pub role: Role,
    /// What precedes the chunks that it deals with.
    pub header: ChunkHeader,
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
    /// Position of the argument that the size is to be multiplied by, or [`NO_ARG`].
    pub factor_arg: u8,
    /// Where the memory is that is in no context.
    pub pool: Option<Pool>,
}

/// A function of an allocator's method table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// The function.
    pub function: Function,
    /// Its index in the table, in pointers.
    pub table_index: usize,
}

/// How the code of a stripped server gives a method table away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticTable {
    /// Entries of the table, all of them functions. The constructor passes it as third argument to
    /// `MemoryContextCreate`.
    pub entries: usize,
    /// Who calls whom: what must hold of the functions in their places.
    pub calls: &'static [(Role, Callee)],
    /// Whether the constructor passes the node tag as second argument.
    pub loads_tag: bool,
}

/// What a method calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callee {
    /// Another method of the table.
    Method(Role),
    /// An exported function.
    Exported(&'static str),
}

/// The node tag of a kind of context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeTag {
    /// This one.
    Is(u32),
    /// So much more than that of `TopMemoryContext`, which only a process tells.
    AfterTop(u32),
}

impl NodeTag {
    /// The tag, if it is known.
    pub const fn known(self) -> Option<u32> {
        match self {
            Self::Is(tag) => Some(tag),
            Self::AfterTop(_) => None,
        }
    }

    const fn plus(self, more: u32) -> Self {
        match self {
            Self::Is(tag) => Self::Is(tag + more),
            Self::AfterTop(after) => Self::AfterTop(after + more),
        }
    }
}

/// An allocator of one major version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocator {
    /// Whose.
    pub kind: Kind,
    /// The first four bytes of such a context.
    pub node_tag: NodeTag,
    /// The methods that matter, the first of them Alloc.
    pub methods: &'static [Method],
    /// The exported function that makes such contexts.
    pub constructor: &'static str,
    /// How to find the functions without symbols or process; none where the constructor hands
    /// over an index instead of the table (16 on), and where the functions are exported anyway.
    pub static_table: Option<StaticTable>,
}

impl Allocator {
    /// The method of a role, if there is one that matters.
    pub fn method(&self, role: Role) -> Option<&'static Method> {
        self.methods.iter().find(|method| method.function.role == role)
    }

    /// The symbols of the methods.
    pub fn names(&self) -> Vec<&'static str> {
        self.methods.iter().map(|method| method.function.symbol).collect()
    }
}

/// What every constructor of a context calls, from 12 on: node, tag, methods (an index into the array
/// of them from 16 on), parent, name (`src/backend/utils/mmgr/mcxt.c`). Exported by every server.
pub(super) const CREATE: Function = Function {
    symbol: "MemoryContextCreate",
    role: Role::Create,
    header: ChunkHeader::None,
    context_arg: 0,
    pointer_arg: NO_ARG,
    size_arg: NO_ARG,
    name_arg: 4,
    tag_arg: 1,
    factor_arg: NO_ARG,
    pool: None,
};

const fn method(symbol: &'static str, role: Role, header: ChunkHeader, arguments: [u8; 3]) -> Method {
    let [context_arg, pointer_arg, size_arg] = arguments;
    let function = Function {
        symbol,
        role,
        header,
        context_arg,
        pointer_arg,
        size_arg,
        name_arg: NO_ARG,
        tag_arg: NO_ARG,
        ..CREATE
    };
    // From 12 on the table has the methods in the order of the roles.
    Method { function, table_index: role as usize }
}

/// Alloc, Reset and Delete: the same on every major. (17 added flags behind the size, which moves nothing.)
const fn alloc(symbol: &'static str, header: ChunkHeader) -> Method {
    method(symbol, Role::Alloc, header, [0, NO_ARG, 1])
}

const fn reset(symbol: &'static str, header: ChunkHeader) -> Method {
    method(symbol, Role::Reset, header, [0, NO_ARG, NO_ARG])
}

const fn delete(symbol: &'static str, header: ChunkHeader) -> Method {
    method(symbol, Role::Delete, header, [0, NO_ARG, NO_ARG])
}

/// To 15 every method gets the context first. From 16 on the chunk's header leads to its context, so Free
/// and Realloc get the chunk only.
const fn has_context(header: ChunkHeader) -> bool {
    matches!(
        header,
        ChunkHeader::SizeContext
            | ChunkHeader::SizeBlockContext
            | ChunkHeader::BlockContext
            | ChunkHeader::ContextSize
    )
}

const fn free(symbol: &'static str, header: ChunkHeader) -> Method {
    let arguments = if has_context(header) { [0, 1, NO_ARG] } else { [NO_ARG, 0, NO_ARG] };
    method(symbol, Role::Free, header, arguments)
}

const fn realloc(symbol: &'static str, header: ChunkHeader) -> Method {
    let arguments = if has_context(header) { [0, 1, 2] } else { [NO_ARG, 0, 1] };
    method(symbol, Role::Realloc, header, arguments)
}

const fn alloc_set(header: ChunkHeader) -> [Method; 5] {
    [
        alloc("AllocSetAlloc", header),
        free("AllocSetFree", header),
        realloc("AllocSetRealloc", header),
        reset("AllocSetReset", header),
        delete("AllocSetDelete", header),
    ]
}

const fn generation(header: ChunkHeader) -> [Method; 5] {
    [
        alloc("GenerationAlloc", header),
        free("GenerationFree", header),
        realloc("GenerationRealloc", header),
        reset("GenerationReset", header),
        delete("GenerationDelete", header),
    ]
}

/// `SlabRealloc` returns the chunk as it is, or raises an error.
const fn slab(header: ChunkHeader) -> [Method; 4] {
    [
        alloc("SlabAlloc", header),
        free("SlabFree", header),
        reset("SlabReset", header),
        delete("SlabDelete", header),
    ]
}

/// `BumpFree` and `BumpRealloc` raise an error.
const BUMP_17: [Method; 3] = [
    alloc("BumpAlloc", ChunkHeader::None),
    reset("BumpReset", ChunkHeader::None),
    delete("BumpDelete", ChunkHeader::None),
];

const ALLOC_SET_12: [Method; 5] = alloc_set(ChunkHeader::SizeContext);
const ALLOC_SET_16: [Method; 5] = alloc_set(ChunkHeader::Packed16);
const ALLOC_SET_17: [Method; 5] = alloc_set(ChunkHeader::Packed17);
const GENERATION_12: [Method; 5] = generation(ChunkHeader::SizeBlockContext);
const GENERATION_16: [Method; 5] = generation(ChunkHeader::SizePacked16);
const GENERATION_17: [Method; 5] = generation(ChunkHeader::SizePacked17);
const SLAB_12: [Method; 4] = slab(ChunkHeader::BlockContext);
const SLAB_16: [Method; 4] = slab(ChunkHeader::Unsized);

/// The compilers that build 12 to 15 keep these calls direct (GCC 7 to 14, clang 14).
const fn table_12(calls: &'static [(Role, Callee)]) -> Option<StaticTable> {
    Some(StaticTable { entries: 8, calls, loads_tag: true })
}

/// 9.4 and Greenplum 6 have `init` before `reset` (`src/include/nodes/memnodes.h`). Greenplum's `AllocSetAlloc`
/// and `AllocSetFree` are called for what is allocated only, not for the headers that chunks share.
const ALLOC_SET_9: [Method; 5] = {
    let [alloc, free, realloc, reset, delete] = alloc_set(ChunkHeader::ContextSize);
    [alloc, free, realloc, Method { table_index: 4, ..reset }, Method { table_index: 5, ..delete }]
};

/// The only allocator of 9.4 and Greenplum 6.
pub(super) const ALLOC_SET_OF_GREENPLUM_6: Allocator = Allocator {
    kind: Kind::AllocSet,
    node_tag: NodeTag::Is(601),
    methods: &ALLOC_SET_9,
    constructor: "AllocSetContextCreate",
    // Its methods call no function that has a name in every build; the process has to confirm them.
    static_table: Some(StaticTable { entries: 10, calls: &[], loads_tag: false }),
};

const ALLOC_SET_TABLE: Option<StaticTable> = table_12(&[
    (Role::Realloc, Callee::Method(Role::Alloc)),
    (Role::Realloc, Callee::Method(Role::Free)),
    (Role::Delete, Callee::Exported("MemoryContextResetOnly")),
]);

const GENERATION_TABLE: Option<StaticTable> = table_12(&[
    (Role::Realloc, Callee::Method(Role::Alloc)),
    (Role::Realloc, Callee::Method(Role::Free)),
    (Role::Delete, Callee::Method(Role::Reset)),
]);

const SLAB_TABLE: Option<StaticTable> = table_12(&[(Role::Delete, Callee::Method(Role::Reset))]);

/// The allocator of AllocSets of a major version, and those of other kinds; `node_tag` is that of the
/// first. The others' follow it: to 15 in the order Slab, Generation; from 16 on, which sorts them,
/// Generation, Slab, Bump.
pub(super) const fn allocators(major: u32, node_tag: NodeTag) -> (Allocator, [Option<Allocator>; 3]) {
    match major {
        ..=15 => (
            row(Kind::AllocSet, node_tag, &ALLOC_SET_12, ALLOC_SET_TABLE),
            [
                Some(row(Kind::Generation, node_tag.plus(2), &GENERATION_12, GENERATION_TABLE)),
                Some(row(Kind::Slab, node_tag.plus(1), &SLAB_12, SLAB_TABLE)),
                None,
            ],
        ),
        16 => (
            row(Kind::AllocSet, node_tag, &ALLOC_SET_16, None),
            [
                Some(row(Kind::Generation, node_tag.plus(1), &GENERATION_16, None)),
                Some(row(Kind::Slab, node_tag.plus(2), &SLAB_16, None)),
                None,
            ],
        ),
        17.. => (
            row(Kind::AllocSet, node_tag, &ALLOC_SET_17, None),
            [
                Some(row(Kind::Generation, node_tag.plus(1), &GENERATION_17, None)),
                Some(row(Kind::Slab, node_tag.plus(2), &SLAB_16, None)),
                Some(row(Kind::Bump, node_tag.plus(3), &BUMP_17, None)),
            ],
        ),
    }
}

/// Those of Greenplum 7 and Cloudberry, whose tables have four methods more at their ends
/// (`MemoryContextMethods` in `src/include/nodes/memnodes.h`).
pub(super) const fn with_longer_tables(
    (alloc_set, others): (Allocator, [Option<Allocator>; 3]),
) -> (Allocator, [Option<Allocator>; 3]) {
    let [generation, slab, bump] = others;
    (longer(alloc_set), [longer_if(generation), longer_if(slab), longer_if(bump)])
}

const fn longer_if(allocator: Option<Allocator>) -> Option<Allocator> {
    match allocator {
        Some(allocator) => Some(longer(allocator)),
        None => None,
    }
}

const fn longer(allocator: Allocator) -> Allocator {
    match allocator.static_table {
        Some(table) => {
            Allocator { static_table: Some(StaticTable { entries: table.entries + 4, ..table }), ..allocator }
        }
        None => allocator,
    }
}

const fn row(
    kind: Kind,
    node_tag: NodeTag,
    methods: &'static [Method],
    static_table: Option<StaticTable>,
) -> Allocator {
    let constructor = match kind {
        Kind::AllocSet => "AllocSetContextCreateInternal",
        Kind::Generation => "GenerationContextCreate",
        Kind::Slab => "SlabContextCreate",
        Kind::Bump => "BumpContextCreate",
    };
    Allocator { kind, node_tag, methods, constructor, static_table }
}
