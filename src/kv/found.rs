//! What full pages are found again by: a table publishes them in the tree, others take them over from there.
//!
//! ```text
//! table ──publish──▶ tree ──adopt──▶ another table        the same page, which nobody writes any more
//! ```
//! Of layers with a window, what is found ends where the pages end that the next token sees.

use super::pages::{Pages, TableId};
use super::prefix::{NONE, Parent};

impl Pages {
    /// Lets the table's full pages of `tokens`, all its tokens, be found again. A page that is there already takes
    /// the place of the table's own.
    pub(crate) fn publish(&mut self, id: TableId, tokens: &[i32]) {
        let size = self.tokens_of_page();
        let Some(root) = self.table(id).root else { return };
        for i in self.table(id).nodes.len()..(tokens.len() / size).min(self.table(id).foreign) {
            let table = self.table(id);
            let priority = table.priority;
            let parent = table.nodes.last().map_or(Parent::Root(root), |&node| Parent::Node(node));
            let tokens = &tokens[i * size..(i + 1) * size];
            let node = match self.tree.find(parent, tokens) {
                Some(node) => node,
                None => self.tree.insert(parent, tokens),
            };
            for group in 0..self.store.shape().groups() {
                let (own, same) = (self.table(id).pages[group][i], self.tree.page(node, group));
                if own == NONE || own == same {
                    continue;
                }
                if same == NONE {
                    self.tree.fill(node, group, own, priority);
                } else {
                    self.hold(same, priority);
                    self.table_mut(id).pages[group][i] = same;
                    self.release(id, own);
                }
            }
            self.tree.name(node);
            self.table_mut(id).nodes.push(node);
        }
    }

    /// Appends cached pages that hold the beginning of `ids`, at most `most` tokens of them, to a table of `held`
    /// tokens. Returns how many tokens it holds more.
    pub(crate) fn adopt(&mut self, id: TableId, held: usize, ids: &[i32], most: usize) -> usize {
        let size = self.tokens_of_page();
        let table = self.table(id);
        let whole = table.nodes.len() * size == held && table.pages.iter().all(|p| p.len() * size == held);
        if !whole || table.swapped.is_some() {
            return 0;
        }
        let (Some(root), priority) = (table.root, table.priority) else { return 0 };
        let parent = table.nodes.last().map_or(Parent::Root(root), |&node| Parent::Node(node));
        let nodes = self.walk(parent, held, &ids[..most.min(ids.len())]);
        let adopted = nodes.len() * size;
        for (node, i) in nodes.into_iter().zip(held / size..) {
            for group in 0..self.store.shape().groups() {
                let page = self.tree.page(node, group);
                let seen = i >= self.store.shape().first_kept(group, held + adopted);
                if seen && page != NONE {
                    self.hold(page, priority);
                }
                self.table_mut(id).pages[group].push(if seen { page } else { NONE });
            }
            self.tree.name(node);
            self.table_mut(id).nodes.push(node);
        }
        self.hit_tokens += adopted as u64;
        adopted
    }

    /// How many tokens at the beginning of `ids` are cached for a table like `id`.
    pub(crate) fn find(&self, id: TableId, ids: &[i32]) -> usize {
        let root = self.table(id).root;
        root.map_or(0, |root| self.walk(Parent::Root(root), 0, ids).len() * self.tokens_of_page())
    }

    /// Nodes after `parent`, which ends at `held` tokens, for the longest beginning of `ids` behind which a sequence
    /// can go on.
    fn walk(&self, parent: Parent, held: usize, ids: &[i32]) -> Vec<u32> {
        let shape = self.store.shape();
        let (mut nodes, mut parent) = (Vec::new(), parent);
        for tokens in ids.chunks_exact(shape.tokens) {
            let Some(node) = self.tree.find(parent, tokens) else { break };
            let lacks = |group: usize| shape.windows[group].is_none() && self.tree.page(node, group) == NONE;
            if (0..shape.groups()).any(lacks) {
                break;
            }
            nodes.push(node);
            parent = Parent::Node(node);
        }
        let start = held / shape.tokens;
        let there = |nodes: &[u32]| {
            (0..shape.groups()).all(|group| {
                let end = start + nodes.len();
                let first = shape.first_needed(group, end * shape.tokens).max(start);
                (first..end).all(|i| self.tree.page(nodes[i - start], group) != NONE)
            })
        };
        while shape.is_windowed() && !nodes.is_empty() && !there(&nodes) {
            nodes.pop();
        }
        nodes
    }

    /// Pins (or unpins) the table's published pages. Returns how many pages of tokens those are.
    pub(crate) fn pin(&mut self, id: TableId, pin: bool) -> usize {
        let published = self.table(id).nodes.len();
        for i in 0..published {
            let node = self.table(id).nodes[i];
            if pin { self.tree.pin(node) } else { self.tree.unpin(node) }
        }
        published
    }
}
