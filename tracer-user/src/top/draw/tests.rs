//! Screens against golden files. `PGLEAK_BLESS=1 cargo test` writes them anew; read the diff.

use std::{fs, path::Path, time::Duration};

use ratatui::{Terminal, backend::TestBackend, style::Color};

use super::{
    super::{
        acting::Mode,
        capturing::Outcome,
        contexts::{ContextLine, Contexts, ContextsLook},
        model::Model,
        testing::{client, id, process, seen},
    },
    *,
};
use crate::session::{LiveStack, LiveStacks};

const MIB: u64 = 1 << 20;
const REPORT: &str = "\
LEAK: exec_prepare_plan leaks 622 KiB/s in CachedPlanSource, CachedPlanQuery and 3 other
      contexts.
      plpgsql_compile (called by plpgsql_validator), too: 22.1 KiB/s.

SUSPECTS, by bytes held (in parentheses: allocator helpers, and what all work runs below)

1. exec_prepare_plan: LEAK, 33.8 KiB/s
   why           12 of 12 time slices left survivors, so that what is allocated here stays, at a steady rate
";

fn drawn(model: &Model, width: u16, height: u16, paint: Paint) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("it cannot fail");
    terminal.draw(|frame| draw(frame, model, paint)).expect("it cannot fail");
    terminal
}

fn text(terminal: &Terminal<TestBackend>) -> String {
    let buffer = terminal.backend().buffer();
    let rows = buffer.content().chunks(usize::from(buffer.area.width));
    let row = |cells: &[ratatui::buffer::Cell]| cells.iter().map(|cell| cell.symbol()).collect::<String>();
    rows.map(|cells| format!("{}\n", row(cells).trim_end())).collect()
}

fn matches_golden(name: &str, model: &Model, (width, height): (u16, u16)) {
    let text = text(&drawn(model, width, height, Paint::new(true)));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("PGLEAK_BLESS").is_some() {
        fs::write(&path, &text).expect("the source tree can be written");
    }
    let wanted = fs::read_to_string(&path).unwrap_or_default();
    assert!(text == wanted, "{name} differs; PGLEAK_BLESS=1 writes it anew:\n{text}");
}

/// Three clients, one of which grows, and four processes of the server.
fn model() -> Model {
    let looks: Vec<_> = (0..12)
        .map(|look| {
            vec![
                process(4700, "postmaster", 4 * MIB),
                process(4702, "checkpointer", MIB),
                process(4703, "background writer", MIB / 2),
                process(4705, "logical replication launcher", MIB),
                client(4711, "shop", (30 + 2 * look) * MIB),
                client(4712, "a_database_with_a_long_name", 12 * MIB),
                client(4713, "shop", (20 - look) * MIB),
            ]
        })
        .collect();
    seen(&looks)
}

fn with_contexts() -> Model {
    let line = |label: &str, bytes, more_bytes, contexts| ContextLine {
        label: label.to_owned(),
        bytes,
        more_bytes,
        contexts,
    };
    let mut model = model();
    let look = ContextsLook {
        lines: vec![
            line("CachedPlanSource", 9 * MIB, 3 << 20, 812),
            line("CacheMemoryContext", MIB, 8192, 1),
            line("TopMemoryContext", 97_680, 0, 1),
            line("MessageContext", 8192, -57_344, 1),
        ],
        contexts: 1204,
        bytes: 12 * MIB,
        took: Duration::from_micros(8400),
        every: Duration::from_secs(2),
        since: Duration::from_secs(22),
        troubles: String::new(),
    };
    model.see_contexts(id(4711), Contexts::Read(look));
    model
}

fn capturing() -> Model {
    let mut model = with_contexts();
    model.begin(id(4711), "full".to_owned(), "pgleak-4711-20260301T030700Z".into());
    model.hear("pgleak: process 4711 is a client backend of PostgreSQL 15.18, database shop, user app");
    model.hear("pgleak: recording for 13.0 s");
    model.hear("pgleak: recording: 5.0/13.0 s, 30408 allocations, 412 records, 38 stacks");
    model.now += Duration::from_secs(6);
    model
}

#[test]
fn the_first_screen_has_all_processes_and_contexts() {
    matches_golden("top.txt", &with_contexts(), (80, 24));
    matches_golden("top_wide.txt", &with_contexts(), (140, 20));
}

#[test]
fn a_capture_shows_how_far_it_is_and_then_its_verdict() {
    let mut model = capturing();
    matches_golden("top_capture.txt", &model, (80, 24));
    model.end(Outcome::Report(REPORT.to_owned()));
    matches_golden("top_verdict.txt", &model, (80, 24));
    model.mode = Mode::Reading(0);
    matches_golden("top_report.txt", &model, (80, 14));
}

#[test]
fn live_stacks_have_their_place() {
    let mut model = capturing();
    let stack = |held_bytes, context: &str, path: &[&str]| LiveStack {
        held_bytes,
        chunks: 1,
        context: context.to_owned(),
        path: path.iter().map(|name| (*name).to_owned()).collect(),
    };
    model.see_stacks(LiveStacks {
        stacks: vec![
            stack(
                2 * MIB,
                "CachedPlan",
                &["_copyPlannedStmt", "BuildCachedPlan", "GetCachedPlan", "exec_simple"],
            ),
            stack(4096, "", &["XLogReadRecord"]),
        ],
    });
    matches_golden("top_stacks.txt", &model, (80, 24));
    let wide = text(&drawn(&model, 160, 24, Paint::new(true)));
    assert!(wide.lines().any(|line| line.contains("of 13 s") && line.contains("_copyPlannedStmt")), "{wide}");
}

#[test]
fn questions_and_help_stand_over_the_rest() {
    let mut model = with_contexts();
    model.mode = Mode::Asking("5".to_owned());
    matches_golden("top_ask.txt", &model, (80, 24));
    model.mode = Mode::Help;
    let help = text(&drawn(&model, 80, 24, Paint::new(true)));
    assert!(help.contains("but not after a second Ctrl-C") && help.contains("Enter"), "{help}");
}

#[test]
fn what_cannot_be_read_is_said_in_its_place() {
    let mut model = model();
    let unread = text(&drawn(&model, 80, 24, Paint::new(true)));
    assert!(unread.contains("reading …"), "{unread}");
    model.see_contexts(id(4711), Contexts::Later(model.now + Duration::from_secs(30)));
    let later = text(&drawn(&model, 80, 24, Paint::new(true)));
    assert!(later.contains("read in 31 s, since"), "{later}");
    let reason = "cannot read the memory of process 4711".to_owned();
    model.see_contexts(id(4711), Contexts::Unreadable(reason));
    let refused = text(&drawn(&model, 80, 24, Paint::new(true)));
    assert!(refused.contains("cannot read the memory of process 4711"), "{refused}");
    let none = text(&drawn(&seen(&[vec![]]), 80, 24, Paint::new(true)));
    assert!(none.contains("no PostgreSQL or Greenplum process"), "{none}");
}

#[test]
fn without_colours_there_are_none() {
    let mut model = capturing();
    model.end(Outcome::Report(REPORT.to_owned()));
    let colours = |paint| {
        let terminal = drawn(&model, 80, 24, paint);
        let cells = terminal.backend().buffer().content();
        cells.iter().filter(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset).count()
    };
    assert_eq!(colours(Paint::new(false)), 0);
    assert!(colours(Paint::new(true)) > 0);
}

#[test]
fn on_a_narrow_screen_columns_go_and_numbers_stay_whole() {
    let model = model();
    for (width, wanted) in
        [(60, "+1.0 MB   +1.0 MB"), (45, "client backend   52.0 MB   +1.0 MB"), (17, "4711   52.0 MB")]
    {
        let text = text(&drawn(&model, width, 12, Paint::new(true)));
        assert!(text.lines().any(|line| line.ends_with(wanted)), "{width}: {text}");
    }
}

#[test]
fn any_size_is_drawn() {
    let mut model = capturing();
    for mode in [Mode::Table, Mode::Typing, Mode::Asking(String::new()), Mode::Help, Mode::Leaving] {
        model.mode = mode;
        for (width, height) in [(1, 1), (2, 2), (5, 40), (40, 3), (79, 7), (300, 100)] {
            drawn(&model, width, height, Paint::new(true));
        }
    }
    model.end(Outcome::Report(REPORT.to_owned()));
    model.mode = Mode::Reading(5);
    for (width, height) in [(1, 1), (2, 2), (5, 40), (40, 3)] {
        drawn(&model, width, height, Paint::new(true));
    }
}
