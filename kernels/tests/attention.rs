//! Paged attention equals a twin that knows no pages, on every instruction set, page size, batch and thread count.

mod common;

use common::{Random, cpus, quantize, same, tree};
use half::f16;
use llm_kernels::{Attention, Cpu, KeyType, KvLayout, Level, Row, ValueType, math};
use proptest::prelude::*;
use std::ops::Range;

/// Positions of a part: rule 6 cuts a sequence there, wherever threads cut it.
const PART: usize = 512;

/// One kind of attention over sequences.
#[derive(Clone, Debug)]
struct Case {
    key: KeyType,
    value: ValueType,
    latent: bool,
    kv_heads: usize,
    group: usize,
    key_dim: usize,
    value_dim: usize,
    /// Of each sequence.
    lengths: &'static [usize],
    /// The last rows of each sequence that are asked for.
    asked: usize,
    window: Option<u32>,
    softcap: Option<f32>,
    alibi: bool,
    sinks: bool,
}

/// Queries, keys and values of a sequence, and what each head has.
struct Data {
    length: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    slopes: Vec<f32>,
    sinks: Vec<f32>,
}

impl Case {
    fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    fn data(&self, seed: u64) -> Vec<Data> {
        let mut r = Random(seed);
        let slopes = if self.alibi { r.values(self.heads()) } else { Vec::new() };
        let sinks = if self.sinks { r.values(self.heads()) } else { Vec::new() };
        let of = |&n: &usize| Data {
            length: n,
            q: r.values(n * self.heads() * self.key_dim),
            k: r.values(n * self.kv_heads * self.key_dim),
            v: if self.latent { Vec::new() } else { r.values(n * self.kv_heads * self.value_dim) },
            slopes: slopes.clone(),
            sinks: sinks.clone(),
        };
        self.lengths.iter().map(of).collect()
    }

    /// Runs all sequences together in pages of `page` tokens that lie backwards, in batches of `chunk` rows of each,
    /// the second half of a page's bytes being another layer's; everything unwritten is 0xff (NaN in every float
    /// type). Returns what was asked for of each sequence.
    fn run(&self, cpu: &Cpu, all: &[Data], page: usize, chunk: usize) -> Vec<Vec<f32>> {
        let layout = KvLayout {
            key: self.key,
            value: self.value,
            page_tokens: page,
            kv_heads: self.kv_heads,
            key_dim: self.key_dim,
            value_dim: self.value_dim,
            latent: self.latent,
        };
        let mut pages = 0;
        let tables = all.iter().map(|d| {
            let first = pages;
            pages += d.length.div_ceil(page);
            (first as u32..pages as u32).rev().collect::<Vec<u32>>()
        });
        let tables: Vec<_> = tables.collect();
        let (offset, stride) = (layout.page_bytes(), 2 * layout.page_bytes());
        let mut pool = vec![0xffu8; pages * stride];
        let (kw, vw) = (self.kv_heads * self.key_dim, self.kv_heads * self.value_dim);
        let (qw, ow) = (self.heads() * self.key_dim, self.heads() * self.value_dim);
        let mut outs = vec![Vec::new(); all.len()];
        let longest = all.iter().map(|d| d.length).max().unwrap_or(0);
        for from in (0..longest).step_by(chunk) {
            let (mut rows, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
            let (mut asked, mut q, mut of) = (Vec::new(), Vec::new(), Vec::new());
            for (i, (d, table)) in all.iter().zip(&tables).enumerate() {
                for p in from..(from + chunk).min(d.length) {
                    let row = Row { table, position: p as u32 };
                    rows.push(row);
                    k.extend(&d.k[p * kw..][..kw]);
                    if !self.latent {
                        v.extend(&d.v[p * vw..][..vw]);
                    }
                    if p + self.asked >= d.length {
                        asked.push(row);
                        q.extend(&d.q[p * qw..][..qw]);
                        of.push(i);
                    }
                }
            }
            cpu.kv_write(&layout, &mut pool, stride, offset, &rows, &k, &v);
            let a = Attention {
                layout,
                pool: &pool,
                stride,
                offset,
                q: &q,
                heads: self.heads(),
                rows: &asked,
                scale: 0.3,
                window: self.window,
                softcap: self.softcap,
                alibi: &all[0].slopes,
                sinks: &all[0].sinks,
                level: Level::BatchInvariant,
            };
            let mut out = vec![0f32; asked.len() * ow];
            cpu.attention(&a, &mut out);
            for (i, row) in of.into_iter().zip(out.chunks(ow)) {
                outs[i].extend_from_slice(row);
            }
        }
        outs
    }

    /// Rule 6, written down without pages.
    fn twin(&self, d: &Data) -> Vec<f32> {
        let mut out = Vec::new();
        for position in d.length.saturating_sub(self.asked)..d.length {
            for head in 0..self.heads() {
                let low = self.window.map_or(0, |w| (position + 1).saturating_sub(w as usize));
                let sink = d.sinks.get(head).copied();
                let (mut max, mut sum) = (sink.unwrap_or(f32::NEG_INFINITY), sink.map_or(0f32, |_| 1.0));
                let mut o = vec![0f32; self.value_dim];
                for part in low / PART..=position / PART {
                    let seen = (part * PART).max(low)..((part + 1) * PART).min(position + 1);
                    let (part_max, part_sum, part_o) = self.part(d, position, head, seen);
                    let new = max.max(part_max);
                    let (f, g) = (math::exp(max - new), math::exp(part_max - new));
                    sum = part_sum.mul_add(g, sum * f);
                    o.iter_mut().zip(part_o).for_each(|(o, p)| *o = p.mul_add(g, *o * f));
                    max = new;
                }
                out.extend(o.iter().map(|o| o / sum));
            }
        }
        out
    }

    /// Maximum, sum and output of the positions `all` of one part.
    fn part(&self, d: &Data, position: usize, head: usize, all: Range<usize>) -> (f32, f32, Vec<f32>) {
        let kv = head / self.group;
        let q = &d.q[(position * self.heads() + head) * self.key_dim..][..self.key_dim];
        let key = |p: usize| &d.k[(p * self.kv_heads + kv) * self.key_dim..][..self.key_dim];
        let (mut max, mut sum, mut o) = (f32::NEG_INFINITY, 0f32, vec![0f32; self.value_dim]);
        for block in all.start / 64..=(all.end - 1) / 64 {
            let seen = (block * 64).max(all.start)..(block * 64 + 64).min(all.end);
            let score = |p: usize| {
                let mut s = self.dot(q, key(p)) * 0.3;
                if let Some(cap) = self.softcap {
                    s = cap * math::tanh(s / cap);
                }
                match d.slopes.get(head) {
                    Some(slope) => slope.mul_add(p as f32 - position as f32, s),
                    None => s,
                }
            };
            let scores: Vec<f32> = seen.clone().map(score).collect();
            let new = scores.iter().fold(max, |m, &s| m.max(s));
            let factor = math::exp(max - new);
            let mut lanes = [0f32; 16];
            o.iter_mut().for_each(|o| *o *= factor);
            for (p, s) in seen.zip(scores) {
                let weight = math::exp(s - new);
                lanes[p % 16] += weight;
                let (values, scale) = self.value(d, p, kv);
                let weight = scale.map_or(weight, |scale| weight * scale);
                for (o, v) in o.iter_mut().zip(values) {
                    *o = weight.mul_add(v, *o);
                }
            }
            sum = sum.mul_add(factor, tree(lanes));
            max = new;
        }
        (max, sum, o)
    }

    fn dot(&self, q: &[f32], k: &[f32]) -> f32 {
        if self.key == KeyType::I8 {
            let (keys, scale) = narrow(k);
            let mut acc = 0f32;
            for (q, k) in q.chunks(256).zip(keys.chunks(256)) {
                let (q, sq) = quantize(q);
                let sum: i32 = q.iter().zip(k).map(|(&a, &b)| a as i32 * b as i32).sum();
                acc = (sum as f32).mul_add(scale * sq, acc);
            }
            return acc;
        }
        let mut lanes = [0f32; 16];
        for (i, (q, k)) in q.iter().zip(k).enumerate() {
            let k = if self.key == KeyType::F16 { f16::from_f32(*k).to_f32() } else { *k };
            lanes[i % 16] = q.mul_add(k, lanes[i % 16]);
        }
        tree(lanes)
    }

    /// A token's value, and the scale that its weight takes in.
    fn value(&self, d: &Data, p: usize, kv: usize) -> (Vec<f32>, Option<f32>) {
        let key_as_value = match self.key {
            KeyType::F32 => ValueType::F32,
            KeyType::F16 => ValueType::F16,
            KeyType::I8 => ValueType::I8,
        };
        let (whole, kind) = if self.latent {
            (&d.k[(p * self.kv_heads + kv) * self.key_dim..][..self.key_dim], key_as_value)
        } else {
            (&d.v[(p * self.kv_heads + kv) * self.value_dim..][..self.value_dim], self.value)
        };
        let take = |v: Vec<f32>| v[..self.value_dim].to_vec();
        match kind {
            ValueType::F32 => (take(whole.to_vec()), None),
            ValueType::F16 => (take(whole.iter().map(|v| f16::from_f32(*v).to_f32()).collect()), None),
            ValueType::I8 => {
                let (ints, scale) = narrow(whole);
                (take(ints.iter().map(|&v| v as f32).collect()), Some(scale))
            }
        }
    }
}

/// A vector as the cache holds it in int8: the scale in half precision, the integers after it.
fn narrow(x: &[f32]) -> (Vec<i8>, f32) {
    let amax = x.iter().fold(0f32, |m, v| m.max(v.abs()));
    let scale = f16::from_f32(amax / 127.0).to_f32();
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    (x.iter().map(|v| (v * inverse).round_ties_even().clamp(-127.0, 127.0) as i8).collect(), scale)
}

fn check(case: &Case, seed: u64) {
    let all = case.data(seed);
    let expected: Vec<_> = all.iter().map(|d| case.twin(d)).collect();
    let longest = all.iter().map(|d| d.length).max().unwrap_or(0);
    for (i, cpu) in cpus().iter().enumerate() {
        // pages and batches differ from CPU to CPU and from case to case, the bits may not
        let turn = i + seed as usize;
        let (page, chunk) = ([64, 16, 32][turn % 3], [longest, 1, 5, 50][turn % 4]);
        let chunk = if case.asked < longest { chunk.max(50) } else { chunk };
        for (s, (expected, out)) in expected.iter().zip(case.run(cpu, &all, page, chunk)).enumerate() {
            let (isa, threads) = (cpu.isa().name(), cpu.pool().threads());
            let what = format!("{case:?} on {isa} x{threads} page {page} rows {chunk}, sequence {s}");
            same(expected, &out, &what);
        }
    }
}

const PLAIN: Case = Case {
    key: KeyType::I8,
    value: ValueType::F16,
    latent: false,
    kv_heads: 2,
    group: 4,
    key_dim: 64,
    value_dim: 64,
    lengths: &[150],
    asked: usize::MAX / 2,
    window: None,
    softcap: None,
    alibi: false,
    sinks: false,
};

#[test]
fn the_usual_shapes_equal_the_twin() {
    check(&PLAIN, 1);
    check(&Case { key: KeyType::F32, value: ValueType::F32, group: 1, ..PLAIN }, 2);
    check(&Case { key: KeyType::F16, value: ValueType::F16, key_dim: 80, value_dim: 80, ..PLAIN }, 3);
    check(&Case { value: ValueType::I8, group: 7, key_dim: 128, value_dim: 128, lengths: &[70], ..PLAIN }, 4);
    check(&Case { key: KeyType::F32, group: 12, kv_heads: 1, lengths: &[66], ..PLAIN }, 5);
    check(&Case { group: 3, key_dim: 48, value_dim: 80, ..PLAIN }, 22);
}

#[test]
fn windows_caps_slopes_and_sinks_equal_the_twin() {
    check(&Case { window: Some(40), softcap: Some(5.0), ..PLAIN }, 6);
    check(&Case { window: Some(1), sinks: true, ..PLAIN }, 7);
    check(&Case { alibi: true, sinks: true, window: Some(65), key: KeyType::F16, ..PLAIN }, 8);
}

#[test]
fn latent_attention_reads_values_out_of_keys() {
    let latent =
        Case { latent: true, kv_heads: 1, group: 10, key_dim: 300, value_dim: 260, lengths: &[80], ..PLAIN };
    for key in [KeyType::I8, KeyType::F16, KeyType::F32] {
        check(&Case { key, ..latent.clone() }, 9);
    }
    check(&Case { group: 3, lengths: &[600], asked: 2, ..latent.clone() }, 10);
    check(&Case { group: 130, key_dim: 576, value_dim: 512, lengths: &[70], asked: 1, ..latent }, 11);
}

#[test]
fn long_sequences_are_joined_from_parts() {
    let long = Case { lengths: &[1300], asked: 2, ..PLAIN };
    check(&long, 12);
    check(&Case { kv_heads: 1, group: 1, sinks: true, lengths: &[512], ..long.clone() }, 13);
    check(
        &Case { kv_heads: 1, group: 9, lengths: &[513], asked: 3, value: ValueType::I8, ..long.clone() },
        14,
    );
    check(&Case { window: Some(600), lengths: &[1500], alibi: true, ..long.clone() }, 15);
    check(&Case { window: Some(8), lengths: &[1030], asked: 10, key: KeyType::F32, ..long }, 16);
}

#[test]
fn sequences_decode_together_as_alone() {
    let many = Case { lengths: &[1100, 3, 64, 700, 513, 65, 1], asked: 1, ..PLAIN };
    check(&many, 17);
    check(&Case { group: 1, kv_heads: 1, value: ValueType::I8, ..many.clone() }, 18);
    check(&Case { window: Some(100), asked: 20, group: 2, sinks: true, ..many }, 19);
}

#[test]
fn pages_that_no_row_sees_may_be_anywhere() {
    let mut r = Random(11);
    let layout = KvLayout {
        key: KeyType::I8,
        value: ValueType::F16,
        page_tokens: 16,
        kv_heads: 1,
        key_dim: 16,
        value_dim: 16,
        latent: false,
    };
    for cpu in cpus() {
        let mut pool = vec![0u8; layout.page_bytes()];
        let table = [u32::MAX, u32::MAX, 0, u32::MAX];
        let rows: Vec<Row> = (32..48).map(|p| Row { table: &table, position: p }).collect();
        let (k, v) = (r.values(16 * 16), r.values(16 * 16));
        cpu.kv_write(&layout, &mut pool, layout.page_bytes(), 0, &rows, &k, &v);
        let q = r.values(16);
        let a = Attention {
            layout,
            pool: &pool,
            stride: layout.page_bytes(),
            offset: 0,
            q: &q,
            heads: 1,
            rows: &rows[15..],
            scale: 1.0,
            window: Some(16),
            softcap: None,
            alibi: &[],
            sinks: &[],
            level: Level::Portable,
        };
        let mut out = [0f32; 16];
        cpu.attention(&a, &mut out);
        assert!(out.iter().all(|v| v.is_finite()));
    }
}

#[test]
fn a_pool_may_begin_at_any_address() {
    let mut r = Random(12);
    let layout = KvLayout {
        key: KeyType::I8,
        value: ValueType::I8,
        page_tokens: 16,
        kv_heads: 2,
        key_dim: 20,
        value_dim: 36,
        latent: false,
    };
    let (table, bytes) = ([0u32], layout.page_bytes());
    let rows: Vec<Row> = (0..16).map(|p| Row { table: &table, position: p }).collect();
    let (q, k, v) = (r.values(16 * 2 * 20), r.values(16 * 2 * 20), r.values(16 * 2 * 36));
    let attend = |cpu: &Cpu, pool: &mut [u8]| {
        cpu.kv_write(&layout, pool, bytes, 0, &rows, &k, &v);
        let a = Attention {
            layout,
            pool,
            stride: bytes,
            offset: 0,
            q: &q,
            heads: 2,
            rows: &rows,
            scale: 0.3,
            window: None,
            softcap: None,
            alibi: &[],
            sinks: &[],
            level: Level::Portable,
        };
        let mut out = vec![0f32; 16 * 2 * 36];
        cpu.attention(&a, &mut out);
        out
    };
    let mut memory = vec![0u8; bytes + 2];
    for cpu in cpus() {
        // one of the two is odd
        let outs = [0, 1].map(|from| attend(&cpu, &mut memory[from..][..bytes]));
        same(&outs[0], &outs[1], "from an odd address");
    }
}

/// What a sequence computes where another holds infinities and NaN, and where its own later positions do.
#[test]
fn numbers_that_are_not_finite_stay_with_whom_they_belong_to() {
    for (key, value) in
        [(KeyType::I8, ValueType::F16), (KeyType::F16, ValueType::F16), (KeyType::I8, ValueType::I8)]
    {
        let case = Case { key, value, lengths: &[90, 90], ..PLAIN };
        let mut all = case.data(20);
        let clean: Vec<_> = cpus().iter().map(|cpu| case.run(cpu, &all, 16, 90)).collect();
        let (kw, vw, ow) = (2 * 64, 2 * 64, 8 * 64);
        (all[1].k[50 * kw], all[1].v[50 * vw], all[1].v[51 * vw + 64]) = (f32::NAN, f32::INFINITY, f32::NAN);
        for (cpu, clean) in cpus().iter().zip(&clean) {
            let out = case.run(cpu, &all, 16, 90);
            same(&clean[0], &out[0], "the other sequence");
            same(&clean[1][..50 * ow], &out[1][..50 * ow], "earlier positions");
            assert!(out[1][50 * ow..].iter().any(|v| v.is_nan()));
        }
    }
}

/// Lengths of the sequences of a random case.
const LENGTHS: [&[usize]; 6] = [&[1], &[17], &[64, 20], &[139], &[5, 90, 33], &[100, 100]];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn odd_shapes_equal_the_twin(
        key in 0usize..3, value in 0usize..3, latent: bool, kv_heads in 1usize..3, group in 1usize..10,
        key_dim in 1usize..100, value_dim in 1usize..100, lengths in 0usize..6, window in 0u32..90,
        softcap: bool, alibi: bool, sinks: bool, seed in 0u64..1000,
    ) {
        check(&Case {
            key: [KeyType::F32, KeyType::F16, KeyType::I8][key],
            value: [ValueType::F32, ValueType::F16, ValueType::I8][value],
            latent,
            kv_heads,
            group,
            key_dim,
            value_dim: if latent { value_dim.min(key_dim) } else { value_dim },
            lengths: LENGTHS[lengths],
            window: (window > 0).then_some(window),
            softcap: softcap.then_some(8.0),
            alibi,
            sinks,
            ..PLAIN
        }, seed);
    }

    #[test]
    fn odd_rows_of_long_sequences_equal_the_twin(
        key in 0usize..3, value in 0usize..3, latent: bool, kv_heads in 1usize..3, group in 1usize..20,
        dim in 1usize..40, lengths in 0usize..3, asked in 1usize..5, window in 0u32..1200, sinks: bool,
        seed in 0u64..1000,
    ) {
        check(&Case {
            key: [KeyType::F32, KeyType::F16, KeyType::I8][key],
            value: [ValueType::F32, ValueType::F16, ValueType::I8][value],
            latent,
            kv_heads,
            group,
            key_dim: dim,
            value_dim: dim,
            lengths: [&[700][..], &[1025, 511], &[513, 40, 1100]][lengths],
            asked,
            window: (window > 0).then_some(window),
            sinks,
            ..PLAIN
        }, seed);
    }
}
