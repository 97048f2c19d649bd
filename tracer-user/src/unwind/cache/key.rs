//! What a table depends on, in 32 bytes.

use std::ops::Range;

use sha2::{Digest as _, Sha256};

use super::entry::VERSION;
use crate::elf::FrameSection;

/// A digest of everything that a table is made of: the section, what its pointers are relative
/// to, the code of the file, and the program that makes it.
///
/// The build ID only names the file in the cache. An object that lies about its own finds
/// another object's table there, and this does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(pub [u8; 32]);

impl Key {
    /// The key of the table of a section in a file with this code.
    pub fn of(section: &FrameSection<'_>, code: &[Range<u64>]) -> Self {
        let mut digest = Sha256::new();
        digest.update(VERSION.to_le_bytes());
        // Rows may mean more, or be fewer, in the next pgleak.
        digest.update(env!("CARGO_PKG_VERSION"));
        digest.update([0, u8::from(section.ends_at_zero)]);
        let bases = &section.bases;
        for base in [&bases.eh_frame, &bases.eh_frame_hdr] {
            for address in [base.section, base.text, base.data] {
                digest.update([u8::from(address.is_some())]);
                digest.update(address.unwrap_or(0).to_le_bytes());
            }
        }
        digest.update((code.len() as u64).to_le_bytes());
        for range in code {
            digest.update(range.start.to_le_bytes());
            digest.update(range.end.to_le_bytes());
        }
        digest.update((section.bytes.len() as u64).to_le_bytes());
        digest.update(section.bytes);
        Self(digest.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use gimli::BaseAddresses;

    use super::Key;
    use crate::elf::FrameSection;

    #[test]
    fn everything_that_a_table_depends_on_changes_its_key() {
        let section = |bytes, address, ends_at_zero| FrameSection {
            bytes,
            bases: BaseAddresses::default().set_eh_frame(address),
            ends_at_zero,
        };
        let (code, longer) = (0x1000..0x2000, 0x1000..0x2001);
        let code = std::slice::from_ref(&code);
        let whole = Key::of(&section(&[1, 2, 3], 0x4000, false), code);
        assert_eq!(whole, Key::of(&section(&[1, 2, 3], 0x4000, false), code));
        let mut text = section(&[1, 2, 3], 0x4000, false);
        text.bases = text.bases.set_text(0x1000);
        for (what, other) in [
            ("a byte", Key::of(&section(&[1, 2, 4], 0x4000, false), code)),
            ("its length", Key::of(&section(&[1, 2], 0x4000, false), code)),
            ("its address", Key::of(&section(&[1, 2, 3], 0x4008, false), code)),
            ("how it ends", Key::of(&section(&[1, 2, 3], 0x4000, true), code)),
            ("another base", Key::of(&text, code)),
            ("the code", Key::of(&section(&[1, 2, 3], 0x4000, false), std::slice::from_ref(&longer))),
            ("more code", Key::of(&section(&[1, 2, 3], 0x4000, false), &[0x1000..0x1800, 0x1800..0x2000])),
        ] {
            assert_ne!(whole, other, "{what}");
        }
    }
}
