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
const REFINEMENTS: usize = 2;

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
    nearest: [i8; CELLS],
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
    /// Where a group's largest value is tried: at these values per multiplier.
    places: Vec<f32>,
    /// Factors that are tried on the scale which puts the largest value on the greatest magnitude.
    scales: &'static [f32],
}

/// What a type tries.
pub(super) struct Effort {
    /// Factors on the outermost level that a group's largest value is put at.
    pub places: &'static [f32],
    /// Factors on the scale that puts the record's largest value on the outermost level of all.
    pub scales: &'static [f32],
}

/// A scale and multipliers for 256 inputs, and their squared error in units that do not depend on the scale.
#[derive(Clone, Copy)]
struct Choice {
    error: f32,
    scale: f32,
    multipliers: [i8; GROUPS],
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
        for (cell, y) in cells.iter_mut().zip(&y) {
            // Moved by 256 so that cutting off rounds down.
            *cell = (y * 2.0 + (CELLS / 2) as f32).clamp(0.0, (CELLS - 1) as f32) as i32 as u16;
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
    /// Of a type with `codes` codes, of which code c under multiplier m is `weight(c, m)`.
    pub fn new(
        group: usize,
        codes: u8,
        ties: fn(i8) -> bool,
        weight: impl Fn(u8, i8) -> i8,
        effort: Effort,
    ) -> Search {
        let mut top = 0i8;
        let mut of = |m: i8| {
            if ties(m) {
                return None;
            }
            let levels: Vec<i8> = (0..codes).map(|c| weight(c, m)).collect();
            top = levels.iter().fold(top, |t, w| t.max(w.saturating_abs()));
            let mut out = Box::new(Levels { nearest: [0; CELLS], code: [0; 256] });
            for (cell, to) in out.nearest.iter_mut().enumerate() {
                // the middle of the half step, in quarters
                let y = 2 * cell as i32 + 1 - CELLS as i32;
                let far = |w: &i8| (4 * i32::from(*w) - y).abs();
                *to = levels.iter().copied().min_by_key(far).unwrap_or(0);
            }
            for (code, &w) in levels.iter().enumerate() {
                out.code[(i32::from(w) + 128) as usize] = code as u8;
            }
            Some(out)
        };
        let levels = (0..=127).map(&mut of).collect();
        let ends = [weight(0, 127), weight(codes - 1, 127)].map(|w| f32::from(w) / 127.0);
        // A symmetric type gains nothing by a multiplier's sign.
        let ends = if ends[0] == -ends[1] { &ends[1..] } else { &ends[..] };
        let places = ends.iter().flat_map(|end| effort.places.iter().map(move |place| end * place)).collect();
        Search { group, levels, top: f32::from(top), places, scales: effort.scales }
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
        let mut best = Choice { error: f32::INFINITY, scale: start, multipliers: [0; GROUPS] };
        for factor in self.scales {
            let scale = store(start * factor);
            let choice = self.choose(x, &weights, scale, start, None);
            if choice.error < best.error {
                best = choice;
            }
        }
        for _ in 0..REFINEMENTS {
            let scale = store(best.scale * self.fit(x, &weights, &best));
            let choice = self.choose(x, &weights, scale, start, Some(&best.multipliers));
            if choice.error >= best.error {
                break;
            }
            best = choice;
        }
        let scale = store(best.scale);
        Some(Found { multipliers: best.multipliers, codes: self.codes(x, scale, &best.multipliers) })
    }

    /// The best multipliers under `scale`: from all places, or near those of `from`. Errors are in units of `unit`.
    fn choose(
        &self,
        x: &[f32],
        weights: &[f32; INPUTS],
        scale: f32,
        unit: f32,
        from: Option<&[i8; GROUPS]>,
    ) -> Choice {
        let mut choice = Choice { error: 0.0, scale, multipliers: [0; GROUPS] };
        let scaled = Scaled::new(x, scale);
        for g in 0..x.len().div_ceil(self.group) {
            let range = g * self.group..(g + 1) * self.group;
            let group = Group {
                y: &scaled.y[range.clone()],
                cells: &scaled.cells[range.clone()],
                weights: &weights[range],
            };
            let peak = group.y.iter().fold(0.0f32, |b, &v| if v.abs() > b.abs() { v } else { b });
            if peak == 0.0 {
                continue;
            }
            let (error, m) = match from {
                Some(from) => self.walk(i32::from(from[g]), &group),
                None => {
                    let places = self.places.iter().map(|place| (peak / place).clamp(-127.0, 127.0));
                    let tried = places.map(|m| {
                        let m = m.round() as i32;
                        (self.error(m, &group), m)
                    });
                    let first = tried.fold((f32::INFINITY, 0), |b, t| if t.0 < b.0 { t } else { b });
                    self.walk(first.1, &group)
                }
            };
            choice.error += error;
            choice.multipliers[g] = m as i8;
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
                let off = sign * y[j] - f32::from(level);
                sums[j] += weights[j] * off * off;
            }
        }
        (sums[0] + sums[1]) + (sums[2] + sums[3])
    }

    /// The nearest level to each input, and the multiplier's index and sign.
    fn level(&self, cell: u16, m: i8) -> (Option<&Levels>, i8) {
        let Some(levels) = &self.levels[usize::from(m.unsigned_abs()) % 128] else { return (None, 0) };
        let mirror = if m < 0 { CELLS - 1 } else { 0 };
        (Some(levels), levels.nearest[(usize::from(cell) ^ mirror) % CELLS])
    }

    /// The factor on the scale of `choice` that suits its integers best, in the least-squares sense.
    fn fit(&self, x: &[f32], weights: &[f32; INPUTS], choice: &Choice) -> f32 {
        let scaled = Scaled::new(x, choice.scale);
        let (mut cross, mut square) = (0.0f64, 0.0f64);
        for k in 0..INPUTS {
            let m = choice.multipliers[k / self.group];
            let w = f64::from(self.level(scaled.cells[k], m).1) * if m < 0 { -1.0 } else { 1.0 };
            cross += f64::from(weights[k]) * w * f64::from(scaled.y[k]);
            square += f64::from(weights[k]) * w * w;
        }
        if square > 0.0 { (cross / square) as f32 } else { 1.0 }
    }

    /// The codes of the nearest levels.
    fn codes(&self, x: &[f32], scale: f32, multipliers: &[i8; GROUPS]) -> [u8; INPUTS] {
        let scaled = Scaled::new(x, scale);
        std::array::from_fn(|k| match self.level(scaled.cells[k], multipliers[k / self.group]) {
            (Some(levels), level) => levels.code[(i32::from(level) + 128) as usize],
            (None, _) => 0,
        })
    }
}

/// The weights of the squared errors: of all one, or in proportion to the importance, the greatest one.
fn weights(importance: Option<&[f32]>) -> [f32; INPUTS] {
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
