//! What a session does past its context: recomputing gives the bits of a fresh session, moving gives keys that are
//! those of the new positions, and a call that fails leaves everything as it was.

mod support;

use llm::kv::{KvOptions, KvPool, KvType};
use llm::model::Model;
use llm::model::spec::Attention;
use llm::runtime::Memory;
use llm::sampler::{Sampler, SamplingParams};
use llm::session::generate::{Generation, GenerationOptions, Kind};
use llm::session::{Control, MemoryPlan, Overflow, Progress, Session, SessionOptions};
use llm::{Cancel, Status};
use llm_format::quant::Type;
use llm_kernels::{KeyType, KvLayout, ValueType};
use support::{Reference, argmax, log_softmax, logits, model, runtime};

const CAPACITY: usize = 48;

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn options(overflow: Overflow) -> SessionOptions {
    SessionOptions { max_tokens: CAPACITY, page: 16, chunk: 7, overflow, ..Default::default() }
}

fn reference(name: &str) -> Option<(Model, Vec<i32>)> {
    let reference = Reference::all().into_iter().find(|r| r.name == name)?;
    let run = reference.runs().into_iter().min()?; // "long" before "short"
    let ids = reference.ids(&format!("{run}.input_ids")).into_iter().cycle().take(400).collect();
    Some((model(&runtime(2, None), &reference.dir, Type::Q8), ids))
}

fn fresh(model: &Model, session: &Session) -> Vec<u32> {
    let options = SessionOptions { max_tokens: CAPACITY, ..Default::default() };
    let all = logits(model, &options, session.tokens());
    bits(&all[all.len() - model.spec().vocab as usize..])
}

#[test]
fn recomputed_tokens_have_the_bits_of_a_fresh_session() {
    for name in ["llama_rope_dynamic", "mistral_swa", "deepseek_v2", "gpt_oss"] {
        let Some((model, ids)) = reference(name) else { return };
        for head in [0, 5, 16, 40] {
            let mut session = Session::new(&model, options(Overflow::Recompute { head })).unwrap();
            let mut told = 0;
            for (step, n) in [40, 1, 7, 1, 3, 8, 1, 1, 8, 8, 2, 7, 1].into_iter().enumerate() {
                let before = session.tokens().to_vec();
                let new = &ids[told..told + n];
                told += n;
                session.prefill(new, None, None).unwrap();
                if before.len() + n > CAPACITY {
                    let tail = ((CAPACITY - head) / 2).min(CAPACITY - head - n).min(before.len() - head);
                    let kept = [&before[..head], &before[before.len() - tail..], new].concat();
                    assert_eq!(session.tokens(), kept, "{name}: {head} tokens of head, step {step}");
                }
                assert_eq!(session.dropped() + session.len(), told);
                if step % 3 == 2 {
                    assert_eq!(
                        bits(session.logits().unwrap()),
                        fresh(&model, &session),
                        "{name} {head} {step}"
                    );
                }
            }
            assert!(session.dropped() > 0);
        }
    }
}

/// Keys and values of the first layer, by token: keys as attention takes them, values as they lie there. Those that
/// every layer has let go are missing at the beginning; none where layers see differently far.
fn first_layer(session: &mut Session, kv: KvType) -> Vec<(Vec<f32>, Vec<u8>)> {
    let (key, value) = match kv {
        KvType::F32 => (KeyType::F32, ValueType::F32),
        KvType::F16 => (KeyType::F16, ValueType::F16),
        KvType::I8 => (KeyType::I8, ValueType::I8),
        _ => (KeyType::I8, ValueType::F16),
    };
    let page_tokens = 16;
    let layout = match &session.model().spec().layers[0].attention {
        Attention::Heads(h) => KvLayout {
            key,
            value,
            page_tokens,
            kv_heads: h.kv_heads as usize,
            key_dim: h.head_dim as usize,
            value_dim: h.head_dim as usize,
            latent: false,
        },
        Attention::Latent(a) => KvLayout {
            key: if kv == KvType::I8F16 { KeyType::F16 } else { key },
            value,
            page_tokens,
            kv_heads: 1,
            key_dim: (a.kv_rank + a.rope_dim) as usize,
            value_dim: a.kv_rank as usize,
            latent: true,
        },
    };
    let bytes = session.snapshot(&[]).unwrap();
    let page = u64::from_le_bytes(bytes[48..56].try_into().unwrap()) as usize;
    if session.pool().stats().groups > 1 {
        return Vec::new();
    }
    let content =
        session.snapshot_size(0) - 136 - session.len() * 4 - session.model().spec().vocab as usize * 4;
    let pages = &bytes[bytes.len() - content..];
    let gone = session.len().div_ceil(page_tokens) - content / page;
    let token = |i: usize| {
        let part = &pages[(i / page_tokens - gone) * page..][..layout.page_bytes()];
        let mut keys = Vec::new();
        for head in 0..layout.kv_heads {
            let mut one = vec![0.0; layout.key_dim];
            layout.read_key(part, head, i % page_tokens, &mut one);
            keys.extend(one);
        }
        let all = layout.token_ranges(i % page_tokens);
        let values = match (layout.latent, layout.key) {
            (true, _) => Vec::new(),
            // A key is many pieces there: the values' are the long ones.
            (_, KeyType::I8) => all.into_iter().filter(|r| r.len() > 4).collect(),
            _ => all.into_iter().skip(1).step_by(2).collect(),
        };
        (keys, values.into_iter().flat_map(|range| part[range].to_vec()).collect())
    };
    (gone * page_tokens..session.len()).map(token).collect()
}

/// The first layer's keys follow from token and position alone, so what was moved must be what is computed there.
#[test]
fn moved_keys_are_those_of_their_new_positions_and_values_the_same_bytes() {
    let mut refused = 0;
    for reference in Reference::all() {
        let model = model(&runtime(2, None), &reference.dir, Type::F32);
        let run = reference.runs().remove(0);
        let ids: Vec<i32> =
            reference.ids(&format!("{run}.input_ids")).into_iter().cycle().take(200).collect();
        for (kv, error) in
            [(KvType::F32, 1e-5), (KvType::F16, 3e-3), (KvType::I8F16, 0.03), (KvType::I8, 0.03)]
        {
            let options = SessionOptions { kv, ..options(Overflow::Shift { head: 5 }) };
            let mut session = match Session::new(&model, options.clone()) {
                Ok(session) => session,
                Err(e) => {
                    assert_eq!(
                        (e.status(), model.spec().learned_positions.is_some()),
                        (Status::UNSUPPORTED, true)
                    );
                    refused += 1;
                    continue;
                }
            };
            for chunk in ids.chunks(9) {
                session.prefill(chunk, None, None).unwrap();
            }
            assert!(session.dropped() > 120 && session.tokens()[..5] == ids[..5]);
            assert_eq!(session.tokens()[5..], ids[205 - session.len()..]);
            let mut twin = Session::new(&model, options).unwrap();
            twin.prefill(session.tokens(), None, None).unwrap();
            let (moved, computed) = (first_layer(&mut session, kv), first_layer(&mut twin, kv));
            for (i, (moved, computed)) in moved.iter().zip(&computed).enumerate() {
                let top = computed.0.iter().fold(0f32, |m, v| m.max(v.abs()));
                let far = moved.0.iter().zip(&computed.0).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
                assert!(far <= error * top, "{} {kv:?} token {i}: {far:e} of {top}", reference.name);
                assert_eq!(moved.1, computed.1, "{} {kv:?} token {i}: values", reference.name);
            }
        }
    }
    assert!(refused % 4 == 0);
}

/// A window that is shorter than the tail has let the head go when the tail moves behind it.
#[test]
fn keys_move_behind_a_head_that_windows_have_let_go() {
    for name in ["mistral_swa", "gpt_oss"] {
        let Some((model, ids)) = reference(name) else { return };
        let kv = KvType::F32;
        let options =
            SessionOptions { kv, max_tokens: 256, chunk: 50, ..options(Overflow::Shift { head: 5 }) };
        let mut session = Session::new(&model, options.clone()).unwrap();
        session.prefill(&ids[..256], None, None).unwrap();
        for (step, &id) in ids[256..400].iter().enumerate() {
            session.decode(id, None).unwrap();
            if ![0, 40, 143].contains(&step) {
                continue;
            }
            assert!(session.dropped() > 120 && session.tokens()[..5] == ids[..5]);
            assert_eq!(session.tokens()[5..], ids[..257 + step][262 + step - session.len()..]);
            let mut twin = Session::new(&model, options.clone()).unwrap();
            twin.prefill(session.tokens(), None, None).unwrap();
            let (moved, computed) = (first_layer(&mut session, kv), first_layer(&mut twin, kv));
            assert_eq!(moved.len(), computed.len());
            for (i, (moved, computed)) in moved.iter().zip(&computed).enumerate() {
                let top = computed.0.iter().fold(0f32, |m, v| m.max(v.abs()));
                let far = moved.0.iter().zip(&computed.0).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
                assert!(far <= 1e-5 * top, "{name} step {step} token {i}: {far:e} of {top}");
                assert_eq!(moved.1, computed.1, "{name} step {step} token {i}: values");
            }
        }
    }
}

#[test]
fn text_goes_on_past_the_context_and_stays_likely() {
    let Some(place) = llm_testdata::shared("data/weights/stories260K") else { return };
    let model = model(&runtime(2, None), &place.join("hf"), Type::F32);
    let context = 128;
    for overflow in [Overflow::Recompute { head: 1 }, Overflow::Shift { head: 1 }] {
        let options = SessionOptions { max_tokens: context, overflow, ..Default::default() };
        let mut session = Session::new(&model, options).unwrap();
        session.prefill(&[1], None, None).unwrap();
        let params = SamplingParams { temperature: 0.3, seed: 7, ..Default::default() };
        let mut sampler = Sampler::new(&params).unwrap();
        let options = GenerationOptions { max_tokens: 400, ignore_end: true, ..Default::default() };
        let mut generation = Generation::new(None, options).unwrap();
        let mut ids = vec![1];
        loop {
            let event = generation.next(&mut session, &mut sampler, None).unwrap();
            ids.extend(event.ids);
            if event.kind == Kind::Done {
                break;
            }
        }
        assert_eq!(ids.len(), 401, "{overflow:?}");
        assert!(session.dropped() > 200 && session.len() <= context);
        // Told by a session that sees all of it.
        let all = logits(&model, &SessionOptions::default(), &ids);
        let vocab = model.spec().vocab as usize;
        let loss = |range: std::ops::Range<usize>| {
            let n = range.len() as f64;
            range.map(|i| -log_softmax(&all[i * vocab..][..vocab])[ids[i + 1] as usize]).sum::<f64>() / n
        };
        let (before, after) = (loss(0..context), loss(context..400));
        assert!(after < before + 0.5, "{overflow:?}: {before:.3} nats a token, then {after:.3}");
    }
}

#[test]
fn a_call_that_fails_leaves_what_it_would_have_dropped() {
    let Some((model, ids)) = reference("llama_untied") else { return };
    for overflow in [Overflow::Recompute { head: 5 }, Overflow::Shift { head: 5 }] {
        let mut session = Session::new(&model, options(overflow)).unwrap();
        session.prefill(&ids[..CAPACITY - 3], None, None).unwrap();
        let (tokens, before) = (session.tokens().to_vec(), bits(session.logits().unwrap()));
        let unchanged = |session: &Session| {
            assert_eq!((session.tokens(), session.dropped()), (&tokens[..], 0));
            assert_eq!(bits(session.logits().unwrap()), before);
        };
        let mut chunks = 0;
        let mut last_chunk = |_: Progress| {
            chunks += 1;
            if chunks == 2 { Control::Cancel } else { Control::Continue }
        };
        let error = session.prefill(&ids[100..116], None, Some(&mut last_chunk)).unwrap_err();
        assert_eq!(error.status(), Status::CANCELLED);
        unchanged(&session);
        let cancel = Cancel::new();
        cancel.trigger();
        assert_eq!(session.decode(1, Some(&cancel)).unwrap_err().status(), Status::CANCELLED);
        unchanged(&session);
        let error = session.prefill(&[1, 2, 3, -1], None, None).unwrap_err();
        assert_eq!(error.detail("token_index"), Some(3));
        unchanged(&session);
        let error = session.prefill(&ids[..CAPACITY - 4], None, None).unwrap_err();
        assert_eq!(
            (error.status(), error.detail("needed")),
            (Status::CONTEXT_FULL, Some(CAPACITY as i64 + 1))
        );
        unchanged(&session);
        let error = session.prefill_each(&ids[..4], None, &mut |_, _| Ok(())).unwrap_err();
        assert_eq!(error.status(), Status::CONTEXT_FULL);
        unchanged(&session);

        // And it goes on as if nothing had happened.
        let mut twin = Session::new(&model, options(overflow)).unwrap();
        twin.prefill(&tokens, None, None).unwrap();
        for session in [&mut session, &mut twin] {
            session.prefill(&ids[100..116], None, None).unwrap();
        }
        assert_eq!(session.tokens(), twin.tokens());
        assert_eq!(bits(session.logits().unwrap()), bits(twin.logits().unwrap()));
        assert_eq!(
            session.pool().stats().used,
            session.len().div_ceil(16) as u64,
            "old pages are given back"
        );
    }
}

#[test]
fn room_can_be_made_before_it_is_needed() {
    let Some((model, ids)) = reference("llama_untied") else { return };
    for overflow in [Overflow::Recompute { head: 5 }, Overflow::Shift { head: 5 }, Overflow::Error] {
        let mut session = Session::new(&model, options(overflow)).unwrap();
        session.prefill(&ids[..CAPACITY], None, None).unwrap();
        assert_eq!(session.make_room(0, None).unwrap(), 0);
        for more in [usize::MAX, i64::MAX as usize] {
            let error = session.make_room(more, None).unwrap_err();
            assert_eq!((error.status(), error.detail("needed")), (Status::CONTEXT_FULL, Some(i64::MAX)));
        }
        if overflow == Overflow::Error {
            assert_eq!(session.make_room(1, None).unwrap_err().status(), Status::CONTEXT_FULL);
            continue;
        }
        assert_eq!(session.make_room(4, None).unwrap(), CAPACITY - 5 - 21);
        let kept = [&ids[..5], &ids[CAPACITY - 21..CAPACITY]].concat();
        assert_eq!(session.tokens(), kept);
        if matches!(overflow, Overflow::Recompute { .. }) {
            assert_eq!(bits(session.logits().unwrap()), fresh(&model, &session));
        }
        assert!(session.logits().is_ok());
        session.prefill(&ids[..4], None, None).unwrap();
        assert_eq!(session.len(), 30);
        // All but the head, and then nothing has logits until a token comes.
        session.make_room(CAPACITY - 5, None).unwrap();
        assert_eq!(session.tokens(), &ids[..5]);
        assert_eq!(session.logits().unwrap_err().status(), Status::BAD_STATE);
    }
}

/// Logits, rows of a verification and hidden vectors are those of tokens, not of so many tokens.
#[test]
fn what_tokens_left_behind_goes_with_them() {
    let Some((model, ids)) = reference("llama_untied") else { return };
    let pool = KvPool::new(&model, &KvOptions { page: 16, ..Default::default() }).unwrap();
    pool.resize(pool.stats().page_bytes * 16).unwrap();
    let make = || Session::in_pool(&pool, options(Overflow::Recompute { head: 0 })).unwrap();
    let others = &ids[100..100 + CAPACITY];
    make().prefill(others, None, None).unwrap();
    let mut session = make();
    session.prefill(&ids[..CAPACITY], None, None).unwrap();
    assert_eq!(session.make_room(CAPACITY, None).unwrap(), CAPACITY);
    assert_eq!(session.reuse(others).unwrap(), CAPACITY);
    assert_eq!(session.logits().unwrap_err().status(), Status::BAD_STATE);

    let mut session = Session::new(&model, options(Overflow::Recompute { head: 5 })).unwrap();
    session.prefill(&ids[..CAPACITY - 4], None, None).unwrap();
    session.verify(&ids[CAPACITY - 4..CAPACITY], 4, None).unwrap();
    session.make_room(CAPACITY - 5, None).unwrap();
    assert_eq!(session.tokens(), &ids[..5]);
    assert!(session.verified_row(0).is_err());
    assert_eq!(session.keep(5, None).unwrap_err().status(), Status::BAD_STATE);

    let mut session = Session::new(&model, options(Overflow::Shift { head: 5 })).unwrap();
    session.keep_hidden();
    session.prefill(&ids[..CAPACITY], None, None).unwrap();
    assert_eq!(session.kept_hidden().map(|(from, _)| from), Some(0));
    session.make_room(1, None).unwrap();
    session.truncate(20).unwrap();
    assert_ne!(session.tokens(), &ids[..20]);
    assert!(session.kept_hidden().is_none());
}

/// A snapshot of a session that moves its keys may go on in one that computes them again.
#[test]
fn recomputing_does_not_keep_a_head_that_was_moved() {
    let Some((model, ids)) = reference("llama_untied") else { return };
    let mut moved = Session::new(&model, options(Overflow::Shift { head: 5 })).unwrap();
    moved.prefill(&ids[..44], None, None).unwrap();
    moved.prefill(&ids[100..120], None, None).unwrap();
    assert!(moved.dropped() > 0);
    let mut session = Session::new(&model, options(Overflow::Recompute { head: 16 })).unwrap();
    session.restore(&moved.snapshot(&[]).unwrap()).unwrap();
    let dropped = session.dropped();
    session.prefill(&ids[200..208], None, None).unwrap();
    assert!(session.dropped() > dropped && session.tokens()[..16] == moved.tokens()[..16]);
    assert_eq!(bits(session.logits().unwrap()), fresh(&model, &session));
}

/// A pool that has the same tokens computed must not put them in place of moved ones.
#[test]
fn moved_pages_stay_themselves_when_they_were_out_forked_or_restored() {
    let Some((model, ids)) = reference("llama_untied") else { return };
    let pool =
        KvPool::new(&model, &KvOptions { page: 16, swap_bytes: 1 << 30, ..Default::default() }).unwrap();
    pool.resize(pool.stats().page_bytes * 64).unwrap();
    let make = || Session::in_pool(&pool, options(Overflow::Shift { head: 5 })).unwrap();
    let mut session = make();
    session.prefill(&ids[..44], None, None).unwrap();
    session.prefill(&ids[100..120], None, None).unwrap();
    assert!(session.dropped() > 0);
    let mut same = make();
    same.prefill(session.tokens(), None, None).unwrap();
    assert_ne!(bits(same.logits().unwrap()), bits(session.logits().unwrap()));

    let (mut fork, mut restored) = (session.fork().unwrap(), make());
    restored.restore(&session.snapshot(&[]).unwrap()).unwrap();
    let mut swapped = session.fork().unwrap();
    swapped.swap_out().unwrap();
    assert_eq!((fork.dropped(), restored.dropped()), (session.dropped(), session.dropped()));
    for (step, &id) in ids[200..260].iter().enumerate() {
        session.decode(id, None).unwrap();
        for other in [&mut fork, &mut restored, &mut swapped] {
            other.decode(id, None).unwrap();
            assert_eq!(other.tokens(), session.tokens());
            assert_eq!(bits(other.logits().unwrap()), bits(session.logits().unwrap()), "step {step}");
        }
    }
    // A pool that has no pages for the tail beside the old ones says so, and nothing went.
    drop((same, fork, restored, swapped));
    session.reset();
    pool.clear_cache();
    session.prefill(&ids[..CAPACITY], None, None).unwrap();
    pool.resize(pool.stats().page_bytes * 4).unwrap();
    assert_eq!(session.decode(1, None).unwrap_err().status(), Status::KV_FULL);
    assert_eq!((session.tokens(), session.dropped()), (&ids[..CAPACITY], 0));
}

/// Without rollback a cancelled call stands at its last chunk, or where nothing was computed, as before.
#[test]
fn without_rollback_a_cancelled_overflow_stands_at_the_last_chunk() {
    let Some((model, ids)) = reference("llama_untied") else { return };
    let options = SessionOptions { rollback_on_cancel: false, ..options(Overflow::Recompute { head: 5 }) };
    let mut session = Session::new(&model, options).unwrap();
    session.prefill(&ids[..CAPACITY], None, None).unwrap();
    let cancel = Cancel::new();
    cancel.trigger();
    assert!(session.decode(1, Some(&cancel)).is_err());
    assert_eq!((session.len(), session.dropped()), (CAPACITY, 0));
    let mut stop = |_: Progress| Control::Cancel;
    assert!(session.prefill(&ids[..4], None, Some(&mut stop)).is_err());
    assert_eq!(session.tokens(), [&ids[..5], &ids[CAPACITY - 21..CAPACITY - 14]].concat());
    assert_eq!(bits(session.logits().unwrap()), fresh(&model, &session));
}

#[test]
fn an_overflow_that_keeps_everything_is_refused() {
    let Some((model, _)) = reference("llama_untied") else { return };
    let refused = Session::new(&model, options(Overflow::Shift { head: CAPACITY })).unwrap_err();
    assert_eq!(refused.status(), Status::INVALID_ARG);
    let Some((model, _)) = reference("llama_rope_dynamic") else { return };
    let options = SessionOptions { rope_running: true, ..options(Overflow::Shift { head: 0 }) };
    assert_eq!(Session::new(&model, options).unwrap_err().status(), Status::UNSUPPORTED);
}

/// The best token after a move is mostly the one that recomputing chooses: positions are right, only memory differs.
#[test]
fn moving_and_recomputing_mostly_choose_the_same_token() {
    let Some(place) = llm_testdata::shared("data/weights/stories260K") else { return };
    let model = model(&runtime(2, None), &place.join("hf"), Type::F32);
    let mut whole = Session::new(&model, SessionOptions::default()).unwrap();
    whole.prefill(&[1], None, None).unwrap();
    while whole.len() < 300 {
        let next = argmax(whole.logits().unwrap());
        whole.decode(next, None).unwrap();
    }
    let ids = whole.tokens();
    let make = |overflow| {
        let options = SessionOptions { max_tokens: 96, overflow, ..Default::default() };
        Session::new(&model, options).unwrap()
    };
    let (mut moved, mut run) = (make(Overflow::Shift { head: 1 }), make(Overflow::Recompute { head: 1 }));
    let (mut same, mut all) = (0, 0);
    for &id in ids {
        moved.decode(id, None).unwrap();
        run.decode(id, None).unwrap();
        assert_eq!(moved.tokens(), run.tokens());
        if moved.dropped() > 0 {
            all += 1;
            same += usize::from(argmax(moved.logits().unwrap()) == argmax(run.logits().unwrap()));
        }
    }
    assert!(all > 180 && same * 10 >= all * 8, "{same} of {all}");
}

/// Old pages and new ones are begun apart, so halves of a page do not add up.
#[test]
fn a_session_with_its_own_pages_has_them_for_any_number_of_tokens() {
    let Some((model, ids)) = reference("llama_untied") else { return };
    for max_tokens in [33, 40, 48, 49] {
        for overflow in [Overflow::Recompute { head: 0 }, Overflow::Shift { head: 3 }] {
            let options = SessionOptions { max_tokens, ..options(overflow) };
            for n in [1, max_tokens / 2, max_tokens - 3] {
                let mut session = Session::new(&model, options.clone()).unwrap();
                session.prefill(&ids[..max_tokens], None, None).unwrap();
                session.prefill(&ids[100..100 + n], None, None).unwrap();
                assert!(session.dropped() > 0, "{overflow:?}, {max_tokens} and {n} tokens");
            }
        }
    }
}

#[test]
fn a_plan_counts_the_pages_that_are_there_while_tokens_go() {
    let Some((model, ids)) = reference("llama_untied") else { return };
    let kv = KvOptions { page: 16, ..Default::default() };
    let plan = |overflow| MemoryPlan::new(&model, &kv, &options(overflow), 1, None).unwrap().kv_total;
    for overflow in [Overflow::Recompute { head: 5 }, Overflow::Shift { head: 5 }] {
        let mut session = Session::new(&model, options(overflow)).unwrap();
        ids[..200].chunks(9).for_each(|chunk| session.prefill(chunk, None, None).unwrap());
        let used = model.runtime().memory_use(Memory::Kv);
        assert!(used > plan(Overflow::Error) && used <= plan(overflow), "{overflow:?}: {used}");
    }
}
