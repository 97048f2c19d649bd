//! Which names are labels of their own in the metrics: a few of each server, and always the same ones.

use std::collections::{BTreeMap, HashSet};

use super::view::ProcessView;

/// Contexts with a name of their own in each server.
const MOST_CONTEXTS: usize = 20;

/// Databases with a name of their own in each server.
const MOST_DATABASES: usize = 50;

/// Kinds of processes with a name of their own in each server: extensions name theirs as they like.
const MOST_KINDS: usize = 30;

/// What all others are called.
pub(super) const OTHERS: &str = "(others)";

/// All names that are labels.
#[derive(Clone, Debug, Default)]
pub(super) struct Labels {
    /// Of contexts.
    pub contexts: Names,
    /// Of databases.
    pub databases: Names,
    /// Of kinds of processes.
    pub kinds: Names,
}

/// Names with their servers.
#[derive(Clone, Debug, Default)]
pub(super) struct Names(HashSet<(String, String)>);

/// Bytes by server and name.
type Sums<'a> = BTreeMap<&'a str, BTreeMap<&'a str, u64>>;

impl Labels {
    /// Follows what there is now.
    pub(super) fn follow(&mut self, processes: &[ProcessView]) {
        let (mut contexts, mut databases, mut kinds) = (Sums::new(), Sums::new(), Sums::new());
        for process in processes {
            let server = &*process.server;
            *databases.entry(server).or_default().entry(database_of(process)).or_default() += process.anon;
            *kinds.entry(server).or_default().entry(&*process.kind).or_default() += process.anon;
            let of_server = contexts.entry(server).or_default();
            for context in &process.contexts {
                *of_server.entry(&*context.label).or_default() += context.bytes;
            }
        }
        self.contexts.follow(contexts, MOST_CONTEXTS);
        self.databases.follow(databases, MOST_DATABASES);
        self.kinds.follow(kinds, MOST_KINDS);
    }
}

impl Names {
    /// What has a name keeps it until it is gone or another has twice as much, so that series do not come and go with each look;
    /// those with most memory get what is free.
    fn follow(&mut self, sums: Sums<'_>, most: usize) {
        let is_there =
            |server: &str, name: &str| sums.get(server).is_some_and(|names| names.contains_key(name));
        self.0.retain(|(server, name)| is_there(server, name));
        for (server, names) in sums {
            let mut free = most.saturating_sub(self.0.iter().filter(|(of, _)| of == server).count());
            let mut sorted: Vec<(&str, u64)> = names.into_iter().collect();
            sorted.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
            // One that is really called that is among them.
            sorted.retain(|(name, _)| *name != OTHERS);
            let is_named =
                |(name, _): &(&str, u64)| self.0.contains(&(server.to_owned(), (*name).to_owned()));
            let (mut named, unnamed): (Vec<_>, Vec<_>) = sorted.into_iter().partition(is_named);
            for (name, bytes) in unnamed {
                if free > 0 {
                    free -= 1;
                } else {
                    let Some((least, held)) = named.pop() else { break };
                    if bytes < held.saturating_mul(2) || bytes == 0 {
                        break;
                    }
                    self.0.remove(&(server.to_owned(), least.to_owned()));
                }
                self.0.insert((server.to_owned(), name.to_owned()));
            }
        }
    }

    /// What something is called.
    pub(super) fn name<'a>(&self, server: &str, name: &'a str) -> &'a str {
        // Few are looked for, and seldom.
        if self.0.contains(&(server.to_owned(), name.to_owned())) { name } else { OTHERS }
    }
}

/// The database of a process; empty if it has none.
pub(super) fn database_of(process: &ProcessView) -> &str {
    process.database.as_deref().unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(names: &[(&'static str, u64)]) -> Sums<'static> {
        Sums::from([("/data", names.iter().copied().collect())])
    }

    #[test]
    fn a_name_stays_as_long_as_it_is_there() {
        let mut names = Names::default();
        names.follow(sums(&[("a", 3), ("b", 2), ("c", 1)]), 2);
        assert_eq!(["a", "b", "c"].map(|name| names.name("/data", name)), ["a", "b", OTHERS]);
        // The third is the largest now, but not by far.
        names.follow(sums(&[("a", 3), ("b", 2), ("c", 3)]), 2);
        assert_eq!(["a", "b", "c"].map(|name| names.name("/data", name)), ["a", "b", OTHERS]);
        // What leaks comes by its name.
        names.follow(sums(&[("a", 3), ("b", 2), ("c", 4)]), 2);
        assert_eq!(["a", "b", "c"].map(|name| names.name("/data", name)), ["a", OTHERS, "c"]);
        names.follow(sums(&[("b", 2), ("c", 9)]), 2);
        assert_eq!(["b", "c"].map(|name| names.name("/data", name)), ["b", "c"]);
        assert_eq!(names.name("/other", "b"), OTHERS);
    }

    #[test]
    fn the_name_of_all_others_is_nobodys() {
        let mut names = Names::default();
        names.follow(sums(&[(OTHERS, 9), ("a", 1)]), 1);
        assert_eq!(names.name("/data", OTHERS), OTHERS);
        assert_eq!(names.name("/data", "a"), "a");
    }
}
