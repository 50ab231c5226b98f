//! What the instructions do: eight registers of 16 × 64 bytes and their configuration, as the manual's pseudo-code
//! has it. Plain and slow.

/// Why an instruction faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A configuration that is not allowed (#GP).
    Configuration,
    /// A tile that is not configured, or operands whose shapes or names do not fit (#UD).
    Operands,
}

/// One register.
#[derive(Clone, Copy)]
struct Tile {
    rows: usize,
    /// Bytes of a row.
    width: usize,
    data: [[u8; 64]; 16],
}

const EMPTY: Tile = Tile { rows: 0, width: 0, data: [[0; 64]; 16] };

/// The state of one thread.
pub struct Tiles {
    configured: bool,
    tiles: [Tile; 8],
}

/// What a row of 64 bytes is: sixteen groups of four.
fn group(row: &[u8; 64], i: usize) -> [u8; 4] {
    [row[4 * i], row[4 * i + 1], row[4 * i + 2], row[4 * i + 3]]
}

impl Tiles {
    /// As after `tilerelease`.
    pub const RELEASED: Tiles = Tiles { configured: false, tiles: [EMPTY; 8] };

    /// `ldtilecfg`: palette 0 releases; palette 1 has eight tiles of at most 16 rows of at most 64 bytes.
    pub fn configure(&mut self, c: &[u8; 64]) -> Result<(), Fault> {
        if c[0] == 0 {
            *self = Tiles::RELEASED;
            return Ok(());
        }
        // a start row is where an interrupted load or store goes on: memory cannot fault half way here
        let zero = |bytes: &[u8]| bytes.iter().all(|&b| b == 0);
        if c[0] != 1 || c[1] != 0 || !zero(&c[2..16]) || !zero(&c[32..48]) || !zero(&c[56..]) {
            return Err(Fault::Configuration);
        }
        let mut tiles = [EMPTY; 8];
        for (i, tile) in tiles.iter_mut().enumerate() {
            tile.width = usize::from(u16::from_le_bytes([c[16 + 2 * i], c[17 + 2 * i]]));
            tile.rows = usize::from(c[48 + i]);
            if tile.width > 64 || tile.rows > 16 || (tile.width == 0) != (tile.rows == 0) {
                return Err(Fault::Configuration);
            }
        }
        *self = Tiles { configured: true, tiles };
        Ok(())
    }

    /// `sttilecfg`
    pub fn configuration(&self) -> [u8; 64] {
        let mut c = [0; 64];
        c[0] = u8::from(self.configured);
        for (i, tile) in self.tiles.iter().enumerate() {
            // at most 64 and 16
            c[16 + 2 * i] = tile.width as u8;
            c[48 + i] = tile.rows as u8;
        }
        c
    }

    fn tile(&mut self, t: usize) -> Result<&mut Tile, Fault> {
        if !self.configured || self.tiles[t].rows == 0 {
            return Err(Fault::Operands);
        }
        Ok(&mut self.tiles[t])
    }

    /// `tilezero`
    pub fn zero(&mut self, t: usize) -> Result<(), Fault> {
        self.tile(t)?.data = EMPTY.data;
        Ok(())
    }

    /// `tileloadd`: `row(i, to)` fills `to` with row i of memory. What a tile has beyond its shape becomes zero.
    pub fn load(&mut self, t: usize, mut row: impl FnMut(usize, &mut [u8])) -> Result<(), Fault> {
        let tile = self.tile(t)?;
        tile.data = EMPTY.data;
        for i in 0..tile.rows {
            row(i, &mut tile.data[i][..tile.width]);
        }
        Ok(())
    }

    /// `tilestored`: `row(i, from)` takes row i to memory.
    pub fn store(&mut self, t: usize, mut row: impl FnMut(usize, &[u8])) -> Result<(), Fault> {
        let tile = self.tile(t)?;
        for i in 0..tile.rows {
            row(i, &tile.data[i][..tile.width]);
        }
        Ok(())
    }

    /// The three tiles of a product, checked, and how many groups of four bytes a row of `a` has.
    fn operands(&mut self, c: usize, a: usize, b: usize) -> Result<(Tile, Tile, Tile), Fault> {
        let (tc, ta, tb) = (*self.tile(c)?, *self.tile(a)?, *self.tile(b)?);
        let fits = c != a
            && c != b
            && a != b
            && tc.width % 4 == 0
            && ta.width % 4 == 0
            && tb.width % 4 == 0
            && tc.rows == ta.rows
            && tc.width == tb.width
            && ta.width / 4 == tb.rows;
        if fits { Ok((tc, ta, tb)) } else { Err(Fault::Operands) }
    }

    /// `tdpbssd`: `c[m][n] += Σ over four bytes of a[m][k] · b[k][n]`, signed, modulo 2³².
    pub fn int8(&mut self, c: usize, a: usize, b: usize) -> Result<(), Fault> {
        let (mut tc, ta, tb) = self.operands(c, a, b)?;
        for m in 0..tc.rows {
            let mut sums = [0i32; 16];
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum = i32::from_le_bytes(group(&tc.data[m], n));
            }
            for k in 0..ta.width / 4 {
                let w = group(&ta.data[m], k).map(|v| i32::from(v as i8));
                for (n, sum) in sums.iter_mut().enumerate().take(tc.width / 4) {
                    let x = group(&tb.data[k], n).map(|v| i32::from(v as i8));
                    let four = w[0] * x[0] + w[1] * x[1] + w[2] * x[2] + w[3] * x[3];
                    *sum = sum.wrapping_add(four);
                }
            }
            tc.data[m] = [0; 64];
            for (n, sum) in sums.iter().enumerate().take(tc.width / 4) {
                tc.data[m][4 * n..][..4].copy_from_slice(&sum.to_le_bytes());
            }
        }
        *self.tile(c)? = rest_zero(tc);
        Ok(())
    }

    /// `tdpbf16ps`: even and odd inputs have a chain of fused multiply-adds each, in ascending order from zero; their
    /// sum is added to c. Denormals are taken for zero and results below the least normal become zero.
    pub fn bf16(&mut self, c: usize, a: usize, b: usize) -> Result<(), Fault> {
        let (mut tc, ta, tb) = self.operands(c, a, b)?;
        for m in 0..tc.rows {
            for n in 0..tc.width / 4 {
                let mut sums = [0f32; 2];
                for k in 0..ta.width / 4 {
                    let (w, x) = (pair(group(&ta.data[m], k)), pair(group(&tb.data[k], n)));
                    sums = [flushed_fma(w[0], x[0], sums[0]), flushed_fma(w[1], x[1], sums[1])];
                }
                let old = flushed(f32::from_le_bytes(group(&tc.data[m], n)));
                let new = flushed(old + flushed(sums[0] + sums[1]));
                tc.data[m][4 * n..][..4].copy_from_slice(&new.to_le_bytes());
            }
        }
        *self.tile(c)? = rest_zero(tc);
        Ok(())
    }
}

/// Rows and bytes beyond the shape are zero after every product.
fn rest_zero(mut tile: Tile) -> Tile {
    for (m, row) in tile.data.iter_mut().enumerate() {
        let keep = if m < tile.rows { tile.width } else { 0 };
        row[keep..].fill(0);
    }
    tile
}

/// Two bf16, denormals zero.
fn pair(b: [u8; 4]) -> [f32; 2] {
    [f32::from_le_bytes([0, 0, b[0], b[1]]), f32::from_le_bytes([0, 0, b[2], b[3]])].map(flushed)
}

fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

fn flushed_fma(a: f32, b: f32, c: f32) -> f32 {
    // tiny is judged after rounding, as everywhere on x86
    flushed(a.mul_add(b, c))
}
