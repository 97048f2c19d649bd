//! The `pgleak` program: arguments, logging, exit codes.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use clap::Parser as _;
use pgleak::{
    bpf::Mechanism,
    census::{self, Census, CensusError, Observed},
    cli::{
        AllocatorChoice, AttachChoice, CaptureArgs, Cli, Command, ContextsArgs, DiffArgs, DoctorArgs,
        ListArgs, ManArgs, RenderArgs, RequestArgs, TopArgs, UnwindCheckArgs, WatchArgs,
    },
    doctor::{Health, examine},
    elf::Image,
    guard::{run_sacrifice, run_watchdog},
    manual::{completions, page_of, pages},
    profile::Capture,
    render::{
        CAPTURE_FILE, Format, OutputDir, ReadError, RenderOptions, WriteError, difference, format,
        read_capture,
    },
    session::{
        Allocators, CaptureError, CaptureOptions, Filter, Interrupts, Naming, Overhead, Progress,
        RecordOptions, Scope, capture, ready,
    },
    symbolize::{
        DebugFiles, Debuginfod, DebuginfodError, Settings, SymbolIndex, SymbolIndexError, name_again,
    },
    target::{ProcessId, find_servers, human_bytes, measure_growth, render_table, sort_by_growth},
    top::{Made, TopError, TopOptions, top},
    unwind::{InspectError, Inspection},
    watch::{self, CaptureRequest, Client, ClientError, Config, ConfigError, JournalFormat, WatchError},
};
use tracer_ebpf::sampling::Selection;
use tracing_subscriber::EnvFilter;

/// Something was asked for that makes no sense.
const MISUSE: u8 = 2;
/// It made sense and did not work.
const FAILURE: u8 = 1;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // What is logged to the terminal would stand in the middle of what `top` draws there.
    if !(matches!(cli.command, Command::Top(_)) && io::stderr().is_terminal()) {
        log(cli.verbose, matches!(cli.command, Command::Watch(_)));
    }
    let result = match cli.command {
        Command::List(args) => list(&args),
        Command::Top(args) => run_top(args),
        Command::Contexts(args) => run_contexts(&args),
        Command::Capture(args) => run_capture(&args),
        Command::Doctor(args) => run_doctor(&args),
        Command::UnwindCheck(args) => run_unwind_check(&args),
        Command::Render(args) => run_render(&args),
        Command::Diff(args) => run_diff(&args),
        Command::Watch(args) => run_watch(&args),
        Command::CheckConfig(args) => check_config(&args),
        Command::Request(args) => run_request(&args),
        Command::Man(args) => run_man(&args),
        Command::Completions { shell } => run_completions(shell),
        Command::Watchdog { parent } => run_watchdog(parent).map_err(Failure::from),
        Command::Sacrifice => run_sacrifice().map_err(Failure::from),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, message }) => {
            // Standard error may be gone with its terminal.
            let _ = writeln!(io::stderr(), "pgleak: {message}");
            ExitCode::from(code)
        }
    }
}

struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    fn misuse(error: impl ToString) -> Self {
        Self { code: MISUSE, message: error.to_string() }
    }
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        Self { code: FAILURE, message: error.to_string() }
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        Self { code: FAILURE, message: error.to_string() }
    }
}

impl From<SymbolIndexError> for Failure {
    fn from(error: SymbolIndexError) -> Self {
        Self::misuse(error)
    }
}

impl From<DebuginfodError> for Failure {
    fn from(error: DebuginfodError) -> Self {
        Self::misuse(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self { code: FAILURE, message: error.to_string() }
    }
}

impl From<InspectError> for Failure {
    fn from(error: InspectError) -> Self {
        Self { code: if error.is_misuse() { MISUSE } else { FAILURE }, message: error.to_string() }
    }
}

impl From<CaptureError> for Failure {
    fn from(error: CaptureError) -> Self {
        Self { code: if error.is_misuse() { MISUSE } else { FAILURE }, message: error.to_string() }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::misuse(error)
    }
}

impl From<WatchError> for Failure {
    fn from(error: WatchError) -> Self {
        let code = if matches!(error, WatchError::Config(_)) { MISUSE } else { FAILURE };
        Self { code, message: error.to_string() }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self { code: FAILURE, message: error.to_string() }
    }
}

impl From<TopError> for Failure {
    fn from(error: TopError) -> Self {
        Self { code: if error.is_misuse() { MISUSE } else { FAILURE }, message: error.to_string() }
    }
}

impl From<CensusError> for Failure {
    fn from(error: CensusError) -> Self {
        Self { code: if error.is_misuse() { MISUSE } else { FAILURE }, message: error.to_string() }
    }
}

/// A service says what it does; all others only what is wrong.
fn log(verbose: u8, is_service: bool) {
    let level = match verbose + u8::from(is_service) {
        0 => "warn",
        1 => "pgleak=info,warn",
        _ => "pgleak=debug,info",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    if is_service && JournalFormat::is_wanted() {
        log.event_format(JournalFormat).init();
    } else {
        log.init();
    }
}

/// Prints to standard output, which may be a pipe or a terminal that was closed.
fn print(text: &[u8]) -> Result<(), Failure> {
    match io::stdout().write_all(text).and_then(|()| io::stdout().flush()) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPIPE | libc::EIO)) => Ok(()),
        result => Ok(result?),
    }
}

fn list(args: &ListArgs) -> Result<(), Failure> {
    let mut servers = find_servers();
    measure_growth(&mut servers, args.interval);
    sort_by_growth(&mut servers);
    if args.json {
        let text = serde_json::to_string_pretty(&servers).map_err(io::Error::from)?;
        return print(format!("{text}\n").as_bytes());
    }
    print(render_table(&servers).as_bytes())
}

/// What was captured meanwhile is told again, since it goes with the screen.
fn run_top(args: TopArgs) -> Result<(), Failure> {
    let made = top(&TopOptions { interval: args.interval, pids: args.pid })?;
    let line = |made: &Made| format!("{}: {}\n", made.directory.display(), made.verdict);
    print(made.iter().map(line).collect::<String>().as_bytes())
}

fn run_contexts(args: &ContextsArgs) -> Result<(), Failure> {
    let observed = Observed::of(args.pid)?;
    let first = observed.census(census::Limits::default())?;
    print_census(&observed, &first, args)?;
    let Some(interval) = args.watch else { return Ok(()) };
    // Ctrl-C ends it: nothing is held that would have to be given back.
    loop {
        std::thread::sleep(interval);
        if !observed.process.is_same() {
            return Err(Failure { code: FAILURE, message: format!("process {} has ended", args.pid) });
        }
        let now = observed.census(census::Limits::default())?;
        if args.json {
            print_census(&observed, &now, args)?;
            continue;
        }
        let mut grown = census::grown(&first, &now);
        grown.truncate(args.top.unwrap_or(10) as usize);
        let head = head_of(&observed, &now);
        print(format!("\n{head}\n{}", census::growth_table(&grown)).as_bytes())?;
    }
}

fn print_census(observed: &Observed, census: &Census, args: &ContextsArgs) -> Result<(), Failure> {
    let text = if args.json {
        census::json(observed, census, args.show_queries).map_err(io::Error::from)? + "\n"
    } else {
        let lines = match args.top {
            Some(most) => census::largest(census, most as usize),
            None => census::lines(census, args.show_queries),
        };
        format!("{}\n{}", head_of(observed, census), census::table(&lines))
    };
    print(text.as_bytes())
}

fn head_of(observed: &Observed, census: &Census) -> String {
    let troubles = match census.troubles.to_string() {
        none if none.is_empty() => String::new(),
        some => format!("\nNOT COMPLETE, since the process changed it meanwhile: {some}"),
    };
    format!(
        "process {}, {}: {} contexts, {}, read in {:.1} ms{troubles}",
        observed.process.pid,
        observed.version,
        census.contexts.len(),
        human_bytes(census.total()),
        census.took.as_secs_f64() * 1e3,
    )
}

fn run_doctor(args: &DoctorArgs) -> Result<(), Failure> {
    let checks = examine(args.pid);
    let text: String = checks.iter().map(|check| format!("{check}\n")).collect();
    print(text.as_bytes())?;
    let bad = checks.iter().filter(|check| check.health == Health::Bad).count();
    if bad == 0 {
        Ok(())
    } else {
        Err(Failure { code: FAILURE, message: format!("{bad} of {} checks failed", checks.len()) })
    }
}

/// All files are looked at, whatever is wrong with some. A table that differs from gimli's is
/// worse than a file that cannot be looked at, and decides the exit code.
fn run_unwind_check(args: &UnwindCheckArgs) -> Result<(), Failure> {
    let (mut failed, mut refused) = (0, 0);
    for path in &args.binaries {
        let inspected = Image::open(path, path)
            .map_err(Failure::misuse)
            .and_then(|image| Inspection::of(&image).map_err(Failure::from));
        match inspected {
            Ok(inspection) => {
                print(inspection.to_string().as_bytes())?;
                failed += usize::from(!inspection.agrees());
            }
            Err(Failure { code, message }) => {
                let _ = writeln!(io::stderr(), "pgleak: {message}");
                *(if code == MISUSE { &mut refused } else { &mut failed }) += 1;
            }
        }
    }
    let files = args.binaries.len();
    match (failed, refused) {
        (0, 0) => Ok(()),
        (0, _) => Err(Failure::misuse(format!("{refused} of {files} files cannot be checked"))),
        _ => {
            Err(Failure { code: FAILURE, message: format!("{failed} of {files} files have no sound table") })
        }
    }
}

fn run_capture(args: &CaptureArgs) -> Result<(), Failure> {
    let printed = format(&args.format).map_err(Failure::misuse)?;
    if args.context.is_some() && args.allocator != AllocatorChoice::Contexts {
        return Err(Failure::misuse(
            "--context chooses among memory contexts, and malloc has none: leave out --context or --allocator",
        ));
    }
    if args.allocator == AllocatorChoice::Blocks {
        if args.overhead != Overhead::Full {
            return Err(Failure::misuse(
                "--allocator blocks costs next to nothing, and windows would miss most blocks: leave out --overhead",
            ));
        }
        if args.sample.is_some() || args.min_size.is_some() {
            return Err(Failure::misuse(
                "--allocator blocks traces few allocations, and large ones: leave out --sample and --min-size",
            ));
        }
    }
    if args.longer.is_some() && args.overhead != Overhead::Full {
        return Err(Failure::misuse(
            "--longer goes on until it is clear what grows, which windows cannot tell: give a longer --duration",
        ));
    }
    let duration = args.duration.unwrap_or(match args.overhead {
        Overhead::Full => Duration::from_secs(13),
        Overhead::Share(_) => Duration::from_secs(120),
    });
    let settle = args.settle.unwrap_or(match args.overhead {
        Overhead::Full => Duration::from_secs(3),
        windows @ Overhead::Share(_) => windows.window(duration),
    });
    if let (Some(started), Some(pid)) = (args.started, args.pid.first())
        && ProcessId::of(*pid).map_err(CaptureError::from)?.start_ticks != started
    {
        return Err(Failure {
            code: FAILURE,
            message: format!("process {pid} has ended; another one has its pid"),
        });
    }
    let scope = scope(args)?;
    let out = args.out.clone().unwrap_or_else(|| default_directory(&scope));
    let options = CaptureOptions {
        scope,
        record: RecordOptions {
            overhead: args.overhead,
            duration,
            longest: args.longer,
            settle,
            max_slowdown: args.max_slowdown,
            force: args.force,
            show_queries: args.show_queries,
            only_blocks: args.allocator == AllocatorChoice::Blocks,
        },
        map_memory: args.map_memory,
        allocators: match args.allocator {
            AllocatorChoice::Contexts => Allocators::Contexts,
            AllocatorChoice::Malloc => Allocators::Malloc,
            AllocatorChoice::All => Allocators::All,
            AllocatorChoice::Blocks => Allocators::Blocks,
        },
        context: args.context.clone(),
        selection: Selection {
            min_size: args.min_size.filter(|size| *size > 1).unwrap_or(0),
            sample: args.sample.unwrap_or(0),
        },
        mechanism: args.attach.map(|attach| match attach {
            AttachChoice::Session => Mechanism::Session,
            AttachChoice::Multi => Mechanism::Multi,
            AttachChoice::Perf => Mechanism::PerfLinks,
        }),
        table_cache: !args.no_table_cache,
        live: args.live,
    };
    let rendering = RenderOptions { title: args.title.clone(), ..RenderOptions::default() };
    let hurry = Arc::new(AtomicBool::new(false));
    let naming = Naming { debuginfod: debuginfod(args.debuginfod, &hurry)?, hurry };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let progress = Progress::new();
    let (captured, written, _detaching) = runtime.block_on(async {
        // What cannot be written is not captured. The process is looked at first, so that a
        // wrong pid is told as one.
        let ready = ready(&options)?;
        let directory = OutputDir::create(&out)?;
        let mut interrupts = Interrupts::listen(directory.made_here())?;
        let (captured, detaching) = capture(ready, &options, naming, &mut interrupts, &progress).await?;
        let how = rendering.clone();
        let write = move || {
            let written = directory.write_all(&captured, &how);
            (captured, written)
        };
        let (captured, written) = interrupts.during(write, || {}).await;
        interrupts.end().await;
        Ok::<_, Failure>((captured, written, detaching))
    })?;
    // The answer comes first: a full disk must not keep it from whoever waits for it.
    progress.flush();
    if !args.live {
        print_format(printed, &captured, &rendering)?;
    }
    for path in written? {
        progress.say(&format!("wrote {}", path.display()));
    }
    Ok(())
}

/// The servers to ask, if they are to be asked.
fn debuginfod(wanted: bool, hurry: &Arc<AtomicBool>) -> Result<Option<Debuginfod>, DebuginfodError> {
    wanted.then(|| Debuginfod::new(Settings::from_env()?, Arc::clone(hurry))).transpose()
}

/// Which processes are asked for.
fn scope(args: &CaptureArgs) -> Result<Scope, Failure> {
    let filter = Filter {
        kinds: args.backend_type.clone(),
        databases: args.database.clone(),
        users: args.user.clone(),
        applications: args.application.clone(),
        session: args.session,
    };
    let has_server = !args.postmaster.is_empty() || !args.data_dir.is_empty();
    if !has_server && args.with_postmaster {
        return Err(Failure::misuse("--with-postmaster goes with --postmaster or --data-dir"));
    }
    let chooses = Filter { session: None, ..filter.clone() };
    if !has_server && filter.session.is_none() && !chooses.is_empty() {
        return Err(Failure::misuse(
            "--backend-type, --database, --user and --application choose among the children of a server: name it with --postmaster or --data-dir",
        ));
    }
    if !has_server && filter.session.is_none() && args.pid.is_empty() {
        return Err(Failure::misuse(CaptureError::Nobody));
    }
    let (mut pids, mut postmasters) = (args.pid.clone(), args.postmaster.clone());
    for list in [&mut pids, &mut postmasters] {
        list.sort_unstable();
        list.dedup();
    }
    let (data_dirs, with_postmaster) = (args.data_dir.clone(), args.with_postmaster);
    Ok(Scope { pids, postmasters, data_dirs, with_postmaster, filter })
}

fn default_directory(scope: &Scope) -> PathBuf {
    let server = scope.postmasters.first().map(|pid| format!("server-{pid}"));
    let session = scope.filter.session.map(|session| format!("con{session}"));
    let what = scope.pids.first().map(ToString::to_string).or(server).or(session);
    let what = what.unwrap_or_else(|| "server".to_owned());
    OutputDir::name_for(&what)
}

fn print_format(format: &Format, capture: &Capture, options: &RenderOptions) -> Result<(), Failure> {
    let mut text = Vec::new();
    (format.write)(capture, options, &mut text)?;
    print(&text)
}

fn run_render(args: &RenderArgs) -> Result<(), Failure> {
    let colours = args.palette.as_deref().map(str::parse).transpose().map_err(Failure::misuse)?;
    let printed = args.format.as_deref().map(format).transpose().map_err(Failure::misuse)?;
    let capture = with_symbols(read_capture(&args.capture)?, args)?;
    let options = RenderOptions {
        inverted: args.inverted,
        reverse: args.reverse,
        min_bytes: args.min_bytes,
        context: args.context.clone(),
        pid: args.pid,
        by_context: args.by_context,
        by_kind: args.by_kind,
        title: args.title.clone(),
        colours: colours.unwrap_or_default(),
    };
    if let Some(pid) = args.pid
        && capture.target.pid != pid
        && !capture.processes.iter().any(|process| process.pid == pid)
    {
        return Err(Failure::misuse(format!(
            "process {pid} is not in this capture; its report names those that are"
        )));
    }
    if let Some(printed) = printed {
        return print_format(printed, &capture, &options);
    }
    let beside = || match args.capture.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let directory = OutputDir::reuse(&args.out.clone().unwrap_or_else(beside))?;
    let list: String =
        directory.write_all(&capture, &options)?.iter().map(|path| format!("{}\n", path.display())).collect();
    print(list.as_bytes())
}

fn run_diff(args: &DiffArgs) -> Result<(), Failure> {
    let [before_path, after_path] = [&args.before, &args.after].map(|path| match path.is_dir() {
        true => path.join(CAPTURE_FILE),
        false => path.clone(),
    });
    let (before, after) = (read_capture(&before_path)?, read_capture(&after_path)?);
    let options = RenderOptions {
        min_bytes: args.min_bytes,
        context: args.context.clone(),
        by_context: args.by_context,
        inverted: args.inverted,
        ..RenderOptions::default()
    };
    let found = difference((&before_path, &before), (&after_path, &after), &options);
    if args.table {
        return print(found.table().as_bytes());
    }
    let out = args.out.clone().unwrap_or_else(|| OutputDir::name_for("diff"));
    let files = found.artifacts()?;
    let written = OutputDir::reuse(&out)?.write_files(&files);
    // As after a capture: the answer comes first.
    print(found.table().as_bytes())?;
    for path in written? {
        eprintln!("pgleak: wrote {}", path.display());
    }
    Ok(())
}

fn run_watch(args: &WatchArgs) -> Result<(), Failure> {
    // One thread for everything but what blocks: captures are to end with this very thread.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(watch::run(&args.config));
    // A program that is told, or a host that does not answer, is not waited for.
    runtime.shutdown_background();
    Ok(result?)
}

fn check_config(args: &WatchArgs) -> Result<(), Failure> {
    let config = Config::read(&args.config)?;
    let planned = config.capture.planned().as_secs_f64().ceil();
    let text = format!(
        "{}: good; a capture has probes for about {planned} s, and there may be {:.0} of them in an hour\n",
        args.config.display(),
        (config.budget.probed_per_hour.as_secs_f64() / planned).floor()
    );
    print(text.as_bytes())
}

fn run_request(args: &RequestArgs) -> Result<(), Failure> {
    let client = Client::new(args.at.clone(), args.token_file.as_deref())?;
    let request = CaptureRequest {
        pid: args.pid,
        duration: args.duration.map(|duration| format!("{}ms", duration.as_millis())),
        overhead: args.overhead.map(|overhead| overhead.to_string()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let number = client.capture(&request).await?;
        if !args.wait {
            return print(format!("capture {number}\n").as_bytes());
        }
        eprintln!("pgleak: capture {number} has begun");
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let about = client.about(number).await?;
            if about["capture"]["status"] != "running" {
                let ticket = about["ticket"].as_str().unwrap_or_default();
                print(ticket.as_bytes())?;
                return match about["capture"]["status"] == "done" {
                    true => Ok(()),
                    false => Err(Failure { code: FAILURE, message: format!("capture {number} failed") }),
                };
            }
        }
    })
}

fn run_man(args: &ManArgs) -> Result<(), Failure> {
    let Some(out) = &args.out else {
        let (_, page) = page_of(args.command.as_deref()).map_err(Failure::misuse)?;
        return print(&page);
    };
    let failed = |path: &Path, error: io::Error| Failure {
        code: FAILURE,
        message: format!("cannot write {}: {error}; give another directory with --out", path.display()),
    };
    std::fs::create_dir_all(out).map_err(|error| failed(out, error))?;
    for (file, page) in pages()? {
        let path = out.join(file);
        std::fs::write(&path, page).map_err(|error| failed(&path, error))?;
    }
    Ok(())
}

fn run_completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    print(&completions(shell))
}

/// The capture with the names that it can have by what the user gave; without that, as it is.
fn with_symbols(capture: Capture, args: &RenderArgs) -> Result<Capture, Failure> {
    if args.symbols.is_empty() && !args.debuginfod {
        return Ok(capture);
    }
    // An interrupt ends this program at once: nothing is written before everything is named.
    let debuginfod = debuginfod(args.debuginfod, &Arc::default())?;
    let given = SymbolIndex::read(&args.symbols)?;
    Ok(name_again(capture, DebugFiles::default().with_given(given).with_debuginfod(debuginfod)))
}
