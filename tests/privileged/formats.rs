//! Artifacts for other tools, of a real capture: read by those tools, and told apart by `diff`.

use std::{
    path::Path,
    process::{Command, Output},
};

use pgleak::profile::Capture;
use pgleak_tests::{
    Build, LEAKING_ROUND, Server, Session,
    pgleak::{Finished, run},
    planted::{self, CONTEXT, Call},
    workload::Loop,
};
use xtask::rivals::pprof;

use crate::common::{recording, server};

fn output(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// What Go's pprof makes of a profile, without a look at anything else.
fn by_pprof(profile: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(pprof().unwrap());
    command.args(["-symbolize=none"]).args(arguments).arg(profile);
    output(command.env("PPROF_TMPDIR", profile.parent().unwrap()))
}

fn leaking(server: &Server) -> Finished {
    let leak = Loop::start(server, LEAKING_ROUND).unwrap();
    while leak.rounds() < 30 {
        std::thread::yield_now();
    }
    let running =
        recording(leak.backend_pid(), &["--duration", "2s", "--settle", "1s", "--map-memory", "256M"]);
    let finished = running.finish().unwrap().success().unwrap();
    leak.stop().unwrap();
    finished
}

/// What all samples of a profile sum up to, by the line that its table begins with: `Showing nodes accounting for 1B,
/// 50% of 2B total`.
fn total(table: &str) -> u64 {
    let (_, rest) = table.split_once("% of ").unwrap_or_else(|| panic!("{table}"));
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("{table}"))
}

fn held(capture: &Capture) -> u64 {
    capture.profile.groups.iter().map(pgleak::profile::Group::weight).sum()
}

#[test]
fn gos_pprof_reads_the_profile() {
    let server = server(&Build::npm(17).unwrap());
    let finished = leaking(&server);
    let capture = finished.capture().unwrap();
    let profile = finished.dir().unwrap().join("profile.pb.gz");
    let top = by_pprof(&profile, &["-top", "-cum", "-unit=B", "-nodecount=200"]);
    // What is held comes first, without being asked for.
    assert!(top.contains("Type: inuse_space"), "{top}");
    assert_eq!(total(&top), held(&capture), "{top}");
    assert!(top.contains("exec_prepare_plan") && top.contains("plpgsql_compile"), "{top}");
    let allocated = by_pprof(&profile, &["-top", "-sample_index=alloc_objects", "-nodecount=1"]);
    let recorded: u64 = capture.profile.stacks.iter().map(|stack| stack.summary.allocated.count).sum();
    assert_eq!(total(&allocated), recorded, "{allocated}");
    let labels = by_pprof(&profile, &["-tags"]);
    for label in ["context:", "context_path:"] {
        assert!(labels.contains(label), "{label} is not in {labels}");
    }
    let comments = by_pprof(&profile, &["-comments"]);
    assert!(comments.contains("client backend") && comments.contains("PostgreSQL 17"), "{comments}");
    // The same by `render`, and equal to the last byte.
    let [dir, again] = [finished.dir().unwrap(), &finished.dir().unwrap().join("again")];
    run(["render".as_ref(), dir.join("capture.json").as_os_str(), "--out".as_ref(), again.as_os_str()])
        .unwrap()
        .success()
        .unwrap();
    assert_eq!(std::fs::read(again.join("profile.pb.gz")).unwrap(), std::fs::read(&profile).unwrap());
}

#[test]
fn a_difference_names_what_grows() {
    let server = server(&Build::packaged(15).unwrap());
    planted::install(&server).unwrap();
    let mut session = planted::session(&server).unwrap();
    let capture_of = |session: &mut Session, calls: &[(Call, i64)]| {
        let running = recording(session.backend_pid(), &["--duration", "2s", "--settle", "0", "--force"]);
        for (call, count) in calls {
            call.run(session, &[*count, 64]).unwrap();
        }
        running.finish().unwrap().success().unwrap()
    };
    let before = capture_of(&mut session, &[(Call::PALLOC, 500)]);
    let after = capture_of(&mut session, &[(Call::PALLOC, 500), (Call::PALLOC0, 3000)]);
    let out = after.dir().unwrap().join("difference");
    let [first, second] = [before.dir().unwrap(), after.dir().unwrap()];
    let compared =
        run(["diff".as_ref(), first.as_os_str(), second.as_os_str(), "--out".as_ref(), out.as_os_str()])
            .unwrap()
            .success()
            .unwrap();
    let row = |function: &str| {
        let place = format!("{function}, in {CONTEXT}");
        compared.stdout.lines().find(|line| line.contains(&place)).map(str::to_owned)
    };
    let grown = row(Call::PALLOC0.frame).unwrap_or_else(|| panic!("{}", compared.stdout));
    assert!(grown.trim_start().starts_with("0 bytes/s"), "{grown}");
    assert!(grown.contains("+"), "{grown}");
    for file in ["diff.txt", "diff.svg", "diff-before.svg"] {
        assert!(compared.stderr.contains(file), "{}", compared.stderr);
        assert!(std::fs::metadata(out.join(file)).unwrap().len() > 0);
    }
    let picture = std::fs::read_to_string(out.join("diff.svg")).unwrap();
    assert!(picture.contains(&format!("<title>{} ", Call::PALLOC0.frame)), "{picture}");
    let refused = run(["diff", "/proc/none", "/proc/none"]).unwrap();
    assert!(!refused.status.success() && refused.stderr.contains("/proc/none"), "{}", refused.stderr);
}
