//! Every kernel's gradient against central differences of its twin.

use llm_kernels::dense::{Bend, Curve, Dense, Heads, Rotated, Slice};

use super::*;

#[test]
fn gradients_of_linear_agree_with_finite_differences() {
    let (m, n, k) = (5, 7, 19);
    let (x, w, b, r, dy) =
        (values(m * k, 1), values(n * k, 2), values(n, 3), values(m * n, 4), values(m * n, 5));
    let mut dense = Dense::new(1);
    let mut y = vec![0.0; m * n];
    dense.linear(&x, &w, Some(&b), Some(&r), &mut y, (m, n, k));
    let plus: Vec<f64> = linear(&wide(&x), &wide(&w), Some(&wide(&b)), n, k)
        .iter()
        .zip(wide(&r))
        .map(|(a, b)| a + b)
        .collect();
    close("y", &y, &plus);
    let (mut dx, mut dw, mut db) = (vec![0.0; m * k], vec![0.0; n * k], vec![0.0; n]);
    dense.linear_dx(&dy, &w, &mut dx, (m, n, k), false);
    dense.linear_dw(&dy, &x, &mut dw, (m, n, k));
    dense.bias_back(&dy, &mut db);
    compare("dx", &x, &dx, |x| dot(&linear(x, &wide(&w), None, n, k), &dy));
    compare("dw", &w, &dw, |w| dot(&linear(&wide(&x), w, None, n, k), &dy));
    compare("db", &b, &db, |b| dot(&linear(&wide(&x), &wide(&w), Some(b), n, k), &dy));
}

#[test]
fn gradients_of_all_norms_agree_with_finite_differences() {
    let (rows, d, eps) = (70, 21, 1e-5f32);
    let (x, w, b, dy) = (values(rows * d, 1), values(d, 2), values(d, 3), values(rows * d, 4));
    let mut dense = Dense::new(2);
    for (center, bias) in [(true, Some(&b)), (true, None), (false, None)] {
        let (mut y, mut stats) = (vec![0.0; rows * d], vec![0.0; rows * 2]);
        dense.norm(&x, &w, bias.map(|b| &b[..]), center, eps, &mut y, &mut stats);
        let twin = |x: &[f64], w: &[f64], b: &[f64]| norm(x, w, bias.map(|_| b), center, f64::from(eps));
        let (x64, w64, b64) = (wide(&x), wide(&w), wide(&b));
        close("y", &y, &twin(&x64, &w64, &b64));
        let (mut dx, mut dw, mut db) = (vec![1.0; rows * d], vec![0.0; d], vec![0.0; d]);
        let db = bias.is_some().then_some(&mut db[..]);
        let mut db = db;
        dense.norm_back(&dy, &x, &w, &stats, center, &mut dx, true, &mut dw, db.as_deref_mut());
        dx.iter_mut().for_each(|g| *g -= 1.0);
        compare("dx", &x[..d], &dx[..d], |x| dot(&twin(x, &w64, &b64), &dy[..d]));
        compare("dw", &w, &dw, |w| dot(&twin(&x64, w, &b64), &dy));
        if let Some(db) = db {
            compare("db", &b, db, |b| dot(&twin(&x64, &w64, b), &dy));
        }
    }
}

#[test]
fn gradients_of_a_norm_of_parts_agree_with_finite_differences() {
    let (rows, stride, d, slice) = (5, 17, 4, Slice { start: 3, heads: 3 });
    let (x, w, dy) = (values(rows * stride, 1), values(d, 2), values(rows * stride, 3));
    let mut dense = Dense::new(2);
    let twin = |x: &[f64], w: &[f64]| {
        let mut y = x.to_vec();
        for row in y.chunks_mut(stride) {
            let normed = norm(&row[3..15], w, None, false, 1e-5);
            row[3..15].copy_from_slice(&normed);
        }
        y
    };
    let (mut y, mut stats) = (x.clone(), vec![0.0; rows * 6]);
    dense.slice_norm(&x, stride, slice, &w, 1e-5, &mut y, &mut stats);
    close("y", &y, &twin(&wide(&x), &wide(&w)));
    let (mut dx, mut dw) = (dy.clone(), vec![0.0; d]);
    dense.slice_norm_back(&dy, &x, stride, slice, &w, &stats, &mut dx, &mut dw);
    compare("dx", &x, &dx, |x| dot(&twin(x, &wide(&w)), &dy));
    compare("dw", &w, &dw, |w| dot(&twin(&wide(&x), w), &dy));
}

#[test]
fn gradients_of_the_embedding_agree_with_finite_differences() {
    let (d, ids) = (5, [3u32, 1, 3, 0, 2, 3]);
    let (table, positions, dy) = (values(4 * d, 1), values(3 * d, 2), values(ids.len() * d, 3));
    let mut dense = Dense::new(1);
    let twin = |t: &[f64], p: &[f64]| -> Vec<f64> {
        (0..ids.len() * d).map(|i| t[ids[i / d] as usize * d + i % d] + p[i / d % 3 * d + i % d]).collect()
    };
    let mut y = vec![0.0; ids.len() * d];
    dense.embed(&ids, &table, Some(&positions), &mut y);
    close("y", &y, &twin(&wide(&table), &wide(&positions)));
    let (mut dt, mut dp) = (vec![0.0; table.len()], vec![0.0; positions.len()]);
    dense.embed_back(&ids, &dy, &mut dt, Some(&mut dp));
    compare("table", &table, &dt, |t| dot(&twin(t, &wide(&positions)), &dy));
    compare("positions", &positions, &dp, |p| dot(&twin(&wide(&table), p), &dy));
}

#[test]
fn gradients_of_rotary_positions_agree_with_finite_differences() {
    let (rows, length, stride) = (6, 3, 23);
    let (x, dy) = (values(rows * stride, 1), values(rows * stride, 2));
    let angle = |i: usize| (i / 3) as f64 * 100f64.powf(-((2 * (i % 3)) as f64) / 6.0);
    let cos: Vec<f32> = (0..9).map(|i| angle(i).cos() as f32).collect();
    let sin: Vec<f32> = (0..9).map(|i| angle(i).sin() as f32).collect();
    let mut dense = Dense::new(1);
    for neighbours in [false, true] {
        // six of the eight values of two heads, from the third on
        let what = Rotated { start: 5, step: 8, heads: 2, neighbours };
        let twin = |x: &[f64]| {
            let mut x = x.to_vec();
            rope(&mut x, stride, what, 3, length, &|p, i| angle(p * 3 + i));
            x
        };
        let (mut y, mut dx) = (x.clone(), dy.clone());
        dense.rope(&mut y, stride, what, length, &cos, &sin, false);
        close("y", &y, &twin(&wide(&x)));
        dense.rope(&mut dx, stride, what, length, &cos, &sin, true);
        compare("dx", &x, &dx, |x| dot(&twin(x), &dy));
    }
}

/// Heads without extras.
fn bare(heads: usize, kv_heads: usize, dim: usize, length: usize) -> Heads<'static> {
    Heads { scale: 0.4, ..Heads::new(heads, kv_heads, dim, length) }
}

#[test]
fn gradients_of_attention_agree_with_finite_differences() {
    let slopes = [0.5, 0.125, 0.25, 0.06];
    // three documents in the first sequence, two in the second
    let starts: Vec<u32> = (0..100)
        .map(|r| match r {
            0..20 => 0,
            20..30 => 20,
            30..50 => 30,
            50..61 => 0,
            _ => 11,
        })
        .collect();
    // Longer than a block of queries; grouped heads; two sequences.
    let cases = [
        bare(4, 2, 6, 50),
        bare(2, 2, 6, 5),
        bare(3, 1, 6, 48),
        Heads { value_dim: 3, ..bare(2, 2, 6, 50) },
        Heads { window: 7, ..bare(2, 1, 6, 50) },
        Heads { slopes: &slopes, ..bare(4, 2, 6, 50) },
        Heads { starts: &starts, window: 15, slopes: &slopes, value_dim: 4, ..bare(4, 4, 2, 50) },
        Heads { softcap: 0.7, window: 20, ..bare(2, 1, 6, 50) },
        Heads { sinks: &[0.5, -2.0, 1.5, 4.0], ..bare(4, 2, 6, 50) },
        Heads {
            softcap: 1.5,
            slopes: &slopes,
            sinks: &slopes,
            starts: &starts,
            value_dim: 3,
            ..bare(4, 2, 6, 50)
        },
    ];
    for h in cases {
        let (rows, length) = (2 * h.length, h.length);
        let stride = h.heads * h.dim + h.kv_heads * (h.dim + h.value_dim);
        let (qkv, dy) = (values(rows * stride, 1), values(rows * h.heads * h.value_dim, 2));
        let mut dense = Dense::new(2);
        let (mut y, mut lse, mut dqkv) =
            (vec![0.0; dy.len()], vec![0.0; rows * h.heads], vec![9.0; qkv.len()]);
        dense.attention(&h, &qkv, &mut y, &mut lse);
        let sinks = wide(h.sinks);
        close("y", &y, &attention(&h, &wide(&qkv), &sinks, &[]));
        dense.attention_back(&h, &qkv, &y, &lse, &dy, &mut dqkv);
        // One sequence is enough for the differences; the other must not leak into it.
        let (one, outs) = (length * stride, length * h.heads * h.value_dim);
        compare("dqkv", &qkv[..one], &dqkv[..one], |x| dot(&attention(&h, x, &sinks, &[]), &dy[..outs]));
        if !h.sinks.is_empty() {
            let mut dsinks = vec![1.0; h.heads];
            dense.sinks_back(&h, &y, &lse, &dy, &mut dsinks);
            dsinks.iter_mut().for_each(|g| *g -= 1.0);
            compare("dsinks", h.sinks, &dsinks, |s| dot(&attention(&h, &wide(&qkv), s, &[]), &dy));
        }
    }
}

#[test]
fn gradients_of_attention_with_dropout_agree_with_finite_differences_under_the_same_mask() {
    let plain = Heads { dropout: 0.3, key: 77, window: 5, ..bare(2, 1, 4, 7) };
    let capped = Heads { softcap: 1.2, slopes: &[0.3, 0.1], sinks: &[0.5, -0.5], ..plain };
    for h in [plain, capped] {
        // two sequences
        let (qkv, dy) = (values(14 * 16, 1), values(14 * 8, 2));
        let (mut y, mut lse, mut dqkv) = (vec![0.0; 14 * 8], vec![0.0; 14 * 2], vec![0.0; qkv.len()]);
        let mut dense = Dense::new(1);
        dense.attention(&h, &qkv, &mut y, &mut lse);
        dense.attention_back(&h, &qkv, &y, &lse, &dy, &mut dqkv);
        let (sinks, mask) = (wide(h.sinks), kept(&h, 14));
        close("y", &y, &attention(&h, &wide(&qkv), &sinks, &mask));
        compare("dqkv", &qkv, &dqkv, |x| dot(&attention(&h, x, &sinks, &mask), &dy));
        if !h.sinks.is_empty() {
            let mut dsinks = vec![0.0; h.heads];
            dense.sinks_back(&h, &y, &lse, &dy, &mut dsinks);
            compare("dsinks", h.sinks, &dsinks, |s| dot(&attention(&h, &wide(&qkv), s, &mask), &dy));
        }
    }
}

#[test]
fn attention_drops_the_asked_share_of_its_probabilities() {
    let length = 200;
    let mask = kept(&Heads { dropout: 0.3, key: 77, ..bare(2, 1, 4, length) }, length);
    // what comes behind a query is never seen
    let seen = (0..mask.len()).filter(|i| i % length <= i / (2 * length)).map(|i| mask[i]);
    let (all, dropped) = seen.fold((0, 0), |(all, dropped), x| (all + 1, dropped + u32::from(x == 0.0)));
    assert_eq!(all, length * (length + 1));
    let share = f64::from(dropped) / all as f64;
    assert!((share - 0.3).abs() < 0.01, "{share}");
}

#[test]
fn gradients_of_activations_agree_with_finite_differences() {
    let (x, dy) = (values(60, 1), values(60, 2));
    let mut dense = Dense::new(1);
    for curve in [Curve::Silu, Curve::Gelu, Curve::GeluTanh, Curve::Relu, Curve::Relu2] {
        let (mut y, mut dx) = (vec![0.0; 60], dy.clone());
        dense.activate(curve, &x, &mut y);
        dense.activate_back(curve, &mut dx, &x);
        let twin = |x: &[f64]| x.iter().map(|x| activate(curve, *x)).collect::<Vec<_>>();
        close("plain", &y, &twin(&wide(&x)));
        compare("plain", &x, &dx, |x| dot(&twin(x), &dy));
        let (mut y, mut dx) = (vec![0.0; 30], vec![0.0; 60]);
        dense.gated(curve, &x, 5, &mut y);
        dense.gated_back(curve, &dy[..30], &x, 5, &mut dx);
        close("gated", &y, &gated(curve, &wide(&x), 5));
        compare("gated", &x, &dx, |x| dot(&gated(curve, x, 5), &dy[..30]));
    }
}

#[test]
fn gradients_of_a_clamped_gate_agree_with_finite_differences_and_are_zero_beyond_the_clamp() {
    let (curve, limit) = (Curve::ClampedSwiglu { alpha: 1.7, limit: 0.8 }, 0.8);
    let (x, dy) = (values(60, 1), values(30, 2));
    let (mut y, mut dx) = (vec![0.0; 30], vec![0.0; 60]);
    let mut dense = Dense::new(1);
    dense.gated(curve, &x, 5, &mut y);
    dense.gated_back(curve, &dy, &x, 5, &mut dx);
    close("clamped", &y, &gated(curve, &wide(&x), 5));
    compare("clamped", &x, &dx, |x| dot(&gated(curve, x, 5), &dy));
    let (mut above, mut below) = (0, 0);
    for (x, dx) in x.chunks(10).zip(dx.chunks(10)) {
        for i in 0..10 {
            let beyond = x[i] > limit || i >= 5 && x[i] < -limit;
            assert_eq!(dx[i] == 0.0, beyond, "{}: {}", x[i], dx[i]);
            above += usize::from(beyond && x[i] > 0.0);
            below += usize::from(beyond && x[i] < 0.0);
        }
    }
    assert!(above > 4 && below > 2, "{above} above, {below} below");
    // at the clamp itself the slope is that of inside, as PyTorch has it
    dense.gated_back(curve, &[1.0], &[limit, limit], 1, &mut dx[..2]);
    assert!(dx[0] != 0.0 && dx[1] != 0.0);
}

#[test]
fn gradients_of_cross_entropy_agree_with_finite_differences() {
    let (vocab, targets) = (37, [3u32, u32::MAX, 36, 0]);
    let logits = values(4 * vocab, 1);
    let mut dense = Dense::new(1);
    let mut got = logits.clone();
    let loss = dense.cross_entropy(&mut got, vocab, &targets, Some(0.25), None);
    assert!((loss - cross_entropy(&wide(&logits), vocab, &targets)).abs() < 1e-5);
    assert_eq!(dense.cross_entropy(&mut logits.clone(), vocab, &targets, None, None), loss);
    compare("logits", &logits, &got, |x| 0.25 * cross_entropy(x, vocab, &targets));
    for bent in [Bend { scale: 1.3, softcap: Some(1.1) }, Bend { scale: 0.4, softcap: None }] {
        let twin = |x: &[f64]| {
            let mut x = x.to_vec();
            bend(&mut x, bent);
            x
        };
        let mut got = logits.clone();
        dense.bend(&mut got, bent);
        close("bent", &got, &twin(&wide(&logits)));
        dense.cross_entropy(&mut got, vocab, &targets, Some(0.25), Some(bent));
        compare("bent", &logits, &got, |x| 0.25 * cross_entropy(&twin(x), vocab, &targets));
    }
}
