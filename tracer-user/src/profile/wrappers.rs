//! Which functions say nothing about who leaks: allocator wrappers inside, generic drivers outside.
//!
//! Only names are known here. A static function of a stripped binary has none and is therefore
//! never skipped.

/// What a function's name says about its part in a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The allocator, or a helper that allocates on behalf of its caller.
    Wrapper,
    /// A driver that everything runs below: executor, traffic cop, process start.
    Driver,
    /// Anything else: a function that can be to blame.
    Worker,
}

/// How a row of the tables matches.
enum Match {
    Exact(&'static str),
    Prefix(&'static str),
}

use Match::{Exact, Prefix};

/// Allocators and helpers whose caller decides what becomes of the memory.
const WRAPPERS: &[Match] = &[
    // Memory contexts.
    Prefix("AllocSetAlloc"),
    Prefix("AllocSetRealloc"),
    Prefix("GenerationAlloc"),
    Exact("GenerationRealloc"),
    Prefix("SlabAlloc"),
    Exact("SlabRealloc"),
    Prefix("BumpAlloc"),
    Prefix("MemoryContextAlloc"),
    Prefix("MemoryContextRealloc"),
    // Greenplum: its own malloc, and GPORCA's pools, which are contexts.
    Exact("gp_malloc"),
    Exact("gp_realloc"),
    Prefix("gpdb::GPDBMemoryContextAlloc"),
    Prefix("gpdb::GPDBAlloc"),
    Prefix("gpos::CMemoryPool"),
    Prefix("CMemoryPool"),
    Exact("MemoryContextCreate"),
    Exact("AllocSetContextCreate"),
    Exact("AllocSetContextCreateInternal"),
    Exact("AllocSetContextCreateExtended"),
    Exact("GenerationContextCreate"),
    Exact("SlabContextCreate"),
    Exact("BumpContextCreate"),
    // malloc and its like, and what only passes its memory on.
    Exact("malloc"),
    Exact("calloc"),
    Exact("realloc"),
    Exact("reallocarray"),
    Exact("posix_memalign"),
    Exact("aligned_alloc"),
    Exact("memalign"),
    Exact("valloc"),
    Exact("pvalloc"),
    Exact("mallocx"),
    Exact("rallocx"),
    Exact("mmap"),
    Exact("mmap64"),
    Exact("mremap"),
    Prefix("__libc_malloc"),
    Prefix("__GI___libc_"),
    Exact("strdup"),
    Exact("__strdup"),
    Exact("strndup"),
    Prefix("operator new"),
    Prefix("llvm::allocate_buffer"),
    Prefix("llvm::SmallVectorBase"),
    Prefix("llvm::BumpPtrAllocatorImpl"),
    Prefix("CRYPTO_malloc"),
    Prefix("CRYPTO_zalloc"),
    Prefix("CRYPTO_realloc"),
    Prefix("CRYPTO_strdup"),
    Exact("xmlStrdup"),
    Exact("xmlStrndup"),
    Exact("MemoryContextStrdup"),
    Prefix("palloc"),
    Prefix("repalloc"),
    Prefix("pg_malloc"),
    Exact("pstrdup"),
    Exact("pnstrdup"),
    Exact("psprintf"),
    Exact("pvsprintf"),
    Exact("pchomp"),
    Exact("guc_malloc"),
    Exact("guc_realloc"),
    Exact("guc_strdup"),
    Exact("_SPI_strdup"),
    // StringInfo.
    Prefix("initStringInfo"),
    Prefix("makeStringInfo"),
    Exact("enlargeStringInfo"),
    Exact("resetStringInfo"),
    Prefix("appendStringInfo"),
    Prefix("appendBinaryStringInfo"),
    // Lists.
    Prefix("lappend"),
    Prefix("lcons"),
    Exact("new_list"),
    Exact("enlarge_list"),
    Exact("new_head_cell"),
    Exact("new_tail_cell"),
    Prefix("list_append_unique"),
    Prefix("list_concat"),
    Prefix("list_copy"),
    Prefix("list_difference"),
    Prefix("list_insert_nth"),
    Prefix("list_intersection"),
    Prefix("list_make"),
    Prefix("list_union"),
    // Nodes.
    Exact("copyObjectImpl"),
    Prefix("_copy"),
    Exact("newNodeImpl"),
    // Bitmap sets.
    Prefix("bms_"),
    // Datums, texts, tuples.
    Exact("datumCopy"),
    Exact("datumTransfer"),
    Prefix("cstring_to_text"),
    Prefix("text_to_cstring"),
    Exact("heap_copytuple"),
    Exact("heap_copytuple_with_tuple"),
    Exact("heap_copy_minimal_tuple"),
    Exact("heap_form_tuple"),
    Exact("heap_form_minimal_tuple"),
    Prefix("CreateTemplateTupleDesc"),
    Prefix("CreateTupleDesc"),
    // dynahash.
    Exact("hash_create"),
    Exact("hdefault"),
    Exact("init_htab"),
    Exact("hash_search"),
    Exact("hash_search_with_hash_value"),
    Exact("get_hash_entry"),
    Exact("expand_table"),
    Exact("DynaHashAlloc"),
    Exact("element_alloc"),
    Exact("seg_alloc"),
    Exact("dir_realloc"),
    // simplehash, which makes these by macro; lookups and inserts stay with their caller's name.
    Exact("tuplehash_allocate"),
    Exact("tuplehash_create"),
    Exact("tuplehash_grow"),
    Exact("pagetable_allocate"),
    Exact("pagetable_create"),
    Exact("pagetable_grow"),
];

/// Functions that everything runs below. They head a suspect only when nothing else does.
const DRIVERS: &[Match] = &[
    // Process start.
    Exact("_start"),
    Exact("main"),
    Prefix("__libc_start"),
    Exact("PostmasterMain"),
    Exact("ServerLoop"),
    Exact("BackendStartup"),
    Exact("BackendRun"),
    Exact("BackendMain"),
    Exact("postmaster_child_launch"),
    Exact("SubPostmasterMain"),
    Exact("StartChildProcess"),
    Exact("StartBackgroundWorker"),
    Exact("BackgroundWorkerMain"),
    Exact("AuxiliaryProcessMain"),
    Exact("ParallelWorkerMain"),
    Exact("ParallelQueryMain"),
    Exact("ApplyWorkerMain"),
    Exact("maybe_start_bgworkers"),
    Exact("do_start_bgworker"),
    Exact("sigusr1_handler"),
    Exact("process_pm_pmsignal"),
    Exact("__restore_rt"),
    Exact("__select"),
    Exact("__GI___select"),
    Exact("PostgresSingleUserMain"),
    // Traffic cop.
    Exact("PostgresMain"),
    Exact("exec_simple_query"),
    Exact("exec_mpp_query"),
    Exact("exec_mpp_dtx_protocol_command"),
    Exact("exec_parse_message"),
    Exact("exec_bind_message"),
    Exact("exec_execute_message"),
    Exact("exec_replication_command"),
    Prefix("PortalRun"),
    Exact("PortalStart"),
    Exact("PerformPortalFetch"),
    Exact("ProcessQuery"),
    Exact("ProcessUtility"),
    Exact("ProcessUtilitySlow"),
    Exact("standard_ProcessUtility"),
    Exact("ExecuteQuery"),
    Exact("ExplainQuery"),
    Exact("ExplainOneQuery"),
    // Executor.
    Prefix("ExecutorRun"),
    Prefix("standard_ExecutorRun"),
    Exact("ExecutePlan"),
    Prefix("ExecProcNode"),
    Prefix("ExecInterpExpr"),
    Exact("ExecEvalExpr"),
    Exact("ExecEvalExprSwitchContext"),
    Exact("ExecProject"),
    Exact("ExecQual"),
    Exact("ExecScan"),
    Exact("ExecScanFetch"),
    Exact("ExecResult"),
    Exact("ExecLimit"),
    Exact("ExecNestLoop"),
    Exact("ExecAppend"),
    Exact("ExecSeqScan"),
    Exact("ExecSubqueryScan"),
    Exact("ExecModifyTable"),
    // Calls of functions by OID.
    Exact("fmgr_security_definer"),
    // PL/pgSQL's interpreter: every function that a user wrote runs below these.
    Exact("plpgsql_call_handler"),
    Exact("plpgsql_inline_handler"),
    Exact("plpgsql_exec_function"),
    Exact("plpgsql_exec_trigger"),
    Exact("exec_toplevel_block"),
    Exact("exec_stmts"),
    Exact("exec_stmt"),
    Prefix("exec_stmt_"),
    Exact("SPI_execute"),
    Exact("SPI_execute_extended"),
    Exact("SPI_execute_plan"),
    Exact("SPI_execute_plan_with_paramlist"),
    Exact("SPI_execute_plan_extended"),
    Exact("_SPI_execute_plan"),
];

/// Suffixes that GCC and LTO add to copies and pieces of a function. The last two can stand
/// without a number.
const SUFFIXES: &[&str] = &["isra", "constprop", "part", "lto_priv", "llvm", "localalias", "cold"];

/// What the function with this name, suffixes or not, is.
pub fn role(function: &str) -> Role {
    let function = strip_suffixes(function);
    if WRAPPERS.iter().any(|row| row.matches(function)) {
        Role::Wrapper
    } else if DRIVERS.iter().any(|row| row.matches(function)) || is_function_call(function) {
        Role::Driver
    } else {
        Role::Worker
    }
}

/// The name in the source: `exec_toplevel_block` of `exec_toplevel_block.constprop.3.cold`.
pub fn strip_suffixes(function: &str) -> &str {
    let mut name = function;
    loop {
        let Some((rest, last)) = name.rsplit_once('.') else { return name };
        let stripped = if is_suffix(last) {
            rest
        } else if last.bytes().all(|byte| byte.is_ascii_digit()) {
            match rest.rsplit_once('.') {
                Some((rest, word)) if is_suffix(word) => rest,
                _ => return name,
            }
        } else {
            return name;
        };
        if stripped.is_empty() {
            return name;
        }
        name = stripped;
    }
}

fn is_suffix(word: &str) -> bool {
    SUFFIXES.contains(&word)
}

/// `FunctionCall1Coll`, `OidFunctionCall2Coll`, `DirectFunctionCall3Coll` …: the function manager.
fn is_function_call(function: &str) -> bool {
    function.contains("FunctionCall") && function.ends_with("Coll")
        || matches!(function, "FunctionCallInvoke" | "InputFunctionCall" | "OutputFunctionCall")
        || matches!(function, "OidInputFunctionCall" | "OidOutputFunctionCall")
}

impl Match {
    fn matches(&self, function: &str) -> bool {
        match self {
            Exact(name) => function == *name,
            Prefix(prefix) => function.starts_with(prefix),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_of_the_compiler_are_stripped_and_others_are_not() {
        for (with, without) in [
            ("ExecUpdateEpilogue.isra.5", "ExecUpdateEpilogue"),
            ("exec_toplevel_block.constprop", "exec_toplevel_block"),
            ("f.part.0.cold", "f"),
            ("f.isra.0.constprop.12.lto_priv.3", "f"),
            ("plain", "plain"),
            ("libc.so", "libc.so"),
            ("f.1", "f.1"),
            (".cold", ".cold"),
            ("postgres+0x5c7730", "postgres+0x5c7730"),
        ] {
            assert_eq!(strip_suffixes(with), without, "{with}");
        }
    }

    #[test]
    fn wrappers_are_skipped_and_their_namesakes_are_not() {
        for name in [
            "AllocSetAlloc",
            "AllocSetAllocLarge",
            "palloc0",
            "MemoryContextAllocZeroAligned",
            "list_copy_deep",
            "list_make2_impl",
            "copyObjectImpl",
            "_copyPlannedStmt",
            "bms_copy",
            "new_list",
            "appendStringInfoVA.part.0",
            "element_alloc",
        ] {
            assert_eq!(role(name), Role::Wrapper, "{name}");
        }
        // Their names begin alike, but they keep what they allocate.
        for name in ["MemoryContextSetParent", "hash_numeric", "list_sort"] {
            assert_eq!(role(name), Role::Worker, "{name}");
        }
    }

    #[test]
    fn drivers_are_no_place_for_a_leak_and_their_workers_are() {
        for name in [
            "PostgresMain",
            "ProcessUtilitySlow.isra.4",
            "FunctionCall1Coll",
            "OidFunctionCall1Coll",
            "standard_ExecutorRun",
            "exec_stmt_block",
            "__libc_start_call_main",
        ] {
            assert_eq!(role(name), Role::Driver, "{name}");
        }
        for name in ["exec_prepare_plan", "ExecIncrementalSort", "RelationBuildDesc", "CreateFunction"] {
            assert_eq!(role(name), Role::Worker, "{name}");
        }
    }
}
