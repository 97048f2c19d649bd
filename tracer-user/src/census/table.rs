//! A census as text.

use std::collections::HashMap;

use super::{Census, MemoryContext, text::masked};
use crate::target::human_bytes;

/// Children of one name are told apart up to so many.
const MOST_ALIKE: usize = 3;
/// The most characters of an ident.
const MOST_IDENT: usize = 80;

/// Contexts that are shown as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Levels below the top.
    pub level: usize,
    /// How many they are.
    pub contexts: u64,
    /// Their name, with an ident if there is one of them.
    pub label: String,
    /// Bytes of these and of all below them.
    pub subtree: u64,
    /// Bytes of their own blocks.
    pub total: u64,
    /// Bytes of chunks that are used, where that is known.
    pub used: Option<u64>,
    /// Bytes that are free.
    pub free: Option<u64>,
}

/// What contexts of one label have gained since an earlier census.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Growth {
    /// Their label.
    pub label: String,
    /// How many there are now.
    pub contexts: u64,
    /// More contexts than before.
    pub more_contexts: i64,
    /// More bytes of blocks than before.
    pub more_bytes: i64,
    /// Bytes of blocks now.
    pub total: u64,
}

/// The tree, largest children first, those of one name as one line where they are many.
pub fn lines(census: &Census, show_literals: bool) -> Vec<Line> {
    let tree = Subtrees::of(census);
    let mut lines = Vec::new();
    if !census.contexts.is_empty() {
        tree.add(&[0], 0, show_literals, &mut lines);
    }
    lines
}

struct Subtrees<'a> {
    census: &'a Census,
    children: Vec<Vec<usize>>,
    bytes: Vec<u64>,
}

impl<'a> Subtrees<'a> {
    fn of(census: &'a Census) -> Self {
        let mut bytes: Vec<u64> = census.contexts.iter().map(|context| context.total.unwrap_or(0)).collect();
        let mut children = vec![Vec::new(); bytes.len()];
        // Parents stand before their children.
        for (index, context) in census.contexts.iter().enumerate().rev() {
            if let Some(parent) = context.parent {
                bytes[parent] += bytes[index];
                children[parent].push(index);
            }
        }
        Self { census, children, bytes }
    }

    /// One line for contexts that are alike, then what is below them.
    fn add(&self, alike: &[usize], level: usize, show_literals: bool, lines: &mut Vec<Line>) {
        let contexts: Vec<&MemoryContext> = alike.iter().map(|index| &self.census.contexts[*index]).collect();
        let label = match contexts[..] {
            [one] => described(one, show_literals),
            _ => contexts[0].name.clone(),
        };
        lines.push(Line {
            level,
            contexts: contexts.len() as u64,
            label,
            subtree: alike.iter().map(|index| self.bytes[*index]).sum(),
            total: contexts.iter().filter_map(|context| context.total).sum(),
            used: sum(&contexts, super::Usage::used),
            free: sum(&contexts, super::Usage::free),
        });
        let mut by_name: HashMap<&str, Vec<usize>> = HashMap::new();
        for child in alike.iter().flat_map(|index| &self.children[*index]) {
            by_name.entry(&self.census.contexts[*child].name).or_default().push(*child);
        }
        let mut below: Vec<Vec<usize>> = Vec::new();
        for group in by_name.into_values() {
            if group.len() > MOST_ALIKE {
                below.push(group);
            } else {
                below.extend(group.into_iter().map(|child| vec![child]));
            }
        }
        below.sort_by_key(|group| {
            let bytes: u64 = group.iter().map(|index| self.bytes[*index]).sum();
            (std::cmp::Reverse(bytes), group[0])
        });
        for group in below {
            self.add(&group, level + 1, show_literals, lines);
        }
    }
}

fn sum(contexts: &[&MemoryContext], what: fn(&super::Usage) -> u64) -> Option<u64> {
    contexts.iter().map(|context| context.usage.as_ref().map(what)).sum()
}

/// Name and ident; without literals unless they are wanted.
fn described(context: &MemoryContext, show_literals: bool) -> String {
    let Some(ident) = &context.ident else { return context.name.clone() };
    let ident = if show_literals { ident.clone() } else { masked(ident) };
    // A statement has lines, and nobody's terminal is to obey it.
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let short: String = ident.chars().map(plain).take(MOST_IDENT).collect();
    let cut = if short.len() < ident.len() { "…" } else { "" };
    format!("{}: {short}{cut}", context.name)
}

/// The lines as a table.
pub fn table(lines: &[Line]) -> String {
    let mut text = format!("{:>10} {:>10} {:>10} {:>10}  context\n", "subtree", "own", "used", "free");
    for line in lines {
        let of = |bytes: Option<u64>| bytes.map_or_else(|| "?".to_owned(), human_bytes);
        let many = if line.contexts > 1 { format!("{} × ", line.contexts) } else { String::new() };
        text.push_str(&format!(
            "{:>10} {:>10} {:>10} {:>10}  {:indent$}{many}{}\n",
            human_bytes(line.subtree),
            human_bytes(line.total),
            of(line.used),
            of(line.free),
            "",
            line.label,
            indent = line.level * 2,
        ));
    }
    text
}

/// Contexts of one label as one line, the largest first, wherever in the tree they are.
pub fn largest(census: &Census, most: usize) -> Vec<Line> {
    let mut by_label: HashMap<String, Vec<&MemoryContext>> = HashMap::new();
    for context in &census.contexts {
        by_label.entry(context.label()).or_default().push(context);
    }
    let line = |(label, contexts): (String, Vec<&MemoryContext>)| {
        let total = contexts.iter().filter_map(|context| context.total).sum();
        let (used, free) = (sum(&contexts, super::Usage::used), sum(&contexts, super::Usage::free));
        Line { level: 0, contexts: contexts.len() as u64, label, subtree: total, total, used, free }
    };
    let mut lines: Vec<Line> = by_label.into_iter().map(line).collect();
    lines.sort_by(|a, b| b.total.cmp(&a.total).then_with(|| a.label.cmp(&b.label)));
    lines.truncate(most);
    lines
}

/// What grew, as a table.
pub fn growth_table(growths: &[Growth]) -> String {
    let mut text = format!("{:>11} {:>10} {:>10} {:>10}  context\n", "grown by", "to", "contexts", "more");
    for growth in growths {
        let sign = if growth.more_bytes < 0 { '-' } else { '+' };
        text.push_str(&format!(
            "{:>11} {:>10} {:>10} {:>+10}  {}\n",
            format!("{sign}{}", human_bytes(growth.more_bytes.unsigned_abs())),
            human_bytes(growth.total),
            growth.contexts,
            growth.more_contexts,
            growth.label,
        ));
    }
    text
}

/// What grew or shrank between two censuses, by label; what grew most first.
pub fn grown(before: &Census, now: &Census) -> Vec<Growth> {
    let mut sums: HashMap<String, [u64; 4]> = HashMap::new();
    for (at, census) in [(0, before), (2, now)] {
        for context in &census.contexts {
            let sum = sums.entry(context.label()).or_default();
            sum[at] += 1;
            sum[at + 1] += context.total.unwrap_or(0);
        }
    }
    let difference = |now: u64, before: u64| now as i64 - before as i64;
    let mut growths: Vec<Growth> = sums
        .into_iter()
        .map(|(label, [contexts_before, before, contexts, total])| Growth {
            label,
            contexts,
            more_contexts: difference(contexts, contexts_before),
            more_bytes: difference(total, before),
            total,
        })
        .filter(|growth| growth.more_bytes != 0 || growth.more_contexts != 0)
        .collect();
    growths.sort_by(|a, b| b.more_bytes.cmp(&a.more_bytes).then_with(|| a.label.cmp(&b.label)));
    growths
}
