//! `pgleak watch`, as it runs on a host, with a store of its own.

use std::{
    fs,
    os::unix::{net::UnixStream, process::CommandExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    Server,
    pgleak::{Running, command},
};

/// How long it may take to answer.
const ANSWERS: Duration = Duration::from_secs(30);

/// How often it is asked.
const POLL: Duration = Duration::from_millis(100);

/// A service at work. Dropping it kills it.
pub struct Service {
    running: Option<Running>,
    directory: TempDir,
    store: PathBuf,
    /// Data directories of the servers that it watches: others on this host are none of its business.
    servers: Vec<PathBuf>,
}

/// What it answers.
#[derive(Debug)]
pub struct Answer {
    /// `200`.
    pub status: u16,
    /// Lines of the head, the first left out.
    pub headers: String,
    /// The rest.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header, by its name in small letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| {
            let (known, value) = line.split_once(':')?;
            known.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

impl Service {
    /// Starts it for one server, with a configuration to which a store and a socket in a new directory are added.
    pub fn start(server: &Server, config: &str) -> Result<Self> {
        Self::start_of(&[server], config)
    }

    /// The same for several.
    pub fn start_of(servers: &[&Server], config: &str) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("pgleak-watch-").tempdir()?;
        let store = directory.path().join("store");
        Self::start_in(directory, store, servers, config)
    }

    /// The same with a store somewhere else.
    pub fn start_in(directory: TempDir, store: PathBuf, servers: &[&Server], config: &str) -> Result<Self> {
        let mut service = Self {
            running: None,
            directory,
            store,
            servers: servers.iter().map(|server| server.data_dir()).collect(),
        };
        service.configure(config)?;
        service.run()?;
        Ok(service)
    }

    /// Writes another configuration, which it reads when it is told to.
    pub fn configure(&self, config: &str) -> Result<()> {
        let store = format!("directory = \"{}\"", self.store.display());
        let mut text = match config.contains("[store]") {
            true => config.replace("[store]", &format!("[store]\n{store}")),
            false => format!("{config}\n[store]\n{store}\nmin_free = \"1M\"\n"),
        };
        ensure!(text.contains("[census]"), "the configuration of a test has a [census]");
        let only = format!("[census]\nservers = {:?}", self.servers);
        text = text.replace("[census]", &only);
        if !text.contains("[web]") {
            text += &format!("[web]\nlisten = [\"unix:{}\"]\n", self.socket().display());
        }
        fs::write(self.config(), text).context("cannot write a configuration")
    }

    /// Starts it again after it has ended.
    pub fn run(&mut self) -> Result<()> {
        self.run_until("watching: ")
    }

    /// The same, until it has said something else.
    pub fn run_until(&mut self, said: &str) -> Result<()> {
        let mut command = command(["watch", "--config"])?;
        command.arg(self.config());
        // A test that dies leaves no service behind.
        // SAFETY: prctl is async-signal-safe.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let running = Running::spawn(&mut command)?;
        running.wait_for(said, ANSWERS)?;
        self.running = Some(running);
        Ok(())
    }

    /// Its configuration.
    pub fn config(&self) -> PathBuf {
        self.directory.path().join("pgleak.toml")
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("web.sock")
    }

    /// Its store.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// The program.
    pub fn running(&self) -> &Running {
        self.running.as_ref().expect("it was started")
    }

    /// Ends it as a service manager does, and gives all that it said.
    pub fn stop(&mut self) -> Result<String> {
        self.running().signal(libc::SIGTERM)?;
        let finished = self.running.take().expect("it was started").finish()?.success()?;
        Ok(finished.stderr)
    }

    /// Kills it.
    pub fn kill(&mut self) -> Result<()> {
        self.running().signal(libc::SIGKILL)?;
        self.running.take().expect("it was started").finish().map(drop)
    }

    /// Asks it for something.
    pub fn get(&self, path: &str) -> Result<Answer> {
        self.ask("GET", path, "Host: localhost\r\n", "")
    }

    /// Asks for something with a body and headers of one's own, `Host` among them.
    pub fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Result<Answer> {
        let stream = UnixStream::connect(self.socket()).context("nobody listens at the socket")?;
        stream.set_read_timeout(Some(ANSWERS))?;
        ask(stream, method, path, headers, body)
    }

    /// A JSON answer.
    pub fn json(&self, path: &str) -> Result<Value> {
        let answer = self.get(path)?;
        ensure!(answer.status == 200, "{path}: {} {}", answer.status, answer.text());
        serde_json::from_slice(&answer.body).with_context(|| format!("{path} gives no JSON"))
    }

    /// Asks for a capture.
    pub fn capture(&self, body: &Value) -> Result<Answer> {
        let headers = "Host: localhost\r\nContent-Type: application/json\r\n";
        self.ask("POST", "/api/v1/captures", headers, &body.to_string())
    }

    /// The captures, the newest first.
    pub fn captures(&self) -> Result<Vec<Value>> {
        let list = self.json("/api/v1/captures")?;
        list.as_array().cloned().context("captures are a list")
    }

    /// Waits until its answer to a path is as wanted.
    pub fn wait_until<T>(
        &self,
        path: &str,
        patience: Duration,
        wanted: impl Fn(&Value) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + patience;
        loop {
            let answer = self.json(path)?;
            if let Some(found) = wanted(&answer) {
                return Ok(found);
            }
            if Instant::now() > deadline {
                bail!("{path} is not as wanted after {patience:?}: {answer}\n{}", self.running().said());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits for the end of a capture, and gives what is known of it.
    pub fn wait_for_capture(&self, number: i64, patience: Duration) -> Result<Value> {
        self.wait_until(&format!("/api/v1/captures/{number}"), patience, |answer| {
            let capture = &answer["capture"];
            (capture["status"] != "running").then(|| capture.clone())
        })
    }
}

/// One request over a connection of its own.
pub fn ask<S: std::io::Read + std::io::Write>(
    mut stream: S,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> Result<Answer> {
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes())?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all).context("no whole answer")?;
    let end = all.windows(4).position(|four| four == b"\r\n\r\n").context("an answer without a head")?;
    let head = String::from_utf8_lossy(&all[..end]).into_owned();
    let (first, headers) = head.split_once("\r\n").unwrap_or((&head, ""));
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
    Ok(Answer { status, headers: headers.to_owned(), body: all.split_off(end + 4) })
}
