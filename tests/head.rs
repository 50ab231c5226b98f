//! A checkpoint with a multi-token prediction layer: its head becomes the file's second model, guesses what a plain
//! model made of the same parts says, and changes no token.

#[path = "support/multi_token.rs"]
mod multi_token;
mod support;

use std::path::Path;

use llm::Status;
use llm::kv::{KvOptions, KvPool};
use llm::model::Model;
use llm::sampler::{Sampler, SamplingParams};
use llm::session::batch::{Batch, Slot, Want};
use llm::session::generate::{Generation, GenerationOptions, Kind, Plan};
use llm::session::speculative::{DraftHead, Lengths, Place, Proposer, SpecOptions};
use llm::session::{Session, SessionOptions};
use llm_format::quant::Type;
use multi_token::{Tensors, checkpoint, with_head, write};
use support::{Reference, argmax, model, runtime};

/// x / sqrt(mean x² + eps) · w
fn rms(x: &[f32], w: &[f32], eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / x.len() as f64;
    x.iter().zip(w).map(|(&v, &w)| f64::from(v) / (mean + eps).sqrt() * f64::from(w)).collect()
}

fn setup() -> Option<(Model, Tensors, serde_json::Value, Reference, tempfile::TempDir)> {
    let reference = Reference::all().into_iter().find(|r| r.name == "deepseek_v3")?;
    let (tensors, config) = checkpoint(&reference.dir);
    let (layers, width) =
        (config["num_hidden_layers"].as_u64().unwrap(), config["hidden_size"].as_u64().unwrap());
    let tensors = with_head(&tensors, layers as usize, width as usize);
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("with"), &tensors, &config);
    let model = model(&runtime(0, None), &dir.path().join("with"), Type::F32);
    Some((model, tensors, config, reference, dir))
}

#[test]
fn a_head_guesses_what_a_model_of_its_layer_over_the_joined_vectors_says() {
    let Some((model, tensors, mut config, reference, dir)) = setup() else { return };
    let (width, layers) = (model.spec().width as usize, model.spec().layers.len());
    let ids = reference.ids("short.input_ids");
    let mut session = Session::new(&model, SessionOptions::default()).unwrap();
    session.keep_hidden();
    session.prefill(&ids, None, None).unwrap();
    let (from, hidden) = session.kept_hidden().map(|(from, rows)| (from, rows.to_vec())).unwrap();
    assert_eq!((from, hidden.len()), (0, ids.len() * width));

    // The twin: one layer, and an embedding whose row i is what joins token i + 1 and hidden vector i.
    let at = format!("model.layers.{layers}.");
    let of = |name: &str| &tensors[&format!("{at}{name}.weight")].1;
    let embedding = &tensors["model.embed_tokens.weight"];
    let mut joined = vec![0f32; embedding.1.len()];
    for i in 0..ids.len() - 1 {
        let token = &embedding.1[ids[i + 1] as usize * width..][..width];
        let mut both = rms(token, of("enorm"), 1e-6);
        both.extend(rms(&hidden[i * width..][..width], of("hnorm"), 1e-6));
        for (row, out) in joined[i * width..][..width].iter_mut().enumerate() {
            let weights = &of("eh_proj")[row * 2 * width..][..2 * width];
            *out = weights.iter().zip(&both).map(|(&w, x)| f64::from(w) * x).sum::<f64>() as f32;
        }
    }
    let mut twin = Tensors::new();
    for (name, tensor) in &tensors {
        if let Some(rest) = name.strip_prefix(&at) {
            twin.insert(format!("model.layers.0.{rest}"), tensor.clone());
        }
    }
    twin.retain(|name, _| {
        !["eh_proj", "enorm", "hnorm", "shared_head", "embed_tokens"].iter().any(|n| name.contains(n))
    });
    twin.insert("model.norm.weight".into(), tensors[&format!("{at}shared_head.norm.weight")].clone());
    twin.insert("model.embed_tokens.weight".into(), (embedding.0.clone(), joined));
    twin.insert("lm_head.weight".into(), tensors["lm_head.weight"].clone());
    config["num_hidden_layers"] = 1.into();
    config["first_k_dense_replace"] = 0.into();
    write(&dir.path().join("twin"), &twin, &config);
    let twin = support::model(model.runtime(), &dir.path().join("twin"), Type::F32);
    let rows: Vec<i32> = (0..ids.len() as i32 - 1).collect();
    let expected = support::logits(&twin, &SessionOptions::default(), &rows);
    let vocab = twin.spec().vocab as usize;

    let sampler = Sampler::new(&SamplingParams::default()).unwrap();
    let mut head = DraftHead::new(model.draft().unwrap().unwrap()).unwrap();
    let (mut seen, mut guesses) = (std::collections::BTreeSet::new(), 0);
    // Onwards, and back again.
    for held in (1..ids.len()).chain((1..ids.len()).rev().step_by(3)) {
        let mut out = Vec::new();
        let place = Place {
            held: &ids[..held],
            pending: &ids[held..held + 1],
            dropped: 0,
            sampler: &sampler,
            hidden: Some((0, &hidden[..held * width])),
            cancel: None,
        };
        head.propose(&place, 3, &mut out).unwrap();
        assert_eq!(out.len(), 3);
        assert_eq!(out[0], argmax(&expected[(held - 1) * vocab..held * vocab]), "behind {held} tokens");
        seen.insert(out[0]);
        guesses += 1;
    }
    assert!(guesses > 8 && seen.len() > 2, "{guesses} guesses of {} tokens", seen.len());
}

#[test]
fn a_small_model_of_the_same_vocabulary_can_be_the_files_second_one() {
    let all = Reference::all();
    let of = |name: &str| all.iter().find(|r| r.name == name);
    let (Some(first), Some(second)) = (of("llama_untied"), of("llama_tied")) else { return };
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("both.llm");
    let with = |draft: &Path| {
        let options = llm_convert::Options { ty: Type::Q8, draft: Some(draft.into()), ..Default::default() };
        llm_convert::convert(&first.dir, &out, &options, &())
    };
    let runtime = runtime(0, None);
    let (one, two) = (model(&runtime, &first.dir, Type::Q8), model(&runtime, &second.dir, Type::Q8));
    with(&second.dir).unwrap();
    let both = support::open(&runtime, &out);
    let draft = both.draft().unwrap().unwrap();
    assert!(!draft.is_head());
    let ids = first.ids("short.input_ids");
    let options = SessionOptions { max_tokens: ids.len(), ..Default::default() };
    assert_eq!(support::logits(&both, &options, &ids), support::logits(&one, &options, &ids));
    assert_eq!(support::logits(draft, &options, &ids), support::logits(&two, &options, &ids));
    SpecOptions::own().check(&both).unwrap();
    if let Some(other) = llm_testdata::shared("data/weights/stories260K/hf") {
        assert_eq!(with(&other).unwrap_err().status(), Status::MISMATCH);
    }
}

#[test]
fn a_second_model_of_the_same_shape_takes_nothing_of_the_firsts() {
    let Some(first) = Reference::all().into_iter().find(|r| r.name == "llama_untied") else { return };
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("both.llm");
    let options = llm_convert::Options { ty: Type::Q8, draft: Some(first.dir.clone()), ..Default::default() };
    llm_convert::convert(&first.dir, &out, &options, &()).unwrap();
    let both = support::open(&runtime(1, None), &out);
    let draft = both.draft().unwrap().unwrap();
    assert_eq!(draft.spec(), both.spec());
    assert_ne!(draft.fingerprint(), both.fingerprint());
    let mut session = Session::new(&both, SessionOptions::default()).unwrap();
    session.prefill(&first.ids("short.input_ids"), None, None).unwrap();
    let snapshot = session.snapshot(&[]).unwrap();
    let mut other = Session::new(draft, SessionOptions::default()).unwrap();
    assert_eq!(other.restore(&snapshot).unwrap_err().status(), Status::MISMATCH);
    session.reset();
    session.restore(&snapshot).unwrap();
}

#[test]
fn the_head_travels_in_the_file_and_changes_no_token() {
    let Some((model, _, _, reference, dir)) = setup() else { return };
    assert_eq!(model.file_index().version(), (1, 1));
    let plain_file = support::model(model.runtime(), &reference.dir, Type::F32);
    assert_eq!(plain_file.file_index().version(), (1, 0));
    assert!(plain_file.draft().unwrap().is_none());
    assert_eq!(SpecOptions::own().check(&plain_file).unwrap_err().status(), Status::UNSUPPORTED);
    let head = model.draft().unwrap().unwrap();
    assert!(head.is_head() && !model.is_head());
    let refused = Session::new(head, SessionOptions::default()).unwrap_err();
    assert_eq!(refused.status(), Status::UNSUPPORTED);

    let quantized = support::model(model.runtime(), &dir.path().join("with"), Type::Q8);
    let ids = reference.ids("short.input_ids");
    for (model, temperature) in [(&model, 0.0), (&model, 0.9), (&quantized, 0.9)] {
        let run = |own: bool| {
            let mut session = Session::new(model, SessionOptions::default()).unwrap();
            if own {
                session.keep_hidden();
            }
            session.prefill(&ids, None, None).unwrap();
            let params = SamplingParams { temperature, seed: 5, ..Default::default() };
            let mut sampler = Sampler::new(&params).unwrap();
            let options = GenerationOptions { max_tokens: 40, ..Default::default() };
            let mut generation = Generation::new(None, options).unwrap();
            if own {
                let lengths = Lengths { most: 3, adaptive: false, ..Default::default() };
                let spec = SpecOptions { lengths, ..SpecOptions::own() };
                generation.speculate(spec.start(model).unwrap());
            }
            let mut told = Vec::new();
            loop {
                let event = generation.next(&mut session, &mut sampler, None).unwrap();
                told.extend(event.ids);
                if event.kind == Kind::Done {
                    break;
                }
            }
            (told, session.tokens().to_vec(), generation.spec_stats())
        };
        let ((plain, held, _), (guessed, same, stats)) = (run(false), run(true));
        assert_eq!((&guessed, &same), (&plain, &held), "temperature {temperature}");
        let stats = stats.unwrap();
        assert!(stats.drafted > 20 && stats.failed == 0, "{stats:?}");
        assert_eq!(stats.drafted, stats.accepted + stats.rejected);
        // Guesses that are taken back take none of the vectors with them that the next ones are made of.
        assert!(stats.rejected > 0 && stats.plain_steps <= 1, "{stats:?}");
    }
}

/// A generation with the file's own head, three guesses at every step.
fn guessing(model: &Model, tokens: usize) -> Generation {
    let options = GenerationOptions { max_tokens: tokens, ..Default::default() };
    let mut generation = Generation::new(None, options).unwrap();
    let lengths = Lengths { most: 3, adaptive: false, ..Default::default() };
    generation.speculate(SpecOptions { lengths, ..SpecOptions::own() }.start(model).unwrap());
    generation
}

#[test]
fn in_a_batch_the_head_guesses_what_it_guesses_for_a_session_alone() {
    let Some((model, _, _, reference, _dir)) = setup() else { return };
    let ids = reference.ids("short.input_ids");
    let sampler = |seed: usize| {
        let params = SamplingParams { temperature: 0.9, seed: seed as u64, ..Default::default() };
        Sampler::new(&params).unwrap()
    };
    let (prompts, tokens): (Vec<_>, _) = ((0..4).map(|i| &ids[..ids.len() - i]).collect(), 24);
    let alone: Vec<_> = prompts
        .iter()
        .enumerate()
        .map(|(i, prompt)| {
            let mut session = Session::new(&model, SessionOptions::default()).unwrap();
            session.keep_hidden();
            session.prefill(prompt, None, None).unwrap();
            let (mut sampler, mut generation) = (sampler(i), guessing(&model, tokens));
            while generation.next(&mut session, &mut sampler, None).unwrap().kind != Kind::Done {}
            let hidden = session.kept_hidden().unwrap().1.to_vec();
            (session.tokens().to_vec(), hidden, generation.spec_stats().unwrap())
        })
        .collect();

    let pool = KvPool::new(&model, &KvOptions { prefix_cache: false, ..Default::default() }).unwrap();
    pool.resize(16 * pool.stats().page_bytes * pool.stats().groups).unwrap();
    let mut batch = Batch::new(&pool).unwrap();
    let mut sessions: Vec<_> = prompts
        .iter()
        .map(|_| {
            let mut session = Session::in_pool(&pool, SessionOptions::default()).unwrap();
            session.keep_hidden();
            session
        })
        .collect();
    // The prompts in two parts, so that the second goes on from the first's vectors.
    for half in [0..5, 5..ids.len()] {
        let part = |prompt: &&'_ [i32]| prompt.len().min(half.start)..prompt.len().min(half.end);
        let slots = sessions.iter_mut().zip(&prompts);
        let mut slots: Vec<_> = slots
            .map(|(session, prompt)| Slot { session, ids: &prompt[part(prompt)], want: Want::Last })
            .collect();
        batch.run(&mut slots, None).unwrap();
    }
    let mut runs: Vec<_> = (0..prompts.len()).map(|i| (sampler(i), guessing(&model, tokens))).collect();
    while runs.iter().any(|(_, generation)| generation.reason().is_none()) {
        let (mut slots, mut running) = (Vec::new(), Vec::new());
        for (session, run) in sessions.iter_mut().zip(&mut runs) {
            match run.1.plan(session, &run.0, None).unwrap() {
                Plan::Run { .. } if run.1.planned().is_empty() => {
                    run.1.take(session, &mut run.0, Ok(()), None, None).unwrap();
                }
                Plan::Run { rows } => running.push((session, run, rows)),
                Plan::Tell(_) => {}
            }
        }
        for (session, run, rows) in &mut running {
            let want = if *rows > 1 { Want::Verify(*rows) } else { Want::Last };
            slots.push(Slot { session, ids: run.1.planned(), want });
        }
        batch.run(&mut slots, None).unwrap();
        for (slot, (session, (sampler, generation), rows)) in running.into_iter().enumerate() {
            let logits = (rows > 1).then(|| batch.logits(slot).unwrap());
            generation.take(session, sampler, batch.status(slot), logits, None).unwrap();
        }
    }
    for (i, (session, (_, generation))) in sessions.iter().zip(&runs).enumerate() {
        let (held, hidden, stats) = &alone[i];
        assert_eq!(session.tokens(), held, "session {i}");
        assert_eq!(session.kept_hidden().unwrap().1, hidden, "session {i}");
        let own = generation.spec_stats().unwrap();
        assert_eq!((own.drafted_at, own.accepted_at), (stats.drafted_at, stats.accepted_at), "session {i}");
        assert!(own.drafted > 20 && own.plain_steps <= 2, "{own:?}");
    }
}
