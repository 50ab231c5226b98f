//! Writing keys and values into pages, and attention over them.

use super::{Cpu, Shared};
use crate::generic::attention::{QUERIES, Query, Tile};
use crate::kv::{KeyType, KvLayout, ValueType};

/// A token of a batch: its sequence's page table and its place in it.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Page of positions 0.., page_tokens.., and so on. Entries of pages that no row sees may be anything.
    pub table: &'a [u32],
    /// The token's position.
    pub position: u32,
}

/// How far results agree. Both levels use the same kernels here, which agree everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Level {
    /// The same on this machine, whatever the batch, the threads, the pages.
    #[default]
    BatchInvariant,
    /// The same on every machine.
    Portable,
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
                        (self.ops.store)(
                            layout.key,
                            key.as_ptr(),
                            kd,
                            part.add(slot * layout.key_bytes()),
                            scale,
                        );
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
        let group = a.heads / l.kv_heads;
        // a tile: some heads of a group, or all heads of a group in some neighbouring rows
        let (tile_rows, tile_heads) = ((QUERIES / group).max(1), group.min(QUERIES));
        let cuts = group.div_ceil(tile_heads);
        let tiles = rows.div_ceil(tile_rows);
        let out = Shared::of(out);
        self.pool.run(tiles * l.kv_heads * cuts, |chunk| {
            // heads outermost: neighbouring chunks read the same keys; later rows first, they cost most
            let (head, rest) = (chunk / (tiles * cuts), chunk % (tiles * cuts));
            let (tile, cut) = (tiles - 1 - rest / cuts, rest % cuts);
            let first = tile * tile_rows;
            let heads = cut * tile_heads..((cut + 1) * tile_heads).min(group);
            let mut i = first;
            let end = (first + tile_rows).min(rows);
            while i < end {
                let table = a.rows[i].table;
                let same = |r: &Row| std::ptr::eq(r.table, table);
                let n = a.rows[i..end].iter().take_while(|r| same(r)).count();
                self.attend(a, head, i..i + n, heads.clone(), &out);
                i += n;
            }
        });
    }

    /// Rows `rows` of one sequence, heads `heads` of kv head `kv`'s group.
    fn attend(
        &self,
        a: &Attention,
        kv: usize,
        rows: std::ops::Range<usize>,
        heads: std::ops::Range<usize>,
        out: &Shared<f32>,
    ) {
        let l = &a.layout;
        let group = a.heads / l.kv_heads;
        let nothing = Query {
            q: std::ptr::null(),
            out: std::ptr::null_mut(),
            low: 0,
            high: 0,
            slope: 0.0,
            sink: f32::NEG_INFINITY,
        };
        let mut queries = [nothing; QUERIES];
        let mut count = 0;
        let table = a.rows[rows.start].table;
        for i in rows {
            let (low, high) = visible(a.rows[i].position, a.window);
            for h in heads.clone() {
                let head = kv * group + h;
                let at = i * a.heads + head;
                // SAFETY: this (row, head)'s output is this thread's alone
                let out = unsafe { out.slice(at * l.value_dim, l.value_dim) }.as_mut_ptr();
                queries[count] = Query {
                    q: a.q[at * l.key_dim..][..l.key_dim].as_ptr(),
                    out,
                    low,
                    high,
                    slope: a.alibi.get(head).copied().unwrap_or(0.0),
                    sink: a.sinks.get(head).copied().unwrap_or(f32::NEG_INFINITY),
                };
                count += 1;
            }
        }
        let tile = Tile {
            layout: *l,
            pool: a.pool[a.offset + kv * l.head_bytes()..].as_ptr(),
            stride: a.stride,
            table: table.as_ptr(),
            queries: &queries[..count],
            scale: a.scale,
            softcap: a.softcap.unwrap_or(0.0),
            alibi: !a.alibi.is_empty(),
        };
        // SAFETY: every page that holds a visible position lies in the pool and in the table (`check_pages`);
        // queries and outputs hold key_dim and value_dim values; dimensions are within the scratch's
        // (`KvLayout::is_valid`); the machine has the table's instruction set
        unsafe { (self.ops.attend)(&tile) };
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
    assert!(offset.is_multiple_of(2) && stride.is_multiple_of(2), "pages at even addresses");
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
