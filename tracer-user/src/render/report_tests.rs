//! Whole reports against golden files. `PGLEAK_BLESS=1 cargo test` writes them anew; read the diff.

use super::*;
use crate::profile::{
    ContextGrowth, MemoryGrowth, Sampling,
    testing::{Maker, SIMPLE_QUERY, early, every, last, now_and_then},
};

fn golden(name: &str, capture: &Capture) -> String {
    let text = report(capture);
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("PGLEAK_BLESS").is_some() {
        std::fs::write(&path, &text).expect("golden files can be written");
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(text == wanted, "{} differs; PGLEAK_BLESS=1 writes it anew:\n{text}", path.display());
    let widest = text.lines().max_by_key(|line| line.chars().count()).unwrap_or_default();
    assert!(widest.chars().count() <= super::super::page::WIDTH, "too wide: {widest}");
    text
}

/// Two suspects, a cache, work in flight, and a capture without trouble.
#[test]
fn report_of_a_leak() {
    let run = format!(
        "exec_assign_expr < exec_stmts < exec_stmt_block < plpgsql_exec_function < plpgsql_call_handler < ExecInterpExpr < ExecResult < standard_ExecutorRun < PortalRunSelect < PortalRun < {SIMPLE_QUERY}"
    );
    let create = format!(
        "plpgsql_validator < FunctionCall1Coll < OidFunctionCall1Coll < ProcedureCreate < CreateFunction < ProcessUtilitySlow.isra.4 < standard_ProcessUtility < PortalRunUtility < {SIMPLE_QUERY}"
    );
    let prepare = format!("exec_prepare_plan@pl_exec.c:4216 < {run}");
    let mut maker = Maker::new();
    for (path, context, size, count) in [
        (
            format!(
                "AllocSetAlloc < palloc0 < CreateCachedPlan < _SPI_prepare_plan < SPI_prepare_extended < {prepare}"
            ),
            "CachedPlanSource",
            250,
            40,
        ),
        (
            format!(
                "AllocSetAlloc < palloc < new_list < list_copy_deep < copyObjectImpl < CompleteCachedPlan < _SPI_prepare_plan < SPI_prepare_extended < {prepare}"
            ),
            "CachedPlanQuery",
            500,
            20,
        ),
        (
            format!(
                "AllocSetAlloc < palloc0 < _copyPlannedStmt < BuildCachedPlan < GetCachedPlan < exec_simple_check_plan < {prepare}"
            ),
            "CachedPlan",
            240,
            50,
        ),
        (format!("AllocSetAlloc < palloc < exec_prepare_plan < {run}"), "SPI Plan", 16, 20),
        (
            format!("AllocSetAlloc < palloc0 < plpgsql_yyparse < plpgsql_compile < {create}"),
            "PL/pgSQL function",
            500,
            20,
        ),
        (
            format!("AllocSetAlloc < pstrdup < plpgsql_build_variable < plpgsql_compile < {create}"),
            "PL/pgSQL function",
            100,
            90,
        ),
    ] {
        maker = maker.survivors(&path, context, size, every(count));
    }
    let capture = maker
        .survivors(
            &format!("AllocSetAlloc < palloc < CatalogCacheCreateEntry < SearchCatCacheMiss < {create}"),
            "CacheMemoryContext",
            200,
            early([300, 12, 1]),
        )
        .survivors(
            &format!("AllocSetAlloc < initStringInfo < {SIMPLE_QUERY}"),
            "MessageContext",
            1_024,
            last(1),
        )
        .settled(
            &format!("AllocSetAlloc < palloc < ExecInitNode < InitPlan < {SIMPLE_QUERY}"),
            "ExecutorState",
            500,
            30,
        )
        .build();
    let text = golden("report_leak.txt", &capture);
    assert!(text.starts_with("LEAK: exec_prepare_plan "), "{text}");
    assert!(!text.contains("LOSSES"));
}

/// Nothing but noise; the report says so first.
#[test]
fn report_without_a_leak() {
    let plan = format!("planner < pg_plan_query < {SIMPLE_QUERY}");
    let mut capture = Maker::new()
        .survivors(
            &format!("AllocSetAlloc < palloc < CatalogCacheCreateEntry < {plan}"),
            "CacheMemoryContext",
            200,
            early([400, 9, 1]),
        )
        .survivors(
            &format!("AllocSetAlloc < palloc < RelationBuildDesc < {plan}"),
            "CacheMemoryContext",
            700,
            now_and_then(1, 4),
        )
        .survivors(
            &format!("AllocSetAlloc < palloc0 < ExecHashTableInsert < {plan}"),
            "HashBatchContext",
            8_000,
            last(40),
        )
        .build();
    (capture.target.rss_anon_start, capture.target.rss_anon_end) = (Some(9_000_000), Some(9_004_096));
    let text = golden("report_no_leak.txt", &capture);
    assert!(text.starts_with("No leak seen: "), "{text}");
    assert!(!text.contains("SUSPECTS"));
}

/// The process ended; nameless functions; losses; notes.
#[test]
fn report_of_a_process_that_ended() {
    let path = "AllocSetAlloc < initStringInfo < postgres+0x3a4b10 < postgres+0x3a4000 < ParallelWorkerMain < BackgroundWorkerMain < main";
    let capture = Maker::new()
        .survivors(path, "TopTransactionContext", 1_024, every(11))
        .counter("live_full", 12_345, true, "allocations not recorded because the map of live chunks was full")
        .counter("free_unknown", 99, false, "frees of chunks that are older than the capture")
        .counter("stacks_full", 0, true, "allocations whose stack is unknown because the map of stacks was full")
        .note("9 of 11 functions in /usr/lib/postgresql/15/bin/postgres have no name: install postgresql-15-dbgsym")
        .end(EndReason::TargetExited, 0)
        .build();
    let text = golden("report_ended.txt", &capture);
    assert!(text.starts_with("GREW UNTIL THE END: postgres+0x"), "{text}");
    assert!(text.contains("12,345") && !text.contains("stacks_full") && !text.contains("free_unknown"));
}

#[test]
fn without_settling_suspects_may_be_work_in_flight() {
    let capture = Maker::new()
        .survivors("AllocSetAlloc < f < main", "TopMemoryContext", 900, every(9))
        .end(EndReason::Interrupted, 0)
        .build();
    let text = report(&capture);
    assert!(text.starts_with("LEAK: f ") && text.contains("may be work that was still going on"), "{text}");
}

#[test]
fn growth_that_the_survivors_do_not_explain_is_pointed_out() {
    let mut capture =
        Maker::new().survivors("AllocSetAlloc < f < main", "TopMemoryContext", 900, last(1)).build();
    assert!(report(&capture).contains("more than this explains"));
    capture.target.rss_anon_end = capture.target.rss_anon_start;
    assert!(!report(&capture).contains("more than this explains"));
}

#[test]
fn few_but_big_survivors_are_neither_a_leak_nor_nothing() {
    let path = "AllocSetAlloc < palloc < XLogReadRecordAlloc < XLogReadRecord < CheckpointerMain < main";
    let text = report(&Maker::new().survivors(path, "Checkpointer", 82_690, now_and_then(0, 3)).build());
    let wanted = "No leak proven: ";
    assert!(text.starts_with(wanted) && text.contains("XLogReadRecordAlloc"), "{text}");
}

/// A leak looks like a cache from the moment on that there is no room for what it allocates.
#[test]
fn a_full_map_proves_nothing() {
    let path = "AllocSetAlloc < palloc < f < PostgresMain < main";
    let maker = || Maker::new().survivors(path, "CacheMemoryContext", 100_000, early([400, 9, 1]));
    assert!(report(&maker().build()).starts_with("No leak seen: "));
    for counter in ["live_full", "contexts_full", "stacks_full"] {
        let text = report(&maker().counter(counter, 12_345, true, "not recorded").build());
        assert!(text.starts_with("No leak proven: ") && text.contains("12,345 allocations"), "{text}");
        assert!(text.contains("--map-memory") && !text.contains("CACHES"), "{text}");
    }
}

/// Samples: every figure is an estimate, and says so.
#[test]
fn report_of_samples() {
    let path = format!("AllocSetAlloc < palloc < remember < {SIMPLE_QUERY}");
    let mut capture = Maker::new().survivors(&path, "TopMemoryContext > Remembered", 80, every(1000)).build();
    capture.window.sampling =
        Some(Sampling { min_size: 16, mean_bytes: 4096, recorded: 2404, left_out: 190_011 });
    for group in &mut capture.profile.groups {
        // Of a hundred chunks one was seen.
        group.slices.iter_mut().for_each(|slice| slice.count /= 100);
        group.variance = 120 * 100 * 99 * 80 * 80;
    }
    let text = golden("samples.txt", &capture);
    assert!(text.contains("from 120 samples") && text.contains("by the chance of sampling"), "{text}");
}

/// Blocks: a context grows, and nobody is blamed.
#[test]
fn report_of_blocks() {
    let path = |function: &str| format!("malloc < AllocSetAlloc < palloc < {function} < {SIMPLE_QUERY}");
    let mut capture = Maker::new()
        .survivors(&path("needs_much"), "TopMemoryContext > Growing", 65_536, every(2))
        .survivors(&path("needs_little"), "TopMemoryContext > Growing", 65_536, every(1))
        .survivors(&path("needs_much"), "Filled", 8192, early([30, 5, 0]))
        .only_blocks()
        .build();
    let growing = ContextGrowth {
        label: "Growing".into(),
        contexts_before: 1,
        contexts_after: 1,
        before: 1 << 20,
        after: 3_407_872,
        traced: 2_359_296,
        used_over_time: (0..=12).map(|slice| 1_000_000 + 180_000 * slice).collect(),
        ..ContextGrowth::default()
    };
    capture.memory = Some(MemoryGrowth {
        contexts_before: 4 << 20,
        contexts_after: 6_553_600,
        by_label: vec![growing],
        ..MemoryGrowth::default()
    });
    let text = golden("blocks.txt", &capture);
    assert!(text.starts_with("GROWS: the context Growing grows by") && !text.contains("LEAK"), "{text}");
}
