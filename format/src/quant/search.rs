//! The search for scales, multipliers and codes, for every type that has multipliers.
//!
//! ```text
//! for each group:                                   its best step of either sign, were multipliers not rounded
//! for some scales S:                                y = x / S, in units of the decoded integers
//!     for each group, for WINDOW multipliers m of either sign around step / S:
//!                                                   error of y against the integers that m can decode to
//! then the scale that suits the integers found best, and multipliers under it, and again
//! ```
//! The integers of a multiplier are those that will really be decoded, so their rounding is part of what is searched.
//! It bends the levels of every multiplier in another way, and the more ways there are to choose from, the better one
//! of them fits. That gains more than finer integers would: tables end well below 127, and scales are tried that are up
//! to 1.8 times as large as the multipliers need.
//!
//! Halfway points between integers are multiples of ½: the half step that y lies in says exactly which level of a
//! multiplier is the nearest. Those levels make a row per half step, a multiplier beside the other, so that the errors
//! of an input under all multipliers of a window are vectors.
//!
//! It does not know how codes are packed.

use super::{INPUTS, absmax};

/// Half steps from −128 to 128.
const CELLS: usize = 512;
/// The most multipliers that 256 inputs have.
const GROUPS: usize = INPUTS / 16;
/// Magnitudes of multipliers.
const MAGNITUDES: usize = 128;
/// Levels of a row. Were it a power of two, the same column of all rows would lie in a few places of the cache.
const ROW: usize = MAGNITUDES + 16;
/// Neighbouring magnitudes of multipliers that are tried at once.
const WINDOW: usize = 12;
/// How many scales are tried. The first gives the widest step of all groups the greatest multiplier.
const SCALES: usize = 16;
/// From one of them to the next.
const RATIO: f32 = 1.04;
/// How often a better scale is looked for in the integers found.
const REFINEMENTS: usize = 2;
/// Factors on the outermost level, of either end, that a group's largest value is tried at.
const PLACES: [f32; 12] = [1.2, 1.15, 1.1, 1.05, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65];
/// The multiplier whose levels stand for those of a multiplier that is not rounded.
const REFERENCE: usize = 113;
/// The level of multipliers that must not be used: so far off that no other is worse.
const FAR: f32 = 1e15;

/// What was found for 256 inputs of a row.
pub(super) struct Found {
    /// One per group; zero where there is none.
    pub multipliers: [i8; GROUPS],
    /// In natural order.
    pub codes: [u8; INPUTS],
}

/// What a type's search needs: its levels under every multiplier.
pub(super) struct Search {
    group: usize,
    /// Of a half step, the nearest level under every magnitude of a multiplier. Those of −m are the same, mirrored.
    nearest: Vec<[f32; ROW]>,
    /// Of a magnitude, from a level + 128 to its code.
    codes: Vec<[u8; 256]>,
    /// The greatest magnitude of a level.
    top: f32,
    /// The greatest multiplier.
    most: usize,
    /// Of a half step where the largest input is 128, the nearest level of [`REFERENCE`] once that input lies at each
    /// of [`PLACES`]: at those of the first level, then of the last.
    placed: Vec<[[f32; PLACES.len()]; 2]>,
}

/// The best step of a group under positive multipliers, under negative ones, and the better of them.
#[derive(Clone, Copy, Default)]
struct Steps {
    plus: f32,
    minus: f32,
    better: f32,
}

/// A scale and multipliers for 256 inputs, and their squared error in units that do not depend on the scale.
#[derive(Clone, Copy)]
struct Choice {
    error: f32,
    scale: f32,
    multipliers: [i8; GROUPS],
}

/// The half step that `y` lies in: the low bits of a number just above 2^23 are its integer part. Half less than y
/// is rounded, so that it is rounded down.
fn cell(y: f32) -> usize {
    let moved = (2.0 * y + (CELLS / 2) as f32 - 0.5).clamp(0.0, (CELLS - 1) as f32);
    (moved + 8_388_608.0).to_bits() as usize % CELLS
}

/// The nearest to `y` of two or more ascending levels.
fn nearest(levels: &[f32], y: f32) -> f32 {
    let above = levels.partition_point(|&level| level < y).clamp(1, levels.len() - 1);
    let (below, above) = (levels[above - 1], levels[above]);
    if y - below < above - y { below } else { above }
}

/// Where a level stands among 256.
fn place(level: f32) -> usize {
    (level as i32 + 128) as usize
}

/// Inputs over a scale.
struct Scaled {
    y: [f32; INPUTS],
    /// The half step of each.
    cells: [u16; INPUTS],
}

impl Scaled {
    fn new(x: &[f32], scale: f32) -> Scaled {
        let inverse = 1.0 / scale;
        let mut y = [0.0; INPUTS];
        let mut cells = [0; INPUTS];
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * inverse;
        }
        for (to, y) in cells.iter_mut().zip(&y) {
            *to = cell(*y) as u16;
        }
        Scaled { y, cells }
    }
}

impl Search {
    /// Of a type with `codes` codes, of which code c under multiplier m is `weight(c, m)`. Multipliers that would
    /// leave an int8 without −128 are not used.
    pub fn new(group: usize, codes: u8, ties: fn(i8) -> bool, weight: impl Fn(u8, i8) -> i32) -> Search {
        let levels = |m: usize| -> Vec<f32> { (0..codes).map(|c| weight(c, m as i8) as f32).collect() };
        let middle = |cell: usize| ((2 * cell + 1) as f32 - CELLS as f32) / 4.0;
        let mut search = Search {
            group,
            nearest: vec![[FAR; ROW]; CELLS],
            codes: vec![[0; 256]; MAGNITUDES],
            top: 0.0,
            most: 0,
            placed: vec![[[0.0; PLACES.len()]; 2]; CELLS],
        };
        for m in 0..MAGNITUDES {
            let levels = levels(m);
            let top = levels.iter().fold(0.0f32, |top, w| top.max(w.abs()));
            if ties(m as i8) || top > 127.0 {
                continue;
            }
            search.top = search.top.max(top);
            search.most = m;
            for (cell, row) in search.nearest.iter_mut().enumerate() {
                row[m] = nearest(&levels, middle(cell));
            }
            for (code, &level) in levels.iter().enumerate() {
                search.codes[m][place(level)] = code as u8;
            }
        }
        let levels = levels(REFERENCE);
        for (cell, ends) in search.placed.iter_mut().enumerate() {
            for (row, end) in ends.iter_mut().zip([levels[0], levels[usize::from(codes) - 1]]) {
                for (to, place) in row.iter_mut().zip(PLACES) {
                    *to = nearest(&levels, middle(cell) / 128.0 * place * end);
                }
            }
        }
        search
    }

    /// Scale, multipliers and codes for up to 256 inputs of a row; `None` where all are stored as zero or one is not
    /// finite. `store` rounds a scale to one that can be stored, stores it and returns it.
    pub fn record(
        &self,
        x: &[f32],
        importance: Option<&[f32]>,
        mut store: impl FnMut(f32) -> f32,
    ) -> Option<Found> {
        let start = store(absmax(x) / self.top);
        if start.is_nan() || start == 0.0 {
            return None;
        }
        let weights = weights(importance);
        let mut steps = [Steps::default(); GROUPS];
        let groups = x.chunks(self.group).zip(weights.chunks(self.group));
        for ((x, weights), steps) in groups.zip(&mut steps) {
            *steps = self.steps(x, weights);
        }
        let widest = steps.iter().fold(0.0f32, |widest, steps| widest.max(steps.better));
        let mut best = Choice { error: f32::INFINITY, scale: start, multipliers: [0; GROUPS] };
        let mut wanted = widest / self.most as f32;
        for _ in 0..SCALES {
            let choice = self.choose(x, &weights, store(wanted), start, &steps);
            if choice.error < best.error {
                best = choice;
            }
            wanted *= RATIO;
        }
        for _ in 0..REFINEMENTS {
            let scale = store(best.scale * self.fit(x, &weights, &best));
            let choice = self.choose(x, &weights, scale, start, &steps);
            if choice.error >= best.error {
                break;
            }
            best = choice;
        }
        let scale = store(best.scale);
        Some(Found { multipliers: best.multipliers, codes: self.codes(x, scale, &best.multipliers) })
    }

    /// The steps for which the levels, were multipliers not rounded, lie closest to `x`; zero for zeros.
    fn steps(&self, x: &[f32], weights: &[f32]) -> Steps {
        let peak = x.iter().fold(0.0f32, |b, &v| if v.abs() > b.abs() { v } else { b });
        if peak == 0.0 {
            return Steps::default();
        }
        let factor = 128.0 / peak;
        let mut cross = [[0.0f32; PLACES.len()]; 2];
        let mut square = cross;
        for (x, weight) in x.iter().zip(weights) {
            let x = x * factor;
            for (end, row) in self.placed[cell(x)].iter().enumerate() {
                for (k, level) in row.iter().enumerate() {
                    let weighted = weight * level;
                    cross[end][k] += weighted * x;
                    square[end][k] += weighted * level;
                }
            }
        }
        let [first, last] = [0, 1].map(|end| {
            let mut best = (-1.0, 0.0);
            for (cross, square) in cross[end].iter().zip(&square[end]) {
                // At the best step, cross / square, the error is |x|^2 - cross^2 / square.
                let gain = cross * cross / square;
                if gain > best.0 {
                    best = (gain, (cross / square).abs() * (REFERENCE as f32 / factor.abs()));
                }
            }
            best
        });
        let better = if first.0 > last.0 { first.1 } else { last.1 };
        // The first level is negative: a peak of its sign lies there under a positive multiplier.
        let (plus, minus) = if peak > 0.0 { (last.1, first.1) } else { (first.1, last.1) };
        Steps { plus, minus, better }
    }

    /// The best multipliers around `steps` under `scale`. Errors are in units of `unit`.
    fn choose(
        &self,
        x: &[f32],
        weights: &[f32; INPUTS],
        scale: f32,
        unit: f32,
        steps: &[Steps; GROUPS],
    ) -> Choice {
        let mut choice = Choice { error: 0.0, scale, multipliers: [0; GROUPS] };
        let scaled = Scaled::new(x, scale);
        let y = scaled.y[..x.len()].chunks(self.group);
        let groups = y.zip(scaled.cells.chunks(self.group)).zip(weights.chunks(self.group));
        for (((y, cells), weights), (steps, to)) in groups.zip(steps.iter().zip(&mut choice.multipliers)) {
            let first = [steps.plus, steps.minus].map(|step| {
                ((step / scale) as usize).saturating_sub(WINDOW / 2 - 1).min(self.most + 1 - WINDOW)
            });
            let mut best = (f32::INFINITY, 0);
            let errors = self.errors(y, cells, weights, first);
            for ((errors, first), sign) in errors.into_iter().zip(first).zip([1, -1]) {
                for (m, error) in (first..).zip(errors) {
                    if error < best.0 && self.nearest[0][m] != FAR {
                        best = (error, sign * m as i32);
                    }
                }
            }
            choice.error += best.0;
            *to = best.1 as i8;
        }
        choice.error *= (scale / unit) * (scale / unit);
        choice
    }

    /// The weighted squared errors of a group under multipliers of magnitudes from `first`: positive, then negative.
    /// Not inlined, for its sums to stay in registers.
    #[inline(never)]
    fn errors(&self, y: &[f32], cells: &[u16], weights: &[f32], first: [usize; 2]) -> [[f32; WINDOW]; 2] {
        let (mut plus, mut minus) = ([0.0f32; WINDOW], [0.0f32; WINDOW]);
        for ((y, cell), weight) in y.iter().zip(cells).zip(weights) {
            let cell = usize::from(*cell) % CELLS;
            let levels = &self.nearest[cell][first[0]..first[0] + WINDOW];
            for (sum, level) in plus.iter_mut().zip(levels) {
                let off = y - level;
                *sum += weight * (off * off);
            }
            let levels = &self.nearest[CELLS - 1 - cell][first[1]..first[1] + WINDOW];
            for (sum, level) in minus.iter_mut().zip(levels) {
                let off = y + level;
                *sum += weight * (off * off);
            }
        }
        [plus, minus]
    }

    /// The nearest level under the magnitude of `m` to an input in that half step, mirrored where `m` is negative.
    fn level(&self, cell: u16, m: i8) -> f32 {
        let mirror = if m < 0 { CELLS - 1 } else { 0 };
        self.nearest[(usize::from(cell) ^ mirror) % CELLS][usize::from(m.unsigned_abs())]
    }

    /// The factor on the scale of `choice` that suits its integers best, in the least-squares sense.
    fn fit(&self, x: &[f32], weights: &[f32; INPUTS], choice: &Choice) -> f32 {
        let scaled = Scaled::new(x, choice.scale);
        let (mut cross, mut square) = (0.0f64, 0.0f64);
        for (k, &weight) in weights.iter().enumerate().take(x.len()) {
            let m = choice.multipliers[k / self.group];
            let w = f64::from(self.level(scaled.cells[k], m)) * if m < 0 { -1.0 } else { 1.0 };
            cross += f64::from(weight) * w * f64::from(scaled.y[k]);
            square += f64::from(weight) * w * w;
        }
        if square > 0.0 { (cross / square) as f32 } else { 1.0 }
    }

    /// The codes of the nearest levels.
    fn codes(&self, x: &[f32], scale: f32, multipliers: &[i8; GROUPS]) -> [u8; INPUTS] {
        let scaled = Scaled::new(x, scale);
        std::array::from_fn(|k| {
            let m = multipliers[k / self.group];
            self.codes[usize::from(m.unsigned_abs())][place(self.level(scaled.cells[k], m))]
        })
    }
}

/// The weights of the squared errors: of all one, or in proportion to the importance, the greatest one.
pub(super) fn weights(importance: Option<&[f32]>) -> [f32; INPUTS] {
    let mut weights = [1.0; INPUTS];
    let Some(importance) = importance else { return weights };
    let most = absmax(importance);
    if most > 0.0 && most.is_finite() {
        for (to, &value) in weights.iter_mut().zip(importance) {
            *to = value.max(0.0) / most;
        }
    }
    weights
}
