//! What `pgleak watch` shows and tells: to whom, in which form, and that others understand it.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::{fs::PermissionsExt as _, net::UnixDatagram},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest, common::v1::any_value::Value as AnyValue,
};
use pgleak_tests::{
    Build, Server, Session,
    pgleak::{Running, command, run},
    planted::{self, CONTEXT, Call},
    receiver::Receiver,
    service::{Service, ask},
};
use serde_json::{Value, json};
use xtask::{process::output, rivals::prometheus_root};

use crate::common::{PATIENCE, server};

/// Nothing begins by itself, and captures are short.
const CONFIG: &str = r#"
    [census]
    interval = "1s"
    [triggers.growth]
    enabled = false
    [capture]
    overhead = "full"
    duration = "1500ms"
    settle = "500ms"
    [budget]
    probed_per_hour = "1h"
    probed_per_hour_and_process = "1h"
"#;

fn planted_server() -> Server {
    let server = server(&Build::packaged(15).unwrap());
    planted::install(&server).unwrap();
    server
}

/// Waits until the service has seen a process, and has it captured while the session leaks.
fn captured(service: &Service, session: &mut Session) -> Value {
    let pid = session.backend_pid();
    service
        .wait_until("/api/v1/state", PATIENCE, |state| {
            state["processes"].as_array()?.iter().any(|process| process["pid"] == pid).then_some(())
        })
        .unwrap();
    let answer = service.capture(&json!({ "pid": pid })).unwrap();
    assert_eq!(answer.status, 202, "{}", answer.text());
    let number = serde_json::from_slice::<Value>(&answer.body).unwrap()["number"].as_i64().unwrap();
    let path = format!("/api/v1/captures/{number}");
    let deadline = Instant::now() + PATIENCE;
    while service.json(&path).unwrap()["capture"]["status"] == "running" {
        assert!(Instant::now() < deadline, "{}", service.running().said());
        Call::PALLOC.run(session, &[20, 1000]).unwrap();
        // Not a handshake: the leak has to be spread over the window.
        std::thread::sleep(Duration::from_millis(50));
    }
    service.json(&path).unwrap()["capture"].clone()
}

/// The port that it has chosen.
fn port(service: &Service) -> u16 {
    let line = service.running().wait_for("watching: ", PATIENCE).unwrap();
    let (_, rest) = line.split_once("://127.0.0.1:").unwrap_or_else(|| panic!("{line}"));
    rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

fn with_web(listen: &str) -> String {
    format!("{CONFIG}\n[web]\nlisten = [{listen}]\n")
}

#[test]
fn who_may_come_in() {
    let server = planted_server();
    let service = Service::start(&server, &with_web("\"127.0.0.1:0\"")).unwrap();
    let port = port(&service);
    let token = fs::read_to_string(service.store().join("token")).unwrap().trim().to_owned();
    let get = |path: &str, headers: &str| {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        ask(stream, "GET", path, &format!("Host: localhost:{port}\r\n{headers}"), "").unwrap()
    };
    for path in ["/", "/api/v1/state", "/metrics", "/captures/1/capture.json", "/process?id=1"] {
        let closed = get(path, "");
        assert_eq!(closed.status, 401, "{path}");
        assert!(!closed.text().contains("processes"), "{path}");
        assert_eq!(get(path, "Authorization: Bearer 0123\r\n").status, 401, "{path}");
    }
    assert_eq!(get("/healthz", "").status, 200);
    let bearer = format!("Authorization: Bearer {token}\r\n");
    assert_eq!(get("/api/v1/state", &bearer).status, 200);
    // Names that lead here and are not ours.
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let foreign = ask(stream, "GET", "/", &format!("Host: evil.example.org\r\n{bearer}"), "").unwrap();
    assert_eq!(foreign.status, 421);
    // A browser gives the token once, and has a cookie from then on.
    let post = |headers: &str, path: &str, body: &str| {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        ask(stream, "POST", path, &format!("Host: localhost:{port}\r\n{headers}"), body).unwrap()
    };
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    assert_eq!(post(form, "/login", "token=wrong").status, 401);
    let logged_in = post(form, "/login", &format!("token={token}"));
    assert_eq!((logged_in.status, logged_in.header("location")), (303, Some("/")));
    let cookie = logged_in.header("set-cookie").unwrap();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax"), "{cookie}");
    let cookie = format!("Cookie: {}\r\n", cookie.split(';').next().unwrap());
    let page = get("/", &cookie);
    assert_eq!(page.status, 200);
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    // A link to us, in a window of its own. Whatever does work is for our own pages only.
    let link = format!(
        "{cookie}Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n"
    );
    assert_eq!(get("/capture?n=1", &link).status, 200);
    assert_eq!(get("/captures/1/since/0/diff.svg", &link).status, 403);
    assert_eq!(get("/capture?n=1", &link.replace("document", "iframe")).status, 403);
    // Another page in the same browser.
    let json_type = "Content-Type: application/json\r\n";
    let elsewhere = format!("{cookie}{json_type}Origin: http://localhost:1\r\n");
    assert_eq!(post(&elsewhere, "/api/v1/captures", "{\"pid\":1}").status, 403);
    let here = format!("{cookie}{json_type}Origin: http://localhost:{port}\r\n");
    assert_eq!(post(&here, "/api/v1/captures", "{\"pid\":1}").status, 409);
    // No path leads to a file.
    for path in [
        "/captures/1/../../token",
        "/captures/1/..%2f..%2ftoken",
        "/captures/1/record.json",
        "/captures/..%2f/capture.json",
        "/assets/../token",
        "/captures/1/since/0/../../token",
    ] {
        let answer = get(path, &cookie);
        assert!(
            (400..500).contains(&answer.status) && !answer.text().contains(&token),
            "{path}: {}",
            answer.status
        );
    }
    // A body that is too long is refused by its length. None of it is sent: a connection that is closed before all of it was
    // read is reset, and the answer with it.
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let head = format!("Host: localhost:{port}\r\n{here}Content-Length: {}\r\nConnection: close", 1 << 20);
    write!(stream, "POST /api/v1/captures HTTP/1.1\r\n{head}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[test]
fn a_socket_and_a_store_are_for_their_owner_only() {
    let server = planted_server();
    let service = Service::start(&server, CONFIG).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&service.socket()), 0o600);
    assert_eq!(mode(service.store()), 0o700);
    for file in ["pgleak.db", "token", "lock"] {
        assert_eq!(mode(&service.store().join(file)), 0o600, "{file}");
    }
    // A second service has neither.
    let mut again = command(["watch", "--config"]).unwrap();
    let finished = Running::spawn(again.arg(service.config())).unwrap().finish().unwrap();
    assert_eq!(finished.status.code(), Some(1));
    assert!(finished.stderr.contains("in use by another pgleak watch"), "{}", finished.stderr);
}

/// A program that runs until this is dropped.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_real_prometheus_scrapes_it() {
    let server = planted_server();
    let _session = Session::open(&server).unwrap();
    let service = Service::start(&server, &with_web("\"127.0.0.1:0\"")).unwrap();
    let target = port(&service);
    let root = prometheus_root().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("prometheus.yml");
    let token = service.store().join("token");
    fs::write(
        &config,
        format!(
            "global: {{ scrape_interval: 1s }}\nscrape_configs:\n  - job_name: pgleak\n    authorization: {{ credentials_file: \"{}\" }}\n    static_configs: [{{ targets: [\"127.0.0.1:{target}\"] }}]\n",
            token.display()
        ),
    )
    .unwrap();
    let promtool = root.join("usr/bin/promtool");
    output(Command::new(&promtool).args(["check", "config"]).arg(&config)).unwrap();
    // A free port, for a moment.
    let own = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{own}");
    let log = fs::File::create(directory.path().join("log")).unwrap();
    let _prometheus = Background(
        Command::new(root.join("usr/bin/prometheus"))
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap(),
    );
    let query = |what: &str| {
        output(Command::new(&promtool).args(["query", "instant", &format!("http://{address}"), what]))
    };
    let deadline = Instant::now() + PATIENCE;
    let wanted = "pgleak_processes{backend_type=\"client backend\"}";
    let found = loop {
        match query(wanted) {
            Ok(found) if found.contains("=> 1 @") => break found,
            other if Instant::now() > deadline => {
                panic!("{other:?}\n{}", fs::read_to_string(directory.path().join("log")).unwrap())
            }
            _ => std::thread::sleep(Duration::from_millis(200)),
        }
    };
    assert!(found.contains(&format!("server=\"{}\"", server.data_dir().display())), "{found}");
    let pid = _session.backend_pid().to_string();
    for metric in [
        "pgleak_anonymous_memory_bytes",
        "pgleak_context_bytes{context=\"CacheMemoryContext\"}",
        "pgleak_cpu_seconds_total",
        "pgleak_captures_total",
        "pgleak_dropped_total",
        "up{job=\"pgleak\"} == 1",
    ] {
        let found = query(metric).unwrap();
        assert!(found.contains("=>"), "{metric}: {found}");
        assert!(!found.contains(&pid), "{metric}: {found}");
    }
}

/// A program, an address and three stores are told of a leak, in spite of a receiver that refuses at first.
#[test]
fn verdicts_and_profiles_are_told() {
    let server = planted_server();
    let receiver = Receiver::start(1).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let told = directory.path().join("told.json");
    let url = &receiver.url;
    // Renamed when it is whole.
    let script = format!(
        "cat > {0}.part && grep CapEff /proc/self/status > {0}.caps && mv {0}.part {0}",
        told.display()
    );
    let config = format!(
        "{CONFIG}\n[notify]\ncommand = [\"sh\", \"-c\", \"{script}\"]\nwebhook = {{ url = \"{url}/hook\", headers = {{ X-Secret = \"s3\" }} }}\n[[push]]\nto = \"pyroscope\"\nurl = \"{url}\"\nlabels = {{ region = \"north\" }}\n[[push]]\nto = \"parca\"\nurl = \"{url}/parca/\"\n[[push]]\nto = \"otlp\"\nurl = \"{url}/otlp\"\n"
    );
    let service = Service::start(&server, &config).unwrap();
    let mut session = planted::session(&server).unwrap();
    let capture = captured(&service, &mut session);
    assert_eq!(capture["findings"]["outcome"], "leak", "{capture}");
    let requests = receiver.wait_for(4, PATIENCE).unwrap();
    let of = |path: &str| -> (String, Value) {
        let request =
            requests.iter().find(|request| request.path == path).unwrap_or_else(|| panic!("{path}"));
        (request.headers.clone(), serde_json::from_slice(&request.body).unwrap())
    };
    let (headers, hook) = of("/hook");
    assert!(headers.to_lowercase().contains("x-secret: s3"), "{headers}");
    assert_eq!(hook["capture"]["findings"]["suspects"][0]["function"], "planted_leak_palloc", "{hook}");
    assert!(hook["summary"].as_str().unwrap().contains("LEAK: planted_leak_palloc"), "{hook}");
    let program: Value = serde_json::from_str(&fs::read_to_string(&told).unwrap()).unwrap();
    assert_eq!(program, hook);
    let capabilities = fs::read_to_string(told.with_extension("json.caps")).unwrap();
    assert_eq!(capabilities.trim_start_matches("CapEff:").trim().trim_matches('0'), "", "{capabilities}");
    // The very profile that is in the store.
    let number = capture["number"].as_i64().unwrap();
    let profile = service.get(&format!("/captures/{number}/profile.pb.gz")).unwrap().body;
    let (_, pyroscope) = of("/push.v1.PusherService/Push");
    let (_, parca) = of("/parca/profiles/writeraw");
    for series in [&pyroscope["series"][0], &parca["series"][0]] {
        let raw = series["samples"][0]["rawProfile"].as_str().unwrap();
        assert_eq!(BASE64.decode(raw).unwrap(), profile);
    }
    let labels = pyroscope["series"][0]["labels"].as_array().unwrap();
    assert!(labels.contains(&json!({ "name": "region", "value": "north" })), "{labels:?}");
    assert!(labels.contains(&json!({ "name": "server", "value": server.data_dir() })), "{labels:?}");
    let (_, otlp) = of("/otlp/v1/logs");
    // As OpenTelemetry's own types read it.
    let logs: ExportLogsServiceRequest = serde_json::from_value(otlp).unwrap();
    let [of_resource] = &logs.resource_logs[..] else { panic!("{logs:?}") };
    let attributes = &of_resource.resource.as_ref().unwrap().attributes;
    assert!(attributes.iter().any(|attribute| attribute.key == "service.name"), "{attributes:?}");
    let [record] = &of_resource.scope_logs[0].log_records[..] else { panic!("{logs:?}") };
    assert_eq!((record.severity_number, &*record.severity_text), (13, "WARN"));
    assert!(record.time_unix_nano > 0);
    let Some(AnyValue::StringValue(body)) = record.body.as_ref().and_then(|body| body.value.clone()) else {
        panic!("{record:?}")
    };
    assert!(body.contains("LEAK: planted_leak_palloc"), "{body}");
    let pid = record.attributes.iter().find(|attribute| attribute.key == "process.pid").unwrap();
    let pid = pid.value.as_ref().and_then(|value| value.value.clone());
    assert_eq!(pid, Some(AnyValue::IntValue(i64::from(session.backend_pid()))));
    // All were told, in the end.
    service
        .wait_until(&format!("/api/v1/captures/{number}"), PATIENCE, |answer| {
            (answer["capture"]["told"] == true).then_some(())
        })
        .unwrap();
    let figures = service.json("/api/v1/state").unwrap()["figures"].clone();
    assert_eq!(figures["undelivered"]["count"], 0, "{figures}");
}

/// A service manager is told when it is ready, that it is alive, that it reads its configuration again, and that it ends.
#[test]
fn a_service_manager_is_told() {
    let server = planted_server();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let next = |part: &str| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut message = [0; 4096];
            let length = socket.recv(&mut message).unwrap();
            let text = String::from_utf8_lossy(&message[..length]).into_owned();
            if text.contains(part) {
                return text;
            }
            assert!(Instant::now() < deadline, "{part} was not told, but {text}");
        }
    };
    let service = Service::start(&server, CONFIG).unwrap();
    // The same again, as a service manager would start it.
    let config = fs::read_to_string(service.config()).unwrap();
    drop(service);
    let file = directory.path().join("pgleak.toml");
    let config = config.replace("web.sock", "other.sock").replace("/store\"", "/store2\"");
    let place = directory.path().join("store2");
    let config: String = config
        .lines()
        .map(|line| match line.trim_start().starts_with("directory") {
            true => format!("directory = \"{}\"\n", place.display()),
            false if line.trim_start().starts_with("listen") => {
                format!("listen = [\"unix:{}\"]\n", directory.path().join("web.sock").display())
            }
            false => format!("{line}\n"),
        })
        .collect();
    fs::write(&file, &config).unwrap();
    let mut command = command(["watch", "--config"]).unwrap();
    command
        .arg(&file)
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "10000000")
        .env("JOURNAL_STREAM", "1:2");
    let running = Running::spawn(&mut command).unwrap();
    // However long it takes to start.
    next("EXTEND_TIMEOUT_USEC=");
    next("READY=1");
    assert!(next("STATUS=").contains("server processes"));
    // The first comes at once, the others as long as processes are looked at.
    (0..3).for_each(|_| drop(next("WATCHDOG=1")));
    // What is wrong is told, and the old one holds.
    fs::write(&file, config.replace("1s", "1 week")).unwrap();
    running.signal(libc::SIGHUP).unwrap();
    assert!(next("RELOADING=1").contains("MONOTONIC_USEC="));
    next("READY=1");
    running.wait_for("the old one holds", PATIENCE).unwrap();
    fs::write(&file, config.replace("\"1s\"", "\"2s\"")).unwrap();
    running.signal(libc::SIGHUP).unwrap();
    running.wait_for("was read again", PATIENCE).unwrap();
    running.signal(libc::SIGTERM).unwrap();
    next("STOPPING=1");
    let finished = running.finish().unwrap().success().unwrap();
    // For the journal: a priority in front, and neither time nor colour.
    for line in finished.stderr.lines() {
        assert!(line.starts_with("<3>") || line.starts_with("<4>") || line.starts_with("<6>"), "{line}");
        assert!(!line.contains('\u{1b}'), "{line}");
    }
}

#[test]
fn old_captures_go_and_a_damaged_index_is_made_anew() {
    let server = planted_server();
    let few = format!("{CONFIG}\n[store]\nmin_free = \"1M\"\nmax_captures = 2\n");
    let mut service = Service::start(&server, &few).unwrap();
    let mut session = planted::session(&server).unwrap();
    for number in 1..=3 {
        let capture = captured(&service, &mut session);
        assert_eq!((&capture["number"], &capture["status"]), (&json!(number), &json!("done")), "{capture}");
    }
    let gone = service
        .wait_until("/api/v1/captures/1", PATIENCE, |answer| {
            (answer["capture"]["status"] == "expired").then(|| answer["capture"].clone())
        })
        .unwrap();
    // The verdict is kept, the files are not.
    assert_eq!(gone["findings"]["outcome"], "leak", "{gone}");
    assert_eq!(service.get("/captures/1/report.txt").unwrap().status, 404);
    assert!(!service.store().join("captures/000001").exists());
    let table = service.get("/captures/3/since/2/diff.txt").unwrap();
    assert!(table.status == 200 && table.text().contains("planted_leak_palloc"), "{}", table.text());
    let picture = service.get("/captures/3/since/2/diff.svg").unwrap();
    let policy = picture.header("content-security-policy").unwrap().to_owned();
    assert!(picture.status == 200 && policy.contains("sandbox"), "{policy}");
    let about = service.json("/api/v1/captures/3").unwrap();
    assert_eq!(about["earlier"][0]["number"], 2, "{about}");
    let before = service.json("/api/v1/captures/3").unwrap()["capture"].clone();
    service.stop().unwrap();
    fs::write(service.store().join("pgleak.db"), [7; 100_000]).unwrap();
    // What was not yet taken into it would mend it.
    for rest in ["pgleak.db-wal", "pgleak.db-shm"] {
        let _ = fs::remove_file(service.store().join(rest));
    }
    service.run().unwrap();
    service.running().wait_for("the database was damaged", PATIENCE).unwrap();
    let mut numbers: Vec<i64> =
        service.captures().unwrap().iter().map(|capture| capture["number"].as_i64().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 3]);
    let after = service.json("/api/v1/captures/3").unwrap()["capture"].clone();
    assert_eq!(after["findings"], before["findings"]);
    assert_eq!(captured(&service, &mut session)["number"], 4);
}

#[test]
fn the_command_line_asks_and_waits() {
    let server = planted_server();
    let service = Service::start(&server, CONFIG).unwrap();
    let mut session = planted::session(&server).unwrap();
    let pid = session.backend_pid().to_string();
    let at = format!("unix:{}", service.socket().display());
    let mut request = command(["request", "--wait", "--pid", &pid, "--at", &at]).unwrap();
    let mut running = Running::spawn(&mut request).unwrap();
    while running.is_running() {
        Call::PALLOC.run(&mut session, &[20, 1000]).unwrap();
    }
    let finished = std::mem::replace(&mut running, Running::spawn(&mut Command::new("true")).unwrap());
    let finished = finished.finish().unwrap().success().unwrap();
    assert!(finished.stdout.contains("planted\\_leak\\_palloc"), "{}", finished.stdout);
    assert!(finished.stdout.contains(CONTEXT), "{}", finished.stdout);
    let refused = run(["request", "--pid", "1", "--at", &at]).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.stderr.contains("no server process"), "{}", refused.stderr);
    let nobody = run(["request", "--pid", &pid, "--at", "unix:/nowhere/web.sock"]).unwrap();
    assert_eq!(nobody.status.code(), Some(1));
    assert!(nobody.stderr.contains("cannot reach pgleak watch"), "{}", nobody.stderr);
}

/// By the clock, whatever grows.
#[test]
fn a_schedule_captures_the_fastest() {
    let server = planted_server();
    let config = format!("{CONFIG}\n[triggers.schedule]\nevery = \"10s\"\n");
    let service = Service::start(&server, &config).unwrap();
    let mut session = planted::session(&server).unwrap();
    let _idle = Session::open(&server).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let capture = loop {
        Call::PALLOC.run(&mut session, &[50, 1000]).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let captures = service.captures().unwrap();
        if let Some(capture) = captures.iter().rev().find(|capture| capture["status"] == "done") {
            break capture.clone();
        }
        assert!(Instant::now() < deadline, "{}", service.running().said());
    };
    assert_eq!((&capture["trigger"], &capture["pid"]), (&json!("schedule"), &json!(session.backend_pid())));
}

/// At an address that others can reach there is TLS.
#[test]
fn others_reach_it_by_tls_only() {
    let server = planted_server();
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    let mut make = Command::new("openssl");
    make.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]);
    make.args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]);
    make.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    output(make.arg("-keyout").arg(&key).arg("-out").arg(&certificate)).unwrap();
    let config = format!(
        "{}\n[web.tls]\ncertificate = \"{}\"\nkey = \"{}\"\n",
        with_web("\"0.0.0.0:0\""),
        certificate.display(),
        key.display()
    );
    let service = Service::start(&server, &config).unwrap();
    let line = service.running().wait_for("watching: ", PATIENCE).unwrap();
    let (_, rest) = line.split_once("https://0.0.0.0:").unwrap_or_else(|| panic!("{line}"));
    let port: u16 = rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap();
    let token = fs::read_to_string(service.store().join("token")).unwrap().trim().to_owned();
    let headers = format!("Host: localhost:{port}\r\nAuthorization: Bearer {token}\r\n");
    let plain = TcpStream::connect(("127.0.0.1", port)).unwrap();
    assert!(ask(plain, "GET", "/api/v1/state", &headers, "").is_err());
    let answer = ask(tls(port, &certificate), "GET", "/api/v1/state", &headers, "").unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let closed =
        ask(tls(port, &certificate), "GET", "/api/v1/state", &format!("Host: localhost:{port}\r\n"), "");
    assert_eq!(closed.unwrap().status, 401);
}

/// A connection that trusts this one certificate.
fn tls(port: u16, certificate: &Path) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    use rustls::pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let connection = rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
    rustls::StreamOwned::new(connection, TcpStream::connect(("127.0.0.1", port)).unwrap())
}
