//! A converted checkpoint gives its reference's numbers through the command, however the work is cut up.

mod common;

use std::path::{Path, PathBuf};

use common::{ids, json, names, ok, p, refused, run_on};
use llm::model::{Model, OpenOptions};
use llm::runtime::{Runtime, RuntimeOptions};
use llm::session::{Session, SessionOptions};
use llm::tokenizer::EncodeOptions;
use llm_testdata::shared;
use safetensors::SafeTensors;
use serde_json::Value;

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The reference checkpoint, converted in f32 to a file in `scratch`, and where it came from.
fn reference(scratch: &Path) -> Option<(PathBuf, PathBuf)> {
    let source = shared("reference/llama_untied")?;
    let file = scratch.join("model.llm");
    let said = ok(&["convert", p(&source), "-o", p(&file), "--type", "f32"]);
    assert!(said.starts_with(p(&file)) && said.contains("llama f32"), "{said}");
    Some((source, file))
}

#[test]
fn logits_and_greedy_ids_are_the_references() {
    let scratch = tempfile::tempdir().unwrap();
    let Some((source, file)) = reference(scratch.path()) else { return };
    let facts = read_json(&source.join("reference.json"));
    let stored = std::fs::read(source.join("reference.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&stored).unwrap();
    let words = |name: &str| -> Vec<[u8; 4]> {
        stored.tensor(name).unwrap().data().chunks(4).map(|b| b.try_into().unwrap()).collect()
    };
    let (prompt, out) = (scratch.path().join("ids.json"), scratch.path().join("logits.safetensors"));
    for run in ["short", "long"] {
        let prompt_ids: Vec<i32> =
            words(&format!("{run}.input_ids")).into_iter().map(i32::from_le_bytes).collect();
        std::fs::write(&prompt, serde_json::to_string(&prompt_ids).unwrap()).unwrap();
        let fact = &facts["runs"][run];

        ok(&["logits", "-m", p(&file), "--tokens-file", p(&prompt), "-o", p(&out), "-t", "2"]);
        let written = std::fs::read(&out).unwrap();
        let written = SafeTensors::deserialize(&written).unwrap();
        assert_eq!(written.names(), ["logits"]);
        let tensor = written.tensor("logits").unwrap();
        assert_eq!(tensor.dtype(), safetensors::Dtype::F32);
        assert_eq!(tensor.shape(), [prompt_ids.len(), facts["vocab_size"].as_u64().unwrap() as usize]);
        let exact = words(&format!("{run}.logits_exact"));
        assert_eq!(tensor.data().len(), exact.len() * 4);
        let differences = tensor.data().chunks(4).zip(exact).map(|(got, exact)| {
            f64::from(f32::from_le_bytes(got.try_into().unwrap()) - f32::from_le_bytes(exact)).abs()
        });
        let max = differences.clone().fold(0.0, f64::max);
        let rms = (differences.map(|d| d * d).sum::<f64>() / (tensor.data().len() / 4) as f64).sqrt();
        let within = |name: &str, got: f64| got <= fact["tolerance"][name].as_f64().unwrap();
        assert!(within("max_abs", max) && within("rms", rms), "{run}: max {max:e}, rms {rms:e}");

        let cuts: [&[&str]; 4] = [
            &["-t", "1"],
            &["-t", "2"],
            &["-t", "2", "--chunk", "7"],
            &["-t", "1", "--page", "16", "--kv", "f32"],
        ];
        for cut in cuts {
            let fixed = ["generate", "-m", p(&file), "--tokens-file", p(&prompt), "-n", "48"];
            let report = json(&[&fixed[..], &["--json", "--ignore-eos"], cut].concat());
            assert_eq!(report["ids"], fact["greedy"], "{run}, {cut:?}");
            assert_eq!(report["prompt_tokens"], prompt_ids.len());
            assert_eq!(report["reason"], "Length");
        }
    }
    let mut left = names(scratch.path());
    left.sort();
    assert_eq!(left, ["ids.json", "logits.safetensors", "model.llm"]);
}

#[test]
fn rotary_scaling_by_the_length_so_far_gives_the_cached_greedy_ids() {
    let Some(source) = shared("reference/llama_rope_dynamic") else { return };
    let scratch = tempfile::tempdir().unwrap();
    let (file, prompt) = (scratch.path().join("model.llm"), scratch.path().join("ids.json"));
    ok(&["convert", p(&source), "-o", p(&file), "--type", "f32"]);
    let stored = std::fs::read(source.join("reference.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&stored).unwrap();
    let ints = |name: &str| -> Vec<i32> {
        let words = stored.tensor(name).unwrap().data().chunks(4);
        words.map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    for run in ["short", "long"] {
        let prompt_ids = ints(&format!("{run}.input_ids"));
        std::fs::write(&prompt, serde_json::to_string(&prompt_ids).unwrap()).unwrap();
        let fixed =
            ["generate", "-m", p(&file), "--tokens-file", p(&prompt), "-n", "48", "--rope", "running"];
        let report = json(&[&fixed[..], &["--json", "--ignore-eos"]].concat());
        assert_eq!(ids(&report["ids"]), ints(&format!("{run}.greedy_cached")), "{run}");
    }
}

#[test]
fn ids_outside_the_vocabulary_and_broken_id_files_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let Some((_, file)) = reference(scratch.path()) else { return };
    let (prompt, out) = (scratch.path().join("ids.json"), scratch.path().join("logits.safetensors"));
    for (text, want) in [
        ("[1, 320]", "320"),
        ("[-1]", "-1"),
        ("[]", "no tokens"),
        ("{}", "expected a JSON array"),
        ("[1, 2", "ids.json"),
        ("[1.5]", "ids.json"),
    ] {
        std::fs::write(&prompt, text).unwrap();
        let said = refused(&["generate", "-m", p(&file), "--tokens-file", p(&prompt)]);
        assert!(said.contains(want), "{text}: {said}");
        let said = refused(&["logits", "-m", p(&file), "--tokens-file", p(&prompt), "-o", p(&out)]);
        assert!(said.contains(want), "{text}: {said}");
        assert!(!out.exists(), "{text}");
    }
    // A file without a tokenizer says so where a text is given.
    let said = refused(&["generate", "-m", p(&file), "-p", "text"]);
    assert!(said.contains("no tokenizer") && said.contains("ids"), "{said}");
}

#[test]
fn inspect_shows_what_the_file_holds_and_verify_checks_it() {
    let scratch = tempfile::tempdir().unwrap();
    let Some((source, file)) = reference(scratch.path()) else { return };
    let facts = read_json(&source.join("reference.json"));
    let bytes = std::fs::read(&file).unwrap();

    let report = json(&["inspect", p(&file), "--json"]);
    assert_eq!(report["bytes"], bytes.len());
    assert_eq!(report["weights"], facts["parameters"]);
    assert!(report["metadata"]["model"].is_object(), "{report}");
    assert_eq!(report["identity"].as_str().unwrap().len(), 64);
    let tensors = report["tensors"].as_array().unwrap();
    let held: u64 = tensors.iter().map(|t| t["bytes"].as_u64().unwrap()).sum();
    assert_eq!(report["bits_per_weight"], 8.0 * held as f64 / facts["parameters"].as_f64().unwrap());

    let listed = ok(&["inspect", p(&file), "--tensors"]);
    for tensor in tensors {
        let name = tensor["name"].as_str().unwrap();
        assert!(listed.lines().any(|line| line.ends_with(&format!("  {name}"))), "{name}: {listed}");
    }
    assert!(listed.starts_with(p(&file)), "{listed}");
    let short = ok(&["inspect", p(&file)]);
    assert_eq!(short.lines().count() + tensors.len(), listed.lines().count());

    assert!(ok(&["verify", p(&file)]).starts_with(p(&file)));
    let damaged = scratch.path().join("damaged.llm");
    let first = tensors.iter().map(|t| t["offset"].as_u64().unwrap() as usize).min().unwrap();
    for at in [first, bytes.len() / 2, 64] {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        std::fs::write(&damaged, bytes).unwrap();
        let said = refused(&["verify", p(&damaged)]);
        assert!(said.contains(p(&damaged)), "{at}: {said}");
    }
}

#[test]
fn bench_reports_speed_and_memory() {
    let scratch = tempfile::tempdir().unwrap();
    let Some((_, file)) = reference(scratch.path()) else { return };
    let work = ["-p", "16", "-n", "4", "-d", "8", "-r", "2", "-t", "1"];
    let report = json(&[&["bench", "-m", p(&file), "--json"], &work[..]].concat());
    assert_eq!(report["file_bytes"], std::fs::metadata(&file).unwrap().len());
    assert_eq!(report["threads"], 1);
    for speed in ["prefill_tokens_per_second", "decode_tokens_per_second", "read_bytes_per_second"] {
        let part = |name: &str| report[speed][name].as_f64().unwrap();
        assert!(0.0 < part("min") && part("min") <= part("median") && part("median") <= part("max"));
    }
    assert!(report["anonymous_bytes_after_first_token"]["median"].as_f64().unwrap() > 0.0, "{report}");
    let table = ok(&[&["bench", "-m", p(&file)], &work[..]].concat());
    assert!(table.contains("prefill 16") && table.contains("decode 4"), "{table}");
    let several = json(&[&["bench", "-m", p(&file), "--json", "-b", "3"], &work[..]].concat());
    assert_eq!((&report["batch"], &several["batch"]), (&1.into(), &3.into()));
    assert!(several["decode_tokens_per_second"]["min"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_trained_model_tells_the_published_story() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(source) = common::stories(scratch.path()) else { return };
    let facts = read_json(&shared("data/weights/stories260K/reference.json").unwrap());
    let file = scratch.path().join("stories.llm");
    ok(&["convert", p(&source), "-o", p(&file), "--type", "f32"]);

    let prompt = &facts["prompts"][0];
    let text = prompt["text"].as_str().unwrap();
    let line = format!("{}\n", prompt["text"]);
    let ran = common::run_on(&line, &["tokenize", "-m", p(&file), "--jsonl"]);
    assert_eq!(ids(&serde_json::from_str(&ran.out).unwrap()), ids(&prompt["ids"]));

    let story = ids(&facts["greedy"]["ids"]);
    let held = ids(&prompt["ids"]).len();
    assert_eq!(story[..held], ids(&prompt["ids"]));
    let count = (story.len() - held).to_string();
    let report = json(&["generate", "-m", p(&file), "-p", text, "-n", &count, "--ignore-eos", "--json"]);
    assert_eq!(ids(&report["ids"]), story[held..]);
    let told = format!("{text}{}", report["text"].as_str().unwrap());
    assert_eq!(told, facts["greedy"]["text"].as_str().unwrap());
    // Without --json: the text alone, with a line end; up to a stop text where one is given.
    let plain = ok(&["generate", "-m", p(&file), "-p", text, "-n", &count, "--ignore-eos"]);
    assert_eq!(plain, format!("{}\n", report["text"].as_str().unwrap()));
    let stopped = ok(&["generate", "-m", p(&file), "-p", text, "-n", &count, "--stop", "Lily"]);
    assert_eq!(stopped, format!("{}\n", plain.split("Lily").next().unwrap()));
    // The same seed gives the same text; another gives another.
    let sampled = |seed| {
        let fixed = ["generate", "-m", p(&file), "-p", text, "-n", "64", "--temperature", "1", "--seed"];
        ok(&[&fixed[..], &[seed]].concat())
    };
    assert_eq!(sampled("7"), sampled("7"));
    assert_ne!(sampled("7"), sampled("8"));
}

#[test]
fn generated_texts_follow_what_they_are_held_to() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(source) = common::stories(scratch.path()) else { return };
    let stories = scratch.path().join("stories.llm");
    ok(&["convert", p(&source), "-o", p(&stories), "--type", "f32"]);
    let model = p(&stories);
    let file = scratch.path().join("schema.json");
    let schema = serde_json::json!({ "enum": [{ "a": [1, 2] }, { "a": [3] }] });
    std::fs::write(&file, schema.to_string()).unwrap();
    let held = |more: &[&str]| ok(&[&["generate", "-m", model, "-p", "Once"][..], more].concat());
    let told: Value = serde_json::from_str(&held(&["--schema", p(&file)])).unwrap();
    assert!(schema["enum"].as_array().unwrap().contains(&told), "{told}");
    assert!(["x-1\n", "x-2\n"].contains(&held(&["--regex", "x-[12]"]).as_str()));
    assert!(["left\n", "right\n"].contains(&held(&["--choice", "left", "--choice", "right"]).as_str()));
    std::fs::write(&file, "start: \"ab\" \"c\"\n").unwrap();
    assert_eq!(held(&["--lark", p(&file), "--chain", "top_k=5;temperature=0.7"]), "abc\n");
    std::fs::write(&file, "{\"uniqueItems\": true}").unwrap();
    let wrong = common::run(&["generate", "-m", model, "-p", "Once", "--schema", p(&file)]);
    assert_eq!(wrong.status, Some(1));
    assert!(wrong.err.contains("/uniqueItems"), "{}", wrong.err);
}

#[test]
fn perplexity_is_that_of_token_after_token() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(source) = common::stories(scratch.path()) else { return };
    let text = shared("data/text/tinystories-sample.txt").unwrap();
    let file = scratch.path().join("stories.llm");
    ok(&["convert", p(&source), "-o", p(&file), "--type", "f32"]);

    let runtime = Runtime::new(RuntimeOptions { threads: 1, ..RuntimeOptions::default() }).unwrap();
    let model = Model::open_path(&runtime, &file, &OpenOptions::default(), None).unwrap();
    let options = EncodeOptions { add_special: true, parse_special: false };
    let text_ids =
        model.tokenizer().unwrap().encode(&std::fs::read_to_string(&text).unwrap(), options).unwrap();
    // Every token but the first is predicted once, from what is before it in its window.
    let slow = |window: usize, stride: usize| {
        let (mut nats, mut scored, mut begin) = (0.0, 1, 0);
        while scored < text_ids.len() {
            let end = (begin + window).min(text_ids.len());
            let options = SessionOptions { max_tokens: window, ..SessionOptions::default() };
            let mut session = Session::new(&model, options).unwrap();
            for at in begin..end - 1 {
                session.decode(text_ids[at], None).unwrap();
                if at + 1 >= scored {
                    let row = session.logits().unwrap();
                    let sum: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
                    nats += sum.ln() - f64::from(row[text_ids[at + 1] as usize]);
                }
            }
            (scored, begin) = (end, (begin + stride).min(end - 1));
        }
        nats / (text_ids.len() - 1) as f64
    };
    for (window, stride) in [(512, 512), (200, 100)] {
        let (w, s) = (window.to_string(), stride.to_string());
        let measure = |threads: &str| {
            let fixed = ["perplexity", "-m", p(&file), "--file", p(&text), "--json", "-c", &w];
            json(&[&fixed[..], &["--stride", &s, "-t", threads]].concat())
        };
        let report = measure("1");
        assert_eq!(report, measure("2"));
        assert_eq!(report["tokens"], text_ids.len() - 1);
        assert_eq!((&report["window"], &report["stride"]), (&window.into(), &stride.into()));
        let (got, want) = (report["nats_per_token"].as_f64().unwrap(), slow(window, stride));
        assert!((got - want).abs() < 1e-6, "{window}, {stride}: {got}, expected {want}");
        assert!((report["perplexity"].as_f64().unwrap() - want.exp()).abs() < 1e-4);
    }
    let said = refused(&["perplexity", "-m", p(&file), "--file", p(&text), "-c", "8", "--stride", "9"]);
    assert!(said.contains("--stride 9"), "{said}");
}

#[test]
fn scores_add_up_and_vectors_tell_texts_apart() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(source) = common::stories(scratch.path()) else { return };
    let file = scratch.path().join("stories.llm");
    ok(&["convert", p(&source), "-o", p(&file), "--type", "f32"]);
    let texts = ["--text", " a time", "--text", " banana zebra"];
    let score =
        |more: &[&str]| ok(&[&["score", "-m", p(&file), "-p", "Once upon"], &texts[..], more].concat());
    let told = score(&["--json", "--top", "2"]);
    let reports: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let total = |report: &Value| report["log_probability"].as_f64().unwrap();
    assert!(total(&reports[0]) > -1.0 && total(&reports[1]) < -10.0, "{told}");
    for report in &reports {
        let each = report["log_probabilities"].as_array().unwrap();
        let sum: f64 = each.iter().map(|p| p.as_f64().unwrap()).sum();
        assert!((sum - total(report)).abs() < 1e-4, "{report}");
        assert_eq!(each.len(), report["top"].as_array().unwrap().len());
        assert_eq!(report["pieces"].as_array().unwrap().len(), each.len());
    }
    assert_eq!(reports[0]["top"][0][0]["id"], reports[0]["ids"][0], "{told}");
    assert!(score(&[]).lines().next().unwrap().ends_with("\" a time\""));
    // The ids are the last ones of the whole text, and without a space the word before goes on.
    let whole = run_on("\"Once upon a time\"\n", &["tokenize", "-m", p(&file)]);
    let whole: Value = serde_json::from_str(&whole.out).unwrap();
    let (whole, ids) = (whole.as_array().unwrap(), reports[0]["ids"].as_array().unwrap());
    assert!(whole.ends_with(ids) && ids.len() < whole.len(), "{whole:?} {ids:?}");
    let within = ok(&["score", "-m", p(&file), "-p", "Once up", "--text", "on a time", "--json"]);
    let within: Value = serde_json::from_str(&within).unwrap();
    assert!(total(&within) > -2.0, "{within}");

    let lines = "Once upon a time\nThe dog ran.\nOnce upon a time\n";
    let ran = run_on(lines, &["embed", "-m", p(&file), "--file", "-"]);
    let vectors: Vec<Vec<f64>> = ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    assert_eq!((vectors.len(), &vectors[0]), (3, &vectors[2]), "{ran:?}");
    assert!((dot(&vectors[0], &vectors[0]) - 1.0).abs() < 1e-6);
    assert!(dot(&vectors[0], &vectors[1]) < 0.99);
    let said = refused(&["embed", "-m", p(&file), "-p", "x", "-c", "1"]);
    assert!(said.contains("max_tokens"), "{said}");
}

#[test]
fn a_drawn_seed_is_told_and_gives_the_text_again() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(source) = common::stories(scratch.path()) else { return };
    let file = scratch.path().join("stories.llm");
    ok(&["convert", p(&source), "-o", p(&file), "--type", "f32"]);
    let generate = ["generate", "-m", p(&file), "-p", "Once", "-n", "24"];
    for sampled in [["--temperature", "1.2"], ["--chain", "top_k=50;temperature=1.2"]] {
        let ran = common::run(&[&generate[..], &sampled].concat());
        let seed = ran.err.strip_prefix("seed ").unwrap_or_else(|| panic!("{ran:?}")).trim();
        assert_eq!(ok(&[&generate[..], &sampled, &["--seed", seed]].concat()), ran.out);
    }
    // Nothing depends on it.
    assert_eq!(common::run(&[&generate[..], &["--chain", "top_k=50"]].concat()).err, "");
}

#[test]
fn several_continuations_are_those_of_their_seeds() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(source) = common::stories(scratch.path()) else { return };
    let file = scratch.path().join("stories.llm");
    ok(&["convert", p(&source), "-o", p(&file), "--type", "f32"]);
    let generate = |more: &[&str]| {
        let fixed =
            ["generate", "-m", p(&file), "-p", "Once upon a time", "-n", "20", "--temperature", "0.9"];
        json(&[&fixed[..], &["--json", "--page", "16"], more].concat())
    };
    let short = ["-c", "16", "--keep", "2", "--overflow"];
    for more in [vec![], [&short[..], &["recompute"]].concat(), [&short[..], &["shift"]].concat()] {
        let together = generate(&[&more[..], &["--seed", "41", "--count", "3"]].concat());
        let all = together["continuations"].as_array().unwrap();
        assert_eq!(all.len(), 3);
        for (i, one) in all.iter().enumerate() {
            let alone = generate(&[&more[..], &["--seed", &(41 + i).to_string()]].concat());
            assert_eq!((&one["ids"], &one["text"]), (&alone["ids"], &alone["text"]), "{more:?}: {one}");
            assert_eq!(one["reason"], "Length");
            assert_eq!(alone["dropped_tokens"] == 0, more.is_empty());
        }
        assert_ne!(all[0]["text"], all[1]["text"]);
    }
}

#[test]
fn an_adapter_changes_what_is_generated_by_its_scale() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(source) = common::stories(scratch.path()) else { return };
    let at = |name: &str| scratch.path().join(name);
    let (file, peft, adapter) = (at("stories.llm"), at("peft"), at("adapter.llm"));
    ok(&["convert", p(&source), "-o", p(&file), "--type", "f32"]);
    std::fs::create_dir(&peft).unwrap();
    let config = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"}"#;
    std::fs::write(peft.join("adapter_config.json"), config).unwrap();
    let numbers = |n: usize| {
        (0..n).flat_map(|i| ((i * 37 % 19) as f32 / 19.0 - 0.5).to_le_bytes()).collect::<Vec<u8>>()
    };
    let width = read_json(&source.join("config.json"))["hidden_size"].as_u64().unwrap() as usize;
    let (a, b) = (numbers(2 * width), numbers(width * 2));
    let module = "base_model.model.model.layers.2.self_attn.o_proj";
    let view = |shape: [usize; 2], data| {
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.into(), data)
    };
    let tensors = [
        (format!("{module}.lora_A.weight"), view([2, width], &a).unwrap()),
        (format!("{module}.lora_B.weight"), view([width, 2], &b).unwrap()),
    ];
    std::fs::write(peft.join("adapter_model.safetensors"), safetensors::serialize(tensors, None).unwrap())
        .unwrap();
    assert!(refused(&["convert", p(&peft), "-o", p(&adapter)]).contains("--base"));
    let convert = ["convert", p(&peft), "--base", p(&file), "-o"];
    let said = refused(&[&convert[..], &[p(&adapter), "--type", "q8"]].concat());
    assert!(said.contains("--type") && !adapter.exists(), "{said}");
    let before = std::fs::read(&file).unwrap();
    let said = refused(&[&convert[..], &[p(&file)]].concat());
    assert!(said.contains("another name") && std::fs::read(&file).unwrap() == before, "{said}");
    let said = ok(&["convert", p(&peft), "-o", p(&adapter), "--base", p(&file)]);
    assert!(said.contains("1 matrices, rank 2"), "{said}");
    let generate =
        |more: &[&str]| ok(&[&["generate", "-m", p(&file), "-p", "Once", "-n", "20"], more].concat());
    let (plain, scaled) = (generate(&[]), |scale: &str| format!("{}:{scale}", p(&adapter)));
    assert_eq!(generate(&["--adapter", &scaled("0")]), plain);
    assert_ne!(generate(&["--adapter", &scaled("50")]), plain);
    assert_eq!(generate(&["--adapter", &scaled("1.0")]), generate(&["--adapter", p(&adapter)]));
    assert!(refused(&["generate", "-m", p(&adapter), "-p", "x"]).contains("adapter"));
}

#[test]
fn importance_of_a_text_goes_into_a_conversion_of_its_own_model_only() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(source) = common::stories(scratch.path()) else { return };
    let at = |name: &str| scratch.path().join(name);
    let (model, file) = (at("f32.llm"), at("importance.safetensors"));
    let text = shared("data/text/tinystories-sample.txt").unwrap();
    ok(&["convert", p(&source), "-o", p(&model), "--type", "f32"]);
    let said = ok(&["importance", "-m", p(&model), "--file", p(&text), "-o", p(&file)]);
    assert!(said.contains("36 tensors over"), "{said}");
    let stored = std::fs::read(&file).unwrap();
    let down = SafeTensors::deserialize(&stored).unwrap();
    assert_eq!(down.tensor("model.layers.4.mlp.down_proj.weight").unwrap().shape(), [172]);

    let (plain, weighed) = (at("plain.llm"), at("weighed.llm"));
    ok(&["convert", p(&source), "-o", p(&plain), "--type", "q3"]);
    ok(&["convert", p(&source), "-o", p(&weighed), "--type", "q3", "--importance", p(&file)]);
    let (plain, weighed) = (std::fs::read(plain).unwrap(), std::fs::read(weighed).unwrap());
    assert!(plain.len() == weighed.len() && plain != weighed);

    let Some(other) = shared("reference/llama_untied") else { return };
    let out = at("other.llm");
    let said = refused(&["convert", p(&other), "-o", p(&out), "--importance", p(&file)]);
    assert!(said.contains("another model") && said.contains(p(&file)) && !out.exists(), "{said}");
}
