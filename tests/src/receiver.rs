//! An HTTP server that keeps what it gets.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, bail};

/// One request.
#[derive(Clone, Debug)]
pub struct Received {
    /// `/v1/logs`.
    pub path: String,
    /// The lines of its head, the first left out.
    pub headers: String,
    /// Its body.
    pub body: Vec<u8>,
}

#[derive(Debug, Default)]
struct Kept {
    requests: Mutex<Vec<Received>>,
    more: Condvar,
}

/// A server on this machine. Dropping it ends it.
#[derive(Debug)]
pub struct Receiver {
    /// Its address.
    pub url: String,
    address: std::net::SocketAddr,
    kept: Arc<Kept>,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Receiver {
    /// Starts one that refuses the first requests with 503, so many of them, and takes all others.
    pub fn start(refuses: usize) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen")?;
        let address = listener.local_addr()?;
        let (kept, ending) = (Arc::new(Kept::default()), Arc::new(AtomicBool::new(false)));
        let (keeping, ended) = (Arc::clone(&kept), Arc::clone(&ending));
        let thread = thread::spawn(move || {
            for (number, stream) in listener.incoming().flatten().enumerate() {
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                let status = if number < refuses { "503 Not Now" } else { "200 OK" };
                // One that hangs up early has sent nothing.
                if let Ok(request) = receive(stream, status)
                    && status.starts_with("200")
                {
                    keeping.requests.lock().expect("nobody panics with it").push(request);
                    keeping.more.notify_all();
                }
            }
        });
        Ok(Self { url: format!("http://{address}"), address, kept, ending, thread: Some(thread) })
    }

    /// Waits until it has taken so many, and gives them.
    pub fn wait_for(&self, count: usize, patience: Duration) -> Result<Vec<Received>> {
        let requests = self.kept.requests.lock().expect("nobody panics with it");
        let (requests, waited) = self
            .kept
            .more
            .wait_timeout_while(requests, patience, |requests| requests.len() < count)
            .expect("nobody panics with it");
        if waited.timed_out() {
            bail!("it got {} requests of {count}", requests.len());
        }
        Ok(requests.clone())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        // Wakes it, so that it sees that it is to end.
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn receive(stream: TcpStream, status: &str) -> Result<Received> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            bail!("it hung up");
        }
    }
    let (first, headers) = head.split_once("\r\n").context("a head has lines")?;
    let path = first.split(' ').nth(1).context("a path")?.to_owned();
    let length = headers.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let mut body = vec![0; length.context("a length")?];
    reader.read_exact(&mut body)?;
    write!(reader.get_mut(), "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
    Ok(Received { path, headers: headers.to_owned(), body })
}
