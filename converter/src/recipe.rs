//! Which tensor is stored as which type.
//!
//! Matrices take the type that was asked for, but for those where it would cost more than it saves. With `q4` some
//! kinds of matrix lose far more than others for their size; they are stored as `q8` in the order of [`RAISED`], as
//! long as the file grows by little: small models, which suffer most from four bits, take all of them, large ones a
//! few. Measured on stories260K (mean KL divergence from the f32 file in nats, f32 cache): all q4 0.114; embedding
//! q8 0.091; embedding and down 0.073; embedding, keys and values 0.057.

use llm::model::arch::{LayerSlot, Slot, Want};
use llm_format::quant::{self, Type};

/// Kinds that are worth eight bits, the one that gains most for its size first.
const RAISED: &[fn(Slot) -> bool] = &[
    |slot| matches!(slot, Slot::Layer(_, LayerSlot::K | LayerSlot::KvDown)),
    |slot| matches!(slot, Slot::Layer(_, LayerSlot::V)),
    |slot| matches!(slot, Slot::Embedding | Slot::Head),
    |slot| matches!(slot, Slot::Layer(_, LayerSlot::Down)),
];

/// A file may grow by this much for them, or by a fiftieth, whichever is more.
const GROWTH: u64 = 8 << 20;

/// The types of `wants` in a file of `ty`.
pub(crate) fn types(wants: &[Want], ty: Type) -> Vec<Type> {
    let mut types: Vec<Type> = wants.iter().map(|want| plain(want, ty)).collect();
    if ty != Type::Q4 {
        return types;
    }
    let bytes = |want: &Want, ty| quant::tensor_bytes(ty, &want.shape).unwrap_or(u64::MAX);
    let whole = wants.iter().zip(&types).map(|(want, &ty)| bytes(want, ty)).fold(0, u64::saturating_add);
    let mut room = GROWTH.max(whole / 50);
    for kind in RAISED {
        let of_kind: Vec<usize> =
            (0..wants.len()).filter(|&i| types[i] == Type::Q4 && kind(wants[i].slot)).collect();
        let growth =
            of_kind.iter().map(|&i| bytes(&wants[i], Type::Q8).saturating_sub(bytes(&wants[i], Type::Q4)));
        let Some(left) = room.checked_sub(growth.fold(0, u64::saturating_add)) else { continue };
        room = left;
        of_kind.into_iter().for_each(|i| types[i] = Type::Q8);
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
    fn a_small_model_takes_eight_bits_where_they_gain_most() {
        use Type::{Q4, Q8};
        assert_eq!(types(&llama(64, 32, 172, 512), Q4), [Q8, Q4, Q8, Q8, Q4, Q8]);
    }

    #[test]
    fn a_large_file_grows_by_a_fiftieth_at_most() {
        let wants = llama(4096, 1024, 14336, 128_256);
        let bytes = |types: &[Type]| -> u64 {
            wants.iter().zip(types).map(|(want, &ty)| quant::tensor_bytes(ty, &want.shape).unwrap()).sum()
        };
        let raised = types(&wants, Type::Q4);
        let plain = bytes(&[Type::Q4; 6]);
        assert_eq!(raised[0], Type::Q4, "the embedding alone would be too much");
        assert!(raised.contains(&Type::Q8) && bytes(&raised) <= plain + GROWTH.max(plain / 50));
    }

    #[test]
    fn other_types_are_left_alone() {
        assert_eq!(types(&llama(64, 32, 172, 512), Type::Q8), [Type::Q8; 6]);
    }
}
