//! Scores and vectors are those of the reference checkpoints, equal their slow twins, and do not depend on how the
//! work is cut up.

mod support;

use llm::model::Model;
use llm::sampler::Alternative;
use llm::session::{Asked, Control, Pooling, Progress, Scores, Session, SessionOptions};
use llm::{Cancel, Result, Status};
use llm_format::quant::Type;
use support::{Reference, converted, log_softmax, logits, model, open, runtime};

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// A model of a reference, the ids of its short prompt, and options of a session for them.
fn case(name: &str, ty: Type, threads: usize) -> Option<(Model, Vec<i32>, SessionOptions)> {
    let reference = Reference::all().into_iter().find(|r| r.name == name)?;
    let ids = reference.ids("short.input_ids");
    let options = reference.options(ids.len(), ids.len());
    Some((model(&runtime(threads, None), &reference.dir, ty), ids, options))
}

fn session(model: &Model, options: &SessionOptions) -> Session {
    Session::new(model, options.clone()).unwrap()
}

fn score(model: &Model, options: &SessionOptions, ids: &[i32], top: usize) -> Scores {
    session(model, options).score(ids, top, None, None).unwrap()
}

#[test]
fn scores_and_perplexities_are_those_of_the_exact_logits() {
    let runtime = runtime(0, None);
    for reference in Reference::all() {
        let model = model(&runtime, &reference.dir, Type::F32);
        for run in reference.runs() {
            let ids = reference.ids(&format!("{run}.input_ids"));
            let exact = reference.floats(&format!("{run}.logits_exact"));
            let vocab = exact.len() / ids.len();
            let scores = score(&model, &reference.options(ids.len(), ids.len()), &ids, 0);
            assert!(scores.log_probabilities[0].is_nan() && scores.top.is_empty());
            for (i, row) in exact.chunks_exact(vocab).take(ids.len() - 1).enumerate() {
                let (got, next) = (f64::from(scores.log_probabilities[i + 1]), ids[i + 1] as usize);
                // A log-probability moves by twice what logits move at most.
                let most = 2.0 * reference.number(&run, "/tolerance/max_abs");
                let expected = log_softmax(row)[next];
                assert!((got - expected).abs() <= most, "{} {run} {i}: {got} {expected}", reference.name);
            }
            let (nats, count) = scores.nats();
            let (mean, exact) = (nats / count as f64, reference.number(&run, "/nll_exact"));
            assert!((mean - exact).abs() <= 1e-5, "{} {run}: {mean}, exactly {exact}", reference.name);
            assert!((scores.perplexity().ln() - mean).abs() < 1e-12);
        }
    }
}

#[test]
fn hidden_states_are_the_references() {
    let runtime = runtime(0, None);
    for reference in Reference::all().iter().filter(|r| r.has("short.hidden")) {
        let model = model(&runtime, &reference.dir, Type::F32);
        let ids = reference.ids("short.input_ids");
        let width = model.spec().width as usize;
        let all = reference.floats("short.hidden");
        let expected = &all[all.len() - 16 * width..];
        let at: Vec<usize> = (0..16).collect();
        let options = reference.options(ids.len(), ids.len());
        let got = session(&model, &options).hidden(&ids, &at, None, None).unwrap();
        let most = expected.iter().fold(0f32, |most, v| most.max(v.abs())) * 1e-4;
        for (i, (a, b)) in got.iter().zip(expected).enumerate() {
            assert!((a - b).abs() <= most, "{} row {}: {a} {b}", reference.name, i / width);
        }
    }
}

/// Chunks, threads, calls, and which positions are asked for.
#[test]
fn how_the_work_is_cut_up_does_not_change_a_bit() {
    for name in ["gemma2", "qwen3_moe", "deepseek_v2"] {
        let Some((first, ids, options)) = case(name, Type::Q8, 1) else { return };
        let expected = score(&first, &options, &ids, 3);
        let all: Vec<usize> = (0..ids.len()).collect();
        let states = session(&first, &options).hidden(&ids, &all, None, None).unwrap();
        let width = first.spec().width as usize;
        for threads in [1, 2] {
            let (model, ..) = case(name, Type::Q8, threads).unwrap();
            for chunk in [1, 16, 64, 512] {
                let options = SessionOptions { chunk, ..options.clone() };
                let what = format!("{name}, {threads} threads, chunks of {chunk}");
                let got = score(&model, &options, &ids, 3);
                assert_eq!(bits(&got.log_probabilities), bits(&expected.log_probabilities), "{what}");
                assert_eq!(got.top, expected.top, "{what}");

                let mut cut = session(&model, &options);
                let mut parts = cut.score(&ids[..20], 0, None, None).unwrap().log_probabilities;
                parts.extend(cut.score(&ids[20..], 0, None, None).unwrap().log_probabilities);
                assert_eq!(bits(&parts), bits(&expected.log_probabilities), "{what}, in two calls");

                let at: Vec<usize> = (0..ids.len()).filter(|i| i % 7 == 3 || *i > 40).collect();
                let some = session(&model, &options).hidden(&ids, &at, None, None).unwrap();
                for (row, i) in some.chunks_exact(width).zip(at) {
                    assert_eq!(bits(row), bits(&states[i * width..][..width]), "{what}, position {i}");
                }
                for pooling in [Pooling::Mean, Pooling::Last, Pooling::First] {
                    let vector = |model, options| {
                        session(model, options).embed(&ids, pooling, true, None, None).unwrap()
                    };
                    assert_eq!(bits(&vector(&model, &options)), bits(&vector(&first, &options)), "{what}");
                }
            }
        }
    }
}

#[test]
fn scores_alternatives_and_vectors_equal_their_slow_twins() {
    let Some((model, ids, options)) = case("llama_untied", Type::Q4, 0) else { return };
    let (vocab, width) = (model.spec().vocab as usize, model.spec().width as usize);
    let rows = logits(&model, &options, &ids);
    let scores = score(&model, &options, &ids, 5);
    assert!(scores.top[0].is_empty());
    for (i, row) in rows.chunks_exact(vocab).take(ids.len() - 1).enumerate() {
        let all = log_softmax(row);
        let got = f64::from(scores.log_probabilities[i + 1]);
        assert!((got - all[ids[i + 1] as usize]).abs() < 1e-6, "position {i}");
        let mut ranked: Vec<usize> = (0..vocab).collect();
        ranked.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
        for (Alternative { id, log_probability }, &best) in scores.top[i + 1].iter().zip(&ranked[..5]) {
            assert_eq!(*id as usize, best);
            assert!((f64::from(*log_probability) - all[best]).abs() < 1e-6);
        }
    }

    let all: Vec<usize> = (0..ids.len()).collect();
    let states = session(&model, &options).hidden(&ids, &all, None, None).unwrap();
    let column = |j: usize| states.iter().skip(j).step_by(width).map(|&v| f64::from(v));
    let mean: Vec<f64> = (0..width).map(|j| column(j).sum::<f64>() / ids.len() as f64).collect();
    let last: Vec<f64> = (0..width).map(|j| column(j).next_back().unwrap()).collect();
    let first: Vec<f64> = (0..width).map(|j| column(j).next().unwrap()).collect();
    for (pooling, expected) in [(Pooling::Mean, mean), (Pooling::Last, last), (Pooling::First, first)] {
        let length = expected.iter().map(|v| v * v).sum::<f64>().sqrt();
        for (normalise, by) in [(false, 1.0), (true, length)] {
            let got = session(&model, &options).embed(&ids, pooling, normalise, None, None).unwrap();
            assert_eq!(got.len(), width);
            for (got, expected) in got.iter().zip(&expected) {
                assert!((f64::from(*got) - expected / by).abs() < 1e-6, "{pooling:?} {normalise}");
            }
        }
    }
}

#[test]
fn tokens_held_before_are_context_and_the_session_goes_on_behind() {
    let Some((model, ids, options)) = case("qwen2", Type::Q8, 0) else { return };
    let (vocab, width) = (model.spec().vocab as usize, model.spec().width as usize);
    let rows = logits(&model, &options, &ids);
    let mut whole = session(&model, &options);
    let states = whole.hidden(&ids, &[30, 45], None, None).unwrap();
    assert_eq!(whole.logits().unwrap_err().status(), Status::BAD_STATE);

    let mut session = session(&model, &options);
    session.prefill(&ids[..10], None, None).unwrap();
    let scores = session.score(&ids[10..30], 0, None, None).unwrap();
    assert!(scores.log_probabilities.iter().all(|p| p.is_finite()));
    assert_eq!(bits(session.logits().unwrap()), bits(&rows[29 * vocab..30 * vocab]));
    let first = session.embed(&ids[30..45], Pooling::First, false, None, None).unwrap();
    assert_eq!(bits(&first), bits(&states[..width]));
    let refused = session.score(&ids[45..], 0, None, None).unwrap_err();
    assert_eq!((refused.status(), session.len()), (Status::BAD_STATE, 45));
    let asked = Asked { at: Some(&[0, 2]), logits: true };
    let mut told = Vec::new();
    let mut each = |output: llm::session::Output<'_>| {
        told.push((output.index, output.hidden.to_vec(), output.logits.to_vec()));
        Ok(())
    };
    session.prefill_outputs(&ids[45..48], asked, None, None, &mut each).unwrap();
    assert_eq!(told.iter().map(|(index, ..)| *index).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(bits(&told[0].1), bits(&states[width..]));
    assert_eq!(bits(&told[1].2), bits(&rows[47 * vocab..48 * vocab]));
    assert_eq!(bits(session.logits().unwrap()), bits(&told[1].2));
    assert_eq!(session.tokens(), &ids[..48]);
}

#[test]
fn what_cannot_be_told_leaves_the_session_as_it_was() {
    let Some((model, ids, options)) = case("llama_tied", Type::Q8, 0) else { return };
    let options = SessionOptions { chunk: 8, ..options };
    let mut session = session(&model, &options);
    session.prefill(&ids[..8], None, None).unwrap();
    let held = (session.tokens().to_vec(), bits(session.logits().unwrap()));
    let cancel = Cancel::new();
    cancel.trigger();
    let vocab = model.spec().vocab as i32;
    type Call<'a> = &'a dyn Fn(&mut Session) -> Result<()>;
    let calls: [(Call<'_>, Status); 8] = [
        (&|s| s.score(&[1, vocab], 0, None, None).map(drop), Status::INVALID_ARG),
        (&|s| s.hidden(&ids[8..], &[3, 3], None, None).map(drop), Status::INVALID_ARG),
        (&|s| s.hidden(&ids[8..12], &[1, 4], None, None).map(drop), Status::INVALID_ARG),
        (&|s| s.embed(&[], Pooling::Mean, true, None, None).map(drop), Status::INVALID_ARG),
        (&|s| s.score(&ids, 0, None, None).map(drop), Status::CONTEXT_FULL),
        (&|s| s.score(&ids[8..], 0, Some(&cancel), None).map(drop), Status::CANCELLED),
        (
            &|s| s.embed(&ids[8..], Pooling::Mean, true, None, Some(&mut |_| Control::Stop)).map(drop),
            Status::CANCELLED,
        ),
        (&|s| s.score(&ids[8..], 0, None, Some(&mut |_| Control::Cancel)).map(drop), Status::CANCELLED),
    ];
    for (i, (call, expected)) in calls.iter().enumerate() {
        assert_eq!(call(&mut session).unwrap_err().status(), *expected, "call {i}");
        assert_eq!((session.tokens().to_vec(), bits(session.logits().unwrap())), held, "call {i}");
    }
    let whole = session.score(&ids[8..], 0, None, None).unwrap();
    session.truncate(7).unwrap();
    session.decode(ids[7], None).unwrap();
    let mut seen = Vec::new();
    let mut stop = |at: Progress| {
        seen.push((at.done, at.total));
        if at.done < 16 { Control::Continue } else { Control::Stop }
    };
    let part = session.score(&ids[8..], 1, None, Some(&mut stop)).unwrap();
    assert_eq!(seen, [(8, ids.len() - 8), (16, ids.len() - 8)]);
    assert_eq!((part.log_probabilities.len(), part.top.len(), session.len()), (16, 16, 24));
    assert_eq!(bits(&part.log_probabilities), bits(&whole.log_probabilities[..16]));
    assert!(session.logits().is_ok());
    assert_eq!(session.score(&[], 3, None, None).unwrap(), Scores::default());
}

#[test]
fn instruction_sets_do_not_change_a_bit() {
    let Some(reference) = Reference::all().into_iter().find(|r| r.name == "mistral_swa") else { return };
    let ids = reference.ids("short.input_ids");
    let options = reference.options(ids.len(), ids.len());
    let (_place, path) = converted(&reference.dir, Type::Q4);
    let on = |isa: &str| {
        let model = open(&runtime(1, Some(isa)), &path);
        let scores = score(&model, &options, &ids, 0);
        let vector = session(&model, &options).embed(&ids, Pooling::Mean, true, None, None).unwrap();
        (bits(&scores.log_probabilities), bits(&vector))
    };
    let expected = on("scalar");
    for isa in llm_kernels::available() {
        assert_eq!(on(isa.name()), expected, "{}", isa.name());
    }
}
