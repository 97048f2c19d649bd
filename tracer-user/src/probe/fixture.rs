//! A hand-made server binary and the memory of its process, for tests.

use std::{collections::BTreeMap, io, path::Path};

use super::LiveProcess;
use crate::{
    addr::{AbsAddr, Bias, VirtAddr},
    elf::{FunctionRange, Image},
    target::ReadMemory,
};

const TEXT: u64 = 0x1000;
const RODATA: u64 = 0x2000;
const DATA: u64 = 0x3000;
/// From here on, what is not loaded.
const TABLES: usize = 0x4000;

pub(super) const CONSTRUCTOR: u64 = 0x1000;
pub(super) const ALLOC: u64 = 0x1040;
pub(super) const FREE: u64 = 0x1050;
pub(super) const REALLOC: u64 = 0x1060;
pub(super) const RESET: u64 = 0x1080;
pub(super) const DELETE: u64 = 0x1090;
pub(super) const RESET_ONLY: u64 = 0x10a0;
const OTHERS: [u64; 3] = [0x10b0, 0x10c0, 0x10d0];
pub(super) const CREATE: u64 = 0x10e0;
/// `AllocSetMethods`.
pub(super) const METHODS: u64 = 0x3000;
/// Room for another table.
pub(super) const OTHER_METHODS: u64 = 0x3040;
/// The variable `TopMemoryContext`.
pub(super) const TOP: u64 = 0x3100;
const NAME: u64 = 0x2100;

/// Where the made-up process has the binary, and its top context.
pub(super) const BIAS: Bias = Bias(0x5500_0000_0000);
pub(super) const CONTEXT: u64 = 0x5600_0000_1000;

/// The parts of a binary of 15.
pub(super) struct Server {
    pub(super) code: BTreeMap<u64, Vec<u8>>,
    pub(super) version: &'static str,
    /// Places and values of the RELATIVE relocations.
    pub(super) relocations: BTreeMap<u64, u64>,
    pub(super) exports: Vec<(&'static str, u64)>,
    pub(super) locals: Vec<(&'static str, u64)>,
}

fn call(from: u64, to: u64) -> Vec<u8> {
    let distance = to.wrapping_sub(from + 5) as u32;
    [&[0xe8], &distance.to_le_bytes()[..]].concat()
}

/// `lea table(%rip),%rdx`.
pub(super) fn load_table(from: u64, table: u64) -> Vec<u8> {
    let distance = table.wrapping_sub(from + 7) as u32;
    [&[0x48, 0x8d, 0x15], &distance.to_le_bytes()[..]].concat()
}

impl Server {
    /// A stripped 15, as Debian builds it.
    pub(super) fn stripped_15() -> Self {
        let methods = [ALLOC, FREE, REALLOC, RESET, DELETE].into_iter().chain(OTHERS);
        // Twice, as GCC does; then mov $0xdf,%esi; ret.
        let constructor = [
            load_table(CONSTRUCTOR, METHODS),
            load_table(CONSTRUCTOR + 7, METHODS),
            vec![0xbe, 0xdf, 0, 0, 0, 0xc3],
        ];
        let realloc = [call(REALLOC, ALLOC), call(REALLOC + 5, FREE), vec![0xc3]];
        let delete = [call(DELETE, RESET_ONLY), vec![0xc3]];
        // push %rbp; pop %rbp; ret
        let plain = [0x55, 0x5d, 0xc3];
        let mut code: BTreeMap<u64, Vec<u8>> = [ALLOC, FREE, RESET, RESET_ONLY, CREATE]
            .into_iter()
            .chain(OTHERS)
            .map(|at| (at, plain.to_vec()))
            .collect();
        code.insert(CONSTRUCTOR, constructor.concat());
        code.insert(REALLOC, realloc.concat());
        code.insert(DELETE, delete.concat());
        Self {
            code,
            version: "PostgreSQL 15.18 (Debian) on x86_64-pc-linux-gnu, compiled by gcc, 64-bit",
            relocations: (0..).zip(methods).map(|(index, method)| (METHODS + 8 * index, method)).collect(),
            exports: vec![
                ("AllocSetContextCreateInternal", CONSTRUCTOR),
                ("MemoryContextResetOnly", RESET_ONLY),
                ("MemoryContextCreate", CREATE),
                ("TopMemoryContext", TOP),
            ],
            locals: Vec::new(),
        }
    }

    /// The symbols that stripping took away.
    pub(super) fn local_functions() -> Vec<(&'static str, u64)> {
        vec![
            ("AllocSetAlloc", ALLOC),
            ("AllocSetFree", FREE),
            ("AllocSetFree.cold", OTHERS[0]),
            ("AllocSetRealloc", REALLOC),
            ("AllocSetReset", RESET),
            ("AllocSetDelete", DELETE),
        ]
    }

    /// What its `.eh_frame` would say.
    pub(super) fn ranges(&self) -> Vec<FunctionRange> {
        let range = |(&start, code): (&u64, &Vec<u8>)| FunctionRange {
            start: VirtAddr(start),
            end: VirtAddr(start + code.len() as u64),
        };
        self.code.iter().map(range).collect()
    }

    /// The file.
    pub(super) fn image(&self) -> Image {
        Image::from_bytes(self.file(), Path::new("postgres")).expect("a well-formed file")
    }

    fn file(&self) -> Vec<u8> {
        let mut file = vec![0; TABLES];
        for (&at, code) in &self.code {
            put(&mut file, at as usize, code);
        }
        put(&mut file, RODATA as usize, self.version.as_bytes());
        put(&mut file, NAME as usize, b"TopMemoryContext\0");

        let mut names = vec![0];
        let dynsym = symbols(&self.exports, &mut names);
        let symtab = symbols(&self.locals, &mut names);
        let rela: Vec<u8> = self
            .relocations
            .iter()
            // R_X86_64_RELATIVE
            .flat_map(|(&place, &addend)| words(&[place, 8, addend]))
            .collect();
        let mut section_names = b"\0".to_vec();
        let mut headers = words(&[0; 8]);
        let mut section = |name: &str, fields: [u64; 6], extra: [u32; 2]| {
            let [kind, flags, address, offset, size, entry] = fields;
            headers.extend((section_names.len() as u32).to_le_bytes());
            section_names.extend([name.as_bytes(), b"\0"].concat());
            headers.extend((kind as u32).to_le_bytes());
            headers.extend(words(&[flags, address, offset, size]));
            headers.extend(extra.iter().flat_map(|word| word.to_le_bytes()));
            headers.extend(words(&[8, entry]));
        };
        let mut append = |bytes: &[u8]| {
            let at = file.len() as u64;
            file.extend_from_slice(bytes);
            (at, bytes.len() as u64)
        };
        // PROGBITS 1, SYMTAB 2, STRTAB 3, RELA 4, DYNSYM 11; WRITE 1, ALLOC 2, EXECINSTR 4.
        section(".text", [1, 6, TEXT, TEXT, 0x1000, 0], [0, 0]);
        section(".rodata", [1, 2, RODATA, RODATA, 0x1000, 0], [0, 0]);
        section(".data.rel.ro", [1, 3, DATA, DATA, 0x1000, 0], [0, 0]);
        let (at, len) = append(&names);
        section(".dynstr", [3, 0, 0, at, len, 0], [0, 0]);
        let (at, len) = append(&dynsym);
        section(".dynsym", [11, 0, 0, at, len, 24], [4, 1]);
        let (at, len) = append(&rela);
        section(".rela.dyn", [4, 0, 0, at, len, 24], [5, 0]);
        if !self.locals.is_empty() {
            let (at, len) = append(&symtab);
            section(".symtab", [2, 0, 0, at, len, 24], [4, 1]);
        }
        let at = file.len() as u64;
        section(".shstrtab", [3, 0, 0, at, 128, 0], [0, 0]);
        section_names.resize(128, 0);
        file.extend(section_names);
        let sections_at = file.len() as u64;
        let count = (headers.len() / 64) as u16;
        file.extend(headers);

        put(&mut file, 0, b"\x7fELF\x02\x01\x01");
        // ET_DYN, EM_X86_64, version 1.
        put(&mut file, 16, &[3, 0, 62, 0, 1, 0, 0, 0]);
        put(&mut file, 32, &words(&[64, sections_at]));
        let sizes = [64u16, 56, 3, 64, count, count - 1];
        put(&mut file, 52, &sizes.map(u16::to_le_bytes).concat());
        for (index, (address, flags)) in [(TEXT, 5u64), (RODATA, 4), (DATA, 6)].into_iter().enumerate() {
            // PT_LOAD 1
            let header = words(&[1 | flags << 32, address, address, address, 0x1000, 0x1000, 0x1000]);
            put(&mut file, 64 + 56 * index, &header);
        }
        file
    }
}

fn symbols(of: &[(&'static str, u64)], names: &mut Vec<u8>) -> Vec<u8> {
    let mut table = words(&[0; 3]);
    for (name, address) in of {
        // Global functions and objects in their sections.
        let (kind, section) = if *address < RODATA { (0x12u8, 1u8) } else { (0x11, 3) };
        table.extend((names.len() as u32).to_le_bytes());
        table.extend([kind, 0, section, 0]);
        table.extend(words(&[*address, 8]));
        names.extend([name.as_bytes(), b"\0"].concat());
    }
    table
}

fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The memory of a made-up process: words at addresses.
pub(super) struct Memory(pub(super) BTreeMap<u64, u64>);

impl Memory {
    /// A process that runs [`Server::stripped_15`].
    pub(super) fn of_15() -> Self {
        let methods = [ALLOC, FREE, REALLOC, RESET, DELETE].into_iter().chain(OTHERS);
        let bias = BIAS.0;
        let mut words: BTreeMap<u64, u64> =
            (0..).zip(methods).map(|(index, method)| (bias + METHODS + 8 * index, bias + method)).collect();
        for (at, code) in Server::stripped_15().code {
            for (at, chunk) in (bias + at..).step_by(8).zip(code.chunks(8)) {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                words.insert(at, u64::from_le_bytes(word));
            }
        }
        words.insert(bias + TOP, CONTEXT);
        // The tag is 223, and isReset beside it must not matter.
        words.insert(CONTEXT, 1 << 32 | 223);
        words.insert(CONTEXT + 16, bias + METHODS);
        words.insert(CONTEXT + 24, 0);
        words.insert(CONTEXT + 56, bias + NAME);
        for (at, chunk) in (0..).zip(b"TopMemoryContext\0\0\0\0\0\0\0\0".chunks_exact(8)) {
            words.insert(bias + NAME + 8 * at, u64::from_le_bytes(chunk.try_into().expect("8 bytes")));
        }
        Self(words)
    }

    /// It as a process to look at.
    pub(super) fn live(&self) -> LiveProcess<'_> {
        LiveProcess { memory: self, bias: BIAS }
    }
}

impl ReadMemory for Memory {
    fn read(&self, address: AbsAddr, into: &mut [u8]) -> io::Result<()> {
        for (at, byte) in (address.0..).zip(into) {
            let word = self.0.get(&(at & !7)).ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))?;
            *byte = word.to_le_bytes()[(at & 7) as usize];
        }
        Ok(())
    }
}
