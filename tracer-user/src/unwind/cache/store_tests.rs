//! Tests: a cache in a directory of its own, and what others may do to it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs::{self, FileTimes, Permissions},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{CacheError, TableCache};
use crate::{elf::Image, unwind::UnwindTable};

const LIBC: &str = "/lib/x86_64-linux-gnu/libc.so.6";

/// A cache, the image of libc, and where its table is kept.
struct Fixture {
    parent: tempfile::TempDir,
    cache: TableCache,
    image: Image,
    built: UnwindTable,
}

impl Fixture {
    fn new() -> Self {
        let parent = tempfile::tempdir().unwrap();
        let cache = TableCache::at(&parent.path().join("pgleak"), 1 << 20).unwrap();
        let image = Image::open(Path::new(LIBC), Path::new(LIBC)).unwrap();
        let built = UnwindTable::build(&image).unwrap().unwrap();
        Self { parent, cache, image, built }
    }

    fn file(&self) -> PathBuf {
        self.parent.path().join("pgleak").join(self.image.build_id().unwrap().to_string())
    }

    /// The table by way of the cache, which has to be that of the image whatever happened.
    fn ask(&self) {
        assert_eq!(self.cache.table(&self.image).unwrap().as_ref(), Some(&self.built));
    }

    fn inode(&self) -> u64 {
        fs::symlink_metadata(self.file()).unwrap().ino()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.parent.path().join("pgleak")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

#[test]
fn a_table_is_kept_once_and_taken_from_there() {
    let fixture = Fixture::new();
    fixture.ask();
    assert_eq!(fixture.names().len(), 1);
    let metadata = fs::metadata(fixture.file()).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o600);
    let (bytes, inode) = (fs::read(fixture.file()).unwrap(), fixture.inode());
    fixture.ask();
    assert_eq!(fixture.inode(), inode, "it was not written again");
    // What is in the file is what is given: a table that says so by its count of FDEs.
    let mut other = fixture.built.clone();
    other.stats.fdes = 42;
    let section = crate::elf::FrameSection::of(&fixture.image).unwrap().unwrap();
    let key = super::Key::of(&section, &crate::unwind::table::code_ranges(&fixture.image));
    fs::write(fixture.file(), super::encode(&other, &key)).unwrap();
    assert_eq!(fixture.cache.table(&fixture.image).unwrap(), Some(other));
    fs::write(fixture.file(), bytes).unwrap();
    fixture.ask();
}

#[test]
fn a_damaged_file_is_written_anew() {
    let fixture = Fixture::new();
    fixture.ask();
    let whole = fs::read(fixture.file()).unwrap();
    let mut flipped = whole.clone();
    flipped[5000] ^= 4;
    for damaged in [&whole[..whole.len() / 2], &flipped[..], b"", b"foreign"] {
        fs::write(fixture.file(), damaged).unwrap();
        fixture.ask();
        assert_eq!(fs::read(fixture.file()).unwrap(), whole);
    }
    assert_eq!(fixture.names().len(), 1);
}

#[test]
fn an_object_that_lies_about_its_build_id_gets_its_own_table() {
    let fixture = Fixture::new();
    fixture.ask();
    // libc with one byte of one CFA changed.
    let mut bytes = fixture.image.bytes().to_vec();
    let (_, section) = fixture.image.section(".eh_frame").unwrap();
    let at = section.as_ptr() as usize - fixture.image.bytes().as_ptr() as usize;
    let advance = section.windows(3).position(|bytes| bytes == [0x0e, 0x10, 0x83]).unwrap();
    bytes[at + advance + 1] = 0x18;
    let liar = Image::from_bytes(bytes, Path::new("liar")).unwrap();
    assert_eq!(liar.build_id(), fixture.image.build_id());
    let of_liar = UnwindTable::build(&liar).unwrap();
    assert_ne!(of_liar.as_ref(), Some(&fixture.built));
    assert_eq!(fixture.cache.table(&liar).unwrap(), of_liar);
    fixture.ask();
}

#[test]
fn a_file_that_others_can_write_or_a_link_is_replaced() {
    let fixture = Fixture::new();
    fixture.ask();
    let whole = fs::read(fixture.file()).unwrap();
    fs::set_permissions(fixture.file(), Permissions::from_mode(0o620)).unwrap();
    let inode = fixture.inode();
    fixture.ask();
    assert_ne!(fixture.inode(), inode);

    let elsewhere = fixture.parent.path().join("elsewhere");
    fs::write(&elsewhere, &whole).unwrap();
    fs::remove_file(fixture.file()).unwrap();
    symlink(&elsewhere, fixture.file()).unwrap();
    fixture.ask();
    assert!(fs::symlink_metadata(fixture.file()).unwrap().is_file());
    assert_eq!(fs::read(&elsewhere).unwrap(), whole, "the link was not followed");
}

#[test]
fn a_directory_that_others_can_write_or_a_link_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let open = parent.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(TableCache::at(&open, 1 << 20), Err(CacheError::NotOurs { .. })));
    fs::set_permissions(&open, Permissions::from_mode(0o755)).unwrap();
    assert!(TableCache::at(&open, 1 << 20).is_ok());
    let link = parent.path().join("link");
    symlink(&open, &link).unwrap();
    assert!(matches!(TableCache::at(&link, 1 << 20), Err(CacheError::Directory { .. })));
    let file = parent.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(TableCache::at(&file, 1 << 20), Err(CacheError::Directory { .. })));
}

#[test]
fn what_was_not_used_for_longest_goes_first() {
    let fixture = Fixture::new();
    let now = SystemTime::now();
    let dir = fixture.parent.path().join("pgleak");
    for (name, hours) in [("old", 3), ("older", 4), ("recent", 1)] {
        fs::write(dir.join(name), vec![0; 400 << 10]).unwrap();
        let file = fs::File::options().write(true).open(dir.join(name)).unwrap();
        let times = FileTimes::new().set_accessed(now - Duration::from_secs(hours * 3600));
        file.set_times(times).unwrap();
    }
    fixture.ask();
    let mut names = fixture.names();
    names.sort();
    let mut expected = vec![fixture.image.build_id().unwrap().to_string(), "old".into(), "recent".into()];
    expected.sort();
    // 3 × 400 KiB and libc's 182 KiB are more than a MiB; without the oldest they are not.
    assert_eq!(names, expected);
}

#[test]
fn a_hit_counts_as_use() {
    let fixture = Fixture::new();
    fixture.ask();
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let file = fs::File::options().write(true).open(fixture.file()).unwrap();
    file.set_times(FileTimes::new().set_accessed(long_ago)).unwrap();
    fixture.ask();
    assert!(fs::metadata(fixture.file()).unwrap().accessed().unwrap() > long_ago);
}

#[test]
fn without_a_build_id_nothing_is_kept() {
    let fixture = Fixture::new();
    let mut bytes = fixture.image.bytes().to_vec();
    let id = &fixture.image.build_id().unwrap().0;
    let at = bytes.windows(id.len()).position(|window| window == &id[..]).unwrap();
    // The note is of another type then.
    bytes[at - 8] = 0x7f;
    let nameless = Image::from_bytes(bytes, Path::new("nameless")).unwrap();
    assert_eq!(nameless.build_id(), None);
    assert_eq!(fixture.cache.table(&nameless).unwrap().as_ref(), Some(&fixture.built));
    assert!(fixture.names().is_empty());
}
