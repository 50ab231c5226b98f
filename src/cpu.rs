//! The CPU as a [`Backend`]: names lengths, and passes on to the kernels, which prove them once more.

use std::fmt;
use std::ops::Range;

use llm_format::quant::Type;
use llm_kernels::{self as kernels, Cpu, Input, Job, RouteSpec, RowNorm};

use crate::backend::{Angles, Backend, Norm, Pages, Product, Rotation, Runs, Scores};
use crate::importance::Importance;
use crate::model::spec::{Activation, NormKind, Pairs};
use crate::tensor::{Matrix, Stack, Tensor, Vector};

/// The CPU with its threads.
pub(crate) struct CpuBackend {
    cpu: Cpu,
    importance: Option<Importance>,
}

impl CpuBackend {
    pub(crate) fn new(cpu: Cpu, importance: Option<Importance>) -> Self {
        Self { cpu, importance }
    }
}

impl fmt::Debug for CpuBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// The kernels' view of a matrix. Its bytes were measured when the model was opened.
fn view(w: &Matrix) -> kernels::Matrix<'_> {
    kernels::Matrix::new(w.ty, w.rows, w.columns, &w.bytes).expect("a matrix proven at opening")
}

fn job<'a>(m: usize, p: &'a mut Product<'_>) -> Job<'a> {
    Job { matrix: view(p.weight), bias: p.bias.map(Vector::values), out: p.out.host_mut(m * p.weight.rows) }
}

fn activation(kind: Activation) -> kernels::Activation {
    match kind {
        Activation::Silu => kernels::Activation::Silu,
        Activation::Gelu => kernels::Activation::Gelu,
        Activation::GeluTanh => kernels::Activation::GeluTanh,
        Activation::Relu => kernels::Activation::Relu,
        Activation::Relu2 => kernels::Activation::Relu2,
        Activation::ClampedSwiglu { alpha, limit } => kernels::Activation::ClampedSwiglu { alpha, limit },
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> String {
        format!("cpu, {}, {} threads", self.isa(), self.threads())
    }

    fn isa(&self) -> &'static str {
        self.cpu.isa().name()
    }

    fn threads(&self) -> usize {
        self.cpu.pool().threads()
    }

    fn is_observed(&self) -> bool {
        self.importance.is_some()
    }

    fn embed(&self, weight: &Matrix, ids: &[u32], scale: f32, out: &mut Tensor) {
        self.cpu.embed(view(weight), ids, scale, out.host_mut(ids.len() * weight.columns));
    }

    fn norm(&self, norm: &Norm, rows: usize, x: &Tensor, out: &mut Tensor) {
        let (weight, bias) = (norm.weight.values(), norm.bias.as_ref().map(Vector::values));
        let n = rows * weight.len();
        let (x, out) = (x.host(n), out.host_mut(n));
        match norm.kind {
            NormKind::Rms => self.cpu.rms_norm(x, weight, norm.eps, rows, weight.len(), out),
            NormKind::Layer => self.cpu.layer_norm(x, weight, bias, norm.eps, rows, weight.len(), out),
        }
    }

    fn norm_in_place(&self, norm: &Norm, rows: usize, x: &mut Tensor) {
        let (weight, bias) = (norm.weight.values(), norm.bias.as_ref().map(Vector::values));
        let x = x.host_mut(rows * weight.len());
        match norm.kind {
            NormKind::Rms => self.cpu.rms_norm_in_place(x, weight, norm.eps, rows, weight.len()),
            NormKind::Layer => self.cpu.layer_norm_in_place(x, weight, bias, norm.eps, rows, weight.len()),
        }
    }

    fn norm_input(&self, norm: &Norm, m: usize, x: &Tensor, input: &mut Input, next: Type) {
        let rows = RowNorm {
            layer: norm.kind == NormKind::Layer,
            eps: norm.eps,
            weight: norm.weight.values(),
            bias: norm.bias.as_ref().map(Vector::values),
        };
        self.cpu.norm_input(&rows, x.host(m * rows.weight.len()), m, input, next);
    }

    fn load(&self, input: &mut Input, x: &Tensor, m: usize, width: usize) {
        input.load(&self.cpu, x.host(m * width), m, width);
    }

    fn gather(&self, input: &mut Input, x: &Tensor, width: usize, ids: &[u32]) {
        let rows = ids.iter().max().map_or(0, |&id| id as usize + 1);
        input.gather(&self.cpu, x.host(rows * width), width, ids);
    }

    fn matmul(&self, input: &mut Input, products: &mut [Product<'_>]) {
        let m = input.m();
        if let Some(importance) = &self.importance {
            products.iter().for_each(|p| importance.see(&p.weight.bytes, (0, 1), input, 0..m));
        }
        // Groups are of one, two or three; arrays keep this free of allocation.
        match products {
            [a] => self.cpu.matmul_group(&mut [job(m, a)], input),
            [a, b] => self.cpu.matmul_group(&mut [job(m, a), job(m, b)], input),
            [a, b, c] => self.cpu.matmul_group(&mut [job(m, a), job(m, b), job(m, c)], input),
            more => more.iter_mut().for_each(|p| self.cpu.matmul_group(&mut [job(m, p)], input)),
        }
    }

    fn matmul_stack(
        &self,
        input: &mut Input,
        weight: &Stack,
        bias: Option<&Vector>,
        groups: &[(usize, Range<usize>)],
        out: &mut Tensor,
    ) {
        if let Some(importance) = &self.importance {
            for (index, rows) in groups {
                importance.see(&weight.bytes, (*index, weight.count), input, rows.clone());
            }
        }
        let stack =
            kernels::Experts::new(weight.ty, weight.count, weight.rows, weight.columns, &weight.bytes)
                .expect("a stack proven at opening");
        let out = out.host_mut(input.m() * weight.rows);
        self.cpu.expert_matmul(&stack, groups, input, bias.map(Vector::values), out);
    }

    fn add_low_rank(
        &self,
        rows: Range<usize>,
        scale: f32,
        low: &Tensor,
        b: &Vector,
        rank: usize,
        out: &mut Tensor,
    ) {
        let (b, low) = (b.values(), &low.host(rows.end * rank)[rows.start * rank..]);
        let width = b.len() / rank;
        let out = &mut out.host_mut(rows.end * width)[rows.start * width..];
        self.cpu.add_low_rank(scale, low, b, rank, out);
    }

    fn rope(&self, x: &mut Tensor, m: usize, r: Rotation, angles: &Angles) {
        let stride = r.heads * r.head_dim;
        let pairs = match r.pairs {
            Pairs::Halves => kernels::Pairs::Halves,
            Pairs::Neighbours => kernels::Pairs::Neighbours,
        };
        let x = x.host_mut(m * stride);
        self.cpu.rope(x, m, stride, r.heads, r.head_dim, r.dim, pairs, &angles.cos, &angles.sin);
    }

    fn activate(&self, kind: Activation, n: usize, x: &mut Tensor) {
        self.cpu.activate(activation(kind), x.host_mut(n));
    }

    fn gated_input(
        &self,
        kind: Activation,
        [m, width]: [usize; 2],
        gate: &Tensor,
        up: &Tensor,
        input: &mut Input,
        next: Type,
    ) {
        let (gate, up) = (gate.host(m * width), up.host(m * width));
        self.cpu.gated_input(activation(kind), gate, up, m, width, input, next);
    }

    fn scale(&self, factor: f32, n: usize, x: &mut Tensor) {
        self.cpu.scale(x.host_mut(n), factor);
    }

    fn softcap(&self, cap: f32, n: usize, x: &mut Tensor) {
        self.cpu.softcap(x.host_mut(n), cap);
    }

    fn add(&self, n: usize, a: &mut Tensor, b: &Tensor) {
        self.cpu.add(a.host_mut(n), b.host(n));
    }

    fn add_switched(&self, m: usize, width: usize, a: &mut Tensor, b: &Tensor, gate: &mut Tensor) {
        let gate = gate.host_mut(m);
        self.cpu.sigmoid(gate);
        let (a, b) = (a.host_mut(m * width), b.host(m * width));
        self.cpu.add_rows(a, width, b, None, gate);
    }

    fn combine(&self, m: usize, width: usize, rows: &[u32], weights: &[f32], x: &Tensor, out: &mut Tensor) {
        let out = out.host_mut(m * width);
        out.fill(0.0);
        self.cpu.add_rows(out, width, x.host(rows.len() * width), Some(rows), weights);
    }

    fn copy(&self, counts: [usize; 2], width: usize, from: (&Tensor, Runs), to: (&mut Tensor, Runs)) {
        let end = |r: &Runs| {
            if counts.contains(&0) {
                return 0;
            }
            r.start + r.outer * (counts[0] - 1) + r.inner * (counts[1] - 1) + width
        };
        let (source, target) = (from.0.host(end(&from.1)), to.0.host_mut(end(&to.1)));
        for i in 0..counts[0] {
            for j in 0..counts[1] {
                let at = |r: &Runs| r.start + r.outer * i + r.inner * j;
                target[at(&to.1)..][..width].copy_from_slice(&source[at(&from.1)..][..width]);
            }
        }
    }

    fn route(&self, logits: &Tensor, m: usize, spec: &RouteSpec<'_>, ids: &mut [u32], weights: &mut [f32]) {
        self.cpu.route(logits.host(m * spec.count), m, spec, ids, weights);
    }

    fn kv_write(&self, pages: &Pages<'_>, pool: &mut [u8], k: &Tensor, v: Option<&Tensor>) {
        let (l, m) = (&pages.layout, pages.rows.len());
        let k = k.host(m * l.kv_heads * l.key_dim);
        let v = v.map_or(&[][..], |v| v.host(m * l.kv_heads * l.value_dim));
        self.cpu.kv_write(l, pool, pages.stride, pages.offset, pages.rows, k, v);
    }

    fn attention(&self, pages: &Pages<'_>, pool: &[u8], scores: &Scores<'_>, q: &Tensor, out: &mut Tensor) {
        let (l, m) = (&pages.layout, pages.rows.len());
        let attention = kernels::Attention {
            layout: *l,
            pool,
            stride: pages.stride,
            offset: pages.offset,
            q: q.host(m * scores.heads * l.key_dim),
            heads: scores.heads,
            rows: pages.rows,
            scale: scores.scale,
            window: scores.window,
            softcap: scores.softcap,
            alibi: scores.alibi,
            sinks: scores.sinks.map_or(&[], Vector::values),
            level: scores.level,
        };
        self.cpu.attention(&attention, out.host_mut(m * scores.heads * l.value_dim));
    }
}
