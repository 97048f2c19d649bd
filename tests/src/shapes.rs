//! A program of ours whose stacks have odd shapes, traced; see `planted/shapes.c`.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pgleak::addr::{FileOffset, VirtAddr};
use pgleak::bpf::{Attached, Probe, RawSample};
use pgleak::elf::Image;
use pgleak::target::{LoadedModule, exe_link};
use tempfile::TempDir;
use tracer_ebpf::{
    counters::{Class, Counter},
    site::{Role, Site},
    unwind::WalkEnd,
};
use xtask::process::output;

use crate::sampling::Sampling;
use crate::tables::Tables;

/// How long a sample may take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A stack by names, innermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Functions.
    pub names: Vec<String>,
    /// How the walk ended.
    pub end: Option<WalkEnd>,
}

/// The stacks of one call of `target`.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Sampled at its first instruction.
    pub at_call: Chain,
    /// Sampled at its return.
    pub at_return: Chain,
    /// What a capture was told of: stacks that are new to it.
    pub captured: Vec<Chain>,
    /// Kinds of rows along the first, by their codes.
    pub kinds: Vec<u32>,
    /// How many frames it has.
    pub frames: usize,
}

/// The program at work, with its calls of `target` sampled and captured. Dropping it ends it.
pub struct Shapes {
    /// Its samples.
    pub sampling: Sampling,
    attached: Attached,
    tables: Tables,
    // After the probes: what they sit in goes last.
    program: Program,
}

/// The program.
struct Program {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    path: PathBuf,
    _dir: TempDir,
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Program {
    fn start(option: &str) -> Result<Self> {
        let dir = TempDir::new()?;
        let (path, library) = (dir.path().join("shapes"), dir.path().join("library.so"));
        compile("shapes.c", &[option, "-Wl,-z,lazy"], &path)?;
        compile("shapes_library.c", &[option, "-shared", "-fPIC"], &library)?;
        let mut command = Command::new(&path);
        command.env("SHAPES_LIBRARY", &library).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start the program of shapes")?;
        let input = child.stdin.take().expect("started with a pipe");
        let output = BufReader::new(child.stdout.take().expect("started with a pipe"));
        let mut program = Self { child, input, output, path, _dir: dir };
        program.hear("ready")?;
        Ok(program)
    }

    fn say(&mut self, shape: &str) -> Result<()> {
        writeln!(self.input, "{shape}").context("the program of shapes has ended")
    }

    fn hear(&mut self, expected: &str) -> Result<()> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        if line.trim_end() != expected {
            bail!("the program of shapes said {line:?}, not {expected:?}");
        }
        Ok(())
    }
}

impl Shapes {
    /// Compiles the program with an option more, starts it and lets its calls be traced.
    pub fn start(option: &str) -> Result<Self> {
        let program = Program::start(option)?;
        let sampling = Sampling::of(program.child.id())?;
        let tables = Tables::of(sampling.mappings.modules())?;
        let mut shapes = Self { sampling, attached: Attached::default(), tables, program };
        let target = shapes.offset_of("target")?;
        for is_return in [true, false] {
            shapes.sampling.attach(&exe_link(shapes.pid()), target, is_return, 0)?;
        }
        shapes.capture("target")?;
        shapes.sampling.begin();
        Ok(shapes)
    }

    fn pid(&self) -> u32 {
        self.program.child.id()
    }

    /// Traces a function as a capture does one that allocates.
    pub fn capture(&mut self, function: &str) -> Result<()> {
        let (pid, offset) = (self.pid(), self.offset_of(function)?);
        let site = Site { role: Role::Alloc, context_arg: 0, size_arg: 1, ..Site::PLAIN };
        let probe = Probe { function, role: site.role, is_outside: false, offset, cookie: site.pack() };
        Ok(self.attached.add(&mut self.sampling.tracer, Some(pid), &exe_link(pid), probe)?)
    }

    /// Samples at an instruction; its address is the cookie.
    pub fn sample_at(&mut self, address: u64) -> Result<()> {
        let offset = self.image().file_offset(VirtAddr(address)).context("not in the file")?;
        self.sampling.attach(&exe_link(self.pid()), offset, false, address)
    }

    /// A return probe of which this tracer knows nothing, for as long as the result lives.
    pub fn somebody_elses_return_probe(&self, function: &str) -> Result<Sampling> {
        let mut other = Sampling::of(self.pid())?;
        other.attach(&exe_link(self.pid()), self.offset_of(function)?, true, 0)?;
        Ok(other)
    }

    /// Lets the program call `target` once, in a stack of this shape.
    pub fn run(&mut self, shape: &str) -> Result<Seen> {
        self.do_only(shape)?;
        let (call, back) = (self.sampling.next(PATIENCE)?, self.sampling.next(PATIENCE)?);
        ensure!(call.regs.is_return == 0 && back.regs.is_return == 1, "{call:x?}, {back:x?}");
        let modules = self.sampling.mappings.modules();
        let kinds = self.tables.kinds(modules, &call.frames, true);
        let frames = call.frames.len();
        let (at_call, at_return) = (self.chain(&call), self.chain(&back));
        let new = self.sampling.tracer.new_stacks();
        let modules = self.sampling.mappings.modules();
        let captured = new.iter().map(|stack| {
            let frames: Vec<u64> = stack.frames.iter().map(|frame| frame.0).collect();
            Chain { names: self.tables.names(modules, &frames, true), end: stack.end }
        });
        Ok(Seen { at_call, at_return, captured: captured.collect(), kinds, frames })
    }

    /// Asks for a shape without a look at what `target` sees.
    pub fn do_only(&mut self, shape: &str) -> Result<()> {
        self.program.say(shape)?;
        self.program.hear("done")
    }

    /// The next sample's cookie, its stack, and the kind of its innermost row.
    pub fn next_chain(&mut self) -> Result<(u64, Chain, u32)> {
        let sample = self.sampling.next(PATIENCE)?;
        let kinds = self.tables.kinds(self.sampling.mappings.modules(), &sample.frames, true);
        Ok((sample.cookie, self.chain(&sample), kinds[0]))
    }

    fn chain(&self, sample: &RawSample) -> Chain {
        let modules = self.sampling.mappings.modules();
        let names = self.tables.names(modules, &sample.frames, sample.regs.is_return == 0);
        Chain { names, end: sample.end }
    }

    /// Looks at the mappings again, as a capture does when a stack was cut.
    pub fn look_again(&mut self) -> Result<()> {
        self.sampling.mappings.look_again(self.sampling.tracer.walks());
        self.tables = Tables::of(self.sampling.mappings.modules())?;
        Ok(())
    }

    /// A counter.
    pub fn counter(&self, counter: Counter) -> Result<u64> {
        Ok(self.sampling.tracer.counters()?.get(counter))
    }

    /// How many stacks of captures were cut, by reason. That `target` returns the same chunk again
    /// and again is a loss of another kind.
    pub fn cut(&self) -> Result<Vec<(Counter, u64)>> {
        let counters = self.sampling.tracer.counters()?;
        let cuts = counters.iter().filter(|(info, value)| {
            info.class == Class::Loss && info.name.starts_with("walk_") && *value > 0
        });
        Ok(cuts.map(|(info, value)| (info.counter, value)).collect())
    }

    /// Where a function's stub in the PLT begins.
    pub fn stub(&self, function: &str) -> Result<u64> {
        let text = output(Command::new("objdump").args(["-d", "-j", ".plt"]).arg(&self.program.path))?;
        let label = format!("<{function}@plt>:");
        let line = text.lines().find(|line| line.ends_with(&label)).context("no such stub")?;
        let address = line.split(' ').next().unwrap_or_default();
        u64::from_str_radix(address, 16).context("not an address")
    }

    /// Where the PLT begins: what all stubs jump to.
    pub fn first_stub(&self) -> Result<u64> {
        Ok(self.image().section(".plt").context("no PLT")?.0.0)
    }

    fn main(&self) -> &LoadedModule {
        self.sampling.mappings.modules().main().expect("it runs")
    }

    fn image(&self) -> &Image {
        &self.main().image
    }

    fn offset_of(&self, function: &str) -> Result<FileOffset> {
        let address = self.tables.address_of(self.sampling.mappings.modules(), function)?;
        self.image().file_offset(address).context("not in the file")
    }
}

fn compile(source: &str, options: &[&str], into: &Path) -> Result<()> {
    let source: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("planted").join(source);
    let mut command = Command::new("cc");
    command.args(["-std=gnu11", "-O2", "-fno-optimize-sibling-calls", "-Wall", "-Wextra", "-Werror"]);
    output(command.args(options).arg("-o").arg(into).arg(source)).map(drop)
}
