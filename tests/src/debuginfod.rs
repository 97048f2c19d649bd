//! debuginfod servers that behave, and that do not.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

/// What a server does with a request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Sends this, and its length before.
    File(Vec<u8>),
    /// Sends this, and says that it would be longer.
    CutOff(Vec<u8>),
    /// Sends zeros to no end, and no length before.
    Endless,
    /// Says that it has nothing.
    NotFound,
    /// Says that it does not work.
    Broken,
    /// Says nothing, for as long as the other side waits.
    Silent,
}

/// A server on this machine. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    /// Its address.
    pub url: String,
    requests: Arc<AtomicUsize>,
    paths: Arc<Mutex<Vec<String>>>,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts one that answers every request alike.
    pub fn start(answer: Answer) -> Self {
        let (listener, url) = listen();
        let requests = Arc::new(AtomicUsize::new(0));
        let paths = Arc::new(Mutex::new(Vec::new()));
        let ending = Arc::new(AtomicBool::new(false));
        let (counted, seen, ended) = (Arc::clone(&requests), Arc::clone(&paths), Arc::clone(&ending));
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                let (answer, Ok(stream)) = (answer.clone(), stream) else { continue };
                let path = request(&stream);
                counted.fetch_add(1, Ordering::SeqCst);
                seen.lock().expect("nobody panics with it").push(path);
                // It ends when the other side hangs up, which it does.
                thread::spawn(move || respond(stream, answer));
            }
        });
        Self { url, requests, paths, ending, thread: Some(thread) }
    }

    /// How often it was asked.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// What it was asked for.
    pub fn paths(&self) -> Vec<String> {
        self.paths.lock().expect("nobody panics with it").clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        // Wakes it, so that it sees that it is to end.
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// An address where nobody listens.
pub fn nobody() -> String {
    listen().1
}

fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("any port of this machine");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    (listener, url)
}

/// Reads a request to the end of its head; the path in it. What is no HTTP, such as the beginning of
/// TLS, is left unread.
fn request(stream: &TcpStream) -> String {
    let mut first = [0];
    if stream.peek(&mut first).is_err() || !first[0].is_ascii_uppercase() {
        return String::new();
    }
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let first = lines.next().unwrap_or_default();
    lines.find(String::is_empty);
    first.split(' ').nth(1).unwrap_or_default().to_owned()
}

fn respond(mut stream: TcpStream, answer: Answer) {
    let head = |status: &str, length: Option<usize>| {
        let length = length.map_or(String::new(), |length| format!("Content-Length: {length}\r\n"));
        format!("HTTP/1.1 {status}\r\n{length}Connection: close\r\n\r\n").into_bytes()
    };
    // The other side may hang up at any time.
    let _ = match answer {
        Answer::File(bytes) => stream.write_all(&[head("200 OK", Some(bytes.len())), bytes].concat()),
        Answer::CutOff(bytes) => stream.write_all(&[head("200 OK", Some(bytes.len() * 2)), bytes].concat()),
        Answer::Endless => stream.write_all(&head("200 OK", None)).and_then(|()| {
            loop {
                stream.write_all(&[0; 1 << 16])?
            }
        }),
        Answer::NotFound => stream.write_all(&head("404 Not Found", Some(0))),
        Answer::Broken => stream.write_all(&head("500 Internal Server Error", Some(0))),
        Answer::Silent => stream.read_to_end(&mut Vec::new()).map(|_| ()),
    };
}
