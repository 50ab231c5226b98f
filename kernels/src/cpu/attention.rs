//! Writing keys and values into pages, and attention over them.

use super::Cpu;
use crate::generic::attention::{Join, PART, Query, Scratch, Tile, record};
use crate::input::Line;
use crate::kv::{KeyType, KvLayout, ValueType};
use crate::shared::Shared;
use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

/// A token of a batch: its sequence's page table and its place in it.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Page of positions 0.., page_tokens.., and so on. Entries of pages that no row sees may be anything.
    pub table: &'a [u32],
    /// The token's position.
    pub position: u32,
}

/// How far results agree. All levels use the same kernels here, which agree everywhere; products know `Fast`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Level {
    /// The same on this machine, whatever the batch, the threads, the pages.
    #[default]
    BatchInvariant,
    /// The same on every machine.
    Portable,
    /// As the first, but products may round as they are fastest: 16-bit weights go through AMX where it is, with
    /// activations in bf16, and elsewhere as ever.
    Fast,
}

/// One layer's attention for a batch of rows, which may belong to several sequences.
pub struct Attention<'a> {
    /// Shape of this layer's part of a page.
    pub layout: KvLayout,
    /// All pages.
    pub pool: &'a [u8],
    /// Bytes of a whole page (all layers).
    pub stride: usize,
    /// Of this layer's part in a page.
    pub offset: usize,
    /// `[rows, heads · key_dim]`.
    pub q: &'a [f32],
    /// Query heads, a multiple of the layout's kv heads.
    pub heads: usize,
    /// The rows; their keys and values are in the pages already.
    pub rows: &'a [Row<'a>],
    /// Factor on q · k.
    pub scale: f32,
    /// Position p sees p − W + 1 ..= p.
    pub window: Option<u32>,
    /// Scores become cap · tanh(score / cap).
    pub softcap: Option<f32>,
    /// Slope of each head, or empty: score += slope · (key position − query position).
    pub alibi: &'a [f32],
    /// A logit of each head that takes part in the softmax and carries no value, or empty.
    pub sinks: &'a [f32],
    /// Level of agreement.
    pub level: Level,
}

impl Cpu {
    /// Stores keys (`[rows, kv_heads · key_dim]`) and values (`[rows, kv_heads · value_dim]`, empty when latent) of
    /// `rows` in their pages.
    ///
    /// # Panics
    /// If lengths do not fit or a row's page lies outside the pool.
    #[allow(clippy::too_many_arguments)] // the pool's geometry and the batch
    pub fn kv_write(
        &self,
        layout: &KvLayout,
        pool: &mut [u8],
        stride: usize,
        offset: usize,
        rows: &[Row],
        k: &[f32],
        v: &[f32],
    ) {
        let heads = layout.kv_heads;
        check_pages(layout, pool.len(), stride, offset, rows, None);
        assert_eq!(k.len(), rows.len() * heads * layout.key_dim, "keys");
        assert_eq!(v.len(), if layout.latent { 0 } else { rows.len() * heads * layout.value_dim }, "values");
        let pool = Shared::of(pool);
        let (kd, vd) = (layout.key_dim, layout.value_dim);
        // by heads, whose parts of a page never overlap, even where a row is written twice
        self.split(heads, rows.len() * heads * (kd + vd), |range| {
            for head in range {
                for (i, row) in rows.iter().enumerate() {
                    let position = row.position as usize;
                    let page = row.table[position / layout.page_tokens] as usize;
                    let slot = position % layout.page_tokens;
                    let at = page * stride + offset + head * layout.head_bytes();
                    let key = &k[(i * heads + head) * kd..][..kd];
                    // SAFETY: the head's part of the page lies in the pool (`check_pages`) and is this thread's
                    // alone; the offsets are the layout's; the machine has the table's instruction set
                    unsafe {
                        let part = pool.slice(at, layout.head_bytes()).as_mut_ptr();
                        let scale = part.add(layout.key_scales_at() + slot * 2).cast();
                        if layout.key == KeyType::I8 {
                            let mut line = [0u8; KvLayout::MAX_DIM];
                            (self.ops.store)(KeyType::I8, key.as_ptr(), kd, line.as_mut_ptr(), scale);
                            let fours = line[..layout.key_width()].as_chunks::<4>().0;
                            for (d, four) in fours.iter().enumerate() {
                                part.add(layout.key_four_at(slot, d)).cast::<[u8; 4]>().write(*four);
                            }
                        } else {
                            let to = part.add(slot * layout.key_bytes());
                            (self.ops.store)(layout.key, key.as_ptr(), kd, to, scale);
                        }
                        if !layout.latent {
                            let value = &v[(i * heads + head) * vd..][..vd];
                            let to = part.add(layout.values_at() + slot * layout.value_bytes());
                            let scale = part.add(layout.value_scales_at() + slot * 2).cast();
                            let kind = match layout.value {
                                ValueType::F32 => KeyType::F32,
                                ValueType::F16 => KeyType::F16,
                                ValueType::I8 => KeyType::I8,
                            };
                            (self.ops.store)(kind, value.as_ptr(), vd, to, scale);
                        }
                    }
                }
            }
        });
    }

    /// Softmax attention, causal: `out` is `[rows, heads · value_dim]`.
    ///
    /// # Panics
    /// If lengths do not fit or a visible page lies outside the pool.
    pub fn attention(&self, a: &Attention, out: &mut [f32]) {
        let l = &a.layout;
        let rows = a.rows.len();
        check_pages(l, a.pool.len(), a.stride, a.offset, a.rows, Some(a.window));
        assert!(a.heads > 0 && a.heads.is_multiple_of(l.kv_heads), "{} heads over {}", a.heads, l.kv_heads);
        assert_eq!(a.q.len(), rows * a.heads * l.key_dim, "queries [{rows}, {} x {}]", a.heads, l.key_dim);
        assert_eq!(
            out.len(),
            rows * a.heads * l.value_dim,
            "outputs [{rows}, {} x {}]",
            a.heads,
            l.value_dim
        );
        assert!(a.alibi.is_empty() || a.alibi.len() == a.heads, "slopes of {} heads", a.heads);
        assert!(a.sinks.is_empty() || a.sinks.len() == a.heads, "sinks of {} heads", a.heads);
        assert!(a.window != Some(0), "a window of nothing");
        if rows == 0 {
            return;
        }
        let plan = Plan::new(a, self.pool.threads());
        let out = Shared::of(out);
        // who finds the room taken by another caller splits nothing; the bits are the same
        let mut room = if plan.splits > 1 { self.parts.try_lock().ok() } else { None };
        let Some(room) = room.as_deref_mut() else {
            self.tiles(a, &Plan { splits: 1, ..plan }, &out, None);
            return;
        };
        let each = plan.parts * record(l);
        let queries = rows * a.heads;
        if room.len() < queries * each {
            room.resize((queries * each).next_power_of_two(), 0.0);
        }
        let records = Shared::of(&mut room[..queries * each]);
        self.tiles(a, &plan, &out, Some(&records));
        self.split(queries, queries * each, |range| {
            let mut total = [0f32; KvLayout::MAX_DIM];
            for i in range {
                let (low, high) = visible(a.rows[i / a.heads].position, a.window);
                // SAFETY: this query's records and output are this thread's alone
                let (records, out) =
                    unsafe { (records.slice(i * each, each), out.slice(i * l.value_dim, l.value_dim)) };
                let join = Join {
                    records: records.as_ptr(),
                    count: (high - 1) / PART + 1 - low / PART,
                    record: record(l),
                    value_dim: l.value_dim,
                    sink: a.sinks.get(i % a.heads).copied().unwrap_or(f32::NEG_INFINITY),
                    out: out.as_mut_ptr(),
                    scratch: total.as_mut_ptr(),
                };
                // SAFETY: every part that the query sees has its record; the machine has the table's instruction set
                unsafe { (self.ops.join)(&join) };
            }
        });
    }

    /// Computes all tiles, into `records` where there are any.
    fn tiles(&self, a: &Attention, plan: &Plan, out: &Shared<f32>, records: Option<&Shared<f32>>) {
        let rows = a.rows.len();
        let group = a.heads / a.layout.kv_heads;
        let tiles = rows.div_ceil(plan.rows);
        let cuts = group.div_ceil(plan.heads);
        let kv_heads = a.layout.kv_heads;
        self.pool.run(tiles * kv_heads.div_ceil(plan.kv_heads) * cuts * plan.splits, |chunk| {
            // heads outermost: neighbouring chunks read the same keys; later rows first, they cost most
            let (chunk, split) = (chunk / plan.splits, chunk % plan.splits);
            let (kv, rest) = (chunk / (tiles * cuts), chunk % (tiles * cuts));
            let (tile, cut) = (tiles - 1 - rest / cuts, rest % cuts);
            let heads = cut * plan.heads..((cut + 1) * plan.heads).min(group);
            let kv = kv * plan.kv_heads..((kv + 1) * plan.kv_heads).min(kv_heads);
            let mut i = tile * plan.rows;
            let end = (i + plan.rows).min(rows);
            while i < end {
                let table = a.rows[i].table;
                let n = a.rows[i..end].iter().take_while(|r| std::ptr::eq(r.table, table)).count();
                self.tile(a, plan, kv.clone(), i..i + n, heads.clone(), split, out, records);
                i += n;
            }
        });
    }

    /// Rows `rows` of one sequence, heads `heads` of the groups of kv heads `kv`, one of the plan's splits.
    #[allow(clippy::too_many_arguments)] // the place of a tile
    fn tile(
        &self,
        a: &Attention,
        plan: &Plan,
        kv: Range<usize>,
        rows: Range<usize>,
        heads: Range<usize>,
        split: usize,
        out: &Shared<f32>,
        records: Option<&Shared<f32>>,
    ) {
        let l = &a.layout;
        let group = a.heads / l.kv_heads;
        let (mut first, mut last) = (usize::MAX, 0);
        for row in &a.rows[rows.clone()] {
            let (low, high) = visible(row.position, a.window);
            first = first.min(low / PART);
            last = last.max((high - 1) / PART + 1);
        }
        let parts = last - first;
        (first, last) = (first + parts * split / plan.splits, first + parts * (split + 1) / plan.splits);
        if first == last {
            return;
        }
        let table = a.rows[rows.start].table;
        let mut queries = [const { MaybeUninit::<Query>::uninit() }; HEADS];
        let mut count = 0;
        for (head, i) in kv.clone().flat_map(|kv| rows.clone().map(move |i| (kv * group, i))) {
            let (low, high) = visible(a.rows[i].position, a.window);
            for head in heads.clone().map(|h| head + h) {
                let at = i * a.heads + head;
                // SAFETY: this (row, head)'s output, or the records of these parts of it, are this thread's alone
                let out = unsafe {
                    match records {
                        Some(records) => {
                            // beyond the row's last part there are none, and then nothing is written
                            let each = plan.parts * record(l);
                            records.pointer().add(at * each)
                        }
                        None => out.slice(at * l.value_dim, l.value_dim).as_mut_ptr(),
                    }
                };
                queries[count].write(Query {
                    q: a.q[at * l.key_dim..][..l.key_dim].as_ptr(),
                    out,
                    low,
                    high,
                    slope: a.alibi.get(head).copied().unwrap_or(0.0),
                    sink: a.sinks.get(head).copied().unwrap_or(f32::NEG_INFINITY),
                });
                count += 1;
            }
        }
        // SAFETY: the first `count` have been written
        let queries = unsafe { std::slice::from_raw_parts(queries.as_ptr().cast::<Query>(), count) };
        SCRATCH.with_borrow_mut(|scratch| {
            let lines =
                Scratch::bytes(l, kv.len() * Scratch::room(count / kv.len())).div_ceil(size_of::<Line>());
            if scratch.len() < lines {
                scratch.resize(lines, Line::default());
            }
            let tile = Tile {
                layout: *l,
                pool: a.pool[a.offset + kv.start * l.head_bytes()..].as_ptr(),
                stride: a.stride,
                table: table.as_ptr(),
                queries,
                heads: kv.len(),
                keys: self.ops.keys,
                scale: a.scale,
                softcap: a.softcap.unwrap_or(0.0),
                alibi: !a.alibi.is_empty(),
                first,
                last,
                whole: records.is_none(),
                scratch: scratch.as_mut_ptr().cast(),
            };
            // SAFETY: every page that holds a visible position lies in the pool and in the table (`check_pages`);
            // queries and outputs hold key_dim and value_dim values, records as many as the row sees parts; the
            // scratch is as large as it says; the machine has the table's instruction set
            unsafe { (self.ops.attend)(&tile) };
        });
    }
}

/// Queries of a tile where there are many rows.
const QUERIES: usize = 64;
/// Queries of a tile, at most: where one row of a group has more than [`QUERIES`].
const HEADS: usize = 128;
/// A tile's working memory should stay in the second cache.
const SCRATCH_BYTES: usize = 768 << 10;
/// Pieces of work for each thread, where the rows alone do not make as many: every piece begins with a wait for memory.
const PIECES: usize = 2;
/// Values of records, at most.
const RECORDS: usize = 16 << 20;

thread_local! {
    /// A tile's working memory: every thread's own, as large as its largest tile.
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// How a batch is cut into tiles, and these into ranges of parts. It changes no bits.
struct Plan {
    /// Rows of a tile, and its heads: of each of so many groups so many.
    rows: usize,
    kv_heads: usize,
    heads: usize,
    /// Ranges into which a tile's parts are cut, for different threads.
    splits: usize,
    /// The most parts that a row sees.
    parts: usize,
}

impl Plan {
    fn new(a: &Attention, threads: usize) -> Plan {
        let l = &a.layout;
        let group = a.heads / l.kv_heads;
        let fit = (SCRATCH_BYTES / (Scratch::bytes(l, 16) / 16)).clamp(8, HEADS);
        let heads = group.div_ceil(group.div_ceil(fit));
        // rows of different sequences share nothing
        let sequences = 1 + a.rows.windows(2).filter(|r| !std::ptr::eq(r[0].table, r[1].table)).count();
        let rows = (QUERIES.min(fit) / group).clamp(1, a.rows.len().div_ceil(sequences));
        let (mut parts, mut most, mut all) = (1, 1, 0);
        for row in a.rows {
            let (low, high) = visible(row.position, a.window);
            parts = parts.max((high - 1) / PART + 1 - low / PART);
            most = most.max(high - low);
            all += high - low;
        }
        let cuts = group.div_ceil(heads);
        let tiles = a.rows.len().div_ceil(rows) * cuts;
        // heads that lie beside each other are read together where parts of the sequence give the threads enough to do
        let groups = (threads * PIECES).div_ceil(tiles * parts);
        let kv_heads =
            l.kv_heads.div_ceil(groups.min(l.kv_heads)).min((QUERIES.min(fit) / (rows * heads)).max(1));
        let all = (all * l.kv_heads.div_ceil(kv_heads) * cuts).div_ceil(rows);
        let mut splits = (most * threads * PIECES).div_ceil(all.max(1)).min(parts);
        if threads == 1 || a.rows.len() * a.heads * parts * record(l) > RECORDS {
            splits = 1;
        }
        Plan { rows, kv_heads, heads, splits, parts }
    }
}

/// Positions that a row sees: low..high.
fn visible(position: u32, window: Option<u32>) -> (usize, usize) {
    let high = position as usize + 1;
    (window.map_or(0, |w| high.saturating_sub(w as usize)), high)
}

/// Proves that pages lie in the pool: those of the rows' own positions, or with `sees` all that they see.
fn check_pages(
    l: &KvLayout,
    pool: usize,
    stride: usize,
    offset: usize,
    rows: &[Row],
    sees: Option<Option<u32>>,
) {
    assert!(l.is_valid(), "{l:?}");
    assert!(
        offset <= stride && l.page_bytes() <= stride - offset,
        "a layer's part of a page of {stride} bytes"
    );
    let pages = pool / stride.max(1);
    let mut done: Option<(&Row, usize)> = None;
    for row in rows {
        let last = row.position as usize / l.page_tokens;
        assert!(last < row.table.len(), "position {} of a table of {} pages", row.position, row.table.len());
        let mut first = sees.map_or(last, |window| visible(row.position, window).0 / l.page_tokens);
        // the row before, of the same sequence, has proved most of them
        if let Some((before, from)) = done
            && std::ptr::eq(before.table, row.table)
            && before.position <= row.position
            && from <= first
        {
            first = first.max(before.position as usize / l.page_tokens);
        }
        for &page in &row.table[first..=last] {
            assert!((page as usize) < pages, "page {page} of {pages}");
        }
        done = sees.map(|window| (row, visible(row.position, window).0 / l.page_tokens));
    }
}
