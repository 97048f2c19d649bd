//! What allocates memory outside of contexts: the C library's allocator or another in its place, and
//! `mmap`.
//!
//! Interfaces: ISO C, POSIX, `malloc(3)` and `mmap(2)`; `jemalloc(3)`; the C++ operators as the Itanium ABI
//! mangles them, which jemalloc and tcmalloc define themselves.

use tracer_ebpf::site::{ChunkHeader, NO_ARG, Pool, Role};

use super::Function;

const fn function(symbol: &'static str, role: Role, arguments: [u8; 3]) -> Function {
    let [pointer_arg, size_arg, factor_arg] = arguments;
    Function {
        symbol,
        role,
        header: ChunkHeader::None,
        context_arg: NO_ARG,
        pointer_arg,
        size_arg,
        name_arg: NO_ARG,
        tag_arg: NO_ARG,
        factor_arg,
        pool: Some(Pool::Malloc),
    }
}

const fn alloc(symbol: &'static str, size_arg: u8) -> Function {
    function(symbol, Role::Alloc, [NO_ARG, size_arg, NO_ARG])
}

const fn free(symbol: &'static str) -> Function {
    function(symbol, Role::Free, [0, NO_ARG, NO_ARG])
}

const fn realloc(symbol: &'static str) -> Function {
    function(symbol, Role::Realloc, [0, 1, NO_ARG])
}

/// The functions of `malloc` that every allocator has.
pub const MALLOC: [Function; 4] =
    [alloc("malloc", 0), free("free"), realloc("realloc"), function("calloc", Role::Alloc, [NO_ARG, 0, 1])];

/// Those that an allocator may have besides.
pub const MALLOC_OTHERS: [Function; 32] = [
    function("posix_memalign", Role::AllocInto, [0, 2, NO_ARG]),
    alloc("aligned_alloc", 1),
    alloc("memalign", 1),
    alloc("valloc", 0),
    alloc("pvalloc", 0),
    free("cfree"),
    free("free_sized"),
    free("free_aligned_sized"),
    // jemalloc's own.
    alloc("mallocx", 0),
    realloc("rallocx"),
    free("dallocx"),
    free("sdallocx"),
    // operator new and new[]: plain, nothrow, aligned, both.
    alloc("_Znwm", 0),
    alloc("_Znam", 0),
    alloc("_ZnwmRKSt9nothrow_t", 0),
    alloc("_ZnamRKSt9nothrow_t", 0),
    alloc("_ZnwmSt11align_val_t", 0),
    alloc("_ZnamSt11align_val_t", 0),
    alloc("_ZnwmSt11align_val_tRKSt9nothrow_t", 0),
    alloc("_ZnamSt11align_val_tRKSt9nothrow_t", 0),
    // operator delete and delete[]: plain, nothrow, sized, aligned, and mixtures.
    free("_ZdlPv"),
    free("_ZdaPv"),
    free("_ZdlPvRKSt9nothrow_t"),
    free("_ZdaPvRKSt9nothrow_t"),
    free("_ZdlPvm"),
    free("_ZdaPvm"),
    free("_ZdlPvSt11align_val_t"),
    free("_ZdaPvSt11align_val_t"),
    free("_ZdlPvSt11align_val_tRKSt9nothrow_t"),
    free("_ZdaPvSt11align_val_tRKSt9nothrow_t"),
    free("_ZdlPvmSt11align_val_t"),
    free("_ZdaPvmSt11align_val_t"),
];

/// Mappings. `munmap` says how much, since it may be a part.
pub const MMAP: [Function; 3] = [
    mapping("mmap", Role::Alloc, [NO_ARG, 1]),
    mapping("munmap", Role::Free, [0, 1]),
    mapping("mremap", Role::Realloc, [0, 2]),
];

const fn mapping(symbol: &'static str, role: Role, [pointer, size]: [u8; 2]) -> Function {
    let plain = function(symbol, role, [pointer, size, NO_ARG]);
    Function { header: ChunkHeader::Pages, pool: Some(Pool::Mmap), ..plain }
}

/// A symbol that only glibc defines: its chunks have the header that is known.
pub const GLIBC: &str = "gnu_get_libc_version";
