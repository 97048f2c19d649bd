//! The server's caches that keep an entry for each object that was touched, and give none back: they
//! grow with every new table, and end where all objects are known.

use std::collections::HashMap;

use super::{
    StackId,
    tree::{FunctionId, Tree},
};

/// A cache of objects (`src/backend/utils/cache/relcache.c`, `catcache.c`).
struct Cache {
    /// Functions that make its entries.
    builders: &'static [&'static str],
    /// Functions that call these, and that a stripped server still has names of.
    gates: &'static [&'static str],
    objects: &'static str,
}

/// Relations first: of these other parts of the server keep something as well.
const CACHES: [Cache; 2] = [
    Cache {
        builders: &["RelationBuildDesc", "AllocateRelationDesc"],
        gates: &["RelationIdGetRelation"],
        objects: "relation",
    },
    Cache {
        builders: &["CatalogCacheCreateEntry"],
        gates: &[
            "SearchCatCache",
            "SearchCatCache1",
            "SearchCatCache2",
            "SearchCatCache3",
            "SearchCatCache4",
            "SearchCatCacheInternal",
            "SearchCatCacheList",
        ],
        objects: "catalog row",
    },
];

/// Contexts in which other parts of the server keep something for each relation:
/// open files, statistics, indexes, rules, partitions, policies.
const KEPT_WITH_OBJECTS: [&str; 13] = [
    "CacheMemoryContext",
    "index info",
    "relation rules",
    "partition descriptor",
    "partition key",
    "row security descriptor",
    "publication description",
    "dynahash smgr relation table",
    "dynahash Relcache by OID",
    "MdSmgr",
    "PgStat Shared Ref",
    "PgStat Shared Ref Hash",
    "PgStat Pending",
];

/// The most chunks that one entry has on one call path: a table has at most 1,600 columns, but hardly
/// one in a hundred has as many as this.
const MOST_A_PATH: u64 = 64;
/// The most chunks that is kept elsewhere for one object on one call path.
const MOST_BESIDE: u64 = 2;

/// Tells what such caches keep from what is lost while one is built.
pub(super) struct ObjectCaches {
    caches: Vec<Known>,
}

struct Known {
    functions: Vec<FunctionId>,
    /// How many entries survive.
    entries: u64,
    objects: &'static str,
}

impl Known {
    fn is_on(&self, tree: &Tree<'_>, stack: StackId) -> bool {
        self.functions.iter().any(|function| tree.position(stack, *function).is_some())
    }
}

impl ObjectCaches {
    /// Counts the entries: each is a chunk that a builder allocates itself.
    pub(super) fn new(tree: &Tree<'_>, survivors: impl Fn(StackId) -> u64) -> Self {
        let ids: HashMap<&str, FunctionId> = tree.named().collect();
        let found =
            |names: &[&str]| names.iter().filter_map(|name| ids.get(name).copied()).collect::<Vec<_>>();
        let caches = CACHES.iter().map(|cache| {
            let (builders, gates) = (found(cache.builders), found(cache.gates));
            let makes_entries = |stack: &StackId| {
                tree.innermost(*stack).is_some_and(|innermost| {
                    builders.contains(&innermost)
                        || tree.function(innermost).nameless
                            && tree.caller_of_nameless(*stack).is_some_and(|id| gates.contains(&id))
                })
            };
            // A builder allocates more than one thing for an entry: the most frequent path counts, and
            // not the sum.
            let entries = tree.stacks().filter(makes_entries).map(&survivors).max().unwrap_or(0);
            Known { functions: [builders, gates].concat(), entries, objects: cache.objects }
        });
        Self { caches: caches.collect() }
    }

    /// Whether a stack builds an entry.
    pub(super) fn has(&self, tree: &Tree<'_>, stack: StackId) -> bool {
        self.caches.iter().any(|cache| cache.is_on(tree, stack))
    }

    /// What the entries are of, if all of these stacks build entries that survive as well, or keep
    /// something for each in `contexts`.
    pub(super) fn explains(
        &self,
        tree: &Tree<'_>,
        stacks: &[StackId],
        contexts: &[String],
        survivors: impl Fn(StackId) -> u64,
    ) -> Option<&'static str> {
        // Rows of catalogs are read and kept for everything, a leaking statement too.
        let relations = self.caches.first()?;
        let are_kept_beside = contexts.iter().all(|name| KEPT_WITH_OBJECTS.contains(&name.as_str()));
        let mut objects = None;
        for stack in stacks.iter().filter(|stack| survivors(**stack) > 0) {
            let cache = self.caches.iter().find(|cache| cache.is_on(tree, *stack));
            let (limit, of) = match cache {
                Some(cache) => (cache.entries.saturating_mul(MOST_A_PATH), cache.objects),
                None if are_kept_beside => (relations.entries.saturating_mul(MOST_BESIDE), relations.objects),
                None => return None,
            };
            if survivors(*stack) > limit {
                return None;
            }
            objects = objects.or(Some(of));
        }
        objects
    }
}
