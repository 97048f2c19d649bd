//! debuginfod: a server that answers, and servers that are slow, lie, or are down.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use pgleak::symbolize::{DebugFiles, Debuginfod, Settings};
use pgleak_tests::debuginfod::{Answer, Server, nobody};
use tempfile::TempDir;

use super::program::{Named, Program};

/// What one capture would get from some servers.
struct Asking<'a> {
    program: &'a Program,
    servers: Vec<String>,
    cache: &'a TempDir,
    time_limit: Duration,
    most_bytes: u64,
    interrupted: Arc<AtomicBool>,
}

impl<'a> Asking<'a> {
    fn new(program: &'a Program, cache: &'a TempDir, servers: &[&str]) -> Self {
        Self {
            program,
            servers: servers.iter().map(|server| (*server).to_owned()).collect(),
            cache,
            time_limit: Duration::from_secs(60),
            most_bytes: 64 << 20,
            interrupted: Arc::default(),
        }
    }

    fn named(&self) -> Named {
        self.program.named(self.files())
    }

    fn files(&self) -> DebugFiles {
        let settings = Settings {
            servers: self.servers.clone(),
            cache: self.cache.path().to_owned(),
            time_limit: self.time_limit,
            most_bytes: self.most_bytes,
        };
        let debuginfod = Debuginfod::new(settings, Arc::clone(&self.interrupted)).unwrap();
        DebugFiles::default().with_debuginfod(Some(debuginfod))
    }
}

/// The debug file of a program as a server sends it.
fn debug_file(program: &Program) -> Vec<u8> {
    fs::read(program.debug_file(Path::new("sent.debug"))).unwrap()
}

fn cache() -> TempDir {
    tempfile::Builder::new().prefix("pgleak-cache-").tempdir().unwrap()
}

/// Files in a cache.
fn cached(cache: &TempDir) -> Vec<String> {
    let below = |directory: &Path| fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let files =
        below(cache.path()).flat_map(|path| if path.is_dir() { below(&path).collect() } else { vec![path] });
    files.map(|path| path.strip_prefix(cache.path()).unwrap().display().to_string()).collect()
}

#[test]
fn a_server_that_answers_is_asked_once() {
    let (program, cache) = (Program::compile(&[]).strip(), cache());
    let server = Server::start(Answer::File(debug_file(&program)));
    let asking = Asking::new(&program, &cache, &[&server.url]);
    asking.named().assert_complete();
    let id = program.build_id();
    assert_eq!(server.paths(), [format!("/buildid/{id}/debuginfo")]);
    assert_eq!(cached(&cache), [format!("{id}/debuginfo")]);

    asking.named().assert_complete();
    assert_eq!(server.requests(), 1, "the second time it came from the cache");
    drop(server);
    asking.named().assert_complete();

    // What the cache has is not trusted either.
    fs::write(cache.path().join(format!("{id}/debuginfo")), debug_file(&Program::compile(&["-O1"]))).unwrap();
    let named = asking.named();
    named.assert_bare();
    named.assert_noted(&["is not asked any further"]);
}

#[test]
fn nobody_is_asked_for_what_is_there() {
    let (program, cache) = (Program::compile(&[]), cache());
    let server = Server::start(Answer::NotFound);
    Asking::new(&program, &cache, &[&server.url]).named().assert_complete();
    assert_eq!(server.requests(), 0);
}

#[test]
fn the_next_server_is_asked_for_what_one_has_not_or_cannot_give() {
    let (program, cache) = (Program::compile(&[]).strip(), cache());
    let [without, broken] = [Answer::NotFound, Answer::Broken].map(Server::start);
    let good = Server::start(Answer::File(debug_file(&program)));
    let named = Asking::new(&program, &cache, &[&without.url, &broken.url, &nobody(), &good.url]).named();
    named.assert_inlined();
    assert_eq!((without.requests(), broken.requests(), good.requests()), (1, 1, 1));
    assert_eq!(named.notes.len(), 2, "{:#?}", named.notes);
    named.assert_noted(&[&broken.url, "500"]);
}

#[test]
fn https_is_not_spoken_with_a_server_that_cannot() {
    let (program, cache) = (Program::compile(&[]).strip(), cache());
    let server = Server::start(Answer::File(debug_file(&program)));
    let https = server.url.replace("http:", "https:");
    let named = Asking::new(&program, &cache, &[&https]).named();
    named.assert_bare();
    named.assert_noted(&[&https, "is not asked any further"]);
}

#[test]
fn servers_that_lie_are_told_and_leave_nothing_behind() {
    let program = Program::compile(&[]).strip();
    let other = Program::compile(&["-O1"]);
    let sound = debug_file(&program);
    let half = sound[..sound.len() / 2].to_vec();
    let other_id = other.build_id().to_string();
    for (answer, says) in [
        (Answer::File(debug_file(&other)), other_id.as_str()),
        (Answer::File(half.clone()), "not a readable 64-bit ELF file"),
        (Answer::CutOff(half), "is not asked any further"),
        (Answer::File(b"<html>no debug file</html>".to_vec()), "not a readable 64-bit ELF file"),
        (Answer::File(Vec::new()), "is not trusted any further"),
    ] {
        let (server, cache) = (Server::start(answer.clone()), cache());
        let named = Asking::new(&program, &cache, &[&server.url]).named();
        named.assert_bare();
        named.assert_noted(&[&server.url, says]);
        assert_eq!(cached(&cache), Vec::<String>::new());
    }
}

#[test]
fn files_that_are_too_large_are_refused() {
    let program = Program::compile(&[]).strip();
    for answer in [Answer::Endless, Answer::File(vec![0; 2 << 20])] {
        let (server, cache) = (Server::start(answer), cache());
        let mut asking = Asking::new(&program, &cache, &[&server.url]);
        asking.most_bytes = 1 << 20;
        let named = asking.named();
        named.assert_bare();
        named.assert_noted(&[&server.url, "more than 1048576 bytes", "DEBUGINFOD_MAXSIZE"]);
        assert_eq!(cached(&cache), Vec::<String>::new());
    }
}

#[test]
fn servers_that_are_slow_cost_the_limit_once() {
    // The program and the C library are two objects without debug files.
    let (program, cache) = (Program::compile(&[]).strip(), cache());
    let silent = Server::start(Answer::Silent);
    let mut asking = Asking::new(&program, &cache, &[&silent.url, &silent.url]);
    asking.time_limit = Duration::from_secs(1);
    let started = Instant::now();
    let named = program.named_with_libc(asking.files());
    let took = started.elapsed();
    named.assert_noted(&["given up after 1 s"]);
    assert_eq!(named.notes.len(), 1, "told once: {:#?}", named.notes);
    assert_eq!(named.modules.len(), 2, "{:?}", named.modules);
    assert_eq!(silent.requests(), 1);
    assert!(took >= asking.time_limit && took < 10 * asking.time_limit, "{took:?}");
}

#[test]
fn a_user_who_does_not_want_to_wait_does_not() {
    let (program, cache) = (Program::compile(&[]).strip(), cache());
    let silent = Server::start(Answer::Silent);
    let asking = Asking::new(&program, &cache, &[&silent.url]);
    let (interrupted, limit) = (Arc::clone(&asking.interrupted), asking.time_limit);
    let started = Instant::now();
    let named = thread::scope(|scope| {
        scope.spawn(|| {
            while silent.requests() == 0 && started.elapsed() < limit {
                thread::sleep(Duration::from_millis(5));
            }
            interrupted.store(true, Ordering::SeqCst);
        });
        asking.named()
    });
    named.assert_bare();
    named.assert_noted(&["interrupted"]);
    assert!(started.elapsed() < limit / 2);
}
