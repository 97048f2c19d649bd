//! Test support: `.eh_frame` sections made by hand, and this process as an object of study.

use std::path::Path;

use gimli::BaseAddresses;
use tracer_ebpf::{abi::MapSet, unwind::StackReader};

use super::{Atlas, MappedObject, Surroundings, TableError, UnwindTable, build_mapset};
use crate::{
    addr::{AbsAddr, Bias},
    elf::FrameSection,
    target::{LoadedModules, ProcessMemory, ReadMemory as _},
};

/// What every function of a C compiler begins with: CFA = rsp + 8, return address at CFA − 8.
pub(super) const ENTRY: &[u8] = &[0x0c, 7, 8, 0x90, 1];

/// An `.eh_frame` that grows. Addresses are absolute, so it needs no bases.
#[derive(Clone, Default)]
pub(super) struct Section(pub(super) Vec<u8>);

impl Section {
    /// Adds a CIE with the given flags besides `zR`, and gives its offset.
    pub(super) fn cie(&mut self, flags: &str, instructions: &[u8]) -> usize {
        let at = self.0.len();
        let mut body = vec![0, 0, 0, 0, 1, b'z', b'R'];
        body.extend(flags.as_bytes());
        // Code alignment 1, data alignment −8, return address in 16, one byte of augmentation:
        // pointers as they are.
        body.extend([0, 1, 0x78, 16, 1, 0]);
        body.extend(instructions);
        self.entry(&body);
        at
    }

    /// Adds an FDE.
    pub(super) fn fde(&mut self, cie: usize, start: u64, length: u64, instructions: &[u8]) {
        let back = (self.0.len() + 4).wrapping_sub(cie) as u32;
        let mut body = back.to_le_bytes().to_vec();
        body.extend(start.to_le_bytes());
        body.extend(length.to_le_bytes());
        body.push(0);
        body.extend(instructions);
        self.entry(&body);
    }

    /// Adds an entry, padded to 4 bytes.
    pub(super) fn entry(&mut self, body: &[u8]) {
        let length = body.len().next_multiple_of(4);
        self.0.extend((length as u32).to_le_bytes());
        self.0.extend(body);
        self.0.resize(self.0.len() + length - body.len(), 0);
    }

    /// The table of an object with code below 16 MiB.
    pub(super) fn table(&self) -> Result<Option<UnwindTable>, TableError> {
        table_of(&self.0, BaseAddresses::default())
    }
}

/// The table of an object with code below 16 MiB and that section.
pub(super) fn table_of(bytes: &[u8], bases: BaseAddresses) -> Result<Option<UnwindTable>, TableError> {
    UnwindTable::from_section(Path::new("fixture"), &FrameSection::new(bytes, bases), &[0..16 << 20])
}

/// A table, mapped at `bias` as far as it goes, and one MiB more.
pub(super) fn mapped_at(bias: u64, table: &UnwindTable) -> (Atlas, Box<MapSet>) {
    let mut atlas = Atlas::new();
    let placement = Some(atlas.add(table).expect("room"));
    let end = bias + table.rows.last().expect("rows").address() + (1 << 20);
    let object = MappedObject { start: AbsAddr(bias), end: AbsAddr(end), bias: Bias(bias), placement };
    (atlas, build_mapset(&[object]).expect("one range"))
}

/// The objects of this process.
pub(super) struct OwnProcess {
    pub(super) modules: LoadedModules,
    atlas: Atlas,
    mapset: Box<MapSet>,
}

impl OwnProcess {
    pub(super) fn read() -> Self {
        let modules = LoadedModules::read(std::process::id()).expect("own mappings");
        let mut atlas = Atlas::new();
        let mut objects = Vec::new();
        for module in modules.modules() {
            let table = UnwindTable::build(&module.image).expect("a sound table");
            let placement = table.map(|table| atlas.add(&table).expect("room"));
            objects.extend(module.ranges.iter().map(|(start, end)| MappedObject {
                start: *start,
                end: *end,
                bias: module.bias,
                placement,
            }));
        }
        let mapset = build_mapset(&objects).expect("few ranges");
        Self { modules, atlas, mapset }
    }

    pub(super) fn surroundings(&self) -> Surroundings<'_> {
        Surroundings { atlas: &self.atlas, mapset: &self.mapset, trampoline: (0, 0), open_calls: &[] }
    }
}

/// The memory of this process; reading what is not there is an error and no fault.
pub(super) struct OwnMemory;

impl StackReader for OwnMemory {
    fn read_words(&mut self, address: u64, into: &mut [u64; 8]) -> bool {
        let mut bytes = [0; 64];
        let read = ProcessMemory::new(std::process::id()).read(AbsAddr(address), &mut bytes);
        for (word, bytes) in into.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
        }
        read.is_ok()
    }

    fn read_word(&mut self, address: u64) -> Option<u64> {
        ProcessMemory::new(std::process::id()).word(AbsAddr(address)).ok()
    }
}
