//! A session that decodes allocates nothing once it has been as long before, but for a list of the pages that a token
//! begins. What grows meanwhile, to the largest use: buffers of a step, every thread's own, tokens, page tables.

#[path = "../kernels/tests/common/counting.rs"]
mod counting;
mod support;

use counting::allocations;
use llm::session::{Session, SessionOptions};
use llm_format::quant::Type;
use support::{Reference, model, runtime};

/// Tokens of a page.
const PAGE: usize = 16;
/// Tokens held at the end, where positions reach so far: in the second of the parts that attention is cut into.
const LENGTH: usize = 560;
/// Of those, tokens that are decoded.
const DECODED: usize = 60;

#[test]
fn decoding_allocates_nothing_but_a_list_where_a_page_begins() {
    let runtime = runtime(2, None);
    for (i, reference) in Reference::all().into_iter().enumerate() {
        let model = model(&runtime, &reference.dir, [Type::Q4, Type::Q8, Type::F16][i % 3]);
        let spec = model.spec();
        let length = spec.learned_positions.map_or(LENGTH, |most| LENGTH.min(most as usize));
        let ids: Vec<i32> = (0..length).map(|at| (at * 37 % spec.vocab as usize) as i32).collect();
        let (prompt, rest) = ids.split_at(length - DECODED);
        let options = SessionOptions { max_tokens: length, page: PAGE, ..SessionOptions::default() };
        let mut session = Session::new(&model, options).unwrap();
        let mut least = [usize::MAX; DECODED];
        for round in 0..6 {
            session.reset();
            let prefill = allocations(|| session.prefill(prompt, None, None).unwrap());
            assert!(round > 0 || prefill > 0, "{}: buffers come from somewhere else", reference.name);
            for (least, id) in least.iter_mut().zip(rest) {
                *least = allocations(|| session.decode(*id, None).unwrap()).min(*least);
            }
        }
        for (at, least) in (prompt.len()..).zip(least) {
            // The list has places for four groups of layers at first, and then for eight, the most there are.
            let most = if at.is_multiple_of(PAGE) { 2 } else { 0 };
            assert!(least <= most, "{}: token {at} made {least} allocations", reference.name);
        }
    }
}
