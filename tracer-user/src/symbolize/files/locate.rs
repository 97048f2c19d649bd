//! Where separate debug files lie, and opening them only if they belong to what they are for.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Component, Path, PathBuf},
};

use object::Object as _;

use super::FileNote;
use crate::{addr::BuildId, elf::Image};

/// `usr/lib/debug/.build-id/xx/yyyy.debug`; `None` for an ID of one byte.
pub(in crate::symbolize) fn name_below_root(id: &BuildId) -> Option<PathBuf> {
    let text = id.to_string();
    let (first, rest) = text.split_at_checked(2).filter(|(_, rest)| !rest.is_empty())?;
    Some(Path::new("usr/lib/debug/.build-id").join(first).join(format!("{rest}.debug")))
}

/// A path as a process has it, below the root directory that it has.
pub(super) fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// What `.gnu_debuglink` says: a file name, and the CRC-32 of that file.
pub(super) fn debug_link(image: &Image) -> Option<(&OsStr, u32)> {
    let elf = image.elf().ok()?;
    let (name, crc) = elf.gnu_debuglink().ok()??;
    let name = OsStr::from_bytes(name);
    // Only a plain name: the directories are this side's choice.
    let mut parts = Path::new(name).components();
    let plain = matches!(parts.next(), Some(Component::Normal(part)) if part == name);
    (plain && parts.next().is_none()).then_some((name, crc))
}

/// What `.gnu_debugaltlink` says: a path, and the build ID of the file there.
pub(super) fn supplementary_link(image: &Image) -> Option<(&Path, BuildId)> {
    let elf = image.elf().ok()?;
    let (name, id) = elf.gnu_debugaltlink().ok()??;
    Some((Path::new(OsStr::from_bytes(name)), BuildId(id.to_owned())))
}

/// The three places of a debug link, below a root directory, as gdb looks at them.
pub(super) fn places_of_link(root: &Path, object: &Path, name: &OsStr) -> Vec<PathBuf> {
    let Some(directory) = object.parent().filter(|directory| directory.is_absolute()) else {
        return Vec::new();
    };
    let beside = below(root, directory);
    let central = below(&root.join("usr/lib/debug"), directory);
    vec![beside.join(name), beside.join(".debug").join(name), central.join(name)]
}

/// One search: files that are reached by two paths are looked at once.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    seen: HashSet<(u64, u64)>,
}

impl Candidates {
    /// Opens a file if it is there, is a regular one, and was not seen before.
    pub(super) fn open(&mut self, path: &Path, notes: &mut Vec<FileNote>) -> Option<Image> {
        // A FIFO below the root of a container would block pgleak for good.
        let file = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
        if !self.seen.insert((file.dev(), file.ino())) {
            return None;
        }
        Image::open(path, path).map_err(|error| notes.push(error.into())).ok()
    }

    /// The same, if it has the build ID.
    pub(super) fn open_build(
        &mut self,
        path: &Path,
        id: &BuildId,
        notes: &mut Vec<FileNote>,
    ) -> Option<Image> {
        let image = self.open(path, notes)?;
        if image.build_id() == Some(id) {
            return Some(image);
        }
        let found = image.build_id().cloned();
        notes.push(FileNote::OtherBuild { path: path.to_owned(), wanted: id.clone(), found });
        None
    }

    /// The same, if it has the build ID, or the CRC where one of the files has none.
    pub(super) fn open_linked(
        &mut self,
        path: &Path,
        crc: u32,
        id: Option<&BuildId>,
        notes: &mut Vec<FileNote>,
    ) -> Option<Image> {
        let image = self.open(path, notes)?;
        if let (Some(wanted), Some(found)) = (id, image.build_id())
            && wanted != found
        {
            let (wanted, found) = (wanted.clone(), Some(found.clone()));
            notes.push(FileNote::OtherBuild { path: path.to_owned(), wanted, found });
            return None;
        }
        // The CRC is of the whole file, which may be gigabytes: equal build IDs say the same without reading it.
        if id.is_some() && image.build_id().is_some() {
            return Some(image);
        }
        let found = crc32fast::hash(image.bytes());
        if found != crc {
            notes.push(FileNote::OtherCrc { path: path.to_owned(), wanted: crc, found });
            return None;
        }
        Some(image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_id_is_a_path() {
        let name = |id: &[u8]| name_below_root(&BuildId(id.to_vec()));
        assert_eq!(name(&[0xab, 0xcd]), Some("usr/lib/debug/.build-id/ab/cd.debug".into()));
        assert_eq!(name(&[0xab]), None);
    }

    #[test]
    fn a_link_has_three_places() {
        let places =
            places_of_link(Path::new("/proc/7/root"), Path::new("/usr/bin/x"), OsStr::new("x.debug"));
        let want = [
            "/proc/7/root/usr/bin/x.debug",
            "/proc/7/root/usr/bin/.debug/x.debug",
            "/proc/7/root/usr/lib/debug/usr/bin/x.debug",
        ];
        assert_eq!(places, want.map(PathBuf::from));
        assert!(places_of_link(Path::new("/"), Path::new("[vdso]"), OsStr::new("x")).is_empty());
    }
}
