//! Weight types: how a matrix lies in the file, how it is written, and the slow decoder that says what it means.
//!
//! ```text
//! matrix [rows, cols]  =  head (integer types: 64 bytes)  +  block 0  +  block 1  + ...      32 rows each
//! block of an integer type:  record (256 inputs) | record | ... | short record (128 inputs, where cols asks)
//! block of a float type:     step: 32 lines of 64 bytes, line r = the next 16 (f32) or 32 values of row r
//! ```
//! Rows are padded to 32, inputs to a multiple of 128; padding holds zeros. A stack of matrices (experts) is those
//! matrices one after the other, each with its own head and padding. A vector is plain little-endian f32.
//!
//! An integer type decodes to int8 times one scale per (row, 256 inputs), and nothing else: products, sums and
//! instruction sets need not know how it was packed. It does not know files, checksums or tensor names.

mod float;
mod packed;
mod q2;
mod q3;
mod q4;
mod q5;
mod q6;
mod q8;
mod search;

/// Rows of a block.
pub const ROWS: usize = 32;
/// Inputs of a record of an integer type, and of one scale.
pub const INPUTS: usize = 256;
/// Inputs of half a record; every matrix is padded to a multiple of it.
pub const HALF: usize = 128;
/// Bytes in front of the blocks of an integer matrix: the table, the exponent, zeros.
pub const HEAD: usize = 64;
/// The most a dimension may be; everything a kernel counts fits an `i32`.
pub const MAX_DIM: u64 = i32::MAX as u64;

/// A weight type. The set is closed; its ids in the file never change meaning.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Type {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// int8 and a scale per 256 inputs: 8.0625 bits.
    Q8,
    /// 6-bit codes, a multiplier per 16 inputs, a scale per 256: 6.5625 bits.
    Q6,
    /// 5-bit codes, a multiplier per 16 inputs, a scale per 256: 5.5625 bits.
    Q5,
    /// 4-bit codes into a table, a multiplier per 32 inputs, a scale per 256: 4.3125 bits.
    Q4,
    /// 3-bit codes into a table, a multiplier per 16 inputs, a scale per 256: 3.5625 bits.
    Q3,
    /// 2-bit codes into a table, a multiplier per 16 inputs, a scale per 256: 2.5625 bits.
    Q2,
}

/// What there is to know about one type: an entry of [`QUANTS`].
pub struct Quant {
    /// The type.
    pub ty: Type,
    /// Its name, as in `--type q4`.
    pub name: &'static str,
    /// Its id in the tensor table.
    pub id: u32,
    /// Bits per weight of a matrix without padding, head not counted.
    pub bits: f32,
    /// Bytes in front of the blocks: 64 for integer types, else 0.
    pub head: usize,
    /// Bytes of a block of 32 rows and `cols` inputs, `None` on overflow.
    pub block_bytes: fn(cols: u64) -> Option<u64>,
    /// Reads row `r` of a block.
    decode_row: fn(head: &[u8], block: &[u8], cols: usize, r: usize, out: &mut [f32]),
    /// Integer types: the int8 values (natural order) and the scale of row `r` in record `record` of a block.
    decode_int8: Option<Int8>,
}

/// Writes the rows of `values` (`n * cols`, `n <= 32`) into the zeroed block `out`.
type Encode = fn(head: &[u8], values: &[f32], importance: Option<&[f32]>, cols: usize, out: &mut [u8]);
/// See [`Quant::decode_int8`].
type Int8 =
    fn(head: &[u8], block: &[u8], cols: usize, r: usize, record: usize, out: &mut [i8; INPUTS]) -> f32;

/// Writes the blocks of a type. Not in [`QUANTS`]: what only reads carries no encoder.
fn encoder(ty: Type) -> Encode {
    match ty {
        Type::F32 => float::encode_f32,
        Type::F16 => float::encode_f16,
        Type::Bf16 => float::encode_bf16,
        Type::Q8 => q8::encode_block,
        Type::Q6 => packed::encode_block::<q6::Six>,
        Type::Q5 => packed::encode_block::<q5::Five>,
        Type::Q4 => packed::encode_block::<q4::Four>,
        Type::Q3 => packed::encode_block::<q3::Three>,
        Type::Q2 => packed::encode_block::<q2::Two>,
    }
}

/// Every type, a line each.
pub static QUANTS: &[Quant] =
    &[float::F32, float::F16, float::BF16, q8::Q8, q6::Q6, q5::Q5, q4::Q4, q3::Q3, q2::Q2];

impl Type {
    /// The entry of [`QUANTS`].
    pub fn quant(self) -> &'static Quant {
        match self {
            Type::F32 => &float::F32,
            Type::F16 => &float::F16,
            Type::Bf16 => &float::BF16,
            Type::Q8 => &q8::Q8,
            Type::Q6 => &q6::Q6,
            Type::Q5 => &q5::Q5,
            Type::Q4 => &q4::Q4,
            Type::Q3 => &q3::Q3,
            Type::Q2 => &q2::Q2,
        }
    }

    /// The name, as in `--type q4`.
    pub fn name(self) -> &'static str {
        self.quant().name
    }

    /// The type of that name.
    pub fn parse(name: &str) -> Option<Type> {
        QUANTS.iter().find(|q| q.name == name).map(|q| q.ty)
    }

    /// The id in the tensor table.
    pub fn id(self) -> u32 {
        self.quant().id
    }

    /// The type of that id.
    pub fn from_id(id: u32) -> Option<Type> {
        QUANTS.iter().find(|q| q.id == id).map(|q| q.ty)
    }

    /// Whether it decodes to int8 and a scale.
    pub fn is_integer(self) -> bool {
        self.quant().decode_int8.is_some()
    }
}

impl std::fmt::Display for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Bytes of a block of 32 rows with `cols` inputs, `None` on overflow.
pub fn block_bytes(ty: Type, cols: u64) -> Option<u64> {
    (ty.quant().block_bytes)(cols)
}

/// Bytes of one matrix `[rows, cols]`, head and padding included, `None` on overflow.
pub fn matrix_bytes(ty: Type, rows: u64, cols: u64) -> Option<u64> {
    let blocks = rows.div_ceil(ROWS as u64);
    block_bytes(ty, cols)?.checked_mul(blocks)?.checked_add(ty.quant().head as u64)
}

/// Bytes of a tensor: a vector `[n]` (f32 only), a matrix `[rows, cols]` or a stack `[count, rows, cols]`.
/// `None` on overflow and for a shape that cannot be stored (another number of dimensions, one that is 0 or above
/// [`MAX_DIM`], a vector that is not f32).
pub fn tensor_bytes(ty: Type, shape: &[u64]) -> Option<u64> {
    if shape.iter().any(|&d| d == 0 || d > MAX_DIM) {
        return None;
    }
    match *shape {
        [n] if ty == Type::F32 => n.checked_mul(4),
        [rows, cols] => matrix_bytes(ty, rows, cols),
        [count, rows, cols] => matrix_bytes(ty, rows, cols)?.checked_mul(count),
        _ => None,
    }
}

/// The greatest magnitude of `values`; NaN if one of them is NaN. The maximum over parts is that over the whole, as
/// long as NaN is looked for in each part.
pub fn absmax(values: &[f32]) -> f32 {
    // Magnitudes compare like their bits, and the bits of a NaN are above those of infinity.
    f32::from_bits(values.iter().fold(0, |m, v| m.max(v.to_bits() & 0x7fff_ffff)))
}

/// The 64 bytes in front of an integer matrix whose greatest magnitude is `absmax`: the type's table and an exponent
/// that puts the largest scale near the top of the range of f16, so that rows 2^27 smaller keep all bits of theirs.
/// For other types they are zero and not stored.
pub fn head(ty: Type, absmax: f32) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    if !ty.is_integer() {
        return head;
    }
    let table: &[i8] = match ty {
        Type::Q4 => &q4::TABLE,
        Type::Q3 => &q3::TABLE,
        Type::Q2 => &q2::TABLE,
        _ => &[],
    };
    for (to, value) in head.iter_mut().zip(table) {
        *to = *value as u8;
    }
    // Of a table's ends the last is the nearer one.
    let end = table.last().map_or(127.0, |&end| f32::from(end));
    let magnitude = if absmax.is_finite() { absmax.abs() / end } else { 1.0 };
    // The exponent field: floor(log2) of a normal number. Outside ±100 the scale itself would leave the normal f32.
    let log2 = (magnitude.to_bits() >> 23) as i32 - 127;
    head[16] = (log2 - 13).clamp(-100, 100) as i8 as u8;
    head
}

/// Encodes the rows of one block: `values` is `[n, cols]` row-major with `n <= 32` (fewer in a matrix's last block),
/// `head` what [`head`] made for `ty`, `out` the block's [`block_bytes`]. The result depends on nothing but the
/// arguments. A (row, 256 inputs) with a NaN or an infinity gets, in an integer type, the scale NaN.
///
/// # Panics
/// If `values` is not `n * cols` long with `n <= 32`, or `out` not [`block_bytes`].
pub fn encode_block(ty: Type, head: &[u8; HEAD], values: &[f32], cols: usize, out: &mut [u8]) {
    encode_block_for(ty, head, values, None, cols, out);
}

/// [`encode_block`] where some inputs matter more than others: the integer types make the sum of squared errors,
/// each times the `importance` of its column, small. `importance` holds a number for every column, not negative, of
/// any unit (the mean square of that input, say); where all in 256 are zero they count alike.
///
/// # Panics
/// As [`encode_block`], and if `importance` is not `cols` long.
pub fn encode_block_for(
    ty: Type,
    head: &[u8; HEAD],
    values: &[f32],
    importance: Option<&[f32]>,
    cols: usize,
    out: &mut [u8],
) {
    assert!(cols > 0 && values.len().is_multiple_of(cols) && values.len() / cols <= ROWS, "rows of a block");
    assert!(importance.is_none_or(|i| i.len() == cols), "importance of {cols} columns");
    assert_eq!(block_bytes(ty, cols as u64), Some(out.len() as u64), "bytes of a block");
    out.fill(0);
    encoder(ty)(head, values, importance, cols, out);
}

/// Encodes a whole matrix, `values` row-major `[rows, cols]`. Who has threads splits by blocks instead: [`head`]
/// once, [`encode_block`] for each 32 rows.
///
/// # Panics
/// If `values` is not `rows * cols` long.
pub fn encode(ty: Type, values: &[f32], rows: usize, cols: usize) -> Vec<u8> {
    assert_eq!(values.len(), rows * cols, "values of a [{rows}, {cols}] matrix");
    let bytes = matrix_bytes(ty, rows as u64, cols as u64).map(usize::try_from);
    let Some(Ok(bytes)) = bytes else { panic!("a [{rows}, {cols}] matrix does not fit memory") };
    let skip = ty.quant().head;
    let mut out = vec![0; bytes];
    let head = head(ty, absmax(values));
    out[..skip].copy_from_slice(&head[..skip]);
    if rows > 0 && cols > 0 {
        let block = (bytes - skip) / rows.div_ceil(ROWS);
        for (values, out) in values.chunks(ROWS * cols).zip(out[skip..].chunks_exact_mut(block)) {
            encode_block(ty, &head, values, cols, out);
        }
    }
    out
}

/// The head and the block that holds `row`, checked against the shape.
fn block_of(ty: Type, matrix: &[u8], rows: usize, cols: usize, row: usize) -> (&[u8], &[u8]) {
    assert!(row < rows, "row {row} of {rows}");
    assert_eq!(matrix_bytes(ty, rows as u64, cols as u64), Some(matrix.len() as u64), "bytes of a matrix");
    let (head, blocks) = matrix.split_at(ty.quant().head);
    let block = blocks.len() / rows.div_ceil(ROWS);
    (head, &blocks[row / ROWS * block..][..block])
}

/// Decodes one row of a matrix: what its bytes mean, slowly.
///
/// # Panics
/// If `matrix` is not [`matrix_bytes`] long, `row >= rows`, or `out` is not `cols` long.
pub fn decode_row(ty: Type, matrix: &[u8], rows: usize, cols: usize, row: usize, out: &mut [f32]) {
    assert_eq!(out.len(), cols, "values of a row");
    let (head, block) = block_of(ty, matrix, rows, cols, row);
    (ty.quant().decode_row)(head, block, cols, row % ROWS, out);
}

/// Decodes a whole matrix, row-major.
///
/// # Panics
/// If `matrix` is not [`matrix_bytes`] long.
pub fn decode(ty: Type, matrix: &[u8], rows: usize, cols: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows * cols];
    if cols > 0 {
        for (row, out) in out.chunks_exact_mut(cols).enumerate() {
            decode_row(ty, matrix, rows, cols, row, out);
        }
    }
    out
}

/// Integer types: the int8 values of inputs `256 * block ..` of `row`, in natural order and zero behind the padded
/// end of the row, and the scale they share. A kernel multiplies with exactly these.
///
/// # Panics
/// If the type is not an integer type, `matrix` not [`matrix_bytes`] long, `row` or `block` outside the matrix.
pub fn decode_int8(
    ty: Type,
    matrix: &[u8],
    rows: usize,
    cols: usize,
    row: usize,
    block: usize,
    out: &mut [i8; INPUTS],
) -> f32 {
    assert!(block < cols.div_ceil(INPUTS), "block {block} of {cols} inputs");
    let Some(decode) = ty.quant().decode_int8 else { panic!("{ty} is not an integer type") };
    let (head, bytes) = block_of(ty, matrix, rows, cols, row);
    decode(head, bytes, cols, row % ROWS, block, out)
}

/// [`Quant::decode_row`] of every integer type, by its `decode_int8`.
fn integer_row(decode: Int8, head: &[u8], block: &[u8], cols: usize, r: usize, out: &mut [f32]) {
    let mut ints = [0i8; INPUTS];
    for (record, out) in out.chunks_mut(INPUTS).enumerate() {
        let scale = decode(head, block, cols, r, record, &mut ints);
        for (to, &w) in out.iter_mut().zip(&ints) {
            *to = f32::from(w) * scale;
        }
    }
}

/// Bytes of a block made of records: `full` for 256 inputs, `short` for the last 128 where the padded row asks.
fn record_block_bytes(cols: u64, full: u64, short: u64) -> Option<u64> {
    let halves = cols.div_ceil(HALF as u64);
    (halves / 2).checked_mul(full)?.checked_add(halves % 2 * short)
}

/// The halves (1 or 2) of record `record` in rows of `cols` inputs.
fn halves(cols: usize, record: usize) -> usize {
    (cols.div_ceil(HALF) - 2 * record).min(2)
}

/// The input, inside its half, that stands at place `i` (0..64) of the low set; the high set is 16 further on.
fn low_set(i: usize) -> usize {
    32 * (i / 16) + i % 16
}

/// 2^e of the head's exponent: in f64, where that of −128 is no less a number than the others.
fn exponent(head: &[u8]) -> f32 {
    2f64.powi(i32::from(head[16] as i8)) as f32
}

/// The scale of row `r` of a record: f16 times the matrix's power of two.
fn scale(head: &[u8], record: &[u8], r: usize) -> f32 {
    half::f16::from_le_bytes([record[2 * r], record[2 * r + 1]]).to_f32() * exponent(head)
}

/// Stores the scale nearest to `wanted` for row `r` and returns it as it will be read back; 0 where it underflows,
/// NaN where `wanted` is not finite.
fn put_scale(head: &[u8], record: &mut [u8], r: usize, wanted: f32) -> f32 {
    let bits = if wanted.is_finite() {
        // Kept finite: the exponent leaves room above the largest scale of the matrix it was made for.
        half::f16::from_f32((wanted / exponent(head)).min(half::f16::MAX.to_f32()))
    } else {
        half::f16::NAN
    };
    record[2 * r..2 * r + 2].copy_from_slice(&bits.to_le_bytes());
    bits.to_f32() * exponent(head)
}

/// Rounds to nearest even by adding and taking away 1.5 * 2^23; exact for magnitudes below 2^22. Unlike `round` it
/// needs no instruction beyond the oldest of the machine, so loops around it vectorise everywhere.
fn round(x: f32) -> f32 {
    (x + 12_582_912.0) - 12_582_912.0
}
