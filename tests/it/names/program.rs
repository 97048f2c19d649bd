//! A C program in all states in which a distribution may leave it, and the names of its frames while
//! it runs.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use pgleak::{
    addr::{AbsAddr, BuildId},
    elf::Image,
    profile::{Frame, Module},
    symbolize::{DebugFiles, OsRelease, Symbolizer},
    target::{LoadedModule, LoadedModules},
};
use tempfile::TempDir;
use xtask::process::output;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/names.c");

/// How many addresses the program prints: one in an inlined function, one in a function of two names.
const ADDRESSES: usize = 2;

/// The program in a directory of its own, that stands for a machine.
pub(super) struct Program {
    pub(super) machine: TempDir,
    /// What runs; to be stripped.
    pub(super) path: PathBuf,
    /// The same, as it was linked.
    pub(super) whole: PathBuf,
}

impl Program {
    /// Compiles it, with `flags` besides `-O2 -g`.
    pub(super) fn compile(flags: &[&str]) -> Self {
        let machine = tempfile::Builder::new().prefix("pgleak-names-").tempdir().unwrap();
        let (path, whole) = (machine.path().join("bin/names"), machine.path().join("build/names"));
        for file in [&path, &whole] {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
        }
        // Split units are written beside the output, and are looked for where they were written.
        let mut cc = Command::new("cc");
        // Clones would have other names.
        cc.args(["-O2", "-g", "-fno-ipa-cp", "-Wl,--build-id"]).args(flags).arg("-o").arg(&whole).arg(SOURCE);
        output(cc.current_dir(whole.parent().unwrap())).unwrap();
        fs::copy(&whole, &path).unwrap();
        Self { machine, path, whole }
    }

    /// Takes all symbols and debug information from what runs.
    pub(super) fn strip(self) -> Self {
        tool("strip", &[self.path.as_path()]);
        self
    }

    /// Writes its separate debug file to a path on its machine.
    pub(super) fn debug_file(&self, place: &Path) -> PathBuf {
        let place = self.machine.path().join(place);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        tool("objcopy", &[Path::new("--only-keep-debug"), &self.whole, &place]);
        place
    }

    pub(super) fn build_id(&self) -> BuildId {
        Image::open(&self.path, &self.path).unwrap().build_id().unwrap().clone()
    }

    /// Where the debug file of a build lies below the root of its machine.
    pub(super) fn place_by_id(&self) -> PathBuf {
        let id = self.build_id().to_string();
        format!("usr/lib/debug/.build-id/{}/{}.debug", &id[..2], &id[2..]).into()
    }

    /// Names the addresses of the running program.
    pub(super) fn named(&self, files: DebugFiles) -> Named {
        self.named_and(files, |_| Vec::new(), || ()).0
    }

    /// The same, with a look at something while all files are open.
    pub(super) fn named_while<T>(&self, files: DebugFiles, look: impl FnOnce() -> T) -> (Named, T) {
        self.named_and(files, |_| Vec::new(), look)
    }

    /// The same, and one address in the C library, last.
    pub(super) fn named_with_libc(&self, files: DebugFiles) -> Named {
        let of_libc = |modules: &LoadedModules| {
            let is_libc = |module: &&LoadedModule| module.path.to_string_lossy().contains("libc.so");
            vec![modules.modules().iter().find(is_libc).unwrap().ranges[0].0.offset(1)]
        };
        self.named_and(files, of_libc, || ()).0
    }

    fn named_and<T>(
        &self,
        files: DebugFiles,
        more: impl FnOnce(&LoadedModules) -> Vec<AbsAddr>,
        look: impl FnOnce() -> T,
    ) -> (Named, T) {
        let running = Running::start(&self.path);
        let modules = LoadedModules::read(running.child.id()).unwrap();
        let mut symbolizer = Symbolizer::new(vec![&modules], BTreeMap::new(), files);
        let addresses = running.addresses.iter().copied().chain(more(&modules));
        let frames = addresses.map(|address| symbolizer.frame(0, address, true)).collect();
        let seen = look();
        let named = Named {
            frames,
            modules: symbolizer.modules(),
            notes: symbolizer.notes().iter().map(ToString::to_string).collect(),
            advice: symbolizer.advice(&OsRelease::default()),
        };
        (named, seen)
    }

    /// The same with debug files of its machine alone.
    pub(super) fn named_at_home(&self) -> Named {
        // Its own directory is not below its root, as for a process in a container.
        self.named(DebugFiles::below(vec![self.machine.path().to_owned(), "/".into()]))
    }
}

/// What came out.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) frames: Vec<Frame>,
    pub(super) modules: Vec<Module>,
    pub(super) notes: Vec<String>,
    pub(super) advice: Vec<String>,
}

impl Named {
    /// Functions and lines of each frame, innermost first.
    pub(super) fn functions(&self) -> Vec<Vec<(&str, Option<u32>)>> {
        self.frames
            .iter()
            .map(|frame| frame.names.iter().map(|name| (name.function.as_str(), name.line)).collect())
            .collect()
    }

    /// Fails unless inlined functions, lines and aliases are there, and nothing was odd.
    pub(super) fn assert_complete(&self) {
        assert_eq!(self.notes, Vec::<String>::new());
        self.assert_inlined();
        assert!(self.advice.is_empty(), "{:?}", self.advice);
    }

    /// Fails unless inlined functions, lines and aliases are there.
    pub(super) fn assert_inlined(&self) {
        let inlined = [
            ("inlined_function", line("report();", 0)),
            ("static_function", line("inlined_function(request);", 0)),
        ];
        let shared = [("shared_code", line("report();", 1))];
        assert_eq!(self.functions(), [inlined.to_vec(), shared.to_vec()], "{self:#?}");
        assert_eq!(self.frames[1].aliases, ["shared_code_too"]);
        assert!(self.frames[0].names[0].file.as_deref().unwrap().ends_with("names.c"));
    }

    /// Fails unless the functions have their names, and nothing is known of lines.
    pub(super) fn assert_symbols_only(&self) {
        let plain = [vec![("static_function", None)], vec![("shared_code", None)]];
        assert_eq!(self.functions(), plain, "{self:#?}");
    }

    /// Fails unless nothing but addresses is there.
    pub(super) fn assert_bare(&self) {
        for frame in &self.frames {
            assert!(frame.is_nameless() && frame.label().starts_with("names+0x"), "{frame:?}");
        }
        assert!(self.advice.len() == 1, "{:?}", self.advice);
    }

    /// Fails unless one of the notes has all the words.
    pub(super) fn assert_noted(&self, words: &[&str]) {
        assert!(
            self.notes.iter().any(|note| words.iter().all(|word| note.contains(word))),
            "{words:?} are not in {:#?}",
            self.notes
        );
    }
}

/// The line of the source that has a statement, for the `nth` time.
fn line(statement: &str, nth: usize) -> Option<u32> {
    let source = fs::read_to_string(SOURCE).unwrap();
    let mut lines = source.lines().zip(1..).filter(|(text, _)| text.trim() == statement);
    Some(lines.nth(nth).unwrap().1)
}

/// Runs a tool of binutils or dwz with paths and options.
pub(super) fn tool(program: &str, arguments: &[&Path]) {
    output(Command::new(program).args(arguments)).unwrap();
}

/// The program at work. Dropping it ends it.
struct Running {
    child: Child,
    addresses: Vec<AbsAddr>,
}

impl Running {
    fn start(path: &Path) -> Self {
        let mut child = Command::new(path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().take(ADDRESSES);
        let address = |line: String| u64::from_str_radix(line.trim_start_matches("0x"), 16).unwrap();
        let addresses = lines.map(|line| AbsAddr(address(line.unwrap()))).collect();
        Self { child, addresses }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
