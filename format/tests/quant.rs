//! What the records hold: every type round-trips within its bound, at every shape, the same bytes every time.

use llm_format::quant::{self, HEAD, INPUTS, QUANTS, ROWS, Type};
use proptest::prelude::*;

/// Gaussian weights out of a counter: splitmix64, then Box and Muller.
fn gaussian(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let one = |_| ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32 * 0.02;
    (0..count).map(one).collect()
}

/// Root of the squared error over the squared values.
fn relative_rmse(values: &[f32], decoded: &[f32]) -> f64 {
    let error: f64 = values.iter().zip(decoded).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (error / values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>()).sqrt()
}

fn bound(ty: Type) -> f64 {
    match ty {
        Type::F32 => 0.0,
        Type::F16 => 3e-4,
        Type::Bf16 => 2e-3,
        Type::Q8 => 0.0068,
        Type::Q6 => 0.0160,
        Type::Q5 => 0.0316,
        Type::Q4 => 0.0713,
        Type::Q3 => 0.1296,
        Type::Q2 => 0.2780,
    }
}

#[test]
fn gaussian_weights_keep_within_the_error_of_their_type() {
    let (rows, cols) = (128, 2048);
    let values = gaussian(rows * cols, 7);
    for quant in QUANTS {
        let decoded = quant::decode(quant.ty, &quant::encode(quant.ty, &values, rows, cols), rows, cols);
        let error = relative_rmse(&values, &decoded);
        println!("{} {error:.5}", quant.name);
        assert!(
            error <= bound(quant.ty),
            "{}: relative RMSE {error:.5}, at most {}",
            quant.name,
            bound(quant.ty)
        );
    }
}

/// Types of other engines: bits per weight, root mean square error relative to gaussian weights, measured, as that of
/// ours, without an importance of inputs.
const PEERS: [(&str, f64, f64); 10] = [
    ("Q4_0", 4.5, 0.0857),
    ("Q4_K", 4.5, 0.0715),
    ("IQ4_XS", 4.25, 0.0764),
    ("IQ4_KS", 4.26, 0.0741),
    ("IQ4_NL", 4.5, 0.0759),
    ("IQ4_K", 4.5, 0.0648),
    ("MXFP4", 4.25, 0.115),
    ("Q5_K", 5.5, 0.0362),
    ("Q6_K", 6.5625, 0.0178),
    ("Q8_0", 8.5, 0.0054),
];

#[test]
fn errors_on_gaussian_weights_are_at_most_those_of_peers_at_equal_bits() {
    let (rows, cols) = (128, 2048);
    let values = gaussian(rows * cols, 7);
    let mut beside = vec![];
    for quant in QUANTS.iter().filter(|q| q.ty.is_integer()) {
        let decoded = quant::decode(quant.ty, &quant::encode(quant.ty, &values, rows, cols), rows, cols);
        let error = relative_rmse(&values, &decoded);
        for (peer, bits, its) in PEERS {
            let more = bits - f64::from(quant.bits);
            // A bit more halves the error, 6.02 dB. That is true of neighbours only: half a bit apart at most.
            if more.abs() <= 0.5 {
                let most = its * more.exp2();
                println!("{} {error:.5}, {peer} {its} at {bits} bits: {most:.5}", quant.name);
                assert!(error <= most, "{}: {error:.5}, {peer} at as many bits {most:.5}", quant.name);
                beside.push(peer);
            }
        }
    }
    assert!(PEERS.iter().all(|(peer, ..)| beside.contains(peer)), "only {beside:?} have a type beside them");
}

/// What a column's error counts for: most little, a few a hundred times as much.
fn importance(cols: usize) -> Vec<f32> {
    (0..cols).map(|k| if k * 7 % 31 == 0 { 300.0 } else { 3.0 }).collect()
}

/// [`quant::encode`] by importance.
fn encode_for(ty: Type, values: &[f32], importance: &[f32], rows: usize) -> Vec<u8> {
    let cols = importance.len();
    let head = quant::head(ty, quant::absmax(values));
    let mut out = quant::encode(ty, values, rows, cols);
    let block = quant::block_bytes(ty, cols as u64).unwrap() as usize;
    for (values, out) in values.chunks(ROWS * cols).zip(out[HEAD..].chunks_exact_mut(block)) {
        quant::encode_block_for(ty, &head, values, Some(importance), cols, out);
    }
    out
}

#[test]
fn importance_makes_the_errors_small_that_matter() {
    let (rows, cols) = (64, 1024);
    let values = gaussian(rows * cols, 5);
    let importance = importance(cols);
    let scaled = |values: &[f32]| -> Vec<f32> {
        values.iter().zip(importance.iter().cycle()).map(|(v, weight)| v * weight.sqrt()).collect()
    };
    for quant in QUANTS.iter().filter(|q| q.ty.is_integer()) {
        let error = |matrix: &[u8]| {
            relative_rmse(&scaled(&values), &scaled(&quant::decode(quant.ty, matrix, rows, cols)))
        };
        let without = error(&quant::encode(quant.ty, &values, rows, cols));
        let with = error(&encode_for(quant.ty, &values, &importance, rows));
        println!("{} {without:.5} without importance, {with:.5} with", quant.name);
        assert!(with < 0.93 * without, "{}: {without:.5} without importance, {with:.5} with", quant.name);
        let alike = encode_for(quant.ty, &values, &vec![7.0; cols], rows);
        assert!(alike == quant::encode(quant.ty, &values, rows, cols), "{}: all alike", quant.name);
    }
}

#[test]
fn no_256_inputs_of_q8_are_further_off_than_with_the_scale_of_the_largest() {
    let (rows, cols) = (65, 1100);
    let mut values = gaussian(rows * cols, 13);
    for (row, values) in values.chunks_exact_mut(cols).enumerate() {
        match row % 4 {
            // a few that are far larger than the others
            0 => values.iter_mut().step_by(97).for_each(|v| *v *= 9.0),
            // multiples of one number, with nothing to gain where the largest is 127 times it
            1 => values.iter_mut().for_each(|v| *v = (*v * 2048.0).round().clamp(-127.0, 127.0) / 1024.0),
            // smaller by as much as a matrix's scales reach
            2 => values.iter_mut().for_each(|v| *v *= 1e-10),
            _ => (),
        }
    }
    let ones = vec![1.0; cols];
    for weights in [ones, importance(cols)] {
        let matrix = encode_for(Type::Q8, &values, &weights, rows);
        let decoded = quant::decode(Type::Q8, &matrix, rows, cols);
        let unit = 2f32.powi(i32::from(matrix[16] as i8));
        let mut better = 0;
        for (row, (values, decoded)) in values.chunks_exact(cols).zip(decoded.chunks_exact(cols)).enumerate()
        {
            let parts = values.chunks(INPUTS).zip(decoded.chunks(INPUTS)).zip(weights.chunks(INPUTS));
            for ((values, decoded), weights) in parts {
                let scale = half::f16::from_f32(quant::absmax(values) / 127.0 / unit).to_f32() * unit;
                let plain =
                    values.iter().map(|v| (v * (1.0 / scale)).round_ties_even().clamp(-127.0, 127.0) * scale);
                let square = |v: f32, to: f32, weight: f32| f64::from(weight) * f64::from(v - to).powi(2);
                let (mut now, mut before) = (0.0, 0.0);
                for (((v, to), plain), weight) in values.iter().zip(decoded).zip(plain).zip(weights) {
                    now += square(*v, *to, *weight);
                    before += square(*v, plain, *weight);
                }
                assert!(now <= before, "row {row}: {now:e}, {before:e} with the scale of the largest");
                better += usize::from(now < before);
            }
        }
        assert!(better > rows * 5 / 2, "{better} of {} are better", rows * 5);
    }
}

#[test]
fn a_row_much_smaller_than_the_others_keeps_its_bits() {
    let (rows, cols) = (4, 512);
    let mut values = gaussian(rows * cols, 9);
    values[cols..2 * cols].iter_mut().for_each(|v| *v *= 1e-7);
    for quant in QUANTS.iter().filter(|q| q.ty.is_integer()) {
        let matrix = quant::encode(quant.ty, &values, rows, cols);
        let mut row = vec![0.0; cols];
        quant::decode_row(quant.ty, &matrix, rows, cols, 1, &mut row);
        let error = relative_rmse(&values[cols..2 * cols], &row);
        assert!(error < 1.15 * bound(quant.ty), "{}: {error}", quant.name);
    }
}

#[test]
fn ids_names_and_bits_are_consistent_and_distinct() {
    for (i, quant) in QUANTS.iter().enumerate() {
        assert_eq!(Type::parse(quant.name), Some(quant.ty));
        assert_eq!(Type::from_id(quant.id), Some(quant.ty));
        assert!(QUANTS[..i].iter().all(|q| q.id != quant.id && q.name != quant.name));
        let bits =
            quant::matrix_bytes(quant.ty, 32, 256).map(|b| (b as f32 - quant.head as f32) * 8.0 / 8192.0);
        assert_eq!(bits, Some(quant.bits));
    }
    assert_eq!(Type::from_id(0), None);
    assert_eq!(Type::parse("q7"), None);
}

#[test]
fn sizes_that_overflow_or_cannot_be_stored_are_none() {
    for quant in QUANTS {
        assert_eq!(quant::matrix_bytes(quant.ty, u64::MAX, u64::MAX), None);
        assert_eq!(quant::matrix_bytes(quant.ty, u64::MAX, 1 << 40), None);
        for shape in [
            &[][..],
            &[0, 4],
            &[4, 0],
            &[1, 1, 1, 1],
            &[u64::MAX, 1],
            &[1 << 31, 1],
            &[1 << 30, 1 << 30, 1 << 30],
        ] {
            assert_eq!(quant::tensor_bytes(quant.ty, shape), None, "{} {shape:?}", quant.name);
        }
        let vector = quant::tensor_bytes(quant.ty, &[5]);
        assert_eq!(vector, (quant.ty == Type::F32).then_some(20));
    }
}

#[test]
fn zeros_tiny_huge_and_non_finite_weights_decode_to_what_they_are() {
    let ints = QUANTS.iter().filter(|q| q.ty.is_integer());
    for ty in ints.map(|q| q.ty) {
        let zeros = quant::decode(ty, &quant::encode(ty, &[0.0; 300], 1, 300), 1, 300);
        assert!(zeros.iter().all(|v| *v == 0.0));
        for magnitude in [1e-25f32, 1e-10, 1.0, 1e10, 1e30] {
            let values: Vec<f32> = gaussian(512, 3).iter().map(|v| v * magnitude).collect();
            let decoded = quant::decode(ty, &quant::encode(ty, &values, 1, 512), 1, 512);
            assert!(relative_rmse(&values, &decoded) < 1.2 * bound(ty), "{ty} {magnitude}");
        }
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = gaussian(512, 4);
            values[300] = wrong;
            let decoded = quant::decode(ty, &quant::encode(ty, &values, 1, 512), 1, 512);
            assert!(decoded[..256].iter().all(|v| v.is_finite()), "the other record is not touched");
            assert!(decoded[256..].iter().all(|v| v.is_nan()), "{ty}: a record with {wrong} says so");
        }
        for extreme in [f32::MIN_POSITIVE / 4.0, f32::MAX, -f32::MAX] {
            quant::decode(ty, &quant::encode(ty, &[extreme; 3], 1, 3), 1, 3);
        }
    }
}

#[test]
fn the_scale_of_every_exponent_is_the_f16_times_two_to_its_power() {
    let mut matrix = quant::encode(Type::Q8, &[1.0; 4], 1, 4);
    let f16 = half::f16::from_le_bytes([matrix[HEAD], matrix[HEAD + 1]]).to_f64();
    for e in i8::MIN..=i8::MAX {
        matrix[16] = e as u8;
        let scale = quant::decode_int8(Type::Q8, &matrix, 1, 4, 0, 0, &mut [0; INPUTS]);
        assert_eq!(scale, (f16 * 2f64.powi(i32::from(e))) as f32, "exponent {e}");
        assert!(scale > 0.0, "exponent {e}");
    }
}

#[test]
fn absmax_finds_the_greatest_magnitude_and_every_nan() {
    assert_eq!(quant::absmax(&[]), 0.0);
    assert_eq!(quant::absmax(&[1.0, -3.0, 2.0]), 3.0);
    assert_eq!(quant::absmax(&[1.0, f32::NEG_INFINITY]), f32::INFINITY);
    assert!(quant::absmax(&[f32::NAN, f32::INFINITY, 1.0]).is_nan());
}

#[test]
fn every_q4_weight_is_what_the_rule_says() {
    // The rule as the specification states it, on bytes taken apart here, not by the decoder.
    let (rows, cols) = (33, 300);
    let values = gaussian(rows * cols, 11);
    let matrix = quant::encode(Type::Q4, &values, rows, cols);
    let mut ints = [0i8; INPUTS];
    for row in 0..rows {
        for block in 0..2 {
            let scale = quant::decode_int8(Type::Q4, &matrix, rows, cols, row, block, &mut ints);
            let (hv, bytes) = if block == 0 { (2, 4416) } else { (1, 2368) };
            let record = &matrix[HEAD + row / 32 * (4416 + 2368) + block * 4416..][..bytes];
            let (r, nt, l) = (row % 32, row % 32 / 16, row % 16);
            let f16 = half::f16::from_le_bytes([record[2 * r], record[2 * r + 1]]).to_f64();
            assert_eq!(f64::from(scale), f16 * 2f64.powi(i32::from(matrix[16] as i8)));
            for (k, &w) in ints.iter().enumerate().take(128 * hv) {
                let (h, inside) = (k / 128, k % 128);
                let (i, high) = (inside / 32 * 16 + inside % 16, inside % 32 >= 16);
                let byte = record[320 + ((nt * hv + h) * 16 + l) * 64 + i];
                let code = if high { byte >> 4 } else { byte & 15 };
                let (entry, m) = (matrix[usize::from(code)] as i8, record[64 + 8 * r + k / 32] as i8);
                assert!(m != -128 && m != 64 && m != -64 && entry & 1 == 1);
                assert_eq!(i32::from(w), (i32::from(entry) * i32::from(m) + 64) >> 7);
            }
        }
    }
}

/// What a code under multiplier m decodes to in a type with multipliers, as the specification states it.
fn rule(ty: Type, table: &[u8], code: usize, m: i32) -> i32 {
    match ty {
        Type::Q6 => ((2 * code as i32 - 71) * m + 32) >> 6,
        Type::Q5 => ((4 * code as i32 - 69) * m + 32) >> 6,
        _ => (i32::from(table[code] as i8) * m + 64) >> 7,
    }
}

/// The types with multipliers, the inputs that share one, and the number of codes.
const PACKED: [(Type, usize, usize); 5] =
    [(Type::Q6, 16, 64), (Type::Q5, 16, 32), (Type::Q4, 32, 16), (Type::Q3, 16, 8), (Type::Q2, 16, 4)];

#[test]
fn every_code_is_the_nearest_that_its_multiplier_can_decode_to() {
    let cols = INPUTS;
    let mut values = gaussian(ROWS * cols, 17);
    values.iter_mut().step_by(41).for_each(|v| *v *= 6.0);
    for (ty, group, codes) in PACKED {
        let matrix = quant::encode(ty, &values, ROWS, cols);
        let mut negative = 0;
        for (row, values) in values.chunks_exact(cols).enumerate() {
            let mut ints = [0i8; INPUTS];
            let scale = quant::decode_int8(ty, &matrix, ROWS, cols, row, 0, &mut ints);
            for (k, (value, &int)) in values.iter().zip(&ints).enumerate() {
                let m = i32::from(matrix[HEAD + 64 + row * (INPUTS / group) + k / group] as i8);
                negative += usize::from(m < 0);
                let off = |w: i32| (f64::from(*value) / f64::from(scale) - f64::from(w)).abs();
                let least = (0..codes).map(|code| off(rule(ty, &matrix, code, m))).fold(f64::MAX, f64::min);
                // Halfway between two levels either is the nearest, as far as f32 can tell.
                assert!(off(i32::from(int)) <= least + 1e-4, "{ty} row {row} input {k}: {int} under {m}");
            }
        }
        assert!((1000..7000).contains(&negative), "{ty}: {negative} of 8192 have a negative multiplier");
    }
}

#[test]
fn trying_all_multipliers_under_many_scales_finds_hardly_less_error_than_the_search() {
    let (rows, cols) = (3, INPUTS);
    let values = gaussian(rows * cols, 19);
    for (ty, group, codes) in PACKED {
        let matrix = quant::encode(ty, &values, rows, cols);
        let decoded = quant::decode(ty, &matrix, rows, cols);
        let found: f64 = values.iter().zip(&decoded).map(|(v, to)| f64::from(v - to).powi(2)).sum();
        let levels = |m: i32| (0..codes).map(|code| rule(ty, &matrix, code, m)).collect::<Vec<_>>();
        let allowed = |m: &i32| match ty {
            Type::Q6 | Type::Q5 => m.abs() % 64 != 32 && levels(*m).iter().all(|w| w.abs() <= 127),
            _ => m.abs() != 64,
        };
        let multipliers: Vec<Vec<i32>> = (-127..=127).filter(allowed).map(levels).collect();
        let top = multipliers.iter().flatten().fold(0, |top, w| w.abs().max(top));
        let mut least = 0.0;
        for values in values.chunks_exact(cols) {
            let of = |scale: f64| -> f64 {
                let best = |x: &[f32]| {
                    let error = |levels: &Vec<i32>| -> f64 {
                        let off = |v: f64| {
                            levels.iter().map(|w| (v - f64::from(*w)).powi(2)).fold(f64::MAX, f64::min)
                        };
                        x.iter().map(|v| off(f64::from(*v) / scale)).sum()
                    };
                    multipliers.iter().map(error).fold(f64::MAX, f64::min)
                };
                values.chunks_exact(group).map(best).sum::<f64>() * scale * scale
            };
            let first = f64::from(quant::absmax(values)) / f64::from(top);
            least += (0..40).map(|k| of(first * 1.02f64.powi(k))).fold(f64::MAX, f64::min);
        }
        println!("{ty} {found:.4e}, {least:.4e} of all");
        assert!(found <= 1.08 * least, "{ty}: {found:e}, all multipliers under many scales {least:e}");
    }
}

fn any_type() -> impl Strategy<Value = Type> {
    (0..QUANTS.len()).prop_map(|i| QUANTS[i].ty)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_round_trips_by_row_by_block_and_as_a_whole(
        ty in any_type(), rows in 1usize..70, cols in 1usize..700, seed in any::<u64>(),
    ) {
        let values = gaussian(rows * cols, seed);
        let matrix = quant::encode(ty, &values, rows, cols);
        prop_assert_eq!(Some(matrix.len() as u64), quant::matrix_bytes(ty, rows as u64, cols as u64));
        prop_assert_eq!(&matrix, &quant::encode(ty, &values, rows, cols));
        let decoded = quant::decode(ty, &matrix, rows, cols);
        // A short row has few values to average over; the bound is that of a whole matrix.
        prop_assert!(relative_rmse(&values, &decoded) <= 1.5 * bound(ty));

        // By blocks, as the converter does it.
        let head = quant::head(ty, quant::absmax(&values));
        let block = quant::block_bytes(ty, cols as u64).unwrap() as usize;
        for (index, part) in values.chunks(ROWS * cols).enumerate() {
            let mut out = vec![0xaa; block];
            quant::encode_block(ty, &head, part, cols, &mut out);
            prop_assert_eq!(&out[..], &matrix[ty.quant().head + index * block..][..block]);
        }
        // By record, as the kernels do it.
        if ty.is_integer() {
            let mut ints = [0; INPUTS];
            let (row, record) = (seed as usize % rows, seed as usize / 64 % cols.div_ceil(INPUTS));
            let scale = quant::decode_int8(ty, &matrix, rows, cols, row, record, &mut ints);
            for (k, &w) in ints.iter().enumerate() {
                prop_assert!(w != -128);
                let at = record * INPUTS + k;
                if at < cols {
                    prop_assert_eq!(decoded[row * cols + at], f32::from(w) * scale);
                }
            }
        }
    }

    #[test]
    fn any_bytes_decode_without_a_panic(ty in any_type(), rows in 1usize..34, cols in 1usize..300, byte: u8, seed: u64) {
        let bytes = quant::matrix_bytes(ty, rows as u64, cols as u64).unwrap() as usize;
        let matrix: Vec<u8> = (0..bytes as u64).map(|i| (i.wrapping_mul(seed | 1) >> 13) as u8 ^ byte).collect();
        prop_assert_eq!(quant::decode(ty, &matrix, rows, cols).len(), rows * cols);
    }
}
