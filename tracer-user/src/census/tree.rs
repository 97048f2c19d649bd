//! Questions about the tree.

use std::collections::HashMap;

use super::{Census, MemoryContext};
use crate::addr::AbsAddr;

impl MemoryContext {
    /// Its name, and of contexts that are all called alike what they are for.
    pub fn label(&self) -> String {
        match &self.ident {
            // utils/hash/dynahash.c names every table's context so.
            Some(ident) if self.name == "dynahash" => format!("dynahash {ident}"),
            _ => self.name.clone(),
        }
    }
}

impl Census {
    /// Indexes of the contexts by address.
    pub fn by_address(&self) -> HashMap<AbsAddr, usize> {
        self.contexts.iter().enumerate().map(|(index, context)| (context.address, index)).collect()
    }

    /// Names from `TopMemoryContext` to the context itself.
    pub fn path(&self, index: usize) -> Vec<String> {
        let mut path = Vec::new();
        let mut at = Some(index);
        while let Some(context) = at.and_then(|index| self.contexts.get(index)) {
            path.push(context.label());
            at = context.parent;
        }
        path.reverse();
        path
    }

    /// Bytes of all contexts.
    pub fn total(&self) -> u64 {
        self.contexts.iter().filter_map(|context| context.total).sum()
    }

    /// How deep each context is below the top.
    pub fn levels(&self) -> Vec<usize> {
        let mut levels: Vec<usize> = Vec::with_capacity(self.contexts.len());
        for context in &self.contexts {
            let level = context.parent.map_or(0, |parent| levels[parent] + 1);
            levels.push(level);
        }
        levels
    }
}
