//! Which pages can be found again by what they hold: a tree of full pages, each below the page before it.
//!
//! ```text
//! root (rotary length, level, adapters) ─[tokens 0..64]─▶ page 3 ─[tokens 64..128]─▶ page 9
//!                                                  └────[others     ]─▶ page 4
//! ```
//! A page is found by walking its whole prefix, tokens compared page by page, so that a hit is never a collision and
//! no sequence can be made to look like another. A page whose children are cached stays as long as they do: leaves go
//! first. It does not know how many sessions hold a page, only whether one does; and nothing of bytes.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use llm_kernels::Level;

/// What besides model, storage type and tokens decides the bits of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Root {
    /// Length that rotary scaling was told; 0 where it does not matter.
    pub(crate) rope: u32,
    pub(crate) level: Level,
    /// [`crate::adapter::key`] of the adapters.
    pub(crate) adapters: [u8; 32],
}

/// What a page comes after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parent {
    Root(Root),
    Page(u32),
}

type Children = HashMap<Arc<[i32]>, u32>;

#[derive(Debug)]
struct Node {
    parent: Parent,
    tokens: Arc<[i32]>,
    children: Children,
    priority: i32,
    /// When it was last found or held.
    used: u64,
    pins: u32,
    /// Whether a session has it in its table.
    held: bool,
    /// Whether it stands in `Tree::idle`, under `rank` and `used`.
    idle: bool,
}

/// The tree.
#[derive(Debug)]
pub(crate) struct Tree {
    roots: HashMap<Root, Children>,
    /// By page.
    nodes: Vec<Option<Node>>,
    /// Leaves that nobody holds or pins: what goes first is first.
    idle: BTreeSet<(i32, u64, u32)>,
    clock: u64,
    /// Whether low priority goes before age.
    by_priority: bool,
}

impl Tree {
    /// An empty tree.
    pub(crate) fn new(by_priority: bool) -> Self {
        Self { roots: HashMap::new(), nodes: Vec::new(), idle: BTreeSet::new(), clock: 0, by_priority }
    }

    /// Whether the page can be found.
    pub(crate) fn contains(&self, page: u32) -> bool {
        self.node(page).is_some()
    }

    /// The page with `tokens` after `parent`.
    pub(crate) fn find(&self, parent: Parent, tokens: &[i32]) -> Option<u32> {
        let children = match parent {
            Parent::Root(root) => self.roots.get(&root)?,
            Parent::Page(page) => &self.node(page)?.children,
        };
        children.get(tokens).copied()
    }

    /// Adds `page`, held, with `tokens` after `parent`, which is in the tree and has no such child.
    pub(crate) fn insert(&mut self, parent: Parent, tokens: &[i32], page: u32, priority: i32) {
        let tokens: Arc<[i32]> = tokens.into();
        let children = match parent {
            Parent::Root(root) => self.roots.entry(root).or_default(),
            Parent::Page(parent) => match self.nodes.get_mut(parent as usize) {
                Some(Some(node)) => &mut node.children,
                _ => return,
            },
        };
        children.insert(tokens.clone(), page);
        if self.nodes.len() <= page as usize {
            self.nodes.resize_with(page as usize + 1, || None);
        }
        self.clock += 1;
        let used = self.clock;
        let children = Children::new();
        let node = Node { parent, tokens, children, priority, used, pins: 0, held: true, idle: false };
        self.nodes[page as usize] = Some(node);
        if let Parent::Page(parent) = parent {
            self.refresh(parent);
        }
    }

    /// Says whether a session holds `page` now; counts as a use of it. A page keeps the highest priority of its
    /// holders.
    pub(crate) fn hold(&mut self, page: u32, held: bool, priority: i32) {
        self.clock += 1;
        let used = self.clock;
        self.change(page, |node| {
            (node.held, node.used) = (held, used);
            node.priority = node.priority.max(priority);
        });
    }

    /// Adds a pin to `page`.
    pub(crate) fn pin(&mut self, page: u32) {
        self.change(page, |node| node.pins += 1);
    }

    /// Takes a pin from `page`, if it has one.
    pub(crate) fn unpin(&mut self, page: u32) {
        self.change(page, |node| node.pins = node.pins.saturating_sub(1));
    }

    /// Whether `page` is pinned.
    pub(crate) fn pinned(&self, page: u32) -> bool {
        self.node(page).is_some_and(|node| node.pins > 0)
    }

    /// Whether nothing but its holder needs `page` in the tree.
    pub(crate) fn is_loose(&self, page: u32) -> bool {
        self.node(page).is_some_and(|node| node.pins == 0 && node.children.is_empty())
    }

    /// The page that should go first.
    pub(crate) fn first_idle(&self) -> Option<u32> {
        self.idle.first().map(|&(_, _, page)| page)
    }

    /// Takes `page`, which has no children, out of the tree.
    pub(crate) fn remove(&mut self, page: u32) {
        self.change(page, |node| node.held = true); // off the list
        let Some(node) = self.nodes.get_mut(page as usize).and_then(Option::take) else { return };
        debug_assert!(node.children.is_empty());
        match node.parent {
            Parent::Root(root) => {
                if let Some(children) = self.roots.get_mut(&root) {
                    children.remove(&node.tokens);
                    if children.is_empty() {
                        self.roots.remove(&root);
                    }
                }
            }
            Parent::Page(parent) => {
                if let Some(Some(parent)) = self.nodes.get_mut(parent as usize) {
                    parent.children.remove(&node.tokens);
                }
                self.refresh(parent);
            }
        }
    }

    /// Pages that cannot go: held or pinned, or before one that is.
    pub(crate) fn kept(&self) -> usize {
        let mut kept = vec![false; self.nodes.len()];
        for (page, node) in (0..).zip(&self.nodes) {
            if !node.as_ref().is_some_and(|node| node.held || node.pins > 0) {
                continue;
            }
            let mut at = Some(page);
            while let Some(page) = at.filter(|&page| !std::mem::replace(&mut kept[page as usize], true)) {
                at = match self.node(page).map(|node| node.parent) {
                    Some(Parent::Page(parent)) => Some(parent),
                    _ => None,
                };
            }
        }
        kept.into_iter().filter(|kept| *kept).count()
    }

    /// Takes the pins of every page nobody holds.
    pub(crate) fn unpin_unheld(&mut self) {
        for page in 0..self.nodes.len() as u32 {
            if self.node(page).is_some_and(|node| !node.held) {
                self.change(page, |node| node.pins = 0);
            }
        }
    }

    /// Pages got new numbers: `map[old]` is the new one.
    pub(crate) fn renumber(&mut self, map: &[u32]) {
        let new = |page: u32| map[page as usize];
        for children in self.roots.values_mut() {
            children.values_mut().for_each(|page| *page = new(*page));
        }
        let mut nodes: Vec<Option<Node>> = Vec::new();
        nodes.resize_with(self.nodes.len(), || None);
        for (page, node) in (0..).zip(self.nodes.drain(..)) {
            let Some(mut node) = node else { continue };
            if let Parent::Page(parent) = &mut node.parent {
                *parent = new(*parent);
            }
            node.children.values_mut().for_each(|page| *page = new(*page));
            nodes[new(page) as usize] = Some(node);
        }
        self.nodes = nodes;
        self.idle = self.idle.iter().map(|&(rank, used, page)| (rank, used, new(page))).collect();
    }

    fn node(&self, page: u32) -> Option<&Node> {
        self.nodes.get(page as usize)?.as_ref()
    }

    fn refresh(&mut self, page: u32) {
        self.change(page, |_| ());
    }

    /// Changes a node and its place on the list of idle pages with it.
    fn change(&mut self, page: u32, change: impl FnOnce(&mut Node)) {
        let Some(Some(node)) = self.nodes.get_mut(page as usize) else { return };
        let by_priority = self.by_priority;
        let place = |node: &Node| (if by_priority { node.priority } else { 0 }, node.used, page);
        if node.idle {
            self.idle.remove(&place(node));
        }
        change(node);
        node.idle = !node.held && node.pins == 0 && node.children.is_empty();
        if node.idle {
            self.idle.insert(place(node));
        }
    }
}
