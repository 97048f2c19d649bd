//! Tests: sections that are damaged, or made to do harm.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use tracer_ebpf::unwind::{Row, RowInfo, RowKind};

use super::fixture::{AT_CALL, CODE, Frame, SIGNAL_FRAME, row};
use super::{TableError, TableStats, UnwindTable};

/// Adds something, and gives the offset that an FDE is to take for that of its CIE.
type MakeCie = fn(&mut Frame) -> usize;

fn good(frame: &mut Frame, start: u64) {
    let cie = frame.cie("", &AT_CALL);
    frame.fde(cie, start, 0x100, &[0x44, 0x0e, 16]);
}

/// The rows of `good` at 0x2000.
fn has_good(table: &UnwindTable) -> bool {
    let good = [row(0x2000, RowKind::RspOffset, 8), row(0x2004, RowKind::RspOffset, 16)];
    table.rows.windows(2).any(|pair| pair == good)
}

/// Rows of a section with `damage` before a function that is whole.
fn around(damage: impl FnOnce(&mut Frame)) -> UnwindTable {
    let mut frame = Frame::default();
    damage(&mut frame);
    good(&mut frame, 0x2000);
    let table = frame.table().unwrap().unwrap();
    assert!(has_good(&table), "{table:?}");
    table
}

fn unsupported_at(table: &UnwindTable, address: u32) -> bool {
    table.rows.contains(&Row::new(address, RowInfo::UNSUPPORTED))
}

#[test]
fn rows_that_hold_for_no_byte_are_left_out_and_equal_ones_merged() {
    let mut frame = Frame::default();
    let cie = frame.cie("", &AT_CALL);
    // To 16, by nothing, to 24; on by 4: the same again; on by 4: back to 8; beyond the end.
    frame.fde(cie, 0x1000, 0x20, &[0x0e, 16, 0x40, 0x0e, 24, 0x44, 0x0e, 24, 0x44, 0x0e, 8, 0x58, 0x0e, 32]);
    let table = frame.table().unwrap().unwrap();
    let expected = [
        row(0, RowKind::None, 0),
        row(0x1000, RowKind::RspOffset, 24),
        row(0x1008, RowKind::RspOffset, 8),
        row(0x1020, RowKind::None, 0),
    ];
    assert_eq!(table.rows, expected);
    assert_eq!(table.stats, TableStats { fdes: 1, rows: 4, ..TableStats::default() });
}

#[test]
fn an_fde_with_broken_instructions_is_one_unsupported_row() {
    let cases: &[(&str, &[u8])] = &[
        ("cut", &[0x44, 0x0e, 16, 0x44, 0x0c, 7]),
        ("unknown instruction", &[0x44, 0x3f]),
        ("restore without remember", &[0x44, 0x0b]),
        ("set_loc backwards", &[0x44, 0x01, 0, 0x10, 0, 0, 0, 0, 0, 0]),
        ("offset of a CFA that is an expression", &[0x0f, 2, 0x77, 0, 0x0e, 8]),
        ("expression longer than the FDE", &[0x44, 0x0f, 0x7f, 0x77]),
        ("remembers without end", &[0x0a; 4000]),
    ];
    for (what, instructions) in cases {
        let table = around(|frame| {
            let cie = frame.cie("", &AT_CALL);
            frame.fde(cie, 0x1000, 0x100, instructions);
        });
        assert!(unsupported_at(&table, 0x1000), "{what}");
        let stats = TableStats {
            fdes: 2,
            rows: 6,
            unsupported_rows: 1,
            broken_fdes: 1,
            gap_bytes: 0xf00,
            ..TableStats::default()
        };
        assert_eq!(table.stats, stats, "{what}");
    }
}

#[test]
fn a_cie_that_cannot_be_used_breaks_its_own_fdes_only() {
    let cases: &[(&str, MakeCie)] = &[
        ("unknown augmentation", |frame| frame.cie("zQ", &AT_CALL)),
        ("unknown version", |frame| frame.record(&[0, 0, 0, 0, 9, 0, 1, 0x78, 16])),
        ("empty", |frame| frame.record(&[0, 0, 0, 0])),
        ("name without an end", |frame| frame.record(&[0, 0, 0, 0, 1, b'z', b'R'])),
        ("no record at all", |_| 1),
        ("the FDE itself", |frame| frame.bytes.len()),
        ("an FDE that names the FDE before", |frame| {
            let at = frame.bytes.len();
            frame.fde(at, 0x1000, 1, &[]);
            let next = frame.bytes.len();
            frame.fde(at, 0x1000, 1, &[]);
            next
        }),
        ("after the section", |frame| frame.bytes.len() + 0x10_0000),
        ("before the section", |frame| frame.bytes.len().wrapping_sub(0x10_0000)),
    ];
    for (what, cie) in cases {
        let table = around(|frame| {
            let cie = cie(frame);
            frame.fde(cie, 0x1000, 0x100, &[]);
        });
        assert_eq!(table.stats.broken_fdes, table.stats.fdes - 1, "{what}");
    }
}

#[test]
fn a_cie_that_is_too_long_or_has_another_return_column_makes_rows_unsupported() {
    let table = around(|frame| {
        let cie = frame.cie("", &[0; 300]);
        frame.fde(cie, 0x1000, 0x100, &[]);
    });
    assert!(unsupported_at(&table, 0x1000));
    let table = around(|frame| {
        let cie = frame.record(&[0, 0, 0, 0, 1, 0, 1, 0x78, 15, 0x0c, 7, 8, 0x90, 1]);
        frame.fde(cie, 0x1000, 0x100, &[]);
    });
    assert!(unsupported_at(&table, 0x1000));
}

#[test]
fn code_that_the_file_does_not_have_is_not_believed() {
    for (start, len) in [
        (0, 0x100),
        (CODE.end, 0x100),
        (CODE.end - 1, 2),
        (0x1000, u64::MAX),
        (u64::MAX, 1),
        (0xffff_0000, 0x100),
        (0x7fff_0000_0000, 0x100),
    ] {
        let table = around(|frame| {
            let cie = frame.cie("", &AT_CALL);
            frame.fde(cie, start, len, &[]);
        });
        assert_eq!((table.stats.broken_fdes, table.rows.len()), (1, 4), "{start:#x} {len:#x}");
        assert!(table.pages.len() < 16);
    }
}

#[test]
fn a_length_that_leads_out_of_the_section_ends_it_and_is_counted() {
    for (damage, unread) in [
        (&[0xf0, 0, 0, 0, 1, 2][..], 6),
        (&[0xf0, 0xff, 0xff, 0xff, 1, 2], 6),
        (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], 12),
        (&[0xff, 0xff, 0xff, 0xff, 1, 0], 6),
        (&[7, 0], 2),
    ] {
        let mut frame = Frame::default();
        good(&mut frame, 0x2000);
        frame.bytes.extend(damage);
        let table = frame.table().unwrap().unwrap();
        assert!(has_good(&table));
        assert_eq!(table.stats.unread_bytes, unread, "{damage:x?}");
    }
}

#[test]
fn records_too_short_for_their_kind_and_terminators_in_between_are_passed_over() {
    let table = around(|frame| {
        frame.record(&[1]);
        frame.record(&[]);
        frame.record(&[1, 2, 3]);
        frame.record(&[]);
    });
    assert_eq!((table.stats.fdes, table.stats.broken_fdes), (3, 2));
}

#[test]
fn a_section_without_fdes_has_no_table() {
    assert!(Frame::default().table().unwrap().is_none());
    let mut frame = Frame::default();
    let cie = frame.cie("", &AT_CALL);
    assert!(frame.table().unwrap().is_none());
    // A function of no length is none.
    frame.fde(cie, 0x1000, 0, &[]);
    assert!(frame.table().unwrap().is_none());
}

#[test]
fn code_at_4_gib_is_refused() {
    let mut frame = Frame::default();
    good(&mut frame, 0xffff_ff00);
    let everywhere = 0x1000..0x2_0000_0000;
    let refused = frame.table_over(everywhere.clone());
    assert!(
        matches!(refused, Err(TableError::HighAddress { end, .. }) if end.0 == 0x1_0000_0000),
        "{refused:?}"
    );
    let mut frame = Frame::default();
    good(&mut frame, 0xffff_feff);
    let table = frame.table_over(everywhere).unwrap().unwrap();
    assert_eq!(table.rows.last(), Some(&row(u32::MAX, RowKind::None, 0)));
    assert_eq!(table.pages.len(), (1 << 22) + 1);
}

#[test]
fn the_s_augmentation_alone_makes_no_signal_frame() {
    let mut frame = Frame::default();
    let cie = frame.cie("S", &AT_CALL);
    frame.fde(cie, 0x1000, 0x10, &[]);
    frame.fde(cie, 0x2000, 0x10, &SIGNAL_FRAME);
    let table = frame.table().unwrap().unwrap();
    assert!(table.rows.contains(&row(0x1000, RowKind::RspOffset, 8)));
    assert!(table.rows.contains(&row(0x1fff, RowKind::SignalFrame, 0)));
}

/// Xorshift: the same damage on every run.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn any_damage_gives_an_error_or_a_bounded_table() {
    let mut whole = Frame::default();
    for (at, augmentation) in ["", "S", "zR", "zPLR"].into_iter().enumerate() {
        let mut instructions = vec![4, 0x1b, 0, 0, 0, 0, 0];
        instructions.truncate(7 * usize::from(augmentation.starts_with('z')));
        instructions.extend(AT_CALL);
        let cie = whole.cie(augmentation, &instructions);
        for function in 0..20 {
            let start = 0x1000 + (at as u64 * 20 + function) * 0x100;
            whole.fde(cie, start, 0xf0, &[0x44, 0x0a, 0x0e, 16, 0x86, 2, 0x44, 0x0c, 6, 16, 0x44, 0x0b]);
            whole.fde(cie, start + 0xf0, 0x10, &SIGNAL_FRAME);
        }
    }
    let (mut state, mut tables, mut broken) = (0x9e37_79b9_7f4a_7c15, 0, 0);
    for _ in 0..3000 {
        let mut bytes = whole.bytes.clone();
        for _ in 0..1 + random(&mut state) % 8 {
            let at = random(&mut state) as usize % bytes.len();
            bytes[at] = random(&mut state) as u8;
        }
        bytes.truncate(bytes.len() - random(&mut state) as usize % 64);
        let len = bytes.len();
        let Ok(Some(table)) = (Frame { bytes }).table() else { continue };
        tables += 1;
        broken += table.stats.broken_fdes;
        assert!(table.rows.len() < len && table.pages.len() as u64 <= (CODE.end >> 10) + 2);
        assert!(table.rows.windows(2).all(|pair| pair[0].address() < pair[1].address()));
        assert!(table.rows.windows(2).all(|pair| pair[0].info() != pair[1].info()));
    }
    assert!(tables > 2900 && broken > 3000, "{tables} tables, {broken} broken FDEs");
}
