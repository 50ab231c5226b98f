//! q, k and v in one matrix, head by head: `[heads, (q, k, v), head_dim]` rows (gpt_neox, bloom).

use super::arch::{LayerSlot as L, Rows, Take};
use super::list::Origin;
use super::spec::{Attention, Spec};

/// Where a slot of q, k or v comes from, `None` for other slots. `at` puts the layer's prefix before a name.
pub(crate) fn by_head(
    spec: &Spec,
    layer: u32,
    slot: L,
    source: &str,
    at: impl Fn(&str) -> String,
) -> Option<Origin> {
    let (part, name) = match slot {
        L::Q | L::QBias => (0, "query"),
        L::K | L::KBias => (1, "key"),
        L::V | L::VBias => (2, "value"),
        _ => return None,
    };
    let Attention::Heads(h) = &spec.layers.get(layer as usize)?.attention else { return None };
    let (heads, dim) = (u64::from(h.heads), u64::from(h.head_dim));
    let take = Take::Rows(Rows::blocks(part * dim, dim, 3 * dim, heads));
    let rows = 3 * heads * dim;
    let (end, shape) = match slot {
        L::QBias | L::KBias | L::VBias => ("bias", vec![rows]),
        _ => ("weight", vec![rows, u64::from(spec.width)]),
    };
    let name = source.replace("query_key_value", name);
    Some(Origin::part(at(&format!("{name}.{end}")), at(&format!("{source}.{end}")), &shape, take))
}
