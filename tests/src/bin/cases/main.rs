//! Real leaks of released servers, one folder each: does a capture name what leaks, and nothing in
//! the build in which it was mended?

mod case;
mod judge;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use pgleak::profile::{Capture, judge};
use pgleak_tests::{
    Build,
    pgleak::{Running, command},
};
use xtask::postgres::{NpmBuild, OsUser};
use xtask::workspace;

use crate::{
    case::{Case, Stage},
    judge::Findings,
};

/// How long is recorded, unless it is said on the command line.
const SECONDS: u64 = 10;
/// `--overhead`, unless it is said on the command line.
const FULL: &str = "full";
/// One round of iterations takes about this long.
const ROUND: Duration = Duration::from_millis(800);
const PATIENCE: Duration = Duration::from_secs(60);
const FIRST_PORT: u16 = 5810;

struct Options {
    dir: PathBuf,
    names: Vec<String>,
    seconds: u64,
    /// What `--overhead` of a capture says.
    overhead: String,
    /// Only builds that leak.
    only_leaking: bool,
}

impl Options {
    /// Whether everything is recorded, so that every byte has to be there.
    fn is_full(&self) -> bool {
        self.overhead == FULL
    }
}

fn main() -> ExitCode {
    match options().and_then(|options| run(&options)) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(wrong) => {
            eprintln!("{wrong} cases are not told as they are");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> Result<Options> {
    let mut arguments = std::env::args().skip(1);
    let mut options = Options {
        dir: PathBuf::new(),
        names: Vec::new(),
        seconds: SECONDS,
        overhead: FULL.to_owned(),
        only_leaking: false,
    };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--dir" => options.dir = arguments.next().context("--dir needs a directory")?.into(),
            "--seconds" => options.seconds = arguments.next().context("--seconds needs a number")?.parse()?,
            "--leaking" => options.only_leaking = true,
            "--overhead" => options.overhead = arguments.next().context("--overhead needs a value")?,
            name => options.names.push(name.to_owned()),
        }
    }
    Ok(options)
}

fn run(options: &Options) -> Result<usize> {
    let mut folders: Vec<PathBuf> = fs::read_dir(&options.dir)
        .with_context(|| format!("cannot read {}", options.dir.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join("case.toml").exists())
        .collect();
    folders.sort();
    let out = workspace::target().join("cases");
    let (mut wrong, mut checked) = (0, 0);
    for folder in folders {
        let case = Case::read(&folder)?;
        if !options.names.is_empty() && !options.names.contains(&case.name) {
            continue;
        }
        let captures = [
            (&case.npm_leaking, true, false),
            (&case.npm_control, false, false),
            // Who looks at contexts only must see nothing, and not something wrong.
            (&case.npm_leaking, false, true),
        ];
        for (version, leaks, contexts_only) in captures {
            // Who lives for a second is not met by windows.
            let is_met = options.is_full() || !case.is_of_workers();
            let is_asked = leaks || !options.only_leaking;
            if version.is_empty() || !is_asked || (contexts_only && !case.is_outside()) || !is_met {
                continue;
            }
            let what = match (leaks, contexts_only) {
                (true, _) => "leaking",
                (false, false) => "control",
                (false, true) => "contexts",
            };
            let name = format!("{} {what}", case.name);
            let artifacts = out.join(name.replace(' ', "-"));
            let port = FIRST_PORT + 2 * checked as u16;
            checked += 1;
            let findings = one(&case, &folder, version, (leaks, contexts_only), options, port, &artifacts)
                .unwrap_or_else(|error| Findings {
                    wrong: vec![format!("{error:#}")],
                    ..Findings::default()
                });
            fs::write(artifacts.with_extension("json"), serde_json::to_vec_pretty(&findings)?)?;
            println!("{}", line(&name, version, &case, &findings));
            wrong += usize::from(!findings.wrong.is_empty());
        }
    }
    println!("{checked} captures checked, {wrong} wrong");
    if checked == 0 {
        bail!("there was nothing to check in {}", options.dir.display());
    }
    Ok(wrong)
}

fn line(name: &str, version: &str, case: &Case, findings: &Findings) -> String {
    let Findings { headline, rank, class, confidence, share, requested, anonymous, iterations, wrong } =
        findings;
    let seen = if headline.is_empty() {
        "no suspect".to_owned()
    } else {
        format!(
            "{rank}. {headline}: {class} ({confidence:.2}), {:.0} % of it, {requested:.0} of {} bytes an iteration, {anonymous:.0} of {} anonymous",
            share * 100.0,
            case.requested_bytes_per_iteration,
            case.rss_bytes_per_iteration
        )
    };
    let result = if wrong.is_empty() { "ok".to_owned() } else { format!("WRONG: {}", wrong.join("; ")) };
    format!("{name:42} {version:16} {iterations:6} iterations  {seen}  {result}")
}

fn one(
    case: &Case,
    folder: &Path,
    version: &str,
    (leaks, contexts_only): (bool, bool),
    options: &Options,
    port: u16,
    artifacts: &Path,
) -> Result<Findings> {
    let _ = fs::remove_dir_all(artifacts);
    fs::create_dir_all(artifacts.parent().context("below target")?)?;
    let user = OsUser::for_servers()?;
    // As long as this program, which is as long as it is used.
    let version: &'static str = Box::leak(version.to_owned().into_boxed_str());
    let major = version.split('.').next().unwrap_or_default().parse()?;
    let build = NpmBuild { major, version };
    build.unpack(&user)?;
    let client = Build::newest_packaged()?.bin;
    let stage = Stage::set(folder, &build.directory(&user)?.join("bin"), &client, port)?;
    let (capture, iterations) = if case.is_of_workers() {
        of_workers(case, &stage, artifacts)?
    } else {
        let allocator = if case.is_outside() && !contexts_only { "malloc" } else { "contexts" };
        of_process(&stage, allocator, options, artifacts)?
    };
    let verdict = judge(&capture);
    Ok(if leaks {
        judge::leaking(case, &capture, &verdict, iterations, options.is_full())
    } else {
        judge::control(&verdict, iterations)
    })
}

/// Captures the process of a case at work. Gives what was captured, and iterations meanwhile.
fn of_process(stage: &Stage, allocator: &str, options: &Options, artifacts: &Path) -> Result<(Capture, u64)> {
    let seconds = options.seconds;
    let (warm_up, most) = stage.iterations()?;
    let begun = Instant::now();
    stage.load(warm_up)?;
    // Several times slower while it is recorded.
    let each = begun.elapsed() * 4 / u32::try_from(warm_up.max(1))?;
    let pid = stage.pid()?.to_string();
    let duration = format!("{seconds}s");
    let mut capture = command(["capture", "--pid", &pid, "--duration", &duration])?;
    if options.is_full() {
        capture.args(["--settle", "2s"]);
    } else {
        capture.args(["--overhead", &options.overhead]);
    }
    let running = start(capture.args(["--allocator", allocator]), options.is_full(), artifacts)?;
    let iterations = load_for(stage, Duration::from_secs(seconds), most, each)?;
    Ok((finish(running, artifacts)?, iterations))
}

/// Captures the workers of a server that are born meanwhile, while one of them is still there. An iteration is
/// whatever makes one of the chunks that have to be named.
fn of_workers(case: &Case, stage: &Stage, artifacts: &Path) -> Result<(Capture, u64)> {
    let data_dir = stage.data_dir()?;
    let mut capture = command(["capture", "--duration", "6s", "--settle", "1s"])?;
    capture.args(["--backend-type", &case.process_type, "--data-dir"]).arg(data_dir);
    let running = start(&mut capture, true, artifacts)?;
    stage.load(1)?;
    let capture = finish(running, artifacts)?;
    let of_case = capture.profile.groups.iter().filter(|group| judge::is_of(&capture, group, case));
    let iterations = of_case.map(|group| group.survived.count).sum();
    Ok((capture, iterations))
}

/// Starts a capture and returns once it records.
fn start(capture: &mut std::process::Command, is_full: bool, artifacts: &Path) -> Result<Running> {
    capture.args(["--map-memory", "256M", "--max-slowdown", "100"]).arg("--out").arg(artifacts);
    let running = Running::spawn(capture)?;
    running.wait_for(if is_full { "recording for" } else { "recording in windows" }, PATIENCE)?;
    Ok(running)
}

fn finish(running: Running, artifacts: &Path) -> Result<Capture> {
    let finished = running.finish()?;
    if !finished.status.success() {
        bail!("{}: {}", finished.status, finished.stderr);
    }
    Ok(pgleak::render::read_capture(&artifacts.join("capture.json"))?)
}

/// Iterations that begin and end within the window, evenly: as many as fit, and at most `most`.
fn load_for(stage: &Stage, window: Duration, most: u64, each: Duration) -> Result<u64> {
    let started = Instant::now();
    let rounds = (window.as_secs_f64() / ROUND.as_secs_f64()) as u64;
    let fitting = (ROUND.as_secs_f64() / each.as_secs_f64().max(1e-6)) as u64;
    let round = fitting.min(most / rounds.max(1)).max(1);
    // Few of them are spread over the window.
    let pace = (window * 9 / 10).div_f64((most / round).max(1) as f64).max(ROUND);
    let mut all = 0;
    loop {
        let begun = Instant::now();
        stage.load(round)?;
        if started.elapsed() > window {
            bail!(
                "{round} iterations took {:.1?}, longer than there was time: give more --seconds",
                begun.elapsed()
            );
        }
        all += round;
        // Twice as long, since the machine has other work.
        let next = (begun.elapsed() * 2).max(pace);
        if all + round > most || started.elapsed() + next > window {
            return Ok(all);
        }
        std::thread::sleep(pace.saturating_sub(begun.elapsed()));
    }
}
