//! What must not change a bit beside what `parity.rs` shows: full-precision types on every instruction set, a
//! truncation, other sessions at work; and what a narrow cache may change.

mod support;

use llm::kv::KvType;
use llm::model::Model;
use llm::session::{Level, Session, SessionOptions};
use llm_format::quant::Type;
use support::{Reference, converted, logits, model, open, runtime};

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// The longest prompt of a reference, with sessions of exactly its length.
fn longest(reference: &Reference) -> (Vec<i32>, SessionOptions) {
    let run = if reference.runs().iter().any(|r| r == "long") { "long" } else { "short" };
    let ids = reference.ids(&format!("{run}.input_ids"));
    let options = reference.options(ids.len(), ids.len());
    (ids, options)
}

#[test]
fn threads_and_instruction_sets_do_not_change_a_bit_of_full_precision_types() {
    for (i, reference) in Reference::all().into_iter().enumerate() {
        let (ids, options) = longest(&reference);
        let ids = &ids[..12.min(ids.len())];
        for ty in [Type::F32, [Type::Bf16, Type::F16][i % 2]] {
            let (_place, path) = converted(&reference.dir, ty);
            let expected = bits(&logits(&open(&runtime(1, Some("scalar")), &path), &options, ids));
            for isa in llm_kernels::available() {
                for threads in [1, 2] {
                    let model = open(&runtime(threads, Some(isa.name())), &path);
                    for determinism in [Level::BatchInvariant, Level::Portable] {
                        let options = SessionOptions { determinism, ..options.clone() };
                        assert!(
                            bits(&logits(&model, &options, ids)) == expected,
                            "{} {ty:?}, {} with {threads} threads, {determinism:?}",
                            reference.name,
                            isa.name()
                        );
                    }
                }
            }
        }
    }
}

/// The bounds leave room for a router of random weights that falls on the other side of a near tie; without
/// experts the divergence is a hundredth of them.
#[test]
fn every_cache_type_is_close_to_the_f32_cache() {
    let runtime = runtime(0, None);
    let mut wrong = Vec::new();
    for reference in Reference::all() {
        let (ids, options) = longest(&reference);
        let model = model(&runtime, &reference.dir, Type::F32);
        let vocab = model.spec().vocab as usize;
        let with = |kv| logits(&model, &SessionOptions { kv, ..options.clone() }, &ids);
        let exact = with(KvType::F32);
        assert_eq!(bits(&exact), bits(&with(KvType::Auto)), "{}: auto of an f32 file", reference.name);
        for (kv, most) in [(KvType::F16, 1e-3), (KvType::I8F16, 1e-2), (KvType::I8, 5e-2)] {
            let kl = support::kl(&exact, &with(kv), vocab);
            println!("{:20} {:6} {kl:.1e}", reference.name, kv.name());
            if kl > most {
                wrong.push(format!("{} {}: {kl:.1e}", reference.name, kv.name()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_truncated_session_goes_on_as_if_nothing_had_been_there() {
    let runtime = runtime(0, None);
    for reference in Reference::all() {
        let (ids, options) = longest(&reference);
        let model = model(&runtime, &reference.dir, Type::Q8);
        let last = |prepare: &dyn Fn(&mut Session)| {
            let mut session = Session::new(&model, options.clone()).unwrap();
            prepare(&mut session);
            session.prefill(&ids[session.len()..], None, None).unwrap();
            assert_eq!(session.tokens(), ids);
            bits(session.logits().unwrap())
        };
        let expected = last(&|_| ());
        let reversed: Vec<i32> = ids.iter().rev().copied().collect();
        for keep in [0, 1, 37, 64] {
            let got = last(&|session| {
                session.prefill(&ids[..keep], None, None).unwrap();
                session.prefill(&reversed[keep..], None, None).unwrap();
                session.truncate(keep).unwrap();
            });
            assert_eq!(got, expected, "{} kept {keep}", reference.name);
        }
    }
}

#[test]
fn sessions_of_one_model_on_several_threads_do_not_disturb_each_other() {
    let runtime = runtime(2, None);
    let Some(reference) = Reference::all().into_iter().find(|r| r.name == "llama_untied") else { return };
    let (ids, options) = longest(&reference);
    let model = model(&runtime, &reference.dir, Type::Q4);
    let expected = bits(&logits(&model, &options, &ids));
    let run = |model: &Model| bits(&logits(model, &options, &ids));
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| run(&model))).collect();
        for run in runs {
            assert_eq!(run.join().unwrap(), expected);
        }
    });
}
