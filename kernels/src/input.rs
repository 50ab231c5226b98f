//! The left side of products: activations, padded, and their int8 form made when an integer matrix asks for it.

use crate::cpu::{Cpu, Shared};
use crate::generic::rows::DEPTH;

/// Activations `[m, k]` for any number of products. Reuse one: its memory grows to the largest use and stays.
#[derive(Default)]
pub struct Input {
    m: usize,
    k: usize,
    /// k rounded up to 128.
    pub(crate) width: usize,
    /// `[m][width]`, zeros behind k.
    pub(crate) x: Vec<f32>,
    quantized: bool,
    /// `[width/256 rounded up][m][256]` in the records' order.
    pub(crate) q: Vec<i8>,
    /// `[width/256 rounded up][m]`.
    pub(crate) scale: Vec<f32>,
    pub(crate) sum: Vec<i32>,
}

/// Grows, never shrinks, so that a smaller call after a larger one allocates nothing.
fn room<T: Copy + Default>(v: &mut Vec<T>, n: usize) {
    if v.len() < n {
        v.resize(n, T::default());
    }
}

impl Input {
    /// An empty one.
    pub fn new() -> Input {
        Input::default()
    }

    /// Rows of the present activations.
    pub fn m(&self) -> usize {
        self.m
    }

    /// Their width.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Takes in `x`, `[m, k]` row-major.
    ///
    /// # Panics
    /// If `x` is not `m * k` long.
    pub fn load(&mut self, cpu: &Cpu, x: &[f32], m: usize, k: usize) {
        assert_eq!(x.len(), m * k, "activations [{m}, {k}]");
        self.load_rows(cpu, m, k, |i| &x[i * k..][..k]);
    }

    /// Takes in rows `ids[0]`, `ids[1]`, .. of `x` (`[_, k]`): the tokens of each expert, gathered.
    ///
    /// # Panics
    /// If an id is outside `x`.
    pub fn gather(&mut self, cpu: &Cpu, x: &[f32], k: usize, ids: &[u32]) {
        self.load_rows(cpu, ids.len(), k, |i| &x[ids[i] as usize * k..][..k]);
    }

    fn load_rows<'x>(&mut self, cpu: &Cpu, m: usize, k: usize, row: impl Fn(usize) -> &'x [f32] + Sync) {
        assert!(k > 0, "activations without width");
        let width = k.next_multiple_of(128);
        (self.m, self.k, self.width, self.quantized) = (m, k, width, false);
        room(&mut self.x, m * width);
        let to = Shared::of(&mut self.x[..m * width]);
        cpu.split(m, m * width, |rows| {
            for i in rows {
                // SAFETY: row i of `x` is written by the thread that has i, alone
                let to = unsafe { to.slice(i * width, width) };
                to[..k].copy_from_slice(row(i));
                to[k..].fill(0.0);
            }
        });
    }

    /// Makes the int8 form of what was loaded, unless it is there.
    pub(crate) fn quantize(&mut self, cpu: &Cpu) {
        if core::mem::replace(&mut self.quantized, true) {
            return;
        }
        let (m, width) = (self.m, self.width);
        let records = width.div_ceil(DEPTH);
        room(&mut self.q, records * m * DEPTH);
        room(&mut self.scale, records * m);
        room(&mut self.sum, records * m);
        let x = &self.x;
        let (q, scale, sum) =
            (Shared::of(&mut self.q[..]), Shared::of(&mut self.scale[..]), Shared::of(&mut self.sum[..]));
        cpu.split(m, m * width, |rows| {
            for i in rows {
                for r in 0..records {
                    let n = (width - r * DEPTH).min(DEPTH);
                    let at = r * m + i;
                    // SAFETY: row i's places are written by the thread that has i, alone; `n` values lie at the
                    // source and room for 256 at the target, and the machine has the table's instruction set
                    unsafe {
                        let q = q.slice(at * DEPTH, DEPTH);
                        let x = &x[i * width + r * DEPTH..][..n];
                        let (s, t) = (cpu.ops.quantize)(x.as_ptr(), n, q.as_mut_ptr());
                        scale.slice(at, 1)[0] = s;
                        sum.slice(at, 1)[0] = t;
                    }
                }
            }
        });
    }
}
