//! The server's caches that keep an entry for each object that was touched, and give none back: they
//! grow with every new table, and end where all objects are known.

use std::collections::HashMap;

use super::{
    StackId,
    tree::{FunctionId, Tree},
};

/// What makes the entries of a cache, and what an entry is of.
struct Cache {
    /// The function that makes an entry, or the nearest one with a name in a stripped server.
    builders: &'static [&'static str],
    objects: &'static str,
}

/// `src/backend/utils/cache/relcache.c` and `catcache.c`.
const CACHES: &[Cache] = &[
    Cache { builders: &["RelationBuildDesc", "AllocateRelationDesc"], objects: "relation" },
    Cache { builders: &["CatalogCacheCreateEntry"], objects: "catalog row" },
];

/// The most chunks that one entry has on one call path: a table has at most 1,600 columns, but hardly
/// one in a hundred has as many as this.
const MOST_A_PATH: u64 = 64;

/// Tells what such a cache keeps from what is lost while one is built.
pub(super) struct ObjectCaches {
    /// The functions of each cache, and how many of its entries survive.
    caches: Vec<(Vec<FunctionId>, u64)>,
}

impl ObjectCaches {
    /// Counts the entries: each is one chunk that a builder allocates itself.
    pub(super) fn new(tree: &Tree<'_>, survivors: impl Fn(StackId) -> u64) -> Self {
        let mut caches: Vec<(Vec<FunctionId>, u64)> = CACHES.iter().map(|_| (Vec::new(), 0)).collect();
        let ids: HashMap<&str, FunctionId> = tree.named().collect();
        for ((functions, _), cache) in caches.iter_mut().zip(CACHES) {
            functions.extend(cache.builders.iter().filter_map(|name| ids.get(name)));
        }
        for stack in tree.stacks() {
            let Some(innermost) = tree.innermost(stack) else { continue };
            for (functions, entries) in &mut caches {
                if functions.contains(&innermost) {
                    // A builder allocates more than one thing for an entry: the most frequent path
                    // is counted, and not the sum.
                    *entries = (*entries).max(survivors(stack));
                }
            }
        }
        Self { caches }
    }

    /// What the entries are of, if all of these stacks build entries that survive as well.
    pub(super) fn explains(
        &self,
        tree: &Tree<'_>,
        stacks: &[StackId],
        survivors: impl Fn(StackId) -> u64,
    ) -> Option<&'static str> {
        let mut objects = None;
        for stack in stacks.iter().filter(|stack| survivors(**stack) > 0) {
            let cache = self.caches.iter().zip(CACHES).find(|((functions, _), _)| {
                functions.iter().any(|function| tree.position(*stack, *function).is_some())
            });
            let ((_, entries), cache) = cache?;
            if survivors(*stack) > entries.saturating_mul(MOST_A_PATH) {
                return None;
            }
            objects = objects.or(Some(cache.objects));
        }
        objects
    }
}
