//! Which pages can be found again by what they hold: a tree of full pages, each below the page before it.
//!
//! ```text
//! root (rotary length, level, adapters) ─[tokens 0..64]─▶ node 3 ─[tokens 64..128]─▶ node 9
//!                                                            └────[others     ]─▶ node 4
//! node = a page of each group of layers
//! ```
//! A page is found by walking its whole prefix, tokens compared page by page, so that a hit is never a collision and
//! no sequence can be made to look like another. A page that is seen from all that follows stays as long as its node
//! has children: leaves go first. One with a window may go before: its node then lacks it, and goes when neither
//! pages, children nor tables need it. The tree does not know how many sessions hold a page, only whether one does;
//! and nothing of bytes.

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

/// What a node comes after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parent {
    Root(Root),
    Node(u32),
}

type Children = HashMap<Arc<[i32]>, u32>;

/// In place of a page: there is none.
pub(crate) const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Node {
    parent: Parent,
    tokens: Arc<[i32]>,
    children: Children,
    /// By group, [`NONE`] where it lacks one.
    pages: Vec<u32>,
    pins: u32,
    /// Tables that name it.
    tables: u32,
}

/// A page in the tree.
#[derive(Debug)]
struct Slot {
    node: u32,
    group: usize,
    priority: i32,
    /// When it was last found or held.
    used: u64,
    /// Whether a session has it in its table.
    held: bool,
    /// Whether it stands in `Tree::idle`, under `rank` and `used`.
    idle: bool,
}

/// The tree.
#[derive(Debug)]
pub(crate) struct Tree {
    roots: HashMap<Root, Children>,
    nodes: Vec<Option<Node>>,
    /// Nodes that are none.
    unused: Vec<u32>,
    /// By page.
    slots: Vec<Option<Slot>>,
    /// Pages that may go: what goes first is first.
    idle: BTreeSet<(i32, u64, u32)>,
    clock: u64,
    /// Whether low priority goes before age.
    by_priority: bool,
    /// By group, whether its pages are seen through a window.
    windowed: Vec<bool>,
}

impl Tree {
    /// An empty tree.
    pub(crate) fn new(by_priority: bool, windowed: Vec<bool>) -> Self {
        Self {
            roots: HashMap::new(),
            nodes: Vec::new(),
            unused: Vec::new(),
            slots: Vec::new(),
            idle: BTreeSet::new(),
            clock: 0,
            by_priority,
            windowed,
        }
    }

    /// Whether the page can be found.
    pub(crate) fn contains(&self, page: u32) -> bool {
        self.slot(page).is_some()
    }

    /// The node with `tokens` after `parent`.
    pub(crate) fn find(&self, parent: Parent, tokens: &[i32]) -> Option<u32> {
        let children = match parent {
            Parent::Root(root) => self.roots.get(&root)?,
            Parent::Node(node) => &self.node(node)?.children,
        };
        children.get(tokens).copied()
    }

    /// A node's page of `group`, or [`NONE`].
    pub(crate) fn page(&self, node: u32, group: usize) -> u32 {
        self.node(node).map_or(NONE, |node| node.pages[group])
    }

    /// Adds a node without pages with `tokens` after `parent`, which has no such child. It stays while a table names
    /// it.
    pub(crate) fn insert(&mut self, parent: Parent, tokens: &[i32]) -> u32 {
        let tokens: Arc<[i32]> = tokens.into();
        let id = self.unused.pop().unwrap_or_else(|| {
            self.nodes.push(None);
            self.nodes.len() as u32 - 1
        });
        match parent {
            Parent::Root(root) => {
                self.roots.entry(root).or_default().insert(tokens.clone(), id);
            }
            Parent::Node(parent) => {
                if let Some(Some(node)) = self.nodes.get_mut(parent as usize) {
                    node.children.insert(tokens.clone(), id);
                }
            }
        }
        let pages = vec![NONE; self.windowed.len()];
        let node = Node { parent, tokens, children: Children::new(), pages, pins: 0, tables: 0 };
        self.nodes[id as usize] = Some(node);
        if let Parent::Node(parent) = parent {
            self.refresh(parent);
        }
        id
    }

    /// Gives a node that lacks it `page`, which is held.
    pub(crate) fn fill(&mut self, node: u32, group: usize, page: u32, priority: i32) {
        let Some(Some(filled)) = self.nodes.get_mut(node as usize) else { return };
        filled.pages[group] = page;
        if self.slots.len() <= page as usize {
            self.slots.resize_with(page as usize + 1, || None);
        }
        self.clock += 1;
        let used = self.clock;
        self.slots[page as usize] = Some(Slot { node, group, priority, used, held: true, idle: false });
    }

    /// A table names the node.
    pub(crate) fn name(&mut self, node: u32) {
        if let Some(Some(node)) = self.nodes.get_mut(node as usize) {
            node.tables += 1;
        }
    }

    /// A table names the node no more.
    pub(crate) fn unname(&mut self, node: u32) {
        if let Some(Some(node)) = self.nodes.get_mut(node as usize) {
            node.tables -= 1;
        }
        self.prune(node);
    }

    /// Says whether a session holds `page` now; counts as a use of it. A page keeps the highest priority of its
    /// holders.
    pub(crate) fn hold(&mut self, page: u32, held: bool, priority: i32) {
        self.clock += 1;
        let used = self.clock;
        self.change(page, |slot| {
            (slot.held, slot.used) = (held, used);
            slot.priority = slot.priority.max(priority);
        });
    }

    /// Adds a pin to a node's pages.
    pub(crate) fn pin(&mut self, node: u32) {
        self.set_pins(node, |pins| pins.saturating_add(1));
    }

    /// Takes a pin from a node's pages, if they have one.
    pub(crate) fn unpin(&mut self, node: u32) {
        self.set_pins(node, |pins| pins.saturating_sub(1));
    }

    fn set_pins(&mut self, node: u32, change: impl FnOnce(u32) -> u32) {
        if let Some(Some(node)) = self.nodes.get_mut(node as usize) {
            node.pins = change(node.pins);
        }
        self.refresh(node);
    }

    /// Whether `page` is pinned.
    pub(crate) fn pinned(&self, page: u32) -> bool {
        self.slot(page).and_then(|slot| self.node(slot.node)).is_some_and(|node| node.pins > 0)
    }

    /// Whether nothing but its holder needs `page` in the tree.
    pub(crate) fn is_loose(&self, page: u32) -> bool {
        let node = self.slot(page).and_then(|slot| self.node(slot.node));
        node.is_some_and(|node| node.pins == 0 && node.children.is_empty())
    }

    /// The page that should go first.
    pub(crate) fn first_idle(&self) -> Option<u32> {
        self.idle.first().map(|&(_, _, page)| page)
    }

    /// Takes an idle page out of the tree, and with one that is seen from everywhere those of its node that are of no
    /// use without it. Returns them all.
    pub(crate) fn evict(&mut self, page: u32) -> Vec<u32> {
        let mut gone = vec![page];
        if let Some(slot) = self.slot(page)
            && !self.windowed[slot.group]
            && let Some(node) = self.node(slot.node)
        {
            let useless = |p: &u32| *p != page && self.slot(*p).is_some_and(|slot| !slot.held);
            gone.extend(node.pages.iter().copied().filter(useless));
        }
        gone.iter().for_each(|&page| self.remove(page));
        gone
    }

    /// Takes `page` out of the tree.
    pub(crate) fn remove(&mut self, page: u32) {
        self.change(page, |slot| slot.held = true); // off the list
        let Some(slot) = self.slots.get_mut(page as usize).and_then(Option::take) else { return };
        if let Some(Some(node)) = self.nodes.get_mut(slot.node as usize) {
            node.pages[slot.group] = NONE;
        }
        self.prune(slot.node);
    }

    /// Takes a node out that nothing needs, and then those before it.
    fn prune(&mut self, mut id: u32) {
        loop {
            let empty = |node: &Node| {
                node.tables == 0 && node.children.is_empty() && node.pages.iter().all(|page| *page == NONE)
            };
            if !self.node(id).is_some_and(empty) {
                return;
            }
            let Some(node) = self.nodes[id as usize].take() else { return };
            self.unused.push(id);
            match node.parent {
                Parent::Root(root) => {
                    if let Some(children) = self.roots.get_mut(&root) {
                        children.remove(&node.tokens);
                        if children.is_empty() {
                            self.roots.remove(&root);
                        }
                    }
                    return;
                }
                Parent::Node(parent) => {
                    if let Some(Some(parent)) = self.nodes.get_mut(parent as usize) {
                        parent.children.remove(&node.tokens);
                    }
                    self.refresh(parent);
                    id = parent;
                }
            }
        }
    }

    /// Pages that cannot go: held or pinned, or seen from one that is.
    pub(crate) fn kept(&self) -> usize {
        let stays = |slot: &Slot| slot.held || self.node(slot.node).is_some_and(|node| node.pins > 0);
        let mut above = vec![false; self.nodes.len()];
        for slot in self.slots.iter().flatten().filter(|slot| stays(slot)) {
            let mut at = Some(slot.node);
            while let Some(node) = at.filter(|&node| !std::mem::replace(&mut above[node as usize], true)) {
                at = match self.node(node).map(|node| node.parent) {
                    Some(Parent::Node(parent)) => Some(parent),
                    _ => None,
                };
            }
        }
        let kept = |slot: &&Slot| stays(slot) || !self.windowed[slot.group] && above[slot.node as usize];
        self.slots.iter().flatten().filter(kept).count()
    }

    /// Takes the pins of every node of which nobody holds a page.
    pub(crate) fn unpin_unheld(&mut self) {
        for id in 0..self.nodes.len() as u32 {
            let held = |&page: &u32| self.slot(page).is_some_and(|slot| slot.held);
            if self.node(id).is_some_and(|node| !node.pages.iter().any(held)) {
                self.set_pins(id, |_| 0);
            }
        }
    }

    /// Pages got new numbers: `map[old]` is the new one.
    pub(crate) fn renumber(&mut self, map: &[u32]) {
        let mut slots: Vec<Option<Slot>> = Vec::new();
        slots.resize_with(self.slots.len().max(map.len()), || None);
        for (page, slot) in self.slots.drain(..).enumerate() {
            if slot.is_some() {
                slots[map[page] as usize] = slot;
            }
        }
        self.slots = slots;
        for node in self.nodes.iter_mut().flatten() {
            node.pages.iter_mut().filter(|page| **page != NONE).for_each(|page| *page = map[*page as usize]);
        }
        // one by one: what a set collects is sorted first, by some kilobytes of code of its own
        for (rank, used, page) in std::mem::take(&mut self.idle) {
            self.idle.insert((rank, used, map[page as usize]));
        }
    }

    fn node(&self, node: u32) -> Option<&Node> {
        self.nodes.get(node as usize)?.as_ref()
    }

    fn slot(&self, page: u32) -> Option<&Slot> {
        self.slots.get(page as usize)?.as_ref()
    }

    /// Puts a node's pages in their places after it changed.
    fn refresh(&mut self, node: u32) {
        for group in 0..self.windowed.len() {
            self.change(self.page(node, group), |_| ());
        }
    }

    /// Changes a page and its place on the list of idle pages with it.
    fn change(&mut self, page: u32, change: impl FnOnce(&mut Slot)) {
        let Some(Some(slot)) = self.slots.get_mut(page as usize) else { return };
        let by_priority = self.by_priority;
        let place = |slot: &Slot| (if by_priority { slot.priority } else { 0 }, slot.used, page);
        if slot.idle {
            self.idle.remove(&place(slot));
        }
        change(slot);
        let node = self.nodes.get(slot.node as usize).and_then(Option::as_ref);
        let free = node.is_some_and(|n| n.pins == 0 && (self.windowed[slot.group] || n.children.is_empty()));
        slot.idle = !slot.held && free;
        if slot.idle {
            self.idle.insert(place(slot));
        }
    }
}
