//! `pgleak render --symbols`: names on another machine than that of the process.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ::pgleak::{
    profile::{
        Capture, ContextId, ContextPlace, EndReason, FrameId, Group, Profile, SCHEMA, Slice, Stack, StackEnd,
        StackId, StackSummary, Tally, Target, Tool, What, Window,
    },
    symbolize::{DebugFiles, SymbolIndex, name_again},
};
use pgleak_tests::{
    debuginfod::{Answer, Server},
    pgleak,
};
use tempfile::TempDir;

use super::program::{Named, Program, tool};

/// A capture of which a stack has all the frames.
fn capture(named: Named) -> Capture {
    let (second, tally) = (1_000_000_000, Tally { count: 800, requested: 64_000, held: 80_000 });
    let summary = StackSummary { allocated: tally, ..StackSummary::default() };
    let frames = (0..named.frames.len()).map(|index| FrameId(u32::try_from(index).unwrap())).collect();
    let tenth = Tally { count: 80, requested: 6400, held: 8000 };
    let group = Group {
        stack: StackId(0),
        context: ContextId(0),
        what: What::Chunks,
        process: 0,
        contexts: 1,
        recorded: tally,
        survived: tally,
        pinned: 0,
        variance: 0,
        queries: Vec::new(),
        slices: vec![tenth; 10],
    };
    Capture {
        schema: SCHEMA,
        tool: Tool { name: "pgleak".into(), version: "0.1.0".into() },
        target: Target {
            pid: 4711,
            kind: "client backend".into(),
            database: None,
            user: None,
            title: "postgres".into(),
            server: "PostgreSQL 15.18".into(),
            product: "PostgreSQL".into(),
            major: 15,
            binary: named.modules[0].path.clone(),
            build_id: named.modules[0].build_id.clone(),
            host: "db1".into(),
            kernel: "6.12.0".into(),
            rss_anon_start: None,
            rss_anon_end: None,
            rss_shmem_end: None,
        },
        processes: Vec::new(),
        ended: Vec::new(),
        window: Window {
            windows: None,
            sampling: None,
            started: "2026-03-01T03:07:00Z".into(),
            record_ns: 10 * second,
            settle_ns: second,
            requested_record_ns: 10 * second,
            requested_settle_ns: second,
            slices: (0..10).map(|i| Slice { start_ns: i * second, length_ns: second }).collect(),
            end: EndReason::Completed,
            target_cpu_ns: second,
            expected_slowdown: None,
        },
        sites: Vec::new(),
        modules: named.modules,
        profile: Profile {
            frames: named.frames,
            stacks: vec![Stack { frames, end: StackEnd::Bottom, summary, held_over_time: Vec::new() }],
            contexts: vec![ContextPlace { name: "Leaky".into(), ident: None, path: None }],
            groups: vec![group],
            no_blocks: None,
        },
        queries: Vec::new(),
        memory: None,
        counters: Vec::new(),
        notes: [named.notes, named.advice].concat(),
    }
}

/// A program that was captured without names; the capture, and its file in a directory of its own.
fn bare() -> (Program, Capture, TempDir, PathBuf) {
    let program = Program::compile(&[]).strip();
    let named = program.named_at_home();
    named.assert_bare();
    let capture = capture(named);
    let directory = tempfile::Builder::new().prefix("pgleak-render-").tempdir().unwrap();
    let file = directory.path().join("capture.json");
    fs::write(&file, serde_json::to_string_pretty(&capture).unwrap()).unwrap();
    (program, capture, directory, file)
}

fn named_by(capture: &Capture, directories: &[&Path]) -> Capture {
    let directories: Vec<PathBuf> = directories.iter().map(|path| path.to_path_buf()).collect();
    let given = SymbolIndex::read(&directories).unwrap();
    name_again(capture.clone(), DebugFiles::default().with_given(given))
}

#[test]
fn names_are_those_that_the_machine_would_have_given() {
    let (program, bare, ..) = bare();
    // An unpacked package, in an odd place.
    let debug = program.debug_file(&Path::new("unpacked").join(program.place_by_id()));
    let later = named_by(&bare, &[&program.machine.path().join("unpacked")]);
    let at_once = capture({
        fs::rename(&debug, program.debug_file(&program.place_by_id())).unwrap();
        let named = program.named_at_home();
        named.assert_complete();
        named
    });
    assert_eq!(later, at_once, "and the advice on how to get names is gone");

    // The binary as it was linked does as well.
    assert_eq!(named_by(&bare, &[&program.whole]), at_once);
    // What is known stays, and naming twice changes nothing.
    assert_eq!(named_by(&later, &[&program.whole]), later);
}

#[test]
fn another_build_names_nothing() {
    let (program, bare, ..) = bare();
    let other = Program::compile(&["-O1"]);
    let named = named_by(&bare, &[other.machine.path()]);
    assert_eq!(named.profile, bare.profile);
    assert_eq!(named.modules, bare.modules);
    assert_eq!(named_by(&named, &[other.machine.path()]), named, "no note is added twice");
    let id = program.build_id().to_string();
    assert!(
        named.notes.iter().any(|note| note.contains(&id) && note.contains("no debug file")),
        "{named:#?}"
    );
}

#[test]
fn units_of_their_own_and_shared_parts_are_found_in_the_directory() {
    let program = Program::compile(&["-gsplit-dwarf"]);
    let elsewhere = program.machine.path().join("elsewhere");
    fs::rename(program.whole.parent().unwrap(), &elsewhere).unwrap();
    let program = program.strip();
    let bare = capture(program.named_at_home());
    let named = named_by(&bare, &[&elsewhere]);
    let frame = &named.profile.frames[0];
    assert_eq!(frame.names[0].function, "inlined_function", "{named:#?}");

    let program = Program::compile(&[]).strip();
    let (debug, second) = (program.debug_file(Path::new("debug/a.debug")), Program::compile(&["-O1"]));
    let (second, shared) = (second.debug_file(Path::new("b.debug")), debug.with_file_name("shared"));
    tool("dwz", &[Path::new("-m"), &shared, Path::new("-M"), Path::new("/gone"), &debug, &second]);
    let bare = capture(program.named_at_home());
    let named = named_by(&bare, &[debug.parent().unwrap()]);
    assert_eq!(named.profile.frames[0].names[0].function, "inlined_function", "{named:#?}");
    assert!(named.notes.is_empty(), "{named:#?}");
}

/// All that is in a directory, by name.
fn contents(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn the_program_names_what_was_bare_and_changes_nothing_unasked() {
    let (program, _, directory, file) = bare();
    let file = file.to_str().unwrap();
    pgleak::run(["render", file]).unwrap().success().unwrap();
    let before = contents(directory.path());
    let report = |name: &str| String::from_utf8(before.iter().find(|file| file.0 == name).unwrap().1.clone());
    assert!(report("report.txt").unwrap().starts_with("LEAK: names+0x"), "{}", report("report.txt").unwrap());
    pgleak::run(["render", file]).unwrap().success().unwrap();
    assert_eq!(contents(directory.path()), before, "byte for byte");

    let symbols = program.machine.path().join("build");
    let arguments = ["render", file, "--symbols", symbols.to_str().unwrap()];
    let out = directory.path().join("named");
    let named = pgleak::run(arguments.iter().chain(&["--out", out.to_str().unwrap()])).unwrap();
    named.success().unwrap();
    assert_eq!(contents(directory.path().join("named").as_path()).len(), before.len());
    let report = fs::read_to_string(out.join("report.txt")).unwrap();
    assert!(report.starts_with("LEAK: inlined_function (called by static_function)"), "{report}");
    assert!(fs::read_to_string(out.join("stacks.folded")).unwrap().contains("inlined_function"));
    // The same from the artifacts themselves, which know the names now.
    let again = out.join("capture.json");
    let printed = pgleak::run(["render", again.to_str().unwrap(), "--format", "report"]).unwrap();
    assert_eq!(printed.success().unwrap().stdout, report);
}

#[test]
fn the_program_asks_debuginfod_if_it_is_told_to() {
    let (program, _, directory, file) = bare();
    let debug = fs::read(program.debug_file(Path::new("sent.debug"))).unwrap();
    // It is asked as well if what is given has no more names than the host had.
    let stripped = program.path.parent().unwrap();
    for (answer, says) in [
        (Answer::Silent, "debuginfod was given up after 1 s"),
        (Answer::File(debug), "LEAK: inlined_function (called by static_function)"),
        // From the cache by now.
        (Answer::Broken, "LEAK: inlined_function (called by static_function)"),
    ] {
        let server = Server::start(answer);
        let mut command = pgleak::command(["render", "--format=report"]).unwrap();
        command.arg(&file).env("DEBUGINFOD_URLS", &server.url).env("DEBUGINFOD_TIMEOUT", "1");
        command.env("DEBUGINFOD_CACHE_PATH", directory.path().join("cache"));
        let asked = |command: &mut _| pgleak::Running::spawn(command).unwrap().finish().unwrap();
        let unasked = asked(&mut command).success().unwrap().stdout;
        assert!(unasked.starts_with("LEAK: names+0x") && server.requests() == 0, "{unasked}");
        let report =
            asked(command.arg("--debuginfod").arg("--symbols").arg(stripped)).success().unwrap().stdout;
        assert!(report.replace('\n', " ").contains(says), "{report}");
    }
}

#[test]
fn what_makes_no_sense_is_misuse() {
    let (_, _, directory, file) = bare();
    let file = file.to_str().unwrap();
    let no_symbols = directory.path().join("nothing");
    fs::create_dir(&no_symbols).unwrap();
    for (directory, says) in
        [(no_symbols.as_path(), "no ELF file"), (Path::new("/does/not/exist"), "cannot read")]
    {
        let finished = pgleak::run(["render", file, "--symbols", directory.to_str().unwrap()]).unwrap();
        assert_eq!(finished.status.code(), Some(2));
        assert!(finished.stderr.contains(says), "{}", finished.stderr);
    }
    for command in [["render", file, "--debuginfod"], ["capture", "--pid=1", "--debuginfod"]] {
        let mut command = pgleak::command(command).unwrap();
        let finished =
            pgleak::Running::spawn(command.env_remove("DEBUGINFOD_URLS")).unwrap().finish().unwrap();
        assert_eq!(finished.status.code(), Some(2));
        assert!(finished.stderr.contains("DEBUGINFOD_URLS names no server"), "{}", finished.stderr);
    }
}
