//! Paged attention equals a twin that knows no pages, on every instruction set, page size, batch and thread count.

mod common;

use common::{Random, cpus, quantize, same, tree};
use half::f16;
use llm_kernels::{Attention, Cpu, KeyType, KvLayout, Level, Row, ValueType, math};
use proptest::prelude::*;

/// One kind of attention over one sequence.
#[derive(Clone, Debug)]
struct Case {
    key: KeyType,
    value: ValueType,
    latent: bool,
    kv_heads: usize,
    group: usize,
    key_dim: usize,
    value_dim: usize,
    length: usize,
    window: Option<u32>,
    softcap: Option<f32>,
    alibi: bool,
    sinks: bool,
}

struct Data {
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

    fn data(&self, seed: u64) -> Data {
        let mut r = Random(seed);
        let n = self.length;
        Data {
            q: r.values(n * self.heads() * self.key_dim),
            k: r.values(n * self.kv_heads * self.key_dim),
            v: if self.latent { Vec::new() } else { r.values(n * self.kv_heads * self.value_dim) },
            slopes: if self.alibi { r.values(self.heads()) } else { Vec::new() },
            sinks: if self.sinks { r.values(self.heads()) } else { Vec::new() },
        }
    }

    /// Runs in pages of `page` tokens that lie backwards, in batches of `chunk` rows, the second half of a page's
    /// bytes being another layer's; everything unwritten is 0xff (NaN in every float type).
    fn run(&self, cpu: &Cpu, d: &Data, page: usize, chunk: usize) -> Vec<f32> {
        let layout = KvLayout {
            key: self.key,
            value: self.value,
            page_tokens: page,
            kv_heads: self.kv_heads,
            key_dim: self.key_dim,
            value_dim: self.value_dim,
            latent: self.latent,
        };
        let pages = self.length.div_ceil(page);
        let (offset, stride) = (layout.page_bytes(), 2 * layout.page_bytes());
        let table: Vec<u32> = (0..pages as u32).rev().collect();
        let mut pool = vec![0xffu8; pages * stride];
        let (kw, vw) = (self.kv_heads * self.key_dim, self.kv_heads * self.value_dim);
        let (qw, ow) = (self.heads() * self.key_dim, self.heads() * self.value_dim);
        let mut out = vec![0f32; self.length * ow];
        let all: Vec<Row> = (0..self.length).map(|p| Row { table: &table, position: p as u32 }).collect();
        for (c, rows) in all.chunks(chunk).enumerate() {
            let (from, to) = (c * chunk, c * chunk + rows.len());
            let v = if self.latent { &[][..] } else { &d.v[from * vw..to * vw] };
            cpu.kv_write(&layout, &mut pool, stride, offset, rows, &d.k[from * kw..to * kw], v);
            let a = Attention {
                layout,
                pool: &pool,
                stride,
                offset,
                q: &d.q[from * qw..to * qw],
                heads: self.heads(),
                rows,
                scale: 0.3,
                window: self.window,
                softcap: self.softcap,
                alibi: &d.slopes,
                sinks: &d.sinks,
                level: Level::BatchInvariant,
            };
            cpu.attention(&a, &mut out[from * ow..to * ow]);
        }
        out
    }

    /// Rule 6, written down without pages.
    fn twin(&self, d: &Data) -> Vec<f32> {
        let mut out = Vec::new();
        for position in 0..self.length {
            for head in 0..self.heads() {
                let kv = head / self.group;
                let q = &d.q[(position * self.heads() + head) * self.key_dim..][..self.key_dim];
                let key = |p: usize| &d.k[(p * self.kv_heads + kv) * self.key_dim..][..self.key_dim];
                let low = self.window.map_or(0, |w| (position + 1).saturating_sub(w as usize));
                let sink = d.sinks.get(head).copied();
                let (mut max, mut sum) = (sink.unwrap_or(f32::NEG_INFINITY), sink.map_or(0f32, |_| 1.0));
                let mut o = vec![0f32; self.value_dim];
                for block in low / 64..=position / 64 {
                    let seen = (block * 64).max(low)..(block * 64 + 64).min(position + 1);
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
                out.extend(o.iter().map(|o| o / sum));
            }
        }
        out
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
    let d = case.data(seed);
    let expected = case.twin(&d);
    for (i, cpu) in cpus().iter().enumerate() {
        // pages and batches differ from CPU to CPU, the bits may not
        let (page, chunk) = ([64, 16, 32][i % 3], [case.length, 1, 5, 50][(i + seed as usize) % 4]);
        let out = case.run(cpu, &d, page, chunk);
        let what =
            format!("{case:?} on {} x{} page {page} rows {chunk}", cpu.isa().name(), cpu.pool().threads());
        same(&expected, &out, &what);
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
    length: 150,
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
    check(&Case { value: ValueType::I8, group: 7, key_dim: 128, value_dim: 128, length: 70, ..PLAIN }, 4);
    check(&Case { key: KeyType::F32, group: 12, kv_heads: 1, length: 66, ..PLAIN }, 5);
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
        Case { latent: true, kv_heads: 1, group: 10, key_dim: 300, value_dim: 260, length: 80, ..PLAIN };
    for key in [KeyType::I8, KeyType::F16, KeyType::F32] {
        check(&Case { key, ..latent.clone() }, 9);
    }
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    #[test]
    fn odd_shapes_equal_the_twin(
        key in 0usize..3, value in 0usize..3, latent: bool, kv_heads in 1usize..3, group in 1usize..10,
        key_dim in 1usize..100, value_dim in 1usize..100, length in 1usize..140, window in 0u32..90,
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
            length,
            window: (window > 0).then_some(window),
            softcap: softcap.then_some(8.0),
            alibi,
            sinks,
        }, seed);
    }
}
