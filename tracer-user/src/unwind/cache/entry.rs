//! The bytes of a table in the cache: a header, then the rows. The page index is made anew.

use std::path::Path;

use tracer_ebpf::unwind::Row;

use super::Key;
use crate::unwind::{TableError, TableStats, UnwindTable};

/// Goes up with every change of what a table says for the same section, or of the layout below.
/// A test compares a table of every kind of row with the digest that this version has.
pub(super) const VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"pgl.rows";

/// | bytes | what |
/// |---|---|
/// | 0–7 | magic |
/// | 8–11 | [`VERSION`] |
/// | 12–15 | CRC-32 of everything after it |
/// | 16–47 | [`Key`] |
/// | 48–59 | FDEs, unsupported rows, broken FDEs: 4 bytes each |
/// | 60–75 | bytes of gaps, bytes that were not read: 8 bytes each |
/// | 76–79 | number of rows |
///
/// then the rows, 8 bytes each. All numbers are little-endian.
const HEADER_BYTES: usize = 80;
const CRC_AT: usize = 12;

/// Why the bytes are not the table that is wanted.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// Not a table, or one of another version.
    #[error("no table of version {VERSION}")]
    Foreign,
    /// Cut off, or changed.
    #[error("damaged")]
    Damaged,
    /// A table of something else.
    #[error("made from another section than this build ID has now")]
    OtherSection,
    /// Rows that cannot be indexed.
    #[error(transparent)]
    Rows(#[from] TableError),
}

/// The bytes of a table.
pub fn encode(table: &UnwindTable, key: &Key) -> Vec<u8> {
    let stats = &table.stats;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + size_of_val(&table.rows[..]));
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(key.0);
    for number in [stats.fdes, stats.unsupported_rows, stats.broken_fdes] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(stats.gap_bytes.to_le_bytes());
    bytes.extend(stats.unread_bytes.to_le_bytes());
    bytes.extend((table.rows.len() as u32).to_le_bytes());
    for row in &table.rows {
        bytes.extend(row.0.to_le_bytes());
    }
    let crc = crc32fast::hash(&bytes[CRC_AT + 4..]);
    bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The table in `bytes`, if it is the one of `key`; `path` is for messages.
///
/// Whatever the bytes are, the table is one that the kernel can search, and takes no more memory
/// than the bytes and the index of 4 GiB.
///
/// # Errors
/// Why it is not that table.
pub fn decode(bytes: &[u8], key: &Key, path: &Path) -> Result<UnwindTable, EntryError> {
    let mut fields = Fields(bytes);
    let is_known = fields.take() == Some(MAGIC) && fields.u32() == Some(VERSION);
    if !is_known {
        return Err(EntryError::Foreign);
    }
    let crc = fields.u32().ok_or(EntryError::Damaged)?;
    if crc != crc32fast::hash(fields.0) {
        return Err(EntryError::Damaged);
    }
    if fields.take() != Some(&key.0) {
        return Err(EntryError::OtherSection);
    }
    let (stats, rows) = stats_and_rows(&mut fields).ok_or(EntryError::Damaged)?;
    Ok(UnwindTable::of_rows(rows, stats, path)?)
}

/// `None` unless the rows are sorted, begin at address 0, and are all that is left.
fn stats_and_rows(fields: &mut Fields<'_>) -> Option<(TableStats, Vec<Row>)> {
    let (fdes, unsupported_rows, broken_fdes) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let (gap_bytes, unread_bytes) = (fields.u64()?, fields.u64()?);
    let count = fields.u32()?;
    let (words, rest) = fields.0.as_chunks::<8>();
    let rows: Vec<Row> = words.iter().map(|word| Row(u64::from_le_bytes(*word))).collect();
    let is_sorted = rows.windows(2).all(|pair| pair[0].address() < pair[1].address());
    let begins = rows.first().is_some_and(|row| row.address() == 0);
    let stats = TableStats { fdes, rows: count, unsupported_rows, broken_fdes, gap_bytes, unread_bytes };
    (rest.is_empty() && rows.len() == count as usize && begins && is_sorted).then_some((stats, rows))
}

/// What was not read yet.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(field)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(|bytes| u32::from_le_bytes(*bytes))
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(|bytes| u64::from_le_bytes(*bytes))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use std::path::Path;

    use tracer_ebpf::unwind::{Row, RowKind};

    use super::{CRC_AT, EntryError, HEADER_BYTES, VERSION, decode, encode};
    use crate::unwind::{
        UnwindTable,
        cache::Key,
        fixture::{every_rule, row, table_of},
    };

    const KEY: Key = Key([7; 32]);

    fn read(bytes: &[u8]) -> Result<UnwindTable, EntryError> {
        decode(bytes, &KEY, Path::new("cached"))
    }

    fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
        let crc = crc32fast::hash(&bytes[CRC_AT + 4..]);
        bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn what_was_written_is_read() {
        let table = every_rule();
        assert_eq!(read(&encode(&table, &KEY)).unwrap(), table);
    }

    #[test]
    fn every_byte_that_changes_or_lacks_is_noticed() {
        let whole = encode(&every_rule(), &KEY);
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            assert!(read(&changed).is_err(), "byte {at}");
            assert!(read(&whole[..at]).is_err(), "{at} bytes");
        }
        assert!(read(&[&whole[..], &[0; 8]].concat()).is_err());
    }

    #[test]
    fn why_it_is_not_the_table_that_is_wanted() {
        let table = table_of(&[row(0x1000, RowKind::RspOffset, 8), row(0x2000, RowKind::None, 0)]).unwrap();
        let whole = encode(&table, &KEY);
        assert!(matches!(read(b""), Err(EntryError::Foreign)));
        let mut older = whole.clone();
        older[8] = VERSION as u8 - 1;
        assert!(matches!(read(&older), Err(EntryError::Foreign)));
        assert!(matches!(read(&whole[..HEADER_BYTES]), Err(EntryError::Damaged)));
        let other = decode(&whole, &Key([8; 32]), Path::new("cached"));
        assert!(matches!(other, Err(EntryError::OtherSection)));
    }

    /// Nobody who can write such a file needs it, but the kernel must not search at random.
    #[test]
    fn rows_that_no_table_has_are_refused_though_the_checksum_fits() {
        let crowded: Vec<Row> = (0x400..0x700).map(|at| Row(at | 1 << 32)).collect();
        for (what, rows) in [
            ("no row", vec![]),
            ("the first one not at 0", vec![Row(1)]),
            ("falling addresses", vec![Row(0), Row(0x20), Row(0x10)]),
            ("equal addresses", vec![Row(0), Row(0x20), Row(0x20)]),
            ("a page that is too full", [&[Row(0)], &crowded[..]].concat()),
        ] {
            let mut bytes = encode(&every_rule(), &KEY);
            bytes.truncate(HEADER_BYTES);
            bytes[HEADER_BYTES - 4..].copy_from_slice(&(rows.len() as u32).to_le_bytes());
            bytes.extend(rows.iter().flat_map(|row| row.0.to_le_bytes()));
            assert!(read(&sealed(bytes)).is_err(), "{what}");
        }
    }

    #[test]
    fn tables_of_this_version_are_like_this() {
        let digest = crc32fast::hash(&encode(&every_rule(), &KEY));
        assert_eq!(
            (VERSION, digest),
            (1, 2_920_978_826),
            "tables are not what they were: raise VERSION, so that no table in a cache is taken for one \
             of this pgleak, and write the new digest here"
        );
    }
}
