//! Tables of sections made by hand, of real objects, and of damaged ones.

use gimli::BaseAddresses;
use tracer_ebpf::{
    lookup::MAX_ROWS_A_PAGE,
    unwind::{RbpRule, Row, RowInfo, RowKind},
};

use super::{
    Surroundings, TableError, UnwindTable,
    fixture::{ENTRY, OwnProcess, Section, mapped_at, table_of},
    oracle::look_everywhere,
};
use crate::elf::FrameSection;

fn rsp(offset: i64) -> RowInfo {
    RowInfo::new(RowKind::RspOffset, offset, RbpRule::Same, 0)
}

fn signal() -> RowInfo {
    RowInfo::new(RowKind::SignalFrame, 0, RbpRule::Same, 0)
}

fn rows(table: &UnwindTable) -> Vec<(u64, RowInfo)> {
    table.rows.iter().map(|row| (row.address(), row.info())).collect()
}

fn built(section: &Section) -> UnwindTable {
    section.table().expect("sound").expect("functions")
}

#[test]
fn rows_and_pages_of_a_small_section() {
    let mut section = Section::default();
    let cie = section.cie("", ENTRY);
    // push rbp; …; pop; ret. Written in another order than they lie.
    section.fde(cie, 0x900, 0x20, &[0x41, 0x0e, 16, 0x86, 2, 0x5e, 0x0e, 8, 0xc6]);
    section.fde(cie, 0x400, 0x10, &[]);
    // 8 bytes of padding after the one before, and the same rows.
    section.fde(cie, 0x418, 0x8, &[]);
    let table = built(&section);
    let saved = RowInfo::new(RowKind::RspOffset, 16, RbpRule::AtCfa, -16);
    assert_eq!(
        rows(&table),
        [
            (0, RowInfo::NONE),
            (0x400, rsp(8)),
            (0x420, RowInfo::NONE),
            (0x900, rsp(8)),
            (0x901, saved),
            (0x91f, rsp(8)),
            (0x920, RowInfo::NONE),
        ]
    );
    assert_eq!(table.pages, [0, 1, 2, 6]);
    assert_eq!((table.stats.fdes, table.stats.rows, table.stats.gap_bytes), (3, 7, 0x4e0));
}

#[test]
fn every_rule_that_compilers_write() {
    let plt = [
        0x0f, 11, 0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22, // rsp+8+((rip&15)>=11)<<3
    ];
    let realigned = [0x0f, 3, 0x76, 0x78, 0x06, 0x10, 6, 2, 0x76, 0]; // CFA = *(rbp−8), rbp at rbp+0
    for (what, instructions, expected) in [
        ("rbp+16", &[0x0c, 6, 16, 0x86, 2][..], RowInfo::new(RowKind::RbpOffset, 16, RbpRule::AtCfa, -16)),
        ("plt", &plt, RowInfo::new(RowKind::Plt, 88, RbpRule::Same, 0)),
        ("re-aligned", &realigned, RowInfo::new(RowKind::RbpDeref, 8, RbpRule::AtRbp, 0)),
        ("bottom", &[0x07, 16], RowInfo::new(RowKind::Bottom, 0, RbpRule::Same, 0)),
        ("r10", &[0x0c, 10, 0], RowInfo::UNSUPPORTED),
        ("return address elsewhere", &[0x90, 2], RowInfo::UNSUPPORTED),
        ("return address in rdx", &[0x09, 16, 1], RowInfo::UNSUPPORTED),
        ("another stack", &[0x09, 7, 12], RowInfo::UNSUPPORTED),
        ("rsp is the CFA", &[0x14, 7, 0], rsp(8)),
        ("rbp in rax", &[0x09, 6, 0], RowInfo::UNSUPPORTED),
        ("rbp same", &[0x86, 2, 0x08, 6], rsp(8)),
        ("rsp+7", &[0x0e, 7], RowInfo::UNSUPPORTED),
        ("rsp+512K", &[0x0e, 0x80, 0x80, 0x20], RowInfo::UNSUPPORTED),
        ("*(rsp+8)", &[0x0f, 3, 0x77, 8, 0x06], RowInfo::UNSUPPORTED),
    ] {
        let mut section = Section::default();
        let cie = section.cie("", ENTRY);
        section.fde(cie, 0x400, 0x10, instructions);
        assert_eq!(rows(&built(&section))[1], (0x400, expected), "{what}");
    }
}

#[test]
fn a_function_ends_where_the_next_begins() {
    let mut section = Section::default();
    let cie = section.cie("", ENTRY);
    section.fde(cie, 0x400, 0x100, &[0x50, 0x0e, 16, 0x02, 0x70, 0x0e, 24]); // rows at 400, 410, 480
    section.fde(cie, 0x440, 0x20, &[0x0e, 32]);
    section.fde(cie, 0x440, 0x80, &[0x0e, 40]);
    let table = built(&section);
    assert_eq!(
        rows(&table)[1..],
        [(0x400, rsp(8)), (0x410, rsp(16)), (0x440, rsp(32)), (0x460, RowInfo::NONE),]
    );
    assert_eq!(table.stats.overlapping_fdes, 2);
}

#[test]
fn a_trampoline_begins_a_byte_early_unless_that_is_anothers() {
    let mut section = Section::default();
    let cie = section.cie("", ENTRY);
    let signals = section.cie("S", ENTRY);
    section.fde(cie, 0x400, 0x40, &[]);
    section.fde(signals, 0x440, 0x9, &[]);
    section.fde(signals, 0x500, 0x9, &[]);
    assert_eq!(
        rows(&built(&section))[1..],
        [
            (0x400, rsp(8)),
            (0x440, signal()),
            (0x449, RowInfo::NONE),
            (0x4ff, signal()),
            (0x509, RowInfo::NONE),
        ]
    );
}

#[test]
fn as_many_rows_as_a_page_may_have_and_one_more() {
    // Rows of one byte each from the start of a page: 8, 16, 8, …
    let dense = |count: u32| {
        let mut section = Section::default();
        let cie = section.cie("", ENTRY);
        let advances = (1..count).flat_map(|row| [0x41, 0x0e, 8 + 8 * (row % 2) as u8]);
        section.fde(cie, 0x800, 0x600, &advances.collect::<Vec<u8>>());
        section.table()
    };
    // The first row of a page counts for the page before.
    let table = dense(MAX_ROWS_A_PAGE + 1).expect("just enough").expect("a function");
    let (atlas, mapset) = mapped_at(0x10_0000, &table);
    let around = Surroundings { atlas: &atlas, mapset: &mapset, trampoline: (0, 0), open_calls: &[] };
    for row in 0..=u64::from(MAX_ROWS_A_PAGE) {
        let expected = rsp(8 + 8 * (row as i64 % 2));
        assert_eq!(around.row_at(0x10_0800 + row), Some(expected), "row {row}");
    }
    let error = dense(MAX_ROWS_A_PAGE + 2).expect_err("one too many");
    assert!(matches!(error, TableError::TooDense { address: 0x800, rows: 512, .. }), "{error}");
}

#[test]
fn one_damaged_entry_leaves_the_others() {
    let mut section = Section::default();
    let cie = section.cie("", ENTRY);
    section.fde(cie, 0x400, 0x10, &[]);
    section.entry(&[1, 2]); // too short for anything
    section.fde(section.0.len() + 4, 0x500, 0x10, &[]); // its own CIE: the pointer is 0, a broken CIE
    section.fde(section.0.len(), 0x500, 0x10, &[]); // itself
    section.fde(section.0.len() + 400, 0x600, 0x10, &[]); // a CIE past the end
    let between = section.0.len();
    section.fde(cie, 0x700, 0x10, &[0x41, 0x0b]); // restores a state that was never kept
    section.fde(between, 0x800, 0x10, &[]); // an FDE as its CIE
    let unknown = section.0.len();
    section.entry(&[0, 0, 0, 0, 99, 0, 0]); // a version that does not exist
    section.fde(unknown, 0x900, 0x10, &[]);
    let long = section.cie("", &[0; 5000]);
    section.fde(long, 0xa00, 0x10, &[]);
    section.fde(cie, 0xb00, 0, &[]); // describes nothing
    section.fde(cie, u64::MAX - 4, 0x10, &[]); // wraps
    section.fde(cie, 1 << 40, 0x10, &[]); // where the object has no code
    section.fde(cie, 0xc00, 0x10, &[]);
    section.0.extend([0xff; 9]); // a 64-bit length that is cut off
    let table = built(&section);
    assert_eq!(
        rows(&table)[1..],
        [
            (0x400, rsp(8)),
            (0x410, RowInfo::NONE),
            (0x700, RowInfo::UNSUPPORTED),
            (0x710, RowInfo::NONE),
            (0xc00, rsp(8)),
            (0xc10, RowInfo::NONE),
        ]
    );
    assert_eq!((table.stats.broken_fdes, table.stats.stray_fdes), (8, 1));
}

#[test]
fn sections_without_anything_to_use() {
    assert!(matches!(Section::default().table(), Ok(None)));
    assert!(matches!(table_of(&[0; 64], BaseAddresses::default()), Ok(None)));
    for length in [&[0xfe, 0xff, 0xff, 0xff][..], &[0xff; 12], &[0xff, 0xff, 0xff, 0xff, 1], &[7]] {
        let error = table_of(length, BaseAddresses::default()).expect_err("a length that leads out");
        assert!(matches!(error, TableError::Damaged { .. }), "{error}");
    }
    let mut section = Section::default();
    let cie = section.cie("", ENTRY);
    section.fde(cie, 5 << 32, 0x10, &[]);
    let error = section.table().expect_err("no code that can be addressed");
    assert!(matches!(error, TableError::NoCode { .. }), "{error}");
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((value ^ (value >> 31)) % limit as u64) as usize
    }
}

/// What every table must be, so that no search can fail or run out of it.
fn check_shape(table: &UnwindTable, section_bytes: usize) {
    assert_eq!(table.rows.first().map(|row| row.address()), Some(0));
    assert!(table.rows.is_sorted_by(|one, next| one.address() < next.address()));
    assert!(table.rows.windows(2).all(|pair| pair[0].info() != pair[1].info()), "equal neighbours");
    assert!(table.rows.len() <= 2 * section_bytes + 1, "{} rows", table.rows.len());
    assert!(table.pages.len() <= (16 << 20 >> 10) + 2, "{} pages", table.pages.len());
    assert!(table.pages.is_sorted() && table.pages.last().copied() == Some(table.rows.len() as u32 - 1));
    assert!(table.pages.windows(2).all(|pair| pair[1] - pair[0] <= MAX_ROWS_A_PAGE));
}

/// 2^17 damaged copies with 1 to 15 wrong bytes each, 2^20 in all, and one cut at every byte.
fn damage(bytes: &[u8], bases: &BaseAddresses) {
    for length in 0..bytes.len() {
        if let Ok(Some(table)) = table_of(&bytes[..length], bases.clone()) {
            check_shape(&table, length);
        }
    }
    let mut random = Random(0x7067_6c65_616b);
    let mut damaged = bytes.to_vec();
    let (mut tables, mut errors) = (0, 0);
    for round in 0..1 << 17 {
        damaged.copy_from_slice(bytes);
        for _ in 0..=round % 15 {
            let at = random.below(bytes.len());
            damaged[at] = match random.below(4) {
                0 => 0,
                1 => 0xff,
                2 => damaged[at] ^ 1 << random.below(8),
                _ => random.below(256) as u8,
            };
        }
        match table_of(&damaged, bases.clone()) {
            Ok(Some(table)) => {
                check_shape(&table, bytes.len());
                tables += 1;
            }
            Ok(None) => {}
            Err(_) => errors += 1,
        }
    }
    assert!(tables > 1 << 14 && errors > 0, "{tables} tables and {errors} errors: the damage is too even");
}

#[test]
fn damage_to_a_section_of_everything() {
    let mut section = Section::default();
    let cie = section.cie("", ENTRY);
    section.fde(cie, 0x400, 0x40, &[0x41, 0x0e, 16, 0x86, 2, 0x4a, 0x0a, 0x0e, 8, 0x41, 0x0b]);
    section.fde(cie, 0x500, 0x20, &[0x0f, 11, 0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22]);
    section.fde(cie, 0x540, 0x20, &[0x44, 0x0f, 3, 0x76, 0x78, 0x06, 0x10, 6, 2, 0x76, 0]);
    let signals = section.cie("S", ENTRY);
    section.fde(signals, 0x600, 0x9, &[]);
    damage(&section.0, &BaseAddresses::default());
}

#[test]
fn damage_to_a_real_section() {
    let own = OwnProcess::read();
    let vdso = own.modules.modules().iter().find(|module| module.path.to_string_lossy().contains("vdso"));
    let image = &vdso.expect("every x86_64 process has a vDSO").image;
    let (address, bytes) = image.section(".eh_frame").expect("the vDSO describes its functions");
    damage(&bytes[..bytes.len().min(512)], &BaseAddresses::default().set_eh_frame(address.0));
}

#[test]
fn a_program_of_nothing_but_advances_is_bounded() {
    let mut section = Section::default();
    let cie = section.cie("", ENTRY);
    section.fde(cie, 0, 15 << 20, &vec![0x41; 1 << 20]);
    let table = built(&section);
    check_shape(&table, section.0.len());
    assert_eq!(rows(&table), [(0, rsp(8)), (15 << 20, RowInfo::NONE)], "equal rows are one");
}

#[test]
fn every_address_of_libc_and_of_this_program_is_as_gimli_says() {
    let own = OwnProcess::read();
    for (name, stride) in [("libc.so", 1), ("vdso", 1), ("ld-linux", 1), ("", 16)] {
        let module =
            own.modules
                .modules()
                .iter()
                .find(|module| {
                    if name.is_empty() {
                        module.is_main
                    } else {
                        module.path.to_string_lossy().contains(name)
                    }
                })
                .unwrap_or_else(|| panic!("this process has no {name}"));
        let table = UnwindTable::build(&module.image).expect("sound").expect("functions");
        let looked = look_everywhere(&module.image, &table, stride);
        assert!(looked.functions >= 7 && looked.row_starts >= looked.functions, "{name}: {looked:?}");
        assert_eq!((table.stats.stray_fdes, table.stats.overlapping_fdes), (0, 0), "{name}");
        check_shape_of_large(&table);
    }
}

fn check_shape_of_large(table: &UnwindTable) {
    assert!(table.rows.is_sorted_by(|one, next| one.address() < next.address()));
    assert!(table.pages.windows(2).all(|pair| pair[1] - pair[0] <= MAX_ROWS_A_PAGE));
    assert_eq!(table.rows.first(), Some(&Row::new(0, RowInfo::NONE)));
}

/// glibc's trampoline, whose description begins at the byte before it.
#[test]
fn the_return_address_into_glibcs_signal_trampoline_is_a_signal_frame() {
    let own = OwnProcess::read();
    let libc = own.modules.modules().iter().find(|module| module.path.to_string_lossy().contains("libc.so"));
    let libc = libc.expect("this process has glibc");
    let section = FrameSection::of(&libc.image).expect("glibc describes its functions");
    // mov $15, %rax; syscall: what the kernel returns to (arch/x86, rt_sigreturn).
    let code = [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];
    let mut found = 0;
    for fde in section.fdes().filter_map(Result::ok).filter(|fde| fde.is_signal_trampoline()) {
        for entry in [fde.initial_address(), fde.initial_address() + 1] {
            if libc.image.bytes_at(crate::addr::VirtAddr(entry), code.len()) == Some(&code) {
                let pc = crate::addr::VirtAddr(entry).in_process(libc.bias).0;
                let around = own.surroundings();
                assert_eq!(around.row_at(pc - 1), Some(signal()), "as a return address");
                assert_eq!(around.row_at(pc), Some(signal()), "at its first instruction");
                assert_eq!(around.row_at(pc + 7), Some(signal()), "at the system call");
                found += 1;
            }
        }
    }
    assert_eq!(found, 1);
}
