//! Whose page is whose: counts of holders, page tables of sequences, and what is kept when nobody holds it.
//!
//! ```text
//! page:  free ──take──▶ used (in one or more tables) ──last table lets go──▶ free
//!                          │ full: published in the tree                 └─▶ cached (if published) ──evict──▶ free
//! ```
//! A page is written only by a table that alone has it and that has not published it; anything else is copied first.
//! Used, cached and free pages always add up to all pages. It does not know what computes the bytes.

use super::prefix::{Parent, Root, Tree};
use super::store::Store;
use super::swap::Swapped;
use super::{Eviction, KvStats};
use crate::error::{Error, Result, Status};

/// The page table of a sequence.
#[derive(Debug)]
pub(crate) struct Table {
    pub(super) pages: Vec<u32>,
    /// Pages from the first on that are in the tree.
    published: usize,
    /// What its pages are found under; `None` for a sequence whose pages nobody else may use.
    root: Option<Root>,
    /// Pages from here on are not published: their bytes were not computed here.
    pub(super) foreign: usize,
    priority: i32,
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
    tree: Tree,
    eviction: Eviction,
    /// Whether full pages are found again.
    cache: bool,
    /// Bytes that swapped sequences may take, and those they take.
    pub(super) swap_limit: u64,
    pub(super) swap_used: u64,
    hit_tokens: u64,
    evictions: u64,
    copies: u64,
}

impl Pages {
    /// All pages of `store` up to `limit`, free.
    pub(crate) fn new(store: Store, limit: u32, eviction: Eviction, cache: bool, swap_limit: u64) -> Self {
        Self {
            store,
            limit,
            refs: Vec::new(),
            free: Vec::new(),
            tables: Vec::new(),
            tree: Tree::new(eviction == Eviction::Priority),
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

    fn tokens_of_page(&self) -> usize {
        self.store.shape().tokens
    }

    /// An empty table.
    pub(crate) fn open(&mut self, root: Option<Root>, priority: i32) -> TableId {
        let root = root.filter(|_| self.cache);
        let table =
            Table { pages: Vec::new(), published: 0, root, foreign: usize::MAX, priority, swapped: None };
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

    /// Another table with the same pages for the first `tokens` tokens. The table must not be swapped out.
    pub(crate) fn fork(&mut self, id: TableId, tokens: usize) -> TableId {
        let size = self.tokens_of_page();
        let kept = tokens.div_ceil(size);
        let table = self.table(id);
        let (root, priority, foreign) = (table.root, table.priority, table.foreign);
        let published = table.published.min(tokens / size);
        let pages = table.pages[..kept].to_vec();
        for &page in &pages {
            self.refs[page as usize] += 1;
        }
        let fork = self.open(root, priority);
        let table = self.table_mut(fork);
        (table.pages, table.published, table.foreign) = (pages, published, foreign);
        fork
    }

    /// Makes room for tokens `from..to`: pages that this table may write, all of what it takes or nothing.
    ///
    /// # Errors
    /// `KV_FULL` when no page can be had, `BUDGET` when a first use would pass the runtime's limit. The sequence is
    /// as before.
    pub(crate) fn room(&mut self, id: TableId, from: usize, to: usize) -> Result<()> {
        let size = self.tokens_of_page();
        let (first, end) = (from / size, to.div_ceil(size));
        let mut taken = Vec::new();
        for i in first..end {
            let page = self.table(id).pages.get(i).copied();
            if page.is_some_and(|page| self.writable(page)) {
                continue;
            }
            match self.take() {
                Ok(page) => taken.push((i, page)),
                Err(e) => match page.filter(|&page| self.can_unpublish(page)) {
                    Some(page) => self.unpublish(id, i, page),
                    None => {
                        taken.into_iter().for_each(|(_, page)| self.free.push(page));
                        return Err(e);
                    }
                },
            }
        }
        for (i, page) in taken {
            self.refs[page as usize] = 1;
            match self.table(id).pages.get(i).copied() {
                Some(old) => {
                    // Only the page that `from` lies in has anything to keep.
                    if i == first && !from.is_multiple_of(size) {
                        self.store.copy(old, page);
                        self.copies += 1;
                    }
                    let table = self.table_mut(id);
                    table.pages[i] = page;
                    table.published = table.published.min(i);
                    self.release(id, old);
                }
                None => self.table_mut(id).pages.push(page),
            }
        }
        Ok(())
    }

    /// Keeps the pages of the first `tokens` tokens, and of the first `reserved` as far as there are any.
    pub(crate) fn truncate(&mut self, id: TableId, tokens: usize, reserved: usize) {
        let size = self.tokens_of_page();
        if self.table(id).swapped.is_some() {
            self.truncate_swapped(id, tokens.div_ceil(size));
        }
        while self.table(id).pages.len() > tokens.max(reserved).div_ceil(size) {
            if let Some(page) = self.table_mut(id).pages.pop() {
                self.release(id, page);
            }
        }
        let table = self.table_mut(id);
        table.published = table.published.min(tokens / size);
        if table.swapped.is_none() && tokens <= table.foreign.saturating_mul(size) {
            table.foreign = usize::MAX;
        }
    }

    /// Lets the table's full pages of `tokens`, all its tokens, be found again. A page that is there already takes
    /// the place of the table's own.
    pub(crate) fn publish(&mut self, id: TableId, tokens: &[i32]) {
        let size = self.tokens_of_page();
        let Some(root) = self.table(id).root else { return };
        for i in self.table(id).published..(tokens.len() / size).min(self.table(id).foreign) {
            let table = self.table(id);
            let (page, priority) = (table.pages[i], table.priority);
            let parent = if i == 0 { Parent::Root(root) } else { Parent::Page(table.pages[i - 1]) };
            let tokens = &tokens[i * size..(i + 1) * size];
            match self.tree.find(parent, tokens) {
                Some(same) if same != page => {
                    self.hold(same, priority);
                    self.table_mut(id).pages[i] = same;
                    self.release(id, page);
                }
                Some(_) => {}
                None => self.tree.insert(parent, tokens, page, priority),
            }
            self.table_mut(id).published = i + 1;
        }
    }

    /// Appends cached pages that hold the beginning of `ids`, at most `most` tokens of them, to a table of `held`
    /// tokens. Returns how many tokens it holds more.
    pub(crate) fn adopt(&mut self, id: TableId, held: usize, ids: &[i32], most: usize) -> usize {
        let size = self.tokens_of_page();
        let table = self.table(id);
        let whole = table.pages.len() * size == held && table.published * size == held;
        if !whole || table.swapped.is_some() {
            return 0;
        }
        let (Some(root), priority) = (table.root, table.priority) else { return 0 };
        let mut parent = table.pages.last().map_or(Parent::Root(root), |&page| Parent::Page(page));
        let mut adopted = 0;
        for tokens in ids[..most.min(ids.len())].chunks_exact(size) {
            let Some(page) = self.tree.find(parent, tokens) else { break };
            self.hold(page, priority);
            let table = self.table_mut(id);
            table.pages.push(page);
            table.published += 1;
            parent = Parent::Page(page);
            adopted += size;
        }
        self.hit_tokens += adopted as u64;
        adopted
    }

    /// How many tokens at the beginning of `ids` are cached for a table like `id`.
    pub(crate) fn find(&self, id: TableId, ids: &[i32]) -> usize {
        let Some(root) = self.table(id).root else { return 0 };
        let (mut parent, mut found) = (Parent::Root(root), 0);
        for tokens in ids.chunks_exact(self.tokens_of_page()) {
            let Some(page) = self.tree.find(parent, tokens) else { break };
            parent = Parent::Page(page);
            found += tokens.len();
        }
        found
    }

    /// Appends the pages of the table's `tokens` tokens to `out`, with zeros where no token is.
    pub(crate) fn export(&self, id: TableId, tokens: usize, out: &mut Vec<u8>) {
        let shape = self.store.shape();
        for (i, &page) in self.table(id).pages[..tokens.div_ceil(shape.tokens)].iter().enumerate() {
            let start = out.len();
            out.extend_from_slice(self.store.page(page));
            let held = tokens - i * shape.tokens;
            if held < shape.tokens {
                for (layout, offset) in &shape.layers {
                    layout.clear_after(&mut out[start + offset..][..layout.page_bytes()], held);
                }
            }
        }
    }

    /// Gives an empty table the pages of `tokens`: those the cache has, at most `most` tokens of them, and for the
    /// rest `content`, as [`Pages::export`] wrote it. What comes from `content` is never found by others.
    ///
    /// # Errors
    /// `KV_FULL`, `BUDGET`; the table is empty then.
    pub(crate) fn import(&mut self, id: TableId, tokens: &[i32], most: usize, content: &[u8]) -> Result<()> {
        let (size, bytes) = (self.tokens_of_page(), self.store.shape().bytes);
        let adopted = self.adopt(id, 0, tokens, most);
        if let Err(e) = self.room(id, adopted, tokens.len()) {
            self.truncate(id, 0, 0);
            return Err(e);
        }
        if adopted < tokens.len() {
            self.table_mut(id).foreign = adopted / size;
        }
        for (i, content) in content.chunks_exact(bytes).enumerate().skip(adopted / size) {
            let page = self.table(id).pages[i];
            self.store.page_mut(page).copy_from_slice(content);
        }
        Ok(())
    }

    /// Pins (or unpins) the table's published pages. Returns how many pages those are.
    pub(crate) fn pin(&mut self, id: TableId, pin: bool) -> usize {
        let published = self.table(id).published;
        for i in 0..published {
            let page = self.table(id).pages[i];
            if pin { self.tree.pin(page) } else { self.tree.unpin(page) }
        }
        published
    }

    /// Frees cached pages until `bytes` bytes are freed or none is left that nobody holds or pins. Returns the bytes
    /// freed.
    pub(crate) fn evict(&mut self, bytes: u64) -> u64 {
        let mut freed = 0;
        while freed < bytes && self.evict_one() {
            freed += self.store.shape().bytes as u64;
        }
        freed
    }

    /// Forgets every page that no table has, pinned or not.
    pub(crate) fn clear_cache(&mut self) {
        self.tree.unpin_unheld();
        while let Some(page) = self.tree.first_idle() {
            self.tree.remove(page);
            self.free.push(page);
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
                table.pages.iter_mut().for_each(|page| *page = map[*page as usize]);
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
        let bare = (0..committed).filter(|&page| self.held(page) && !self.tree.contains(page)).count();
        let kept = bare + self.tree.kept();
        if kept > limit as usize {
            let message = format!("{kept} pages are in use or pinned; the pool cannot shrink to {limit}");
            return Err(Error::new(Status::KV_FULL, message).with("needed", kept as i64));
        }
        self.store.resize(limit as usize)?;
        while (0..committed).filter(|&page| self.in_use(page)).count() > limit as usize && self.evict_one() {}
        self.limit = limit;
        self.defragment();
        Ok(())
    }

    /// Numbers of this moment.
    pub(crate) fn stats(&self) -> KvStats {
        let committed = self.store.committed();
        let count = |is: &dyn Fn(u32) -> bool| (0..committed).filter(|&page| is(page)).count() as u64;
        let used = count(&|page| self.held(page));
        let cached = count(&|page| self.in_use(page)) - used;
        let (mut run, mut longest) = (0u64, 0);
        for page in 0..self.limit {
            run = if page < committed && self.in_use(page) { 0 } else { run + 1 };
            longest = longest.max(run);
        }
        KvStats {
            page_tokens: self.tokens_of_page() as u64,
            page_bytes: self.store.shape().bytes as u64,
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
        let pages = &self.table(id).pages;
        (pages.len(), pages.iter().filter(|page| self.refs[**page as usize] > 1).count())
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
            if self.eviction == Eviction::None || !self.evict_one() {
                return Err(refused);
            }
        }
    }

    /// Gives a page back that was taken and that no table got.
    pub(super) fn put_back(&mut self, page: u32) {
        self.free.push(page);
    }

    /// The table got `page`, taken just now.
    pub(super) fn append(&mut self, id: TableId, page: u32) {
        self.refs[page as usize] = 1;
        self.table_mut(id).pages.push(page);
    }

    fn evict_one(&mut self) -> bool {
        let Some(page) = self.tree.first_idle() else { return false };
        self.drop_cached(page);
        true
    }

    fn drop_cached(&mut self, page: u32) {
        self.tree.remove(page);
        self.free.push(page);
        self.evictions += 1;
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

    fn unpublish(&mut self, id: TableId, index: usize, page: u32) {
        self.tree.remove(page);
        let table = self.table_mut(id);
        table.published = table.published.min(index);
    }

    fn hold(&mut self, page: u32, priority: i32) {
        self.refs[page as usize] += 1;
        self.tree.hold(page, true, priority);
    }

    /// One table less has `page`.
    fn release(&mut self, id: TableId, page: u32) {
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
    /// The pages of a table, in order.
    pub(crate) fn pages(self, id: TableId) -> &'a [u32] {
        self.0[id.0].as_ref().map_or(&[], |table| &table.pages)
    }
}
