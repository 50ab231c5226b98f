//! A session with adapters computes what the merged model computes, with bits that depend on nothing but its own
//! adapters; and what does not belong together is refused.

#[path = "support/lora.rs"]
mod lora;
mod support;

use std::path::Path;

use llm::adapter::Adapter;
use llm::kv::{KvOptions, KvPool};
use llm::mmap::Bytes;
use llm::model::Model;
use llm::session::batch::{Batch, Slot, Want};
use llm::session::{Session, SessionOptions};
use llm::{Cancel, Status};
use llm_convert::adapter::{AdapterOptions, convert_adapter};
use llm_format::quant::Type;
use lora::{Peft, all_but};
use support::{Reference, adapted, converted, furthest, logits, model, open, runtime};

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn reference(name: &str) -> Option<Reference> {
    Reference::all().into_iter().find(|r| r.name == name)
}

/// `peft` as an adapter's file, for the checkpoint in `base`.
fn adapter_file(peft: &Peft, base: &Path) -> (tempfile::TempDir, std::path::PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let (source, out) = (place.path().join("peft"), place.path().join("adapter.llm"));
    peft.write(&source);
    convert_adapter(&source, base, &out, &AdapterOptions::default()).unwrap();
    (place, out)
}

fn adapter(peft: &Peft, base: &Path, model: &Model) -> Adapter {
    let (_place, path) = adapter_file(peft, base);
    Adapter::open_path(model, &path).unwrap()
}

/// One matrix, matrices split by rows and by heads, matrices stored turned round, latent attention, shared experts.
#[test]
fn an_adapted_session_computes_what_the_merged_model_does() {
    let runtime = runtime(0, None);
    let cases: [(&str, &[&str]); 8] = [
        ("llama_untied", &[]),
        ("gpt2", &[]),
        ("phi3", &[]),
        ("gpt_neox", &[]),
        ("bloom", &[]),
        ("gemma2", &[]),
        ("deepseek_v3", &["kv_b_proj", "mlp.experts.", "mlp.gate."]),
        ("qwen2_moe", &["mlp.experts.", "mlp.gate."]),
    ];
    for (name, others) in cases {
        let Some(reference) = reference(name) else { return };
        let ids = reference.ids("short.input_ids");
        let options = reference.options(ids.len(), ids.len());
        let base = model(&runtime, &reference.dir, Type::F32);
        let (first, second) = (
            Peft::random(&reference.dir, 1, 4, all_but(others)),
            Peft::random(&reference.dir, 2, 7, all_but(others)),
        );
        let [one, two] = [&first, &second].map(|peft| adapter(peft, &reference.dir, &base));
        let plain = logits(&base, &options, &ids);
        assert_eq!(bits(&adapted(&base, &options, &ids, &[])), bits(&plain));
        let merged = |changes: &[(&Peft, f32)]| {
            let place = tempfile::tempdir().unwrap();
            lora::merge(&reference.dir, changes, place.path());
            logits(&model(&runtime, place.path(), Type::F32), &options, &ids)
        };
        for (changes, adapters) in [
            (vec![(&first, 1.0)], vec![(one.clone(), 1.0)]),
            (vec![(&first, 0.5), (&second, -0.75)], vec![(one.clone(), 0.5), (two.clone(), -0.75)]),
        ] {
            let (got, expected) = (adapted(&base, &options, &ids, &adapters), merged(&changes));
            let (off, moved) = (furthest(&got, &expected), furthest(&got, &plain));
            assert!(off <= 2e-4 && moved > 0.05, "{name}, {} adapters: {off}, moved {moved}", adapters.len());
        }
    }
}

#[test]
fn bits_depend_on_the_sessions_own_adapters_alone() {
    for (name, ty) in [("llama_untied", Type::Q8), ("deepseek_v2", Type::F32), ("phi3", Type::Q4)] {
        let Some(reference) = reference(name) else { return };
        let ids = reference.ids("short.input_ids");
        let options = SessionOptions { page: 16, ..reference.options(ids.len(), ids.len()) };
        let (_place, path) = converted(&reference.dir, ty);
        let only = |module: &str| {
            !module.contains("mlp.experts.")
                && ["q_proj", "o_proj", "qkv_proj", "down_proj"].iter().any(|m| module.ends_with(m))
        };
        let pefts = [Peft::random(&reference.dir, 3, 4, only), Peft::random(&reference.dir, 4, 33, only)];
        // What each of five sessions runs with.
        let sets: [&[(usize, f32)]; 5] =
            [&[(0, 1.0)], &[], &[(0, 0.5), (1, 1.0)], &[(1, 1.0), (0, 0.5)], &[(1, 2.0)]];
        let with = |adapters: &[Adapter], set: &[(usize, f32)]| {
            set.iter().map(|&(i, scale)| (adapters[i].clone(), scale)).collect::<Vec<_>>()
        };
        let open_all = |model: &Model| pefts.each_ref().map(|peft| adapter(peft, &reference.dir, model));
        let scalar = open(&runtime(1, Some("scalar")), &path);
        let adapters = open_all(&scalar);
        let expected = sets.map(|set| bits(&adapted(&scalar, &options, &ids, &with(&adapters, set))));
        assert_ne!(expected[2], expected[3], "the order of adapters counts");
        for threads in [1, 2] {
            let model = open(&runtime(threads, None), &path);
            let adapters = open_all(&model);
            for chunk in [1, 16, 512] {
                let options = SessionOptions { chunk, ..options.clone() };
                for (set, expected) in sets.iter().zip(&expected) {
                    let got = bits(&adapted(&model, &options, &ids, &with(&adapters, set)));
                    assert!(got == *expected, "{name}, {threads} threads, chunks of {chunk}, {set:?}");
                }
            }
            // Together, in steps of different sizes.
            let pool = KvPool::new(&model, &KvOptions { page: 16, ..KvOptions::default() }).unwrap();
            pool.resize(pool.stats().page_bytes * 5 * ids.len().div_ceil(16) as u64).unwrap();
            let mut sessions = sets.map(|set| {
                let mut session = Session::in_pool(&pool, options.clone()).unwrap();
                session.set_adapters(&with(&adapters, set)).unwrap();
                session
            });
            let vocab = model.spec().vocab as usize;
            let mut batch = Batch::new(&pool).unwrap();
            for step in 0.. {
                let mut slots = Vec::new();
                let mut rows = Vec::new();
                for (i, session) in sessions.iter_mut().enumerate() {
                    let from = session.len();
                    let to = (from + [1, 7, 3, 11, 2][(i + step) % 5]).min(ids.len());
                    if from < to {
                        rows.push((i, from * vocab..to * vocab));
                        slots.push(Slot { session, ids: &ids[from..to], want: Want::All });
                    }
                }
                if slots.is_empty() {
                    break;
                }
                batch.run(&mut slots, None).unwrap();
                for (slot, (i, range)) in rows.into_iter().enumerate() {
                    let got = bits(batch.logits(slot).unwrap());
                    assert!(got == expected[i][range], "{name}, step {step}, session {i}");
                }
            }
        }
    }
}

#[test]
fn prefixes_forks_and_snapshots_belong_to_their_adapters() {
    let Some(reference) = reference("qwen2") else { return };
    let ids = reference.ids("short.input_ids");
    let model = model(&runtime(0, None), &reference.dir, Type::Q8);
    let peft = Peft::random(&reference.dir, 5, 8, all_but(&[]));
    let one = adapter(&peft, &reference.dir, &model);
    let again = adapter(&peft, &reference.dir, &model);
    let options = SessionOptions { page: 16, max_tokens: 64, ..SessionOptions::default() };
    let expected = bits(&adapted(&model, &options, &ids[..48], &[(one.clone(), 1.0)]));
    let last = &expected[expected.len() - model.spec().vocab as usize..];

    let pool = KvPool::new(&model, &KvOptions { page: 16, ..KvOptions::default() }).unwrap();
    let with = |adapters: &[(Adapter, f32)]| {
        let mut session = Session::in_pool(&pool, options.clone()).unwrap();
        session.set_adapters(adapters).unwrap();
        session
    };
    with(&[]).prefill(&ids[..48], None, None).unwrap();
    let mut session = with(&[(one.clone(), 1.0)]);
    assert_eq!(session.match_prefix(&ids), 0, "pages of the plain model");
    session.prefill(&ids[..48], None, None).unwrap();
    assert_eq!(bits(session.logits().unwrap()), last);
    assert_eq!(with(&[(one.clone(), 0.5)]).match_prefix(&ids), 0, "pages at another scale");
    // The same contents opened once more are the same adapter.
    let mut other = with(&[(again.clone(), 1.0)]);
    assert_eq!(other.match_prefix(&ids), 48);
    other.prefill(&ids[..48], None, None).unwrap();
    assert_eq!(bits(other.logits().unwrap()), last);

    let mut fork = session.fork().unwrap();
    assert_eq!(fork.adapters().len(), 1);
    fork.truncate(40).unwrap();
    fork.prefill(&ids[40..48], None, None).unwrap();
    assert_eq!(bits(fork.logits().unwrap()), last);
    fork.reset();
    fork.prefill(&ids[..48], None, None).unwrap();
    assert_eq!(bits(fork.logits().unwrap()), last);

    let snapshot = session.snapshot(b"host").unwrap();
    for adapters in [vec![], vec![(one.clone(), 0.5)], vec![(one.clone(), 1.0), (again.clone(), 1.0)]] {
        let mut wrong = with(&adapters);
        assert_eq!(wrong.restore(&snapshot).unwrap_err().status(), Status::MISMATCH);
        assert!(wrong.is_empty());
    }
    let mut restored = with(&[(again, 1.0)]);
    restored.restore(&snapshot).unwrap();
    assert_eq!(bits(restored.logits().unwrap()), last);
    restored.decode(ids[48], None).unwrap();
    session.decode(ids[48], None).unwrap();
    assert_eq!(bits(restored.logits().unwrap()), bits(session.logits().unwrap()));
}

#[test]
fn adapters_change_on_an_empty_session_or_with_everything_computed_again() {
    let Some(reference) = reference("qwen2") else { return };
    let ids = reference.ids("short.input_ids");
    let model = model(&runtime(0, None), &reference.dir, Type::Q8);
    let [one, two] = [6, 7]
        .map(|seed| adapter(&Peft::random(&reference.dir, seed, 4, all_but(&[])), &reference.dir, &model));
    let options = SessionOptions { chunk: 16, ..reference.options(ids.len(), ids.len()) };
    let vocab = model.spec().vocab as usize;
    let last = |adapters: &[(Adapter, f32)]| {
        let all = adapted(&model, &options, &ids, adapters);
        bits(&all[all.len() - vocab..])
    };
    let mut session = Session::new(&model, options.clone()).unwrap();
    session.prefill(&ids, None, None).unwrap();
    let before = bits(session.logits().unwrap());
    let refused = session.set_adapters(&[(one.clone(), 1.0)]).unwrap_err();
    assert_eq!((refused.status(), bits(session.logits().unwrap())), (Status::BAD_STATE, before));
    let refused = session.change_adapters(&[(one.clone(), f32::NAN)], None, None).unwrap_err();
    assert_eq!((refused.status(), session.len()), (Status::INVALID_ARG, ids.len()));
    session.change_adapters(&[(one.clone(), 1.0)], None, None).unwrap();
    assert_eq!(session.tokens(), ids);
    assert_eq!(bits(session.logits().unwrap()), last(&[(one.clone(), 1.0)]));
    // An adapter lives as long as a session uses it.
    drop(one);
    session.truncate(20).unwrap();
    session.prefill(&ids[20..], None, None).unwrap();
    let held = session.adapters();
    assert_eq!(bits(session.logits().unwrap()), last(&held));
    let cancel = Cancel::new();
    cancel.trigger();
    let cancelled = session.change_adapters(&[(two.clone(), 1.0)], Some(&cancel), None).unwrap_err();
    assert_eq!((cancelled.status(), session.len()), (Status::CANCELLED, 0));
    session.prefill(&ids, None, None).unwrap();
    assert_eq!(bits(session.logits().unwrap()), last(&held));
    session.change_adapters(&[], None, None).unwrap();
    assert_eq!(bits(session.logits().unwrap()), last(&[]));
}

#[test]
fn what_is_more_than_a_sum_of_low_rank_changes_is_refused_by_name() {
    let Some(reference) = reference("llama_tied") else { return };
    let place = tempfile::tempdir().unwrap();
    let (source, out) = (place.path().join("peft"), place.path().join("a.llm"));
    let convert = || convert_adapter(&source, &reference.dir, &out, &AdapterOptions::default());
    let peft = || Peft::random(&reference.dir, 1, 4, |module| module.ends_with("q_proj"));
    for (key, value) in [
        ("peft_type", serde_json::json!("IA3")),
        ("use_dora", true.into()),
        ("bias", "all".into()),
        ("lora_bias", true.into()),
        ("modules_to_save", serde_json::json!(["lm_head"])),
        ("target_parameters", serde_json::json!(["mlp.experts.gate_up_proj"])),
        ("init_lora_weights", "pissa_niter_4".into()),
    ] {
        let mut peft = peft();
        peft.config.insert(key.into(), value);
        peft.write(&source);
        let error = convert().unwrap_err();
        assert_eq!(error.status(), Status::UNSUPPORTED, "{key}");
        assert!(error.to_string().contains(key), "{error}");
    }
    let mut embedding = peft();
    embedding.add("model.embed_tokens", 4, [320, 128], 9);
    embedding.write(&source);
    assert_eq!(convert().unwrap_err().status(), Status::UNSUPPORTED);
    let mut unknown = peft();
    unknown.add("model.layers.0.self_attn.z_proj", 4, [128, 128], 9);
    unknown.write(&source);
    assert_eq!(convert().unwrap_err().status(), Status::MISMATCH);
    let mut wide = peft();
    wide.add("model.layers.0.self_attn.k_proj", 4, [128, 160], 9);
    wide.write(&source);
    assert_eq!(convert().unwrap_err().status(), Status::MISMATCH);
    let mut half = peft();
    half.tensors.remove("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
    half.write(&source);
    assert_eq!(convert().unwrap_err().status(), Status::BAD_FORMAT);
    assert!(!out.exists());
}

#[test]
fn scales_are_alpha_over_rank_or_over_its_root_and_patterns_choose_alpha() {
    let Some(reference) = reference("llama_tied") else { return };
    let place = tempfile::tempdir().unwrap();
    let (source, out) = (place.path().join("peft"), place.path().join("a.llm"));
    let mut peft = Peft::random(&reference.dir, 1, 4, |module| module.ends_with("q_proj"));
    peft.config.insert(
        "alpha_pattern".into(),
        serde_json::json!({"layers.1.self_attn.q_proj": 3, r"layers\.[23]\..*": 5}),
    );
    for (stabilised, divisor) in [(false, 4.0), (true, 2.0)] {
        peft.config.insert("use_rslora".into(), stabilised.into());
        peft.write(&source);
        convert_adapter(&source, &reference.dir, &out, &AdapterOptions::default()).unwrap();
        let file = std::fs::read(&out).unwrap();
        let index = llm_format::Index::parse(&file).unwrap();
        let targets = index.metadata()["adapter"]["targets"].as_array().unwrap().clone();
        let scales: Vec<f64> = targets.iter().map(|target| target["scale"].as_f64().unwrap()).collect();
        assert_eq!(scales, [lora::ALPHA, 3.0, 5.0, 5.0].map(|alpha| alpha / divisor));
    }
}

#[test]
fn a_file_that_is_damaged_or_of_another_model_is_refused() {
    let (Some(reference), Some(other)) = (reference("llama_tied"), reference("llama_untied")) else { return };
    let runtime = runtime(1, None);
    let peft = Peft::random(&reference.dir, 1, 2, |module| module.ends_with("layers.0.self_attn.v_proj"));
    let (place, path) = adapter_file(&peft, &reference.dir);
    let base = model(&runtime, &reference.dir, Type::F32);
    let bytes = std::fs::read(&path).unwrap();
    let open_bytes = |bytes: Vec<u8>| Adapter::open_memory(&base, Bytes::from_owner(bytes));
    assert_eq!(open_bytes(bytes.clone()).unwrap().info().rank, 2);
    for length in (0..bytes.len()).step_by(97) {
        assert!(open_bytes(bytes[..length].to_vec()).is_err(), "cut to {length}");
    }
    // Every checksum is looked at: no byte may differ.
    for at in (0..bytes.len()).step_by(61) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x20;
        assert!(open_bytes(damaged).is_err(), "byte {at}");
    }

    let status = |model: &Model, path: &Path| Adapter::open_path(model, path).unwrap_err().status();
    let (_base_place, base_file) = converted(&reference.dir, Type::F32);
    assert_eq!(status(&base, &base_file), Status::BAD_FORMAT, "a model is no adapter");
    let options = llm::model::OpenOptions::default();
    assert_eq!(Model::open_path(&runtime, &path, &options, None).unwrap_err().status(), Status::BAD_FORMAT);
    assert_eq!(status(&model(&runtime, &other.dir, Type::F32), &path), Status::MISMATCH, "other shapes");
    // One that names its model is for that file alone; others are for every type of it.
    let q4 = model(&runtime, &reference.dir, Type::Q4);
    let one = Adapter::open_path(&q4, &path).unwrap();
    let (source, only) = (place.path().join("peft"), place.path().join("only.llm"));
    let options = AdapterOptions { only: true, ..AdapterOptions::default() };
    convert_adapter(&source, &base_file, &only, &options).unwrap();
    assert_eq!(status(&q4, &only), Status::MISMATCH);
    Adapter::open_path(&base, &only).unwrap();
    // An open adapter belongs to the model it was opened for.
    let mut session = Session::new(&base, SessionOptions::default()).unwrap();
    assert_eq!(session.set_adapters(&[(one, 1.0)]).unwrap_err().status(), Status::MISMATCH);
}

/// `testdata/peft/make.py` made them: fused matrices, matrices stored turned round, patterns of ranks and scales, scales by
/// the root of the rank, latent attention.
#[test]
fn adapters_made_by_peft_give_pefts_logits() {
    let runtime = runtime(0, None);
    for name in ["gpt2", "phi3", "gpt_neox", "deepseek_v3"] {
        let Some(reference) = reference(name) else { return };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/peft").join(name);
        let place = tempfile::tempdir().unwrap();
        let out = place.path().join("adapter.llm");
        convert_adapter(&source, &reference.dir, &out, &AdapterOptions::default()).unwrap();
        let base = model(&runtime, &reference.dir, Type::F32);
        let adapter = Adapter::open_path(&base, &out).unwrap();
        let ids = reference.ids("short.input_ids");
        let options = reference.options(ids.len(), ids.len());
        let expected = lora::tensor(&source.join("logits.safetensors"), "logits");
        let got = adapted(&base, &options, &ids, &[(adapter, 1.0)]);
        let (got, plain) = (&got[got.len() - expected.len()..], logits(&base, &options, &ids));
        let moved = furthest(&expected, &plain[plain.len() - expected.len()..]);
        let most = reference.number("short", "/tolerance/max_abs") as f32;
        let off = furthest(got, &expected);
        assert!(off <= most && moved > 0.1, "{name}: {off}, expected at most {most}; moved {moved}");
    }
}
