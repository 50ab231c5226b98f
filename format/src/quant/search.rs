//! The search for scales, multipliers and codes, for every type that has multipliers.
//!
//! ```text
//! for some scales S around that of the largest value:        y = x / S, in units of the decoded integers
//!     for each group, for some multipliers m of either sign:  error of y against the integers that m can decode to
//! then the scale that suits the integers found best, multipliers near those found, and again
//! ```
//! The integers of a multiplier are those that will really be decoded, so their rounding is part of what is searched.
//! Halfway points between integers are multiples of ½: the half step that y lies in says exactly which level is the
//! nearest, and a table from half steps to levels, one per multiplier, is the whole of the rounding.
//!
//! It does not know how codes are packed.

use super::{INPUTS, absmax};

/// Half steps from −128 to 128.
const CELLS: usize = 512;
/// The most multipliers that 256 inputs have.
const GROUPS: usize = INPUTS / 16;
/// How often a better scale is looked for in the integers found.
const REFINEMENTS: usize = 1;
/// Factors on the outermost level, of either end, that a group's largest value is tried at.
const PLACES: [f32; 12] = [1.2, 1.15, 1.1, 1.05, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65];
/// Factors that are tried on the scale that gives the group of the largest step the greatest multiplier.
const SCALES: [f32; 6] = [1.06, 1.03, 1.0, 0.97, 0.94, 0.91];
/// The multiplier whose levels stand for those of a multiplier that is not rounded.
const REFERENCE: i8 = 113;

/// What was found for 256 inputs of a row.
pub(super) struct Found {
    /// One per group; zero where there is none.
    pub multipliers: [i8; GROUPS],
    /// In natural order.
    pub codes: [u8; INPUTS],
}

/// The levels of one multiplier.
struct Levels {
    /// From a half step to the nearest level.
    nearest: [f32; CELLS],
    /// From a level + 128 to its code.
    code: [u8; 256],
}

/// What a type's search needs: its levels under every multiplier.
pub(super) struct Search {
    group: usize,
    /// Of the multipliers 0 to 127, `None` where one would make ties. Those of −m are the same, mirrored.
    levels: Vec<Option<Box<Levels>>>,
    /// The greatest magnitude of a level.
    top: f32,
    /// The greatest multiplier.
    most: i32,
    /// The levels of [`REFERENCE`].
    reference: [f32; CELLS],
    /// Where among them a group's largest value is tried.
    places: Vec<f32>,
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

/// One group's part of [`Scaled`], with the weights of its errors.
struct Group<'a> {
    y: &'a [f32],
    cells: &'a [u16],
    weights: &'a [f32],
}

impl Search {
    /// Of a type with `codes` codes, of which code c under multiplier m is `weight(c, m)`. Multipliers that would
    /// leave an int8 without −128 are not used.
    pub fn new(group: usize, codes: u8, ties: fn(i8) -> bool, weight: impl Fn(u8, i8) -> i32) -> Search {
        let mut top = 0;
        let mut of = |m: i8| {
            if ties(m) {
                return None;
            }
            let levels: Vec<i32> = (0..codes).map(|c| weight(c, m)).collect();
            let most = levels.iter().fold(0, |most, w| most.max(w.abs()));
            if most > 127 {
                return None;
            }
            top = most.max(top);
            let mut out = Box::new(Levels { nearest: [0.0; CELLS], code: [0; 256] });
            for (cell, to) in out.nearest.iter_mut().enumerate() {
                // the middle of the half step, in quarters
                let y = 2 * cell as i32 + 1 - CELLS as i32;
                let far = |w: &i32| (4 * w - y).abs();
                *to = levels.iter().copied().min_by_key(far).unwrap_or(0) as f32;
            }
            for (code, &w) in levels.iter().enumerate() {
                out.code[(w + 128) as usize] = code as u8;
            }
            Some(out)
        };
        let levels: Vec<Option<Box<Levels>>> = (0..=127).map(&mut of).collect();
        let most = levels.iter().rposition(Option::is_some).unwrap_or(0) as i32;
        let reference = levels[REFERENCE as usize].as_ref().map_or([0.0; CELLS], |l| l.nearest);
        let ends = [weight(0, REFERENCE), weight(codes - 1, REFERENCE)].map(|w| w as f32);
        let places = ends.iter().flat_map(|end| PLACES.iter().map(move |place| end * place)).collect();
        Search { group, levels, top: top as f32, most, reference, places }
    }

    /// Scale, multipliers and codes for up to 256 inputs of a row; `None` where all are stored as zero or one is not
    /// finite. `store` rounds a scale to one that can be stored, stores it and returns it.
    pub fn record(
        &self,
        x: &[f32],
        importance: Option<&[f32]>,
        mut store: impl FnMut(f32) -> f32,
    ) -> Option<Found> {
        let largest = absmax(x);
        let start = store(largest / self.top);
        if start.is_nan() || start == 0.0 {
            return None;
        }
        let weights = weights(importance);
        let mut unit = [0.0; INPUTS];
        for (to, x) in unit.iter_mut().zip(x) {
            *to = x / largest;
        }
        let mut steps = [0.0; GROUPS];
        let groups = unit.chunks_exact(self.group).zip(weights.chunks_exact(self.group));
        for ((unit, weights), step) in groups.zip(&mut steps) {
            *step = self.step(unit, weights) * largest;
        }
        // The scale that gives the largest step the largest multiplier, and some around it.
        let widest = steps.iter().fold(0.0f32, |w, s| w.max(s.abs())) / self.most as f32;
        let mut best = Choice { error: f32::INFINITY, scale: start, multipliers: [0; GROUPS] };
        for factor in SCALES {
            let scale = store(widest * factor);
            let near = steps.map(|step| self.allowed((step / scale).round()));
            let choice = self.choose(x, &weights, scale, start, &near, false);
            if choice.error < best.error {
                best = choice;
            }
        }
        for refinement in 0..=REFINEMENTS {
            let factor = if refinement == 0 { 1.0 } else { self.fit(x, &weights, &best) };
            let scale = store(best.scale * factor);
            let choice = self.choose(x, &weights, scale, start, &best.multipliers, true);
            if choice.error >= best.error {
                break;
            }
            best = choice;
        }
        let scale = store(best.scale);
        Some(Found { multipliers: best.multipliers, codes: self.codes(x, scale, &best.multipliers) })
    }

    /// The signed step for which the levels, were multipliers not rounded, lie closest to `x`; 0 for zeros.
    fn step(&self, x: &[f32], weights: &[f32]) -> f32 {
        let peak = x.iter().fold(0.0f32, |b, &v| if v.abs() > b.abs() { v } else { b });
        if peak == 0.0 {
            return 0.0;
        }
        let mut best = (-1.0, 0.0);
        for place in &self.places {
            // Scaled so that the peak lies at this place of the reference levels.
            let factor = place / peak;
            let (mut cross, mut square) = ([0.0f32; 4], [0.0f32; 4]);
            for (x, weights) in x.chunks_exact(4).zip(weights.chunks_exact(4)) {
                for j in 0..4 {
                    let level = self.reference[cell(x[j] * factor)];
                    let weighted = weights[j] * level;
                    cross[j] += weighted * x[j];
                    square[j] += weighted * level;
                }
            }
            let cross = (cross[0] + cross[1]) + (cross[2] + cross[3]);
            let square = (square[0] + square[1]) + (square[2] + square[3]);
            // At the best step, cross / square, the error is |x|^2 - cross^2 / square.
            let gain = cross * cross / square;
            if gain > best.0 {
                best = (gain, cross / square);
            }
        }
        best.1 * REFERENCE as f32
    }

    /// The nearest multiplier that makes no ties.
    fn allowed(&self, m: f32) -> i8 {
        let m = m.clamp(-self.most as f32, self.most as f32) as i8;
        if self.levels[usize::from(m.unsigned_abs())].is_some() { m } else { m - m.signum() }
    }

    /// Multipliers `near` under `scale`, or the best around them where `walk`. Errors are in units of `unit`.
    fn choose(
        &self,
        x: &[f32],
        weights: &[f32; INPUTS],
        scale: f32,
        unit: f32,
        near: &[i8; GROUPS],
        walk: bool,
    ) -> Choice {
        let mut choice = Choice { error: 0.0, scale, multipliers: *near };
        let scaled = Scaled::new(x, scale);
        let groups = x.len().div_ceil(self.group);
        for (g, (&near, to)) in near.iter().zip(&mut choice.multipliers).enumerate().take(groups) {
            let range = g * self.group..(g + 1) * self.group;
            let group = Group {
                y: &scaled.y[range.clone()],
                cells: &scaled.cells[range.clone()],
                weights: &weights[range],
            };
            let m = i32::from(near);
            let (error, m) = if walk { self.walk(m, &group) } else { (self.error(m, &group), m) };
            choice.error += error;
            *to = m as i8;
        }
        choice.error *= (scale / unit) * (scale / unit);
        choice
    }

    /// From multiplier `m` to its neighbours as long as they are better, over those that would make ties.
    fn walk(&self, m: i32, group: &Group<'_>) -> (f32, i32) {
        let mut best = (self.error(m, group), m);
        for step in [1, -1] {
            let mut m = best.1 + step;
            while m.abs() <= 127 {
                let error = self.error(m, group);
                if error < best.0 {
                    best = (error, m);
                } else if self.levels[m.unsigned_abs() as usize].is_some() {
                    break;
                }
                m += step;
            }
        }
        best
    }

    /// The weighted squared error of a group under multiplier `m`; infinite where it would make ties.
    fn error(&self, m: i32, group: &Group<'_>) -> f32 {
        let Some(levels) = &self.levels[m.unsigned_abs() as usize] else { return f32::INFINITY };
        let (mirror, sign) = if m < 0 { (CELLS - 1, -1.0) } else { (0, 1.0f32) };
        let mut sums = [0.0f32; 4];
        let parts =
            group.y.chunks_exact(4).zip(group.cells.chunks_exact(4)).zip(group.weights.chunks_exact(4));
        for ((y, cells), weights) in parts {
            for j in 0..4 {
                let level = levels.nearest[(usize::from(cells[j]) ^ mirror) % CELLS];
                let off = sign * y[j] - level;
                sums[j] += weights[j] * off * off;
            }
        }
        (sums[0] + sums[1]) + (sums[2] + sums[3])
    }

    /// The nearest level to each input, and the multiplier's index and sign.
    fn level(&self, cell: u16, m: i8) -> (Option<&Levels>, f32) {
        let Some(levels) = &self.levels[usize::from(m.unsigned_abs()) % 128] else { return (None, 0.0) };
        let mirror = if m < 0 { CELLS - 1 } else { 0 };
        (Some(levels), levels.nearest[(usize::from(cell) ^ mirror) % CELLS])
    }

    /// The factor on the scale of `choice` that suits its integers best, in the least-squares sense.
    fn fit(&self, x: &[f32], weights: &[f32; INPUTS], choice: &Choice) -> f32 {
        let scaled = Scaled::new(x, choice.scale);
        let (mut cross, mut square) = (0.0f64, 0.0f64);
        for (k, &weight) in weights.iter().enumerate() {
            let m = choice.multipliers[k / self.group];
            let w = f64::from(self.level(scaled.cells[k], m).1) * if m < 0 { -1.0 } else { 1.0 };
            cross += f64::from(weight) * w * f64::from(scaled.y[k]);
            square += f64::from(weight) * w * w;
        }
        if square > 0.0 { (cross / square) as f32 } else { 1.0 }
    }

    /// The codes of the nearest levels.
    fn codes(&self, x: &[f32], scale: f32, multipliers: &[i8; GROUPS]) -> [u8; INPUTS] {
        let scaled = Scaled::new(x, scale);
        std::array::from_fn(|k| match self.level(scaled.cells[k], multipliers[k / self.group]) {
            (Some(levels), level) => levels.code[(level as i32 + 128) as usize],
            (None, _) => 0,
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
