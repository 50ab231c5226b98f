//! Which tensor is stored as which type.
//!
//! Matrices take the type that was asked for, but for those where it would cost more than it saves. Of the types below
//! q8 some kinds of matrix lose far more than others for their size; they take wider types, in the order of
//! [`RAISED`] and the steps of [`wider`], as long as the file grows by little: small models, which suffer most, take
//! all of them, large ones a few. Measured on stories260K (mean KL divergence from the f32 file in millinats, f32 cache,
//! TinyStories text), one kind raised at a time:
//!
//! ```text
//!                 none    keys  values  embedding  down    up   gate  queries  output
//! q4, to q6         89      71      77         70    74    77     78       85      86
//! q4, to q8                 71      76         69    73    76     77       84      86
//! q3, to q4        345     292     327        289   290   298    308      336     342
//! q3, to q6                268     304        269   278   283    286      331     338
//! q2, to q3       2704    2376    2592       2246  2288  2438   2287     2535    2632
//! ```
//! Per byte that it costs, keys gain most, then values, the embedding, down.

use llm::model::arch::{LayerSlot, Slot, Want};
use llm_format::quant::{self, Type};

/// Kinds that are worth more bits, the one that gains most for its size first.
const RAISED: &[fn(Slot) -> bool] = &[
    |slot| matches!(slot, Slot::Layer(_, LayerSlot::K | LayerSlot::KvDown)),
    |slot| matches!(slot, Slot::Layer(_, LayerSlot::V)),
    |slot| matches!(slot, Slot::Embedding | Slot::Head),
    |slot| matches!(slot, Slot::Layer(_, LayerSlot::Down)),
];

/// What they are raised to: all as far as there is room for the first of these types, then for the second.
fn wider(ty: Type) -> &'static [Type] {
    match ty {
        Type::Q6 => &[Type::Q8],
        Type::Q5 | Type::Q4 => &[Type::Q6, Type::Q8],
        Type::Q3 => &[Type::Q4, Type::Q6],
        Type::Q2 => &[Type::Q3, Type::Q4],
        _ => &[],
    }
}

/// A file may grow by this much for them, or by a fiftieth, whichever is more.
const GROWTH: u64 = 8 << 20;

/// The types of `wants` in a file of `ty`.
pub(crate) fn types(wants: &[Want], ty: Type) -> Vec<Type> {
    let mut types: Vec<Type> = wants.iter().map(|want| plain(want, ty)).collect();
    let raisable: Vec<bool> = types.iter().map(|&t| t == ty).collect();
    let bytes = |i: usize, ty| quant::tensor_bytes(ty, &wants[i].shape).unwrap_or(u64::MAX);
    let whole = (0..wants.len()).map(|i| bytes(i, types[i])).fold(0, u64::saturating_add);
    let mut room = GROWTH.max(whole / 50);
    for &to in wider(ty) {
        for kind in RAISED {
            let of_kind = (0..wants.len()).filter(|&i| raisable[i] && kind(wants[i].slot));
            let growth = of_kind.clone().map(|i| bytes(i, to).saturating_sub(bytes(i, types[i])));
            let Some(left) = room.checked_sub(growth.fold(0, u64::saturating_add)) else { continue };
            room = left;
            of_kind.for_each(|i| types[i] = to);
        }
    }
    types
}

/// The type of a tensor where only its own kind counts.
fn plain(want: &Want, ty: Type) -> Type {
    match want.slot {
        _ if want.shape.len() == 1 => Type::F32,
        // They decide which experts run; rounding them changes choices, and they are small.
        Slot::Layer(_, LayerSlot::Router | LayerSlot::SharedSwitch) => Type::F32,
        // Added to the embedding row by row: nothing multiplies with them, so integers would save nothing but room.
        Slot::Positions if ty.is_integer() => Type::F16,
        _ => ty,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Matrices of a Llama with one layer of these sizes.
    fn llama(width: u64, keys: u64, inner: u64, vocab: u64) -> Vec<Want> {
        let want = |slot, rows, columns| Want {
            slot,
            name: format!("{slot:?}"),
            shape: vec![rows, columns],
            sources: Vec::new(),
            plus: 0.0,
        };
        let layer = |slot| Slot::Layer(0, slot);
        vec![
            want(Slot::Embedding, vocab, width),
            want(layer(LayerSlot::Q), width, width),
            want(layer(LayerSlot::K), keys, width),
            want(layer(LayerSlot::V), keys, width),
            want(layer(LayerSlot::Up), inner, width),
            want(layer(LayerSlot::Down), width, inner),
        ]
    }

    #[test]
    fn a_small_model_takes_wider_types_where_they_gain_most() {
        for (ty, to) in [
            (Type::Q6, Type::Q8),
            (Type::Q5, Type::Q8),
            (Type::Q4, Type::Q8),
            (Type::Q3, Type::Q6),
            (Type::Q2, Type::Q4),
        ] {
            assert_eq!(types(&llama(64, 32, 172, 512), ty), [to, ty, to, to, ty, to]);
        }
    }

    #[test]
    fn a_large_file_grows_by_a_fiftieth_at_most() {
        let wants = llama(4096, 1024, 14336, 128_256);
        let bytes = |types: &[Type]| -> u64 {
            wants.iter().zip(types).map(|(want, &ty)| quant::tensor_bytes(ty, &want.shape).unwrap()).sum()
        };
        for ty in [Type::Q6, Type::Q5, Type::Q4, Type::Q3, Type::Q2] {
            let (raised, plain) = (types(&wants, ty), bytes(&[ty; 6]));
            assert_eq!(raised[0], ty, "the embedding alone would be too much");
            assert!(raised != [ty; 6] && bytes(&raised) <= plain + GROWTH.max(plain / 50));
        }
    }

    #[test]
    fn other_types_are_left_alone() {
        for ty in [Type::Q8, Type::Bf16, Type::F16, Type::F32] {
            assert_eq!(types(&llama(64, 32, 172, 512), ty), [ty; 6]);
        }
    }
}
