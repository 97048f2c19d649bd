//! Leaks of released servers, as an exact tracer saw them, and what looks like one and is none.

use super::*;
use crate::profile::testing::{Maker, SIMPLE_QUERY, SLICES, early, every, last, now_and_then};

fn heads(places: &[Place]) -> Vec<&str> {
    places.iter().map(|place| place.head.as_str()).collect()
}

/// A leaking `plpgsql` function cache: no hot stack, two branches.
fn plpgsql_drop_create() -> Maker {
    let run = format!(
        "exec_assign_expr < exec_stmts < exec_stmt_block < exec_toplevel_block.constprop < \
         plpgsql_exec_function < plpgsql_call_handler < ExecInterpExpr < ExecResult < \
         standard_ExecutorRun < PortalRunSelect < PortalRun < {SIMPLE_QUERY}"
    );
    let declare = format!(
        "exec_run_select.constprop < exec_stmts < exec_stmt_block < exec_toplevel_block.constprop < \
         plpgsql_exec_function < plpgsql_call_handler < ExecInterpExpr < ExecResult < \
         standard_ExecutorRun < PortalRunSelect < PortalRun < {SIMPLE_QUERY}"
    );
    let create = format!(
        "plpgsql_validator < FunctionCall1Coll < OidFunctionCall1Coll < ProcedureCreate < \
         CreateFunction < ProcessUtilitySlow.isra.4 < standard_ProcessUtility < PortalRunUtility < \
         PortalRunMulti < PortalRun < {SIMPLE_QUERY}"
    );
    let mut maker = Maker::new();
    for caller in [&run, &declare] {
        let prepare = format!("exec_prepare_plan < {caller}");
        let spi = format!("_SPI_prepare_plan < SPI_prepare_extended < {prepare}");
        let plan = format!(
            "BuildCachedPlan < GetCachedPlan < SPI_plan_get_cached_plan < exec_simple_check_plan < {prepare}"
        );
        for (path, context, size) in [
            (format!("AllocSetAlloc < CreateCachedPlan < {spi}"), "CachedPlanSource", 120),
            (format!("AllocSetAlloc < palloc0 < CreateCachedPlan < {spi}"), "CachedPlanSource", 100),
            (
                format!(
                    "AllocSetAlloc < palloc < new_list < list_copy_deep < copyObjectImpl < _copyQuery < \
                     copyObjectImpl < CompleteCachedPlan < {spi}"
                ),
                "CachedPlanQuery",
                250,
            ),
            (
                format!("AllocSetAlloc < palloc0 < _copyPlannedStmt < copyObjectImpl < {plan}"),
                "CachedPlan",
                120,
            ),
            (format!("AllocSetAlloc < palloc < {plan}"), "CachedPlan", 60),
            // Run by the caller itself, beside the plan.
            (format!("AllocSetAlloc < palloc < exec_eval_simple_expr < {caller}"), "SPI Plan", 60),
        ] {
            maker = maker.survivors(&path, context, size, every(4));
        }
    }
    for (path, size) in [
        ("AllocSetAlloc < palloc < plpgsql_yyparse < plpgsql_compile", 60),
        (
            "AllocSetAlloc < scanner_init < raw_parser < typeStringToTypeName < plpgsql_yyparse < plpgsql_compile",
            500,
        ),
        ("AllocSetAlloc < palloc0 < plpgsql_build_variable < plpgsql_compile", 120),
        ("AllocSetAlloc < palloc0 < plpgsql_build_datatype < plpgsql_compile", 250),
        ("AllocSetAlloc < pstrdup < plpgsql_compile", 30),
    ] {
        maker = maker.survivors(&format!("{path} < {create}"), "PL/pgSQL function", size, every(4));
    }
    // A small one that the busy statement left behind.
    maker.survivors(
        &format!("AllocSetAlloc < initStringInfo < {SIMPLE_QUERY}"),
        "MessageContext",
        1024,
        last(1),
    )
}

#[test]
fn two_branches_of_a_leak_are_two_suspects() {
    let verdict = judge(&plpgsql_drop_create().build());
    assert_eq!(heads(&verdict.suspects), ["exec_prepare_plan", "plpgsql_compile", "exec_eval_simple_expr"]);
    let first = &verdict.suspects[0];
    assert_eq!(first.paths, 10);
    assert_eq!(first.children[0].label, "SPI_prepare_extended");
    assert_eq!(first.contexts[0].name, "CachedPlanSource");
    assert_eq!(first.course.class, Class::Leak);
    // One of two callers, and PL/pgSQL's interpreter is no caller that says anything.
    assert_eq!(first.callers, Vec::<String>::new());
    assert_eq!(verdict.suspects[1].callers[..2], ["plpgsql_validator", "ProcedureCreate"]);
    assert_eq!(heads(&verdict.in_flight), ["exec_simple_query"]);
}

#[test]
fn forty_paths_into_one_function_are_one_suspect() {
    let mut maker = Maker::new();
    let reasons =
        ["get_relation_info", "ExecInitIndexScan", "check_index_is_clusterable", "CatalogIndexInsert"];
    let planned = ["planner", "ExplainOneQuery", "BuildCachedPlan", "DefineIndex", "ATPrepCmd"];
    let inside = [
        ("AllocSetAlloc < palloc0", "CacheMemoryContext"),
        ("AllocSetAlloc < MemoryContextAllocZero < RelationInitIndexAccessInfo", "index info"),
    ];
    for (i, reason) in reasons.iter().enumerate() {
        for (j, plan) in planned.iter().enumerate() {
            for (inner, context) in inside {
                // None of them is in each slice.
                let path = format!(
                    "{inner} < RelationBuildDesc < RelationIdGetRelation < relation_open < \
                     index_open < {reason} < {plan} < {SIMPLE_QUERY}"
                );
                maker = maker.survivors(&path, context, 500 + 100 * j as u64, now_and_then(i + j, 5));
            }
        }
    }
    for caller in ["get_relation_info", "planner", "RelationInitTableAccessMethod", "heap_open"] {
        let path = format!(
            "AllocSetAlloc < palloc < CatalogCacheCreateEntry < SearchCatCacheMiss < \
             SearchCatCacheInternal < {caller} < {SIMPLE_QUERY}"
        );
        maker = maker.survivors(&path, "CacheMemoryContext", 120, every(2));
    }
    let verdict = judge(&maker.build());
    assert_eq!(heads(&verdict.suspects), ["RelationBuildDesc", "CatalogCacheCreateEntry"]);
    let first = &verdict.suspects[0];
    assert_eq!(first.paths, 40);
    assert_eq!(first.callers, ["RelationIdGetRelation", "relation_open", "index_open"]);
    assert!(first.hottest_held * 10 < first.survived.held, "no single path is hot");
}

#[test]
fn one_chunk_a_row_is_found_where_it_is_allocated() {
    let path = format!(
        "AllocSetAlloc < detoast_attr < hash_numeric < FunctionCall1Coll < \
         TupleHashTableHash_internal.isra.8 < tuplehash_lookup < FindTupleHashEntry < ExecSubPlan < \
         ExecEvalSubPlan < ExecInterpExpr < ExecScan < standard_ExecutorRun < PortalRunSelect < {SIMPLE_QUERY}"
    );
    let verdict =
        judge(&Maker::new().survivors(&path, "Subplan HashTable Temp Context", 40, every(900)).build());
    let [suspect] = &verdict.suspects[..] else { panic!("{:?}", heads(&verdict.suspects)) };
    assert_eq!(suspect.head, "detoast_attr");
    assert_eq!(
        suspect.callers[..4],
        ["hash_numeric", "TupleHashTableHash_internal", "tuplehash_lookup", "FindTupleHashEntry"]
    );
    assert_eq!((suspect.life, suspect.course.class), (Life::Query, Class::Held));
}

#[test]
fn a_leak_right_below_the_main_loop_is_not_the_main_loop() {
    let convert = "AllocSetAlloc < MemoryContextAllocHuge < perform_default_encoding_conversion < PostgresMain < ServerLoop < main";
    let buffer = "AllocSetAlloc < palloc < initStringInfo < PostgresMain < ServerLoop < main";
    let verdict = judge(
        &Maker::new()
            .survivors(convert, "TopMemoryContext", 80_073, every(3))
            .survivors(buffer, "MessageContext", 1024, last(1))
            .build(),
    );
    assert_eq!(heads(&verdict.suspects), ["perform_default_encoding_conversion"]);
    assert_eq!(heads(&verdict.in_flight), ["PostgresMain"], "a driver heads what nothing else does");
    assert_eq!(verdict.suspects[0].life, Life::Process);
}

#[test]
fn growth_of_one_array_is_booked_to_who_grows_it() {
    let path = |alloc: &str| {
        format!(
            "{alloc} < ReorderBufferAddInvalidations < SnapBuildCommitTxn < xact_decode < \
             LogicalDecodingProcessRecord < XLogSendLogical < WalSndLoop < exec_replication_command < \
             PostgresMain < ServerLoop < main"
        )
    };
    let verdict = judge(
        &Maker::new()
            .survivors(&path("AllocSetRealloc"), "ReorderBuffer", 26_000, every(1))
            .survivors(&path("AllocSetAlloc"), "ReorderBuffer", 9_000, now_and_then(0, 3))
            .build(),
    );
    assert_eq!(heads(&verdict.suspects), ["ReorderBufferAddInvalidations"]);
    assert_eq!(verdict.suspects[0].paths, 2);
}

#[test]
fn a_nameless_function_stands_beside_its_named_caller() {
    // PL/pgSQL without symbols: static functions have no names, and one of them calls SPI.
    let outside = format!("plpgsql_call_handler < ExecInterpExpr < ExecResult < {SIMPLE_QUERY}");
    let mut maker = Maker::new();
    for (path, size) in [
        ("AllocSetAlloc < palloc < CreateCachedPlan < SPI_prepare_extended < plpgsql+0xd54e", 400),
        ("AllocSetAlloc < palloc < postgres+0x31a000 < GetCachedPlan < plpgsql+0xd54e", 300),
        ("AllocSetAlloc < palloc0 < plpgsql+0xc100 < plpgsql+0xd54e", 300),
    ] {
        for _ in 0..3 {
            let path = format!("{path} < plpgsql+0xe200 < plpgsql+0xf300 < {outside}");
            maker = maker.survivors(&path, "CachedPlan", size, every(3));
        }
    }
    let verdict = judge(&maker.build());
    assert_eq!(heads(&verdict.suspects), ["plpgsql+0xd54e"]);
    assert_eq!(verdict.suspects[0].named_caller.as_deref(), Some("plpgsql_call_handler"));
    assert_eq!(verdict.suspects[0].paths, 3, "calls from different lines are one path");
}

#[test]
fn a_named_function_is_preferred_to_a_nameless_one_below_it() {
    let path =
        format!("AllocSetAlloc < postgres+0x51c0 < postgres+0x5200 < pgstat_report_stat < {SIMPLE_QUERY}");
    let verdict = judge(&Maker::new().survivors(&path, "PgStat Pending", 400, every(9)).build());
    assert_eq!(heads(&verdict.suspects), ["pgstat_report_stat"]);
    assert_eq!(verdict.suspects[0].children[0].label, "postgres+0x5200");
}

#[test]
fn a_cache_and_a_running_query_beside_a_leak_are_told_apart() {
    // All three below the same function, and the leak is the least of them.
    let below = format!("exec_stmt_execsql < my_driver < {SIMPLE_QUERY}");
    let verdict = judge(
        &Maker::new()
            .survivors(
                &format!("AllocSetAlloc < palloc < RelationBuildDesc < {below}"),
                "CacheMemoryContext",
                4_000,
                early([900, 300, 20]),
            )
            .survivors(
                &format!("AllocSetAlloc < palloc < ExecHashTableInsert < {below}"),
                "HashBatchContext",
                30_000,
                last(200),
            )
            .survivors(
                &format!("AllocSetAlloc < palloc < make_attrmap < {below}"),
                "LogicalRepRelMapContext",
                2_400,
                every(4),
            )
            .build(),
    );
    assert_eq!(heads(&verdict.suspects), ["make_attrmap"]);
    assert_eq!(heads(&verdict.caches), ["RelationBuildDesc"]);
    assert_eq!(heads(&verdict.in_flight), ["ExecHashTableInsert"]);
    assert_eq!(verdict.rest, Tally::default());
}

#[test]
fn a_busy_server_without_a_leak_has_no_suspect() {
    let plan = format!("planner < pg_plan_query < {SIMPLE_QUERY}");
    let verdict = judge(
        &Maker::new()
            // Caches in their first second, one entry that is replaced, a query in flight.
            .survivors(
                &format!("AllocSetAlloc < palloc < CatalogCacheCreateEntry < {plan}"),
                "CacheMemoryContext",
                200,
                early([400, 9, 1]),
            )
            .survivors(
                &format!("AllocSetAlloc < MemoryContextAlloc < pgstat_prep_pending_entry < {plan}"),
                "PgStat Pending",
                136,
                now_and_then(10, 12),
            )
            .survivors(
                &format!("AllocSetAlloc < palloc0 < standard_planner < {plan}"),
                "MessageContext",
                300,
                last(40),
            )
            // A few survivors at random.
            .survivors(
                &format!("AllocSetAlloc < palloc < RelationBuildDesc < {plan}"),
                "CacheMemoryContext",
                700,
                now_and_then(1, 4),
            )
            .survivors(
                &format!("AllocSetAlloc < palloc < GetSnapshotData < {plan}"),
                "TopMemoryContext",
                40,
                every(1),
            )
            .settled(&format!("AllocSetAlloc < palloc < ExecInitNode < {plan}"), "ExecutorState", 500, 30)
            .build(),
    );
    assert_eq!(heads(&verdict.suspects), Vec::<&str>::new());
    assert_eq!(heads(&verdict.settled), ["ExecInitNode"]);
    assert_eq!(verdict.totals.at_record_end.count - verdict.totals.survived.count, 30);
}

#[test]
fn recursion_counts_once() {
    let inner = "AllocSetAlloc < palloc < walk < descend < walk < descend < walk";
    let path = format!("{inner} < analyze < {SIMPLE_QUERY}");
    let capture = Maker::new().survivors(&path, "TopMemoryContext", 500, every(5)).build();
    let verdict = judge(&capture);
    assert_eq!(heads(&verdict.suspects), ["walk"]);
    assert_eq!(verdict.suspects[0].survived, verdict.totals.survived);
}

#[test]
fn an_empty_capture_and_broken_ids_are_no_panic() {
    assert_eq!(judge(&Maker::new().build()).suspects, []);
    let mut capture = plpgsql_drop_create().build();
    capture.profile.frames.truncate(3);
    capture.profile.stacks.truncate(2);
    capture.profile.groups[0].slices.clear();
    capture.window.slices.clear();
    let verdict = judge(&capture);
    assert_eq!(verdict.suspects, [], "without time there is no course");
}

#[test]
fn survivors_without_a_stack_are_still_counted() {
    let mut capture = Maker::new().survivors("AllocSetAlloc < f", "TopMemoryContext", 500, every(5)).build();
    capture.profile.stacks[0].frames.clear();
    assert_eq!(heads(&judge(&capture).suspects), ["[unknown stack]"]);
}

/// As a capture of a backend of PostgreSQL 15 showed it: buffers for temporary tables, which it keeps,
/// from the middle of the recording.
#[test]
fn a_large_chunk_that_stays_hides_no_small_leak() {
    let buffers = "AllocSetAlloc < MemoryContextAlloc < LocalBufferAlloc < ReadBuffer_common < heap_insert";
    let leak = "AllocSetAlloc < palloc < fetch_policy < build_relation < open_relation";
    let mut once = [0; SLICES];
    once[SLICES / 2] = 1;
    let verdict = judge(
        &Maker::new()
            .survivors(&format!("{buffers} < {SIMPLE_QUERY}"), "LocalBufferContext", 4 << 20, once)
            .survivors(&format!("{leak} < {SIMPLE_QUERY}"), "CacheMemoryContext", 100, every(10))
            .build(),
    );
    assert_eq!(heads(&verdict.suspects), ["fetch_policy"]);
    assert_eq!(verdict.rest, Tally::default());
}

/// In a stripped server static helpers have no name.
#[test]
fn a_nameless_function_that_allocates_for_others_is_a_wrapper() {
    let by = |caller: &str| format!("AllocSetAlloc < palloc < postgres+0x400 < {caller} < {SIMPLE_QUERY}");
    let mut maker = Maker::new();
    for caller in ["parse", "plan", "rewrite", "execute", "describe"] {
        maker = maker.released(&by(caller), 64, 1000);
    }
    let maker = maker.survivors(&by("remember_one"), "CacheMemoryContext", 100, every(30)).survivors(
        &by("remember_other"),
        "CacheMemoryContext",
        100,
        every(20),
    );
    assert_eq!(heads(&judge(&maker.build()).suspects), ["remember_one", "remember_other"]);

    // One that leaks by all its callers is no wrapper.
    let mut maker = Maker::new();
    for caller in ["parse", "plan", "rewrite", "execute", "describe"] {
        maker = maker.survivors(&by(caller), "CacheMemoryContext", 100, every(30));
    }
    assert_eq!(heads(&judge(&maker.build()).suspects), ["postgres+0x400"]);
}
