//! A real browser without a window, driven by its DevTools protocol over a pipe.

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Debian's.
pub const PROGRAM: &str = "chromium";

/// How long one thing may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one page. Dropping it ends it.
pub struct Browser {
    child: Child,
    to: File,
    from: Receiver<Value>,
    next: u64,
    session: String,
    /// What the page has complained.
    complaints: VecDeque<String>,
    _profile: TempDir,
}

impl Browser {
    /// Starts it with a window of that size.
    pub fn start((width, height): (u32, u32), is_dark: bool) -> Result<Self> {
        let profile = tempfile::Builder::new().prefix("pgleak-browser-").tempdir()?;
        let (commands_out, commands_in) = pipe()?;
        let (answers_out, answers_in) = pipe()?;
        let mut command = Command::new(PROGRAM);
        command
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-dev-shm-usage",
            ])
            .args(["--remote-debugging-pipe", "--disable-background-networking", "--hide-scrollbars"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(format!("--window-size={width},{height}"))
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        let (reads, writes) = (commands_out.as_raw_fd(), answers_in.as_raw_fd());
        // SAFETY: dup2 is async-signal-safe, and both descriptors are open in the child. They are made by `pipe`, above
        // 4, so that neither is overwritten.
        unsafe {
            command.pre_exec(move || {
                if libc::dup2(reads, 3) < 0 || libc::dup2(writes, 4) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().with_context(|| format!("cannot start {PROGRAM}"))?;
        drop((commands_out, answers_in));
        let (sender, from) = channel();
        thread::spawn(move || {
            let mut reader = BufReader::new(File::from(answers_out));
            let mut message = Vec::new();
            while reader.read_until(0, &mut message).is_ok_and(|length| length > 0) {
                message.pop();
                if let Ok(value) = serde_json::from_slice(&message)
                    && sender.send(value).is_err()
                {
                    return;
                }
                message.clear();
            }
        });
        let mut browser = Self {
            child,
            to: File::from(commands_in),
            from,
            next: 0,
            session: String::new(),
            complaints: VecDeque::new(),
            _profile: profile,
        };
        let target = browser.ask("Target.createTarget", json!({ "url": "about:blank" }))?;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.ask("Target.attachToTarget", attach)?;
        browser.session = session["sessionId"].as_str().context("a session")?.to_owned();
        for domain in ["Page", "Runtime", "Log"] {
            browser.ask(&format!("{domain}.enable"), json!({}))?;
        }
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        browser.ask("Emulation.setDeviceMetricsOverride", metrics)?;
        let scheme = if is_dark { "dark" } else { "light" };
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        browser.ask("Emulation.setEmulatedMedia", features)?;
        Ok(browser)
    }

    /// Goes to an address.
    pub fn go(&mut self, url: &str) -> Result<()> {
        self.ask("Page.navigate", json!({ "url": url })).map(drop)
    }

    /// What an expression comes to on the page.
    pub fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let asked = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true, "userGesture": true });
        let answer = self.ask("Runtime.evaluate", asked)?;
        if answer["exceptionDetails"].is_object() {
            bail!("{expression}: {}", answer["exceptionDetails"]);
        }
        Ok(answer["result"]["value"].clone())
    }

    /// Waits until an expression is true.
    pub fn wait_for(&mut self, expression: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // A page that is just being left has no answer.
            match self.evaluate(expression) {
                Ok(Value::Bool(true)) => return Ok(()),
                _ if Instant::now() < deadline => thread::sleep(Duration::from_millis(100)),
                other => {
                    let text = self.evaluate("document.body.innerText").unwrap_or_default();
                    bail!(
                        "{expression} is {other:?} on\n{}\n{:?}",
                        text.as_str().unwrap_or(""),
                        self.complaints
                    )
                }
            }
        }
    }

    /// Clicks what a selector leads to, whose text has that in it.
    pub fn click(&mut self, selector: &str, text: &str) -> Result<()> {
        let find = format!(
            "[...document.querySelectorAll({})].find(e => e.textContent.includes({}))",
            json!(selector),
            json!(text)
        );
        self.wait_for(&format!("!!{find}"))?;
        self.evaluate(&format!("{find}.click()")).map(drop)
    }

    /// Presses a key.
    pub fn press(&mut self, key: &str) -> Result<()> {
        for kind in ["keyDown", "keyUp"] {
            self.ask("Input.dispatchKeyEvent", json!({ "type": kind, "key": key, "code": key }))?;
        }
        Ok(())
    }

    /// Writes a picture of the page.
    pub fn screenshot(&mut self, to: &Path) -> Result<()> {
        let shot =
            self.ask("Page.captureScreenshot", json!({ "format": "png", "captureBeyondViewport": true }))?;
        let png = BASE64.decode(shot["data"].as_str().context("a picture")?)?;
        std::fs::write(to, png).with_context(|| format!("cannot write {}", to.display()))
    }

    /// Errors and refusals of the page's policy so far.
    pub fn complaints(&mut self) -> Vec<String> {
        while let Ok(event) = self.from.try_recv() {
            self.note(&event);
        }
        self.complaints.drain(..).collect()
    }

    fn note(&mut self, event: &Value) {
        let entry = match event["method"].as_str() {
            Some("Log.entryAdded") => &event["params"]["entry"],
            Some("Runtime.exceptionThrown") => &event["params"]["exceptionDetails"],
            _ => return,
        };
        if entry["level"] == "error" || entry["exception"].is_object() {
            self.complaints.push_back(entry.to_string());
        }
    }

    fn ask(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.next += 1;
        let mut message = json!({ "id": self.next, "method": method, "params": parameters });
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        let mut text = serde_json::to_vec(&message)?;
        text.push(0);
        self.to.write_all(&text).context("the browser takes no more")?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.from.recv_timeout(left) {
                Ok(answer) if answer["id"] == self.next => {
                    if answer["error"].is_object() {
                        bail!("{method}: {}", answer["error"]);
                    }
                    return Ok(answer["result"].clone());
                }
                Ok(event) => self.note(&event),
                Err(RecvTimeoutError::Timeout) => bail!("{method}: no answer"),
                Err(RecvTimeoutError::Disconnected) => bail!("{method}: the browser has ended"),
            }
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It has children of its own, all in its group.
        // SAFETY: the group of a child that was not waited for.
        unsafe { libc::kill(-(self.child.id() as libc::pid_t), libc::SIGKILL) };
        let _ = self.child.wait();
    }
}

/// A pipe whose ends are closed by an exec, with numbers above those that the browser wants.
fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: it writes two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Err(std::io::Error::last_os_error()).context("cannot make a pipe");
    }
    let above = |end: i32| {
        // SAFETY: the kernel has just made this descriptor, and nothing else knows it.
        let end = unsafe { OwnedFd::from_raw_fd(end) };
        // SAFETY: a call on an open descriptor, which gives a new one.
        let moved = unsafe { libc::fcntl(end.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 10) };
        if moved < 0 {
            return Err(std::io::Error::last_os_error()).context("cannot duplicate a pipe");
        }
        // SAFETY: as above.
        Ok(unsafe { OwnedFd::from_raw_fd(moved) })
    };
    Ok((above(ends[0])?, above(ends[1])?))
}
