//! Whose page is whose: counts of holders, page tables of sequences, and what is kept when nobody holds it.
//!
//! ```text
//! page:  free ──take──▶ used (in one or more tables) ──last table lets go──▶ free
//!                          │ full: published in the tree                 └─▶ cached (if published) ──evict──▶ free
//! ```
//! A table has a row of pages for each group of layers. Of layers with a window it lets those pages go that no later
//! token sees; they stay cached like any other until their room is needed.
//!
//! A page is written only by a table that alone has it and that has not published it; anything else is copied first.
//! Used, cached and free pages always add up to all pages. It does not know what computes the bytes.

use std::ops::Range;

use super::prefix::{NONE, Root, Tree};
use super::store::Store;
use super::swap::Swapped;
use super::{Eviction, KvStats, PageShape};
use crate::error::{Error, Result, Status};

/// The page table of a sequence.
#[derive(Debug)]
pub(crate) struct Table {
    /// By group, then by page of tokens; [`NONE`] where it was let go. As long for every group but while a call runs.
    pub(super) pages: Vec<Vec<u32>>,
    /// Nodes of the tree that its pages are in, from the first on.
    pub(super) nodes: Vec<u32>,
    /// By group: pages before are let go.
    let_go: Vec<usize>,
    /// What its pages are found under; `None` for a sequence whose pages nobody else may use.
    pub(super) root: Option<Root>,
    /// Pages from here on are not published: their bytes were not computed here.
    pub(super) foreign: usize,
    pub(super) priority: i32,
    /// The pages' contents while they are out.
    pub(super) swapped: Option<Swapped>,
}

/// Names a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TableId(usize);

/// Pages, and who has them.
#[derive(Debug)]
pub(crate) struct Pages {
    pub(super) store: Store,
    /// Pages there are, written or not.
    limit: u32,
    /// Tables that have each page.
    refs: Vec<u32>,
    /// Committed pages that nobody has; the last one given is the next taken, because it is warm.
    free: Vec<u32>,
    tables: Vec<Option<Table>>,
    pub(super) tree: Tree,
    eviction: Eviction,
    /// Whether full pages are found again.
    cache: bool,
    /// Bytes that swapped sequences may take, and those they take.
    pub(super) swap_limit: u64,
    pub(super) swap_used: u64,
    pub(super) hit_tokens: u64,
    evictions: u64,
    copies: u64,
}

impl Pages {
    /// All pages of `store` up to `limit`, free.
    pub(crate) fn new(store: Store, limit: u32, eviction: Eviction, cache: bool, swap_limit: u64) -> Self {
        let windowed = store.shape().windows.iter().map(Option::is_some).collect();
        Self {
            store,
            limit,
            refs: Vec::new(),
            free: Vec::new(),
            tables: Vec::new(),
            tree: Tree::new(eviction == Eviction::Priority, windowed),
            eviction,
            cache,
            swap_limit,
            swap_used: 0,
            hit_tokens: 0,
            evictions: 0,
            copies: 0,
        }
    }

    /// Where things lie.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// The bytes to compute on, beside the tables that say where: `pages(id)` are a table's pages.
    pub(crate) fn parts(&mut self) -> (&mut Store, Tables<'_>) {
        (&mut self.store, Tables(&self.tables))
    }

    pub(super) fn tokens_of_page(&self) -> usize {
        self.store.shape().tokens
    }

    /// An empty table.
    pub(crate) fn open(&mut self, root: Option<Root>, priority: i32) -> TableId {
        let root = root.filter(|_| self.cache);
        let groups = self.store.shape().groups();
        let table = Table {
            pages: vec![Vec::new(); groups],
            nodes: Vec::new(),
            let_go: vec![0; groups],
            root,
            foreign: usize::MAX,
            priority,
            swapped: None,
        };
        match self.tables.iter().position(Option::is_none) {
            Some(id) => {
                self.tables[id] = Some(table);
                TableId(id)
            }
            None => {
                self.tables.push(Some(table));
                TableId(self.tables.len() - 1)
            }
        }
    }

    /// Gives all pages of a table back; the id means nothing from now on.
    pub(crate) fn close(&mut self, id: TableId) {
        self.truncate(id, 0, 0);
        self.tables[id.0] = None;
    }

    /// Another table with the same pages for the first `tokens` tokens, which must be covered. The table must not be
    /// swapped out.
    pub(crate) fn fork(&mut self, id: TableId, tokens: usize) -> TableId {
        let size = self.tokens_of_page();
        let table = self.table(id);
        let (root, priority) = (table.root, table.priority);
        let foreign = if tokens <= table.foreign.saturating_mul(size) { usize::MAX } else { table.foreign };
        let kept = tokens.div_ceil(size);
        let let_go = table.let_go.iter().map(|&pages| pages.min(kept)).collect();
        let pages: Vec<Vec<u32>> = table.pages.iter().map(|pages| pages[..kept].to_vec()).collect();
        let nodes = table.nodes[..table.nodes.len().min(tokens / size)].to_vec();
        for &page in pages.iter().flatten().filter(|page| **page != NONE) {
            self.refs[page as usize] += 1;
        }
        nodes.iter().for_each(|&node| self.tree.name(node));
        let fork = self.open(root, priority);
        let table = self.table_mut(fork);
        (table.pages, table.nodes, table.foreign, table.let_go) = (pages, nodes, foreign, let_go);
        fork
    }

    /// Makes room for tokens `from..to`: pages that this table may write, all of what it takes or nothing. Groups with
    /// a window get pages up to `near` only.
    ///
    /// # Errors
    /// `KV_FULL` when no page can be had, `BUDGET` when a first use would pass the runtime's limit. The sequence is
    /// as before.
    pub(crate) fn room(&mut self, id: TableId, from: usize, to: usize, near: usize) -> Result<()> {
        self.room_in(id, from, &|shape, group| {
            let end = if shape.windows[group].is_some() { near.min(to) } else { to };
            from / shape.tokens..end.div_ceil(shape.tokens)
        })
    }

    /// Makes room for tokens from `from` on, in the pages that `wanted` names of each group: the table has all before
    /// them, or [`NONE`] in their places.
    ///
    /// # Errors
    /// As [`Pages::room`].
    pub(super) fn room_in(
        &mut self,
        id: TableId,
        from: usize,
        wanted: &dyn Fn(&PageShape, usize) -> Range<usize>,
    ) -> Result<()> {
        let size = self.tokens_of_page();
        let first = from / size;
        let mut taken = Vec::new();
        for group in 0..self.store.shape().groups() {
            for i in wanted(self.store.shape(), group) {
                // In a table whose tokens were moved, what is before a window may have been let go.
                let page = self.table(id).pages[group].get(i).copied().filter(|page| *page != NONE);
                if page.is_some_and(|page| self.writable(page)) {
                    continue;
                }
                match self.take() {
                    Ok(page) => taken.push((group, i, page)),
                    Err(e) => match page.filter(|&page| self.can_unpublish(page)) {
                        Some(page) => {
                            self.tree.remove(page);
                            self.keep_nodes(id, i);
                        }
                        None => {
                            taken.into_iter().for_each(|(_, _, page)| self.free.push(page));
                            return Err(e);
                        }
                    },
                }
            }
        }
        for (group, i, page) in taken {
            self.refs[page as usize] = 1;
            match self.table(id).pages[group].get(i).copied() {
                Some(NONE) => {
                    let table = self.table_mut(id);
                    table.pages[group][i] = page;
                    table.let_go[group] = table.let_go[group].min(i);
                }
                Some(old) => {
                    // Only the page that `from` lies in has anything to keep.
                    if i == first && !from.is_multiple_of(size) {
                        self.store.copy(old, page);
                        self.copies += 1;
                    }
                    self.table_mut(id).pages[group][i] = page;
                    self.keep_nodes(id, i);
                    self.release(id, old);
                }
                None => self.table_mut(id).pages[group].push(page),
            }
        }
        Ok(())
    }

    /// Gives an empty table pages for `tokens` tokens, as many as it or another one has just given back. Returns for how
    /// many tokens it has some now: all or none.
    pub(crate) fn reserved_again(&mut self, id: TableId, tokens: usize) -> usize {
        match self.room(id, 0, tokens, tokens) {
            Ok(()) => tokens,
            Err(_) => 0,
        }
    }

    /// Whether the table has all pages that the token behind its first `tokens` sees.
    pub(crate) fn covers(&self, id: TableId, tokens: usize) -> bool {
        let (table, shape) = (self.table(id), self.store.shape());
        match &table.swapped {
            Some(swapped) => tokens == 0 || swapped.covers(tokens, shape),
            None => table.pages.iter().enumerate().all(|(group, pages)| {
                let end = tokens.div_ceil(shape.tokens).min(pages.len());
                pages[shape.first_needed(group, tokens).min(end)..end].iter().all(|page| *page != NONE)
            }),
        }
    }

    /// Keeps the pages of the first `tokens` tokens, and of the first `reserved` as far as there are any. Returns how
    /// many tokens it holds now: none where pages are gone that the next token would see.
    pub(crate) fn truncate(&mut self, id: TableId, tokens: usize, reserved: usize) -> usize {
        let size = self.tokens_of_page();
        let covered = if self.covers(id, tokens) { tokens } else { 0 };
        let reserved = if covered == tokens { reserved } else { 0 };
        if self.table(id).swapped.is_some() {
            self.truncate_swapped(id, covered.div_ceil(size));
        }
        let kept = covered.max(reserved).div_ceil(size);
        for group in 0..self.store.shape().groups() {
            while self.table(id).pages[group].len() > kept {
                if let Some(page) = self.table_mut(id).pages[group].pop().filter(|page| *page != NONE) {
                    self.release(id, page);
                }
            }
            let table = self.table_mut(id);
            table.let_go[group] = table.let_go[group].min(kept);
        }
        self.keep_nodes(id, covered / size);
        let table = self.table_mut(id);
        if table.swapped.is_none() && covered <= table.foreign.saturating_mul(size) {
            table.foreign = usize::MAX;
        }
        covered
    }

    /// Lets go of the pages behind the windows of a sequence of `tokens` tokens, of those after its first `before`
    /// tokens, to which it may go back.
    pub(crate) fn let_go(&mut self, id: TableId, before: usize, tokens: usize) {
        let size = self.tokens_of_page();
        for group in 0..self.store.shape().groups() {
            let end = self.store.shape().first_kept(group, tokens).min(self.table(id).pages[group].len());
            let start = self.table(id).let_go[group].max(before.div_ceil(size));
            for i in start..end {
                let page = std::mem::replace(&mut self.table_mut(id).pages[group][i], NONE);
                if page != NONE {
                    self.release(id, page);
                }
            }
            if before == 0 && end > start {
                self.table_mut(id).let_go[group] = end;
            }
        }
    }

    /// Frees cached pages until `bytes` bytes are freed or none is left that nobody holds or pins. Returns the bytes
    /// freed.
    pub(crate) fn evict(&mut self, bytes: u64) -> u64 {
        let mut freed = 0;
        while freed < bytes {
            match self.evict_one() {
                0 => break,
                pages => freed += pages * self.store.shape().bytes as u64,
            }
        }
        freed
    }

    /// Forgets every page that no table has, pinned or not.
    pub(crate) fn clear_cache(&mut self) {
        self.tree.unpin_unheld();
        while let Some(page) = self.tree.first_idle() {
            let gone = self.tree.evict(page);
            self.free.extend(gone);
        }
    }

    /// Moves pages to the lowest places and gives the memory behind them back. Returns how many were moved.
    pub(crate) fn defragment(&mut self) -> usize {
        let committed = self.store.committed();
        let mut map: Vec<u32> = (0..committed).collect();
        let (mut hole, mut end, mut moved) = (0, committed, 0);
        loop {
            while hole < end && self.in_use(hole) {
                hole += 1;
            }
            while hole < end && !self.in_use(end - 1) {
                end -= 1;
            }
            if hole >= end {
                break;
            }
            end -= 1;
            self.store.copy(end, hole);
            map.swap(hole as usize, end as usize);
            self.refs.swap(hole as usize, end as usize);
            hole += 1;
            moved += 1;
        }
        if moved > 0 {
            // A page moves once, so `map` is its own inverse.
            self.tree.renumber(&map);
            for table in self.tables.iter_mut().flatten() {
                let pages = table.pages.iter_mut().flatten().filter(|page| **page != NONE);
                pages.for_each(|page| *page = map[*page as usize]);
            }
        }
        self.store.discard(hole);
        self.refs.resize(self.store.committed() as usize, 0);
        self.free.clear();
        self.free.extend((hole..self.store.committed().min(self.limit)).rev());
        moved
    }

    /// Changes how many pages there are; cached ones go if they must.
    ///
    /// # Errors
    /// `KV_FULL` if more are in use or pinned, `NO_MEMORY`; nothing has changed then.
    pub(crate) fn resize(&mut self, limit: u32) -> Result<()> {
        let committed = self.store.committed();
        let kept = self.kept();
        if kept > limit as usize {
            let message = format!("{kept} pages are in use or pinned; the pool cannot shrink to {limit}");
            return Err(Error::new(Status::KV_FULL, message).with("needed", kept as i64));
        }
        self.store.resize(limit as usize)?;
        let mut used = (0..committed).filter(|&page| self.in_use(page)).count() as u64;
        while used > u64::from(limit) {
            match self.evict_one() {
                0 => break,
                gone => used = used.saturating_sub(gone),
            }
        }
        self.limit = limit;
        self.defragment();
        Ok(())
    }

    /// Pages that are free or can be made so.
    pub(crate) fn available(&self) -> u64 {
        let taken = match self.eviction {
            Eviction::None => (0..self.store.committed()).filter(|&page| self.in_use(page)).count(),
            _ => self.kept(),
        };
        u64::from(self.limit).saturating_sub(taken as u64)
    }

    /// Pages that are held or pinned, or needed by those.
    fn kept(&self) -> usize {
        let bare = |&page: &u32| self.held(page) && !self.tree.contains(page);
        (0..self.store.committed()).filter(bare).count() + self.tree.kept()
    }

    /// Numbers of this moment.
    pub(crate) fn stats(&self) -> KvStats {
        let committed = self.store.committed();
        let count = |is: &dyn Fn(u32) -> bool| (0..committed).filter(|&page| is(page)).count() as u64;
        let used = count(&|page| self.held(page));
        let cached = count(&|page| self.in_use(page)) - used;
        let (mut run, mut longest) = (0u64, 0);
        for page in 0..committed.min(self.limit) {
            run = if self.in_use(page) { 0 } else { run + 1 };
            longest = longest.max(run);
        }
        // What was never written is free, however much it is.
        longest = longest.max(run + u64::from(self.limit.saturating_sub(committed)));
        KvStats {
            page_tokens: self.tokens_of_page() as u64,
            page_bytes: self.store.shape().bytes as u64,
            groups: self.store.shape().groups() as u64,
            total: u64::from(self.limit),
            used,
            cached,
            free: u64::from(self.limit) - used - cached,
            shared: count(&|page| self.refs[page as usize] > 1),
            pinned: count(&|page| self.tree.pinned(page)),
            longest_free_run: longest,
            committed_bytes: u64::from(committed) * self.store.shape().bytes as u64,
            swapped_bytes: self.swap_used,
            hit_tokens: self.hit_tokens,
            evictions: self.evictions,
            copies: self.copies,
        }
    }

    /// How many pages a table has, and how many of them other tables have too.
    pub(crate) fn held_by(&self, id: TableId) -> (usize, usize) {
        let pages = self.table(id).pages.iter().flatten().filter(|page| **page != NONE);
        pages.fold((0, 0), |(all, shared), &page| {
            (all + 1, shared + usize::from(self.refs[page as usize] > 1))
        })
    }

    /// Takes a page that nobody has, an idle cached one if there is no other.
    pub(super) fn take(&mut self) -> Result<u32> {
        loop {
            if let Some(page) = self.free.pop() {
                return Ok(page);
            }
            let refused = if self.store.committed() < self.limit {
                match self.store.commit() {
                    Ok(page) => {
                        self.refs.resize(page as usize + 1, 0);
                        return Ok(page);
                    }
                    Err(e) => e,
                }
            } else {
                let message = format!(
                    "all {} pages of the KV cache are in use; free or swap out a session, or raise the budget",
                    self.limit
                );
                Error::new(Status::KV_FULL, message)
            };
            if self.eviction == Eviction::None || self.evict_one() == 0 {
                return Err(refused);
            }
        }
    }

    /// Gives a page back that was taken and that no table got.
    pub(super) fn put_back(&mut self, page: u32) {
        self.free.push(page);
    }

    /// The table got `page`, taken just now, where it has none.
    pub(super) fn place(&mut self, id: TableId, group: usize, index: usize, page: u32) {
        self.refs[page as usize] = 1;
        self.table_mut(id).pages[group][index] = page;
    }

    /// Frees what goes first. Returns how many pages that were.
    fn evict_one(&mut self) -> u64 {
        let Some(page) = self.tree.first_idle() else { return 0 };
        let gone = self.tree.evict(page);
        let count = gone.len() as u64;
        self.evictions += count;
        self.free.extend(gone);
        count
    }

    /// The table's pages from page `count` of tokens on are no longer those of its nodes.
    fn keep_nodes(&mut self, id: TableId, count: usize) {
        while self.table(id).nodes.len() > count {
            if let Some(node) = self.table_mut(id).nodes.pop() {
                self.tree.unname(node);
            }
        }
    }

    fn held(&self, page: u32) -> bool {
        self.refs[page as usize] > 0
    }

    fn in_use(&self, page: u32) -> bool {
        self.held(page) || self.tree.contains(page)
    }

    fn writable(&self, page: u32) -> bool {
        self.refs[page as usize] == 1 && !self.tree.contains(page)
    }

    /// Whether a published page that cannot be copied may be taken out of the tree and written in its place.
    fn can_unpublish(&self, page: u32) -> bool {
        self.eviction != Eviction::None && self.refs[page as usize] == 1 && self.tree.is_loose(page)
    }

    /// One table more has `page`, which is in the tree.
    pub(super) fn hold(&mut self, page: u32, priority: i32) {
        self.refs[page as usize] += 1;
        self.tree.hold(page, true, priority);
    }

    /// One table less has `page`.
    pub(super) fn release(&mut self, id: TableId, page: u32) {
        self.refs[page as usize] -= 1;
        if self.refs[page as usize] == 0 {
            if self.tree.contains(page) {
                let priority = self.table(id).priority;
                self.tree.hold(page, false, priority);
            } else {
                self.free.push(page);
            }
        }
    }

    pub(super) fn table(&self, id: TableId) -> &Table {
        self.tables[id.0].as_ref().expect("an open table")
    }

    pub(super) fn table_mut(&mut self, id: TableId) -> &mut Table {
        self.tables[id.0].as_mut().expect("an open table")
    }
}

/// Tables to read while pages are written.
#[derive(Clone, Copy)]
pub(crate) struct Tables<'a>(&'a [Option<Table>]);

impl<'a> Tables<'a> {
    /// The pages of a table for a group of layers, in order; behind a window they may be none.
    pub(crate) fn pages(self, id: TableId, group: usize) -> &'a [u32] {
        self.0[id.0].as_ref().map_or(&[], |table| &table.pages[group])
    }
}
