//! Debug files of gigabytes: only what is asked for is read of them.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::Path,
};

use pgleak::symbolize::DebugFiles;

use super::{files::linked, program::Program};

/// What a section is made to be as large as.
const LARGE: u64 = 1 << 30;
/// Pages that may be looked at: headers, symbols, one unit, and what the kernel maps around each.
const MOST_RESIDENT: u64 = 4 << 20;

/// Moves sections to the end of a file, with a gigabyte of nothing behind each. They are only ever read by offset.
fn enlarge(path: &Path) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut end = file.metadata().unwrap().len();
    let number = |at: u64, bytes: usize| {
        let mut word = [0; 8];
        file.read_exact_at(&mut word[..bytes], at).unwrap();
        u64::from_le_bytes(word)
    };
    // The header of an ELF64 file, and of its sections (`Elf64_Ehdr`, `Elf64_Shdr` in <elf.h>).
    let (headers, size, count) = (number(0x28, 8), number(0x3a, 2), number(0x3c, 2));
    let names = number(headers + number(0x3e, 2) * size + 24, 8);
    let mut moved = 0;
    for section in (0..count).map(|index| headers + index * size) {
        let mut name = [0; 12];
        file.read_exact_at(&mut name, names + number(section, 4)).unwrap();
        if !name.starts_with(b".debug_str\0") && !name.starts_with(b".debug_line\0") {
            continue;
        }
        let mut bytes = vec![0; number(section + 32, 8) as usize];
        file.read_exact_at(&mut bytes, number(section + 24, 8)).unwrap();
        let start = end.next_multiple_of(4096);
        file.write_all_at(&bytes, start).unwrap();
        file.write_all_at(&start.to_le_bytes(), section + 24).unwrap();
        file.write_all_at(&LARGE.to_le_bytes(), section + 32).unwrap();
        end = start + LARGE;
        file.set_len(end).unwrap();
        moved += 1;
    }
    assert_eq!(moved, 2);
}

/// Bytes of a file that are mapped and in memory.
fn resident(path: &Path) -> u64 {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut is_of_file = false;
    let mut bytes = 0;
    for line in smaps.lines() {
        match line.strip_prefix("Rss:") {
            Some(rss) if is_of_file => {
                bytes += rss.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10;
            }
            None if line.contains('-') && !line.contains("kB") => {
                is_of_file = line.ends_with(&*path.to_string_lossy());
            }
            _ => {}
        }
    }
    bytes
}

fn named_by_little(program: &Program, file: &Path) {
    let files = DebugFiles::below(vec![program.machine.path().to_owned(), "/".into()]);
    let (named, resident) = program.named_while(files, || resident(file));
    named.assert_complete();
    assert!(resident > 0, "it is mapped");
    assert!(resident <= MOST_RESIDENT, "{resident} bytes of {LARGE}");
}

#[test]
fn of_a_program_with_gigabytes_of_dwarf_little_is_read() {
    let program = Program::compile(&[]);
    enlarge(&program.path);
    named_by_little(&program, &program.path);
}

#[test]
fn a_debug_file_of_gigabytes_is_known_by_its_build_id() {
    let program = Program::compile(&[]).strip();
    let file = program.debug_file(&program.place_by_id());
    enlarge(&file);
    named_by_little(&program, &file);
}

#[test]
fn a_linked_file_of_gigabytes_with_the_build_id_is_not_summed_up() {
    let program = linked(&[]);
    let file = program.debug_file(Path::new("bin/names.debug"));
    enlarge(&file);
    named_by_little(&program, &file);
}
