//! The tables of several objects at once.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use super::{TableError, UnwindTable, cache::TableCache};
use crate::elf::Image;

/// Threads that build. With two, everything else is done by the time that the largest object of
/// a PostgreSQL backend (libLLVM, or the server itself) is, and a busy host keeps its other
/// processors.
const WORKERS: usize = 2;

/// The tables of `images`, in their order: from the cache, if there is one, or built.
pub fn build_tables(
    images: &[&Image],
    cache: Option<&TableCache>,
) -> Vec<Result<Option<UnwindTable>, TableError>> {
    // The largest ones first, so that none is left for one worker alone at the end.
    let mut order: Vec<usize> = (0..images.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(images[*index].bytes().len()));
    let built: Vec<OnceLock<_>> = images.iter().map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(index) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            built[*index].get_or_init(|| match cache {
                Some(cache) => cache.table(images[*index]),
                None => UnwindTable::build(images[*index]),
            });
        }
    };
    thread::scope(|scope| {
        for _ in 1..WORKERS.min(images.len()) {
            // Without another thread, this one does all of it.
            let _ = thread::Builder::new().name("tables".to_owned()).spawn_scoped(scope, work);
        }
        work();
    });
    built.into_iter().map(|table| table.into_inner().expect("every index was taken by a worker")).collect()
}

#[cfg(test)]
mod tests {
    use super::{TableCache, UnwindTable, build_tables};
    use crate::{elf::Image, target::LoadedModules};

    #[test]
    fn tables_are_those_of_one_by_one_and_in_order() {
        let modules = LoadedModules::read(std::process::id()).expect("own mappings");
        let images: Vec<&Image> = modules.modules().iter().map(|module| &*module.image).collect();
        assert!(images.len() >= 3);
        let dir = tempfile::tempdir().expect("a directory");
        let cache = TableCache::at(dir.path(), 1 << 30).expect("a cache");
        // Twice with the cache: when it is empty, and when it is not.
        for (count, cache) in [
            (0, None),
            (1, None),
            (2, None),
            (images.len(), None),
            (images.len(), Some(&cache)),
            (images.len(), Some(&cache)),
        ] {
            let built = build_tables(&images[..count], cache);
            assert_eq!(built.len(), count);
            for (image, table) in images.iter().zip(built) {
                let alone = UnwindTable::build(image).expect("a sound table");
                assert!(
                    alone.is_some() && table.expect("a sound table") == alone,
                    "{}",
                    image.path().display()
                );
            }
        }
    }
}
