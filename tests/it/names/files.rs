//! Debug files on the machine of the process: found, verified, and told when they do not fit.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use xtask::process::output;

use super::program::{Program, tool};

#[test]
fn the_file_itself() {
    let program = Program::compile(&[]);
    let named = program.named_at_home();
    named.assert_complete();
    assert_eq!(named.modules[0].symbols, [".symtab", "DWARF"]);
    program.strip().named_at_home().assert_bare();
}

#[test]
fn names_and_lines_are_those_of_addr2line() {
    let program = Program::compile(&[]);
    for frame in program.named_at_home().frames {
        let mut addr2line = Command::new("addr2line");
        addr2line.args(["-f", "-i", "-e"]).arg(&program.whole).arg(format!("{:#x}", frame.address.0));
        let theirs = output(&mut addr2line).unwrap();
        let ours = frame.names.iter().map(|name| {
            let (file, line) = (name.file.as_deref().unwrap(), name.line.unwrap());
            format!("{}\n{file}:{line}\n", name.function)
        });
        assert_eq!(ours.collect::<String>(), theirs.replace("./", ""));
    }
}

#[test]
fn a_debug_file_by_build_id() {
    let program = Program::compile(&[]).strip();
    program.debug_file(&program.place_by_id());
    program.named_at_home().assert_complete();
}

#[test]
fn a_debug_file_of_another_build_is_refused_and_told() {
    let program = Program::compile(&[]).strip();
    let other = Program::compile(&["-O1"]);
    let place = program.machine.path().join(program.place_by_id());
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    fs::copy(&other.whole, place).unwrap();
    let named = program.named_at_home();
    named.assert_bare();
    named.assert_noted(&[&other.build_id().to_string(), &program.build_id().to_string()]);
}

/// A stripped program with a debug link to `names.debug`, which is not there yet.
pub(super) fn linked(flags: &[&str]) -> Program {
    let program = Program::compile(flags).strip();
    let debug = program.debug_file(Path::new("build/names.debug"));
    let link = PathBuf::from(format!("--add-gnu-debuglink={}", debug.display()));
    tool("objcopy", &[&link, &program.path]);
    program
}

#[test]
fn a_debug_file_by_its_link_in_each_of_three_places() {
    for flags in [&[][..], &["-Wl,--build-id=none"]] {
        let program = linked(flags);
        program.named_at_home().assert_bare();
        let inside = program.path.parent().unwrap().strip_prefix("/").unwrap().to_owned();
        let central = Path::new("usr/lib/debug").join(&inside);
        for directory in [Path::new("bin"), Path::new("bin/.debug"), &central] {
            let place = program.debug_file(&directory.join("names.debug"));
            program.named_at_home().assert_complete();
            fs::remove_file(place).unwrap();
        }
    }
}

#[test]
fn a_linked_file_of_other_bytes_is_refused_and_told() {
    // Without build IDs, the CRC is all that there is.
    let program = linked(&["-Wl,--build-id=none"]);
    let place = program.debug_file(Path::new("bin/names.debug"));
    let mut bytes = fs::read(&place).unwrap();
    bytes.push(0);
    fs::write(&place, bytes).unwrap();
    let named = program.named_at_home();
    assert!(named.frames.iter().all(|frame| frame.is_nameless()), "{named:?}");
    named.assert_noted(&["bin/names.debug", "CRC"]);

    let program = linked(&[]);
    let other = Program::compile(&["-O1"]);
    fs::copy(other.debug_file(Path::new("other.debug")), program.path.with_extension("debug")).unwrap();
    let named = program.named_at_home();
    named.assert_bare();
    named.assert_noted(&["bin/names.debug", &other.build_id().to_string()]);
}

/// Two programs whose debug files share a third one; the first of them.
fn with_shared_debug_file() -> (Program, PathBuf) {
    let program = Program::compile(&[]).strip();
    let debug = program.debug_file(&program.place_by_id());
    let second = Program::compile(&["-O1"]);
    let second_debug = second.debug_file(Path::new("second.debug"));
    let shared = program.machine.path().join("usr/lib/debug/.dwz/shared.debug");
    fs::create_dir_all(shared.parent().unwrap()).unwrap();
    tool(
        "dwz",
        &[
            Path::new("-m"),
            &shared,
            Path::new("-M"),
            Path::new("/usr/lib/debug/.dwz/shared.debug"),
            &debug,
            &second_debug,
        ],
    );
    (program, shared)
}

#[test]
fn debug_information_that_dwz_moved() {
    let (program, shared) = with_shared_debug_file();
    program.named_at_home().assert_complete();

    let elsewhere = shared.with_extension("gone");
    fs::rename(&shared, &elsewhere).unwrap();
    let named = program.named_at_home();
    named.assert_noted(&["/usr/lib/debug/.dwz/shared.debug", "is not there"]);
    assert_eq!(named.frames[0].label(), "static_function", "symbols are no part of it");

    let other = Program::compile(&["-O3"]);
    fs::copy(&other.whole, &shared).unwrap();
    let named = program.named_at_home();
    named.assert_noted(&["shared.debug", &other.build_id().to_string()]);
    assert_eq!(named.frames[0].label(), "static_function");
}

/// A stripped program with a symbol table in `.gnu_debugdata`, made as rpm makes it.
fn with_mini_debug_info() -> (Program, PathBuf) {
    let program = Program::compile(&[]).strip();
    let mini = program.machine.path().join("mini");
    let keep = program.machine.path().join("keep");
    fs::write(&keep, "static_function\nshared_code\nshared_code_too\n").unwrap();
    let mut objcopy = Command::new("objcopy");
    objcopy.args(["-S", "--remove-section=.gdb_index", "--remove-section=.comment", "--keep-symbols"]);
    output(objcopy.arg(keep).arg(program.debug_file(Path::new("whole.debug"))).arg(&mini)).unwrap();
    tool("xz", &[&mini]);
    let packed = mini.with_extension("xz");
    add_mini(&program, &packed);
    (program, packed)
}

fn add_mini(program: &Program, packed: &Path) {
    let section = PathBuf::from(format!("--add-section=.gnu_debugdata={}", packed.display()));
    tool("objcopy", &[Path::new("--remove-section=.gnu_debugdata"), &program.path]);
    tool("objcopy", &[&section, &program.path]);
}

#[test]
fn mini_debug_info_in_the_file() {
    let (program, packed) = with_mini_debug_info();
    let named = program.named_at_home();
    named.assert_symbols_only();
    assert_eq!(named.modules[0].symbols, [".gnu_debugdata"]);
    assert_eq!(named.notes, Vec::<String>::new());

    let bytes = fs::read(&packed).unwrap();
    fs::write(&packed, &bytes[..bytes.len() / 2]).unwrap();
    add_mini(&program, &packed);
    let named = program.named_at_home();
    named.assert_bare();
    named.assert_noted(&[".gnu_debugdata cannot be read"]);
}

#[test]
fn mini_debug_info_that_unpacks_to_no_end_is_refused() {
    let (program, packed) = with_mini_debug_info();
    let zeros = packed.with_file_name("zeros");
    fs::File::create(&zeros).unwrap().set_len(200 << 20).unwrap();
    tool("xz", &[Path::new("-1"), &zeros]);
    add_mini(&program, &zeros.with_extension("xz"));
    let named = program.named_at_home();
    named.assert_bare();
    named.assert_noted(&["unpacks to more than"]);
}

#[test]
fn units_in_files_of_their_own() {
    let program = Program::compile(&["-gsplit-dwarf"]);
    program.named_at_home().assert_complete();
    let unit = program.whole.with_file_name("names.dwo");
    let other = Program::compile(&["-gsplit-dwarf", "-O1"]);
    fs::copy(other.whole.with_file_name("names.dwo"), &unit).unwrap();
    let named = program.named_at_home();
    assert_eq!(named.frames[0].label(), "static_function");
    named.assert_noted(&["names.dwo is not there"]);
    fs::remove_file(unit).unwrap();
    program.named_at_home().assert_noted(&["names.dwo is not there"]);
}

#[test]
fn units_in_a_package() {
    // dwp of binutils 2.40 crashes on DWARF 5.
    let program = Program::compile(&["-gsplit-dwarf", "-gdwarf-4"]);
    let package = program.path.with_extension("dwp");
    tool("dwp", &[Path::new("-e"), &program.whole, Path::new("-o"), &package]);
    fs::remove_file(program.whole.with_file_name("names.dwo")).unwrap();
    program.named_at_home().assert_complete();
}
