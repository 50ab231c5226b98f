//! Long sequences under every rotary scaling: the same bits however a prompt is cut up and wherever its pages end, and
//! attention over all of it is that of a slow twin in f64.
//!
//! A run of all tests takes a few thousand tokens and two layers. `LLM_LONG_CONTEXT=32768 cargo test --release --test
//! long_context -- --nocapture` takes so many on all thirty layers of the 135M shape, tells what it costs, and takes a
//! while; `LLM_LONG_LAYERS=2` takes fewer layers, `LLM_LONG_SCALING=yarn` one scaling alone, `LLM_LONG_FIGURES=1` what
//! steps at depth cost without the comparison.

#[path = "support/multi_token.rs"]
mod multi_token;
mod support;

use std::collections::HashMap;
use std::time::Instant;

use llm::kv::KvType;
use llm::model::Model;
use llm::runtime::Memory;
use llm::session::{Asked, Session, SessionOptions};
use llm_convert::{RandomOptions, SCALINGS, random_with};
use llm_format::quant::Type;
use multi_token::{Tensors, noise, write};
use serde_json::{Value, json};
use support::{open, runtime};

fn number(name: &str) -> Option<usize> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value}: expected a number")))
}

/// Tokens of the long mode.
fn long() -> Option<usize> {
    number("LLM_LONG_CONTEXT")
}

fn scalings() -> Vec<&'static str> {
    let one = std::env::var("LLM_LONG_SCALING").ok();
    SCALINGS.iter().copied().filter(|kind| one.as_deref().is_none_or(|one| one == *kind)).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn ids(count: usize, vocab: usize) -> Vec<i32> {
    (0..count).map(|i| ((i * 7919 + i / 13 * 31 + 5) % vocab) as i32).collect()
}

/// Tokens decoded behind the prompt.
const DECODED: usize = 8;

/// Logits behind the prompt and behind each decoded token, seconds of prefill and decoding, and bytes of keys and values.
fn run(model: &Model, tokens: &[i32], options: &SessionOptions) -> (Vec<Vec<u32>>, f64, f64, u64) {
    let (prompt, rest) = tokens.split_at(tokens.len() - DECODED);
    let mut session = Session::new(model, options.clone()).unwrap();
    let started = Instant::now();
    session.prefill(prompt, None, None).unwrap();
    let prefill = started.elapsed().as_secs_f64();
    let mut rows = vec![bits(session.logits().unwrap())];
    let started = Instant::now();
    for &id in rest {
        session.decode(id, None).unwrap();
        rows.push(bits(session.logits().unwrap()));
    }
    let decode = started.elapsed().as_secs_f64();
    (rows, prefill, decode, model.runtime().memory_use(Memory::Kv))
}

#[test]
fn chunks_pages_and_threads_change_no_bit_of_a_long_sequence() {
    let (long, length) = (long().is_some(), long().unwrap_or(2600));
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("long.llm");
    for scaling in scalings() {
        let layers = number("LLM_LONG_LAYERS").map(|layers| layers as u32);
        let mut shape = RandomOptions { scaling: Some(scaling), layers, vocab: None };
        if !long {
            (shape.layers, shape.vocab) = (Some(2), Some(2048));
        }
        random_with("smol-135m", &shape, Type::Q4, &path, &()).unwrap();
        let [one, two] = [1, 2].map(|threads| open(&runtime(threads, None), &path));
        let tokens = ids(length, one.spec().vocab as usize);
        let options = |chunk, page| SessionOptions { max_tokens: length, chunk, page, ..Default::default() };
        let (first, prefill, decode, bytes) = run(&two, &tokens, &options(512, 64));
        if long {
            eprintln!(
                "{scaling}, {} layers: prefill of {} tokens {:.1}/s, decode behind them {:.2}/s, {:.1} MB of keys and values",
                one.spec().layers.len(),
                length - DECODED,
                (length - DECODED) as f64 / prefill,
                DECODED as f64 / decode,
                bytes as f64 / 1e6
            );
        }
        // Other borders of chunks and pages; the other number of threads where that does not take twice as long.
        let (second, ..) = run(if long { &two } else { &one }, &tokens, &options(208, 16));
        assert!(first == second, "{scaling}: other logits");
        let distinct: std::collections::HashSet<_> = first.iter().collect();
        assert_eq!(distinct.len(), DECODED + 1, "{scaling}: the same logits behind different tokens");
    }
}

/// A snapshot of `times` times the tokens and pages of `whole`, a snapshot of whole pages: contents of a deep session
/// without the hours of computing them. Keys are turned as where they were computed; numbers are numbers.
fn repeated(
    whole: &[u8],
    tokens: usize,
    vocab: usize,
    page_bytes: usize,
    page: usize,
    times: usize,
) -> Vec<u8> {
    let pages = tokens / page * page_bytes;
    let header = whole.len() - tokens * 4 - vocab * 4 - pages;
    let (ids, rest) = whole[header..].split_at(tokens * 4);
    let (logits, pages) = rest.split_at(vocab * 4);
    let mut out = [&whole[..header], &ids.repeat(times), logits, &pages.repeat(times)].concat();
    let length = out.len() as u64;
    out[12..16].copy_from_slice(&((tokens * times) as u32).to_le_bytes());
    out[16..24].copy_from_slice(&length.to_le_bytes());
    let crc = llm_format::crc32c(&out[28..]);
    out[24..28].copy_from_slice(&crc.to_le_bytes());
    out
}

#[test]
fn chunks_at_depth_change_no_bit() {
    let long = long();
    let length = long.unwrap_or(2048);
    let (chunk, begun, page) = (if long.is_some() { 512 } else { 100 }, 512, 64);
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("deep.llm");
    let layers = number("LLM_LONG_LAYERS").map(|layers| layers as u32);
    let mut shape = RandomOptions { scaling: Some("yarn"), layers, vocab: None };
    if long.is_none() {
        (shape.layers, shape.vocab) = (Some(2), Some(2048));
    }
    random_with("smol-135m", &shape, Type::Q4, &path, &()).unwrap();
    let model = open(&runtime(2, None), &path);
    let vocab = model.spec().vocab as usize;
    let tokens = ids(chunk + DECODED, vocab);
    let options = |chunk| SessionOptions { max_tokens: length, chunk, page, ..Default::default() };
    let mut session = Session::new(&model, options(512)).unwrap();
    session.prefill(&ids(begun, vocab), None, None).unwrap();
    let page_bytes = session.pool().stats().page_bytes as usize;
    let times = (length - tokens.len()) / begun;
    let deep = repeated(&session.snapshot(b"").unwrap(), begun, vocab, page_bytes, page, times);
    drop(session);
    let go_on = |mut session: Session| {
        session.restore(&deep).unwrap();
        let started = Instant::now();
        session.prefill(&tokens[..chunk], None, None).unwrap();
        let prefill = chunk as f64 / started.elapsed().as_secs_f64();
        let mut rows = vec![bits(session.logits().unwrap())];
        let started = Instant::now();
        for &id in &tokens[chunk..] {
            session.decode(id, None).unwrap();
            rows.push(bits(session.logits().unwrap()));
        }
        (
            rows,
            prefill,
            DECODED as f64 / started.elapsed().as_secs_f64(),
            model.runtime().memory_use(Memory::Kv),
        )
    };
    let (first, prefill, decode, bytes) = go_on(Session::new(&model, options(512)).unwrap());
    if long.is_some() {
        let (layers, depth, megabytes) = (model.spec().layers.len(), times * begun, bytes as f64 / 1e6);
        eprintln!(
            "{layers} layers, behind {depth} tokens: prefill of {chunk} {prefill:.1}/s, decode {decode:.2}/s, {megabytes:.1} MB"
        );
    }
    // The figures alone: the comparison takes longer than what it compares.
    if std::env::var_os("LLM_LONG_FIGURES").is_none() {
        let (second, ..) = go_on(Session::new(&model, options(48)).unwrap());
        assert!(first == second);
    }
}

const WIDTH: usize = 576;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const DIM: usize = 64;
const INNER: usize = 64;
const VOCAB: usize = 512;

/// One layer with the 135M shape's attention: what it stores depends on each token alone, so a twin can be obvious.
fn one_layer() -> Tensors {
    let mut all = Tensors::new();
    let mut add = |name: &str, shape: &[usize], around: f32, size: f32| {
        let values = noise(all.len() as u64 + 1, shape.iter().product(), around, size);
        all.insert(name.to_owned(), (shape.to_vec(), values));
    };
    let uniform = |inputs: usize| (12.0 / inputs as f32).sqrt();
    add("model.embed_tokens.weight", &[VOCAB, WIDTH], 0.0, 2.0);
    add("model.norm.weight", &[WIDTH], 1.0, 0.2);
    let mut add = |name: &str, shape: &[usize], around: f32, size: f32| {
        add(&format!("model.layers.0.{name}.weight"), shape, around, size);
    };
    add("input_layernorm", &[WIDTH], 1.0, 0.2);
    add("post_attention_layernorm", &[WIDTH], 1.0, 0.2);
    // Larger than usual, so that some tokens are looked at more than others.
    add("self_attn.q_proj", &[HEADS * DIM, WIDTH], 0.0, 2.0 * uniform(WIDTH));
    add("self_attn.k_proj", &[KV_HEADS * DIM, WIDTH], 0.0, 2.0 * uniform(WIDTH));
    add("self_attn.v_proj", &[KV_HEADS * DIM, WIDTH], 0.0, uniform(WIDTH));
    add("self_attn.o_proj", &[WIDTH, HEADS * DIM], 0.0, 40.0 * uniform(WIDTH));
    add("mlp.gate_proj", &[INNER, WIDTH], 0.0, uniform(WIDTH));
    add("mlp.up_proj", &[INNER, WIDTH], 0.0, uniform(WIDTH));
    add("mlp.down_proj", &[WIDTH, INNER], 0.0, uniform(INNER));
    all
}

fn config(kind: &str) -> Value {
    let mut config = json!({
        "model_type": "llama", "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": DIM, "intermediate_size": INNER, "vocab_size": VOCAB,
        "tie_word_embeddings": true, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "max_position_embeddings": 2048,
        "rope_scaling": { "rope_type": kind, "factor": 16, "original_max_position_embeddings": 2048,
            "low_freq_factor": 1, "high_freq_factor": 4 },
    });
    if kind == "longrope" {
        let factors = |by: f64| -> Vec<f64> { (0..DIM / 2).map(|i| 1.0 + by * i as f64).collect() };
        config["rope_scaling"]["short_factor"] = factors(0.02).into();
        config["rope_scaling"]["long_factor"] = factors(0.7).into();
    }
    config
}

/// Radians per position and the factor on cosine and sine, as the papers write them.
fn frequencies(kind: &str, length: usize) -> (Vec<f64>, f64) {
    let (theta, dim, original, factor) = (1e4f64, DIM as f64, 2048f64, 16f64);
    let turns_within =
        |turns: f64| dim * (original / (turns * std::f64::consts::TAU)).ln() / (2.0 * theta.ln());
    let (from, to) = (turns_within(32.0).floor(), turns_within(1.0).ceil());
    let each = |i: usize| {
        let plain = theta.powf(-2.0 * i as f64 / dim);
        match kind {
            "linear" => plain / factor,
            "dynamic" => {
                let growth = factor * length as f64 / original - (factor - 1.0);
                (theta * growth.powf(dim / (dim - 2.0))).powf(-2.0 * i as f64 / dim)
            }
            "llama3" => {
                let smooth = ((original * plain / std::f64::consts::TAU - 1.0) / 3.0).clamp(0.0, 1.0);
                (1.0 - smooth) * plain / factor + smooth * plain
            }
            "yarn" => {
                let ramp = ((i as f64 - from) / (to - from)).clamp(0.0, 1.0);
                plain / factor * ramp + plain * (1.0 - ramp)
            }
            "longrope" => plain / (1.0 + 0.7 * i as f64),
            other => panic!("no scaling {other}"),
        }
    };
    let factor = match kind {
        "yarn" => 0.1 * factor.ln() + 1.0,
        "longrope" => (1.0 + factor.ln() / original.ln()).sqrt(),
        _ => 1.0,
    };
    ((0..DIM / 2).map(each).collect(), factor)
}

fn product(matrix: &[f32], x: &[f64]) -> Vec<f64> {
    matrix.chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum()).collect()
}

fn rms(x: &[f64], weight: &[f32]) -> Vec<f64> {
    let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(v, &w)| v / (mean + 1e-5).sqrt() * f64::from(w)).collect()
}

/// The model in f64, one token at a time.
struct Twin<'a> {
    tensors: &'a Tensors,
    tokens: &'a [i32],
    frequencies: Vec<f64>,
    factor: f64,
    /// Query, key and value of a token of the vocabulary, before their rotation.
    projected: HashMap<i32, [Vec<f64>; 3]>,
}

impl Twin<'_> {
    fn weight(&self, name: &str) -> &[f32] {
        &self.tensors[&format!("model.layers.0.{name}.weight")].1
    }

    fn embedding(&self, id: i32) -> Vec<f64> {
        let table = &self.tensors["model.embed_tokens.weight"].1;
        table[id as usize * WIDTH..][..WIDTH].iter().map(|&v| f64::from(v)).collect()
    }

    fn project(&mut self) {
        for &id in self.tokens {
            if !self.projected.contains_key(&id) {
                let x = rms(&self.embedding(id), self.weight("input_layernorm"));
                let of = |name: &str| product(self.weight(&format!("self_attn.{name}_proj")), &x);
                self.projected.insert(id, ["q", "k", "v"].map(of));
            }
        }
    }

    fn turned(&self, head: &[f64], position: usize) -> Vec<f64> {
        let mut out = head.to_vec();
        for (i, frequency) in self.frequencies.iter().enumerate() {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            let (a, b) = (head[i], head[i + DIM / 2]);
            out[i] = (a * cos - b * sin) * self.factor;
            out[i + DIM / 2] = (b * cos + a * sin) * self.factor;
        }
        out
    }

    /// Logits behind the token at `position`, and the largest weight that attention gave to a single token.
    fn logits(&self, position: usize) -> (Vec<f64>, f64) {
        let mut joined = Vec::new();
        let mut most = 0f64;
        for head in 0..HEADS {
            let kv = head / (HEADS / KV_HEADS) * DIM..(head / (HEADS / KV_HEADS) + 1) * DIM;
            let query =
                self.turned(&self.projected[&self.tokens[position]][0][head * DIM..][..DIM], position);
            let scores: Vec<f64> = (0..=position)
                .map(|at| {
                    let key = self.turned(&self.projected[&self.tokens[at]][1][kv.clone()], at);
                    query.iter().zip(&key).map(|(q, k)| q * k).sum::<f64>() / (DIM as f64).sqrt()
                })
                .collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
            let mut out = vec![0f64; DIM];
            for (at, score) in scores.iter().enumerate() {
                let weight = (score - largest).exp() / sum;
                most = most.max(weight);
                let value = &self.projected[&self.tokens[at]][2][kv.clone()];
                out.iter_mut().zip(value).for_each(|(out, value)| *out += weight * value);
            }
            joined.extend(out);
        }
        let mut x = self.embedding(self.tokens[position]);
        let add = |x: &mut Vec<f64>, y: Vec<f64>| x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        add(&mut x, product(self.weight("self_attn.o_proj"), &joined));
        let normed = rms(&x, self.weight("post_attention_layernorm"));
        let up = product(self.weight("mlp.up_proj"), &normed);
        let gate = product(self.weight("mlp.gate_proj"), &normed);
        let inner: Vec<f64> =
            gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
        add(&mut x, product(self.weight("mlp.down_proj"), &inner));
        let x = rms(&x, &self.tensors["model.norm.weight"].1);
        (product(&self.tensors["model.embed_tokens.weight"].1, &x), most)
    }
}

#[test]
fn attention_over_a_long_sequence_is_its_f64_twin_under_every_scaling() {
    let length = long().unwrap_or(4096);
    let tensors = one_layer();
    let place = tempfile::tempdir().unwrap();
    let tokens = ids(length, VOCAB);
    // Before and behind the original context, and where the sequence ends.
    let at = [100, 2047, 2048, length / 2 + 700, length - 1];
    for scaling in scalings() {
        let dir = place.path().join(scaling);
        write(&dir, &tensors, &config(scaling));
        let model = support::model(&runtime(2, None), &dir, Type::F32);
        let options = SessionOptions { max_tokens: length, kv: KvType::F32, ..Default::default() };
        let mut session = Session::new(&model, options).unwrap();
        let mut rows = Vec::new();
        let asked = Asked { at: Some(&at), logits: true };
        session
            .prefill_outputs(&tokens, asked, None, None, &mut |output| {
                rows.push(output.logits.to_vec());
                Ok(())
            })
            .unwrap();
        let (frequencies, factor) = frequencies(scaling, length);
        let mut twin =
            Twin { tensors: &tensors, tokens: &tokens, frequencies, factor, projected: HashMap::new() };
        twin.project();
        for (position, row) in at.into_iter().zip(rows) {
            let (expected, most) = twin.logits(position);
            let off = row.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
            let size = expected.iter().map(|v| v.abs()).fold(0.0, f64::max);
            assert!(off < 2e-4 * size, "{scaling} at {position}: {off} of {size}");
            assert!(most > 4.0 / position as f64, "{scaling} at {position}: nothing is looked at: {most}");
        }
    }
}
