//! Whole models on matrix tiles, natively or with the instructions emulated: the same bits as without in the default
//! levels, and in the fast one whatever the chunks.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod support;

use llm::model::Model;
use llm::session::{Level, SessionOptions};
use llm_emulator::Unit;
use llm_format::quant::Type;
use support::{Reference, converted, logits, open, runtime};

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Whether there are tiles, the processor's or emulated; told as not run where there are none.
fn ready() -> bool {
    let unit = llm_emulator::install();
    println!("tiles: {unit:?}");
    if unit.is_none() {
        llm_testdata::not_run("whole models on matrix tiles: this machine has no AVX-512");
    }
    unit.is_some()
}

/// The longest prompt of a reference, with sessions of exactly its length.
fn longest(reference: &Reference) -> (Vec<i32>, SessionOptions) {
    let run = if reference.runs().iter().any(|r| r == "long") { "long" } else { "short" };
    let ids = reference.ids(&format!("{run}.input_ids"));
    let options = reference.options(ids.len(), ids.len());
    (ids, options)
}

#[test]
fn every_model_has_the_same_logits_on_tiles() {
    if !ready() {
        return;
    }
    let types = [Type::Q8, Type::Q4, Type::Q6, Type::Q5, Type::Q3, Type::Q2];
    for (i, reference) in Reference::all().into_iter().enumerate() {
        let (ids, options) = longest(&reference);
        let ids = &ids[..40.min(ids.len())];
        for ty in [types[0], types[1 + i % 5]] {
            let (_place, path) = converted(&reference.dir, ty);
            let expected = bits(&logits(&open(&runtime(1, Some("avx2")), &path), &options, ids));
            let before = llm_emulator::executed();
            let model = open(&runtime(2, Some("amx")), &path);
            for level in [Level::BatchInvariant, Level::Portable, Level::Fast] {
                for chunk in [512, 13] {
                    let options = SessionOptions { determinism: level, chunk, ..options.clone() };
                    let got = bits(&logits(&model, &options, ids));
                    assert!(got == expected, "{} {ty:?}, {level:?}, chunks of {chunk}", reference.name);
                }
            }
            if llm_emulator::install() == Some(Unit::Emulated) {
                assert!(llm_emulator::executed() > before, "{} {ty:?}: no tile was used", reference.name);
            }
        }
    }
}

#[test]
fn the_fast_level_uses_tiles_for_16_bit_weights_at_every_batch_size() {
    if !ready() {
        return;
    }
    let Some(reference) = Reference::all().into_iter().find(|r| r.name == "llama_untied") else { return };
    let (ids, options) = longest(&reference);
    for ty in [Type::Bf16, Type::F16] {
        let (_place, path) = converted(&reference.dir, ty);
        let with = |model: &Model, determinism, chunk| {
            logits(model, &SessionOptions { determinism, chunk, ..options.clone() }, &ids)
        };
        let model = open(&runtime(2, Some("amx")), &path);
        let exact = with(&model, Level::BatchInvariant, 512);
        let fast = with(&model, Level::Fast, 512);
        assert_ne!(bits(&exact), bits(&fast), "{ty:?}: fast does nothing");
        let kl = support::kl(&exact, &fast, model.spec().vocab as usize);
        println!("{ty:?}: mean KL of fast {kl:.1e}");
        assert!(kl < 1e-3, "{ty:?}: mean KL {kl:e}");
        for chunk in [1, 5, 16, 37] {
            assert_eq!(bits(&with(&model, Level::Fast, chunk)), bits(&fast), "{ty:?}, chunks of {chunk}");
        }
        // without tiles, nothing changes
        let model = open(&runtime(2, Some("avx512")), &path);
        assert_eq!(bits(&with(&model, Level::Fast, 512)), bits(&exact), "{ty:?} without tiles");
    }
}
