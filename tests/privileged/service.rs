//! `pgleak watch` on real servers: what leaks is found without anybody asking, once, and nothing is lost.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use pgleak_tests::{
    Build, Server, Session,
    planted::{self, CONTEXT},
    service::Service,
    workload::{Pgbench, Script, init_pgbench},
};
use serde_json::{Value, json};

use crate::common::{Leaking, PATIENCE, assert_no_probe_is_left, server};

/// Looks each second, and calls growth over a quarter of a minute a trigger: a day of a host in a minute.
const FAST: &str = r#"
    [census]
    interval = "1s"
    [triggers.growth]
    window = "15s"
    process_per_minute = "4M"
    context_per_minute = "4M"
    [capture]
    overhead = "full"
    duration = "3s"
    settle = "1s"
"#;

/// As fast, but nothing begins by itself.
const ON_REQUEST: &str = r#"
    [census]
    interval = "1s"
    [triggers.growth]
    enabled = false
    [capture]
    overhead = "full"
    duration = "2s"
    settle = "500ms"
"#;

/// In so many seconds the session leaks, twice at least.
const LEAKS_WITHIN: f64 = 0.3;

fn planted_server(build: &Build) -> Server {
    let server = server(build);
    planted::install(&server).unwrap();
    server
}

fn pids_of(captures: &[Value]) -> Vec<u64> {
    captures.iter().filter_map(|capture| capture["pid"].as_u64()).collect()
}

/// The heart of it: found without anybody asking, named right, captured once; busy work beside it is left alone.
fn found_without_asking(build: &Build) {
    let server = planted_server(build);
    init_pgbench(&server).unwrap();
    let bench = Pgbench::start(&server, Script::TpcB, 2, 90).unwrap();
    let mut service = Service::start(&server, FAST).unwrap();
    let leaking = Leaking::start(planted::session(&server).unwrap());
    let first = service
        .wait_until("/api/v1/captures", PATIENCE, |list| {
            list.as_array()?.iter().find(|capture| capture["status"] == "done").cloned()
        })
        .unwrap();
    assert_eq!(first["pid"], leaking.pid, "{first}");
    assert_eq!((&first["trigger"], &first["outcome"]), (&json!("growth"), &json!("leak")), "{first}");
    assert_eq!((&first["function"], &first["context"]), (&json!("planted_leak_palloc"), &json!(CONTEXT)));
    // It goes on leaking, for longer than the window.
    let begun = Instant::now();
    service
        .wait_until("/api/v1/state", PATIENCE, |state| {
            let process =
                state["processes"].as_array()?.iter().find(|process| process["pid"] == leaking.pid)?;
            let grows = process["per_minute"].as_f64()? > 4e6;
            (grows && begun.elapsed() > Duration::from_secs(25)).then_some(())
        })
        .unwrap();
    let captures = service.captures().unwrap();
    assert_eq!(pids_of(&captures), [u64::from(leaking.pid)], "once, and nothing else: {captures:?}");
    let number = first["number"].as_i64().unwrap();
    for (file, part) in [
        ("report.txt", "LEAK: planted_leak_palloc"),
        ("flame.svg", "planted_leak_palloc"),
        ("verdict.json", "\"outcome\": \"leak\""),
        ("stacks.folded", "planted_leak_palloc"),
    ] {
        let answer = service.get(&format!("/captures/{number}/{file}")).unwrap();
        assert_eq!(answer.status, 200, "{file}");
        assert!(answer.text().contains(part), "{part} is not in {file}");
    }
    let about = service.json(&format!("/api/v1/captures/{number}")).unwrap();
    assert!(about["ticket"].as_str().unwrap().starts_with("**LEAK: planted\\_leak\\_palloc"), "{about}");
    assert!(about["capture"]["why"].as_str().unwrap().contains("kept growing"), "{about}");
    drop(leaking);
    drop(bench);
    service.stop().unwrap();
    assert_no_probe_is_left(server.postmaster_pid());
}

#[test]
fn found_without_asking_debian_15() {
    found_without_asking(&Build::packaged(15).unwrap());
}

#[test]
fn found_without_asking_npm_17() {
    found_without_asking(&Build::npm(17).unwrap());
}

/// Somebody asks; the budget of the process holds for that as well.
#[test]
fn a_request_is_captured_and_the_budget_holds() {
    let server = planted_server(&Build::packaged(15).unwrap());
    let leaking = Leaking::start(planted::session(&server).unwrap());
    let budget = "[budget]\nprobed_per_hour_and_process = \"4s\"\n";
    let service = Service::start(&server, &format!("{ON_REQUEST}{budget}")).unwrap();
    service.wait_until("/api/v1/state", PATIENCE, |state| state["processes"].get(0).cloned()).unwrap();
    let answer = service.capture(&json!({ "pid": leaking.pid })).unwrap();
    assert_eq!(answer.status, 202, "{}", answer.text());
    let number = serde_json::from_slice::<Value>(&answer.body).unwrap()["number"].as_i64().unwrap();
    // One at a time.
    let second = service.capture(&json!({ "pid": leaking.pid })).unwrap();
    assert_eq!(second.status, 409, "{}", second.text());
    let capture = service.wait_for_capture(number, PATIENCE).unwrap();
    assert_eq!((&capture["status"], &capture["trigger"]), (&json!("done"), &json!("request")), "{capture}");
    let third = service.capture(&json!({ "pid": leaking.pid })).unwrap();
    assert_eq!(third.status, 409);
    assert!(third.text().contains("probed_per_hour_and_process"), "{}", third.text());
    for (body, part) in [
        (json!({ "pid": 1 }), "no server process that is watched"),
        (json!({ "pid": leaking.pid, "duration": "5 weeks" }), "no unit of time"),
        (json!({ "pid": leaking.pid, "overhead": "some" }), "neither full, low"),
    ] {
        let refused = service.capture(&body).unwrap();
        assert!((400..500).contains(&refused.status) && refused.text().contains(part), "{}", refused.text());
    }
    assert_no_probe_is_left(leaking.pid);
}

/// What the service itself is told about is what the series says after a restart, and numbers go on.
#[test]
fn it_goes_on_where_it_was() {
    let server = planted_server(&Build::packaged(15).unwrap());
    let leaking = Leaking::start(planted::session(&server).unwrap());
    let mut service = Service::start(&server, ON_REQUEST).unwrap();
    let row = |service: &Service| {
        service
            .wait_until("/api/v1/state", PATIENCE, |state| {
                let processes = state["processes"].as_array()?;
                processes.iter().find(|process| process["pid"] == leaking.pid)?["row"].as_i64()
            })
            .unwrap()
    };
    let before = row(&service);
    let answer = service.capture(&json!({ "pid": leaking.pid })).unwrap();
    assert_eq!(answer.status, 202, "{}", answer.text());
    service.wait_for_capture(1, PATIENCE).unwrap();
    // What it really has, which only the kernel knows.
    let has = service.json(&format!("/api/v1/processes/{before}/smaps")).unwrap();
    let bytes = |name: &str| has[name].as_u64().unwrap();
    assert!(bytes("private_dirty") > 1 << 20 && bytes("rss") > bytes("private_dirty"), "{has}");
    assert_eq!(service.get("/api/v1/processes/999999/smaps").unwrap().status, 404);
    let points = |service: &Service, row: i64| {
        let answer = service.json(&format!("/api/v1/processes/{row}")).unwrap();
        let labels: Vec<String> = answer["contexts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|context| context["label"].as_str().unwrap().to_owned())
            .collect();
        (answer["memory"].as_array().unwrap().len(), labels, answer["captures"].as_array().unwrap().len())
    };
    let (seen, labels, captures) = points(&service, before);
    assert!(seen >= 2 && captures == 1, "{seen} points, {captures} captures");
    for label in [CONTEXT, "CacheMemoryContext"] {
        assert!(labels.iter().any(|known| known == label), "{label} is not in {labels:?}");
    }
    service.stop().unwrap();
    service.run().unwrap();
    assert_eq!(row(&service), before);
    let (after, _, captures) = points(&service, before);
    assert!(after >= seen && captures == 1, "{seen} points became {after}");
    let answer = service.capture(&json!({ "pid": leaking.pid })).unwrap();
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!(service.wait_for_capture(2, PATIENCE).unwrap()["status"], "done");
}

/// Killed at random moments, while it captures and while it does not: it starts again, every capture is whole or told as
/// failed, no probe stays, and the server does not notice.
#[test]
fn killed_at_random_moments_it_starts_again() {
    let rounds: u32 = std::env::var("PGLEAK_KILLS").map_or(6, |text| text.parse().unwrap());
    let server = planted_server(&Build::packaged(15).unwrap());
    init_pgbench(&server).unwrap();
    let mut bench = Pgbench::start(&server, Script::SelectOnly, 2, 60 * rounds).unwrap();
    let leaking = Leaking::start(planted::session(&server).unwrap());
    let budget = "[budget]\nprobed_per_hour = \"10h\"\nprobed_per_hour_and_process = \"10h\"\n";
    let mut service = Service::start(&server, &format!("{ON_REQUEST}{budget}")).unwrap();
    for round in 0..rounds {
        service.wait_until("/api/v1/state", PATIENCE, |state| state["processes"].get(0).cloned()).unwrap();
        let answer = service.capture(&json!({ "pid": leaking.pid, "duration": "1s" })).unwrap();
        // One that the service before has left behind may still be at work.
        assert!([202, 409].contains(&answer.status), "{}", answer.text());
        // A capture takes about three seconds. The first is surely under way, so that there is something to be saved.
        let moment = if round == 0 { 2000..2500 } else { 0..4000 };
        thread::sleep(Duration::from_millis(fastrand::u64(moment)));
        service.kill().unwrap();
        println!("killed for the {}th time", round + 1);
        service.run().unwrap();
    }
    // What was left behind comes to an end and is put away.
    let all = service
        .wait_until("/api/v1/captures", PATIENCE, |list| {
            let list = list.as_array()?;
            list.iter().all(|capture| capture["status"] != "running").then(|| list.clone())
        })
        .unwrap();
    assert!(!all.is_empty());
    let (mut whole, mut named) = (0, 0);
    for capture in &all {
        let number = capture["number"].as_i64().unwrap();
        let directory = service.store().join(format!("captures/{number:06}"));
        match capture["status"].as_str().unwrap() {
            "done" => {
                whole += 1;
                pgleak::render::read_capture(&directory.join("capture.json")).unwrap();
                let about = service.json(&format!("/api/v1/captures/{number}")).unwrap();
                let found = &about["capture"]["findings"];
                let outcome = found["outcome"].as_str().unwrap();
                if found["window"]["seconds"].as_f64().unwrap() > LEAKS_WITHIN {
                    // One that was cut after a moment proves nothing, and names it all the same.
                    assert!(["leak", "not_proven"].contains(&outcome), "{about}");
                    assert!(found["answer"].as_str().unwrap().contains("planted_leak_palloc"), "{about}");
                    named += 1;
                } else if found["window"]["recorded"] == 0 {
                    assert_eq!(outcome, "nothing_seen", "{about}");
                }
            }
            "failed" => {
                assert!(!directory.exists());
                assert!(capture["error"].as_str().unwrap().contains("service ended"), "{capture}");
            }
            other => panic!("{other}"),
        }
    }
    println!("{whole} of {} captures are whole, {named} name the leak", all.len());
    assert!(named > 0, "not one of them was saved: {all:?}");
    let spool = fs::read_dir(service.store().join("spool")).unwrap().count();
    assert_eq!(spool, 0, "something is left in the spool");
    assert_no_probe_is_left(leaking.pid);
    bench.backend_pids().iter().for_each(|pid| assert_no_probe_is_left(*pid));
    assert!(bench.is_running(), "pgbench has ended");
    drop(leaking);
    Session::open(&server).unwrap().run("select 1").unwrap();
}

/// A disk without room: looking goes on, nothing is captured, all is told; and it goes on when there is room again.
#[test]
fn a_full_disk_is_survived() {
    let server = planted_server(&Build::packaged(15).unwrap());
    let leaking = Leaking::start(planted::session(&server).unwrap());
    let directory = tempfile::Builder::new().prefix("pgleak-watch-").tempdir().unwrap();
    let disk = Mounted::new(&directory.path().join("disk"), "8M");
    let store = disk.0.join("store");
    let mut service = Service::start_in(directory, store, &[&server], ON_REQUEST).unwrap();
    service.wait_until("/api/v1/state", PATIENCE, |state| state["processes"].get(0).cloned()).unwrap();
    let filler = disk.fill();
    let trouble = service
        .wait_until("/api/v1/state", PATIENCE, |state| {
            let figures = &state["figures"];
            (figures["not_stored"].as_u64()? > 0)
                .then(|| figures["store_trouble"].as_str().map(str::to_owned))?
        })
        .unwrap();
    assert!(trouble.contains("full"), "{trouble}");
    let answer = service.capture(&json!({ "pid": leaking.pid })).unwrap();
    assert_eq!(answer.status, 409);
    assert!(answer.text().contains("min_free"), "{}", answer.text());
    let looks = service.json("/api/v1/state").unwrap()["figures"]["looks"].as_u64().unwrap();
    fs::remove_file(&filler).unwrap();
    service
        .wait_until("/api/v1/state", PATIENCE, |state| {
            let figures = &state["figures"];
            (figures["looks"].as_u64()? > looks + 1 && figures["store_trouble"].is_null()).then_some(())
        })
        .unwrap();
    // Started without room, it waits for some.
    let filler = disk.fill();
    service.kill().unwrap();
    service.run_until("there is no room").unwrap();
    fs::remove_file(&filler).unwrap();
    service.running().wait_for("watching: ", PATIENCE).unwrap();
    service.wait_until("/api/v1/state", PATIENCE, |state| state["processes"].get(0).cloned()).unwrap();
    let answer = service.capture(&json!({ "pid": leaking.pid })).unwrap();
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!(service.wait_for_capture(1, PATIENCE).unwrap()["status"], "done");
    service.stop().unwrap();
}

/// A disk that fills up while it is recorded: there are no files, and what was found is told all the same.
#[test]
fn what_finds_no_room_for_its_files_is_told() {
    let server = planted_server(&Build::packaged(15).unwrap());
    let leaking = Leaking::start(planted::session(&server).unwrap());
    let directory = tempfile::Builder::new().prefix("pgleak-watch-").tempdir().unwrap();
    let disk = Mounted::new(&directory.path().join("disk"), "8M");
    let store = disk.0.join("store");
    let mut service = Service::start_in(directory, store, &[&server], ON_REQUEST).unwrap();
    service.wait_until("/api/v1/state", PATIENCE, |state| state["processes"].get(0).cloned()).unwrap();
    let answer = service.capture(&json!({ "pid": leaking.pid, "duration": "4s" })).unwrap();
    assert_eq!(answer.status, 202, "{}", answer.text());
    // Its directory is made, and nothing is written to it before recording has ended.
    let deadline = Instant::now() + PATIENCE;
    while !service.store().join("spool/000001").exists() {
        assert!(Instant::now() < deadline, "{}", service.running().said());
        thread::sleep(Duration::from_millis(20));
    }
    let filler = disk.fill();
    service.running().wait_for("LEAK: planted_leak_palloc", PATIENCE).unwrap();
    fs::remove_file(filler).unwrap();
    let capture = service.wait_for_capture(1, PATIENCE).unwrap();
    assert_eq!(capture["status"], "failed", "{capture}");
    assert!(capture["error"].as_str().unwrap().contains("No space left"), "{capture}");
    assert_eq!(capture["findings"]["suspects"][0]["function"], "planted_leak_palloc", "{capture}");
    service.stop().unwrap();
    assert_no_probe_is_left(leaking.pid);
}

/// A file system in memory; dropping it takes it away.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn new(at: &std::path::Path, size: &str) -> Self {
        fs::create_dir(at).unwrap();
        let size = format!("size={size}");
        xtask::process::output(
            std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &size, "pgleak"]).arg(at),
        )
        .unwrap();
        Self(at.to_owned())
    }

    /// Fills it until there is no room at all; gives the file that does it.
    fn fill(&self) -> std::path::PathBuf {
        let path = self.0.join("filler");
        let mut file = fs::File::create(&path).unwrap();
        while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
        path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: a service that was not ended by its test may still be in it.
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Processes come and go by the hundred: they are seen while they are there, and forgotten.
#[test]
fn two_hundred_come_and_go() {
    let server = server(&Build::packaged(15).unwrap());
    let mut service = Service::start(&server, FAST).unwrap();
    let count =
        |service: &Service| service.json("/api/v1/state").unwrap()["processes"].as_array().unwrap().len();
    service.wait_until("/api/v1/state", PATIENCE, |state| state["processes"].get(0).cloned()).unwrap();
    let idle = count(&service);
    for _ in 0..2 {
        let sessions: Vec<Session> = (0..90).map(|_| Session::open(&server).unwrap()).collect();
        service
            .wait_until("/api/v1/state", PATIENCE, |state| {
                (state["processes"].as_array()?.len() >= idle + sessions.len()).then_some(())
            })
            .unwrap();
        drop(sessions);
        service
            .wait_until("/api/v1/state", PATIENCE, |state| {
                (state["processes"].as_array()?.len() <= idle + 2).then_some(())
            })
            .unwrap();
    }
    let bench_like: Vec<_> = (0..200).map(|_| Session::open(&server).map(drop)).collect();
    assert!(bench_like.iter().all(Result::is_ok));
    let captures = service.captures().unwrap();
    assert!(captures.is_empty(), "{captures:?}");
    let said = service.stop().unwrap();
    assert!(!said.contains("ERROR") && !said.contains("panicked"), "{said}");
}
