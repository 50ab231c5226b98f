//! Damaged files: every truncation and bit flip of our own is refused or harmless, and never a panic.

mod support;

use llm::mmap::Bytes;
use llm::model::{Load, Model, OpenOptions, Verify};
use llm::runtime::Runtime;
use llm::session::{Session, SessionOptions};
use llm::{Result, Status};
use llm_format::quant::Type;
use support::{Reference, converted, runtime};

/// Opens `bytes`, and runs three tokens if that succeeds.
fn use_it(runtime: &Runtime, bytes: Vec<u8>, verify: Verify) -> Result<()> {
    let options = OpenOptions { verify, ..Default::default() };
    let model = Model::open_memory(runtime, Bytes::from(bytes), &options, None)?;
    let _ = model.info();
    let _ = model.tokenizer();
    let mut session = Session::new(&model, SessionOptions { max_tokens: 16, ..Default::default() })?;
    session.prefill(&[1, 2, 3], None, None)
}

/// Small references of every kind of block.
fn files() -> Vec<(String, Vec<u8>)> {
    let kinds = ["llama_tied", "gpt2", "deepseek_v3", "gpt_oss", "llama_rope_yarn"];
    let wanted = Reference::all().into_iter().filter(|r| kinds.contains(&r.name.as_str()));
    let convert = |reference: Reference| {
        let (_place, path) = converted(&reference.dir, Type::Q4);
        (reference.name, std::fs::read(path).unwrap())
    };
    wanted.map(convert).collect()
}

#[test]
fn truncated_files_are_refused() {
    let runtime = runtime(1, None);
    for (name, bytes) in files() {
        use_it(&runtime, bytes.clone(), Verify::Full).unwrap_or_else(|e| panic!("{name}: {e}"));
        for len in (0..4096).step_by(61).chain((4096..bytes.len()).step_by(bytes.len() / 40)) {
            let error = use_it(&runtime, bytes[..len].to_vec(), Verify::Header).unwrap_err();
            assert_eq!(error.status(), Status::BAD_FORMAT, "{name} cut to {len}: {error}");
        }
    }
}

#[test]
fn memory_of_no_bytes_is_refused_in_every_load_mode() {
    let runtime = runtime(1, None);
    for load in [Load::Map, Load::Copy, Load::MapAndLock] {
        let options = OpenOptions { load, ..Default::default() };
        let error = Model::open_memory(&runtime, Bytes::from(Vec::<u8>::new()), &options, None).unwrap_err();
        assert_eq!(error.status(), Status::BAD_FORMAT, "{load:?}: {error}");
    }
}

#[test]
fn flipped_bits_are_refused_or_do_no_harm() {
    let runtime = runtime(1, None);
    for (name, bytes) in files() {
        // Header, metadata and tensor table lie in front; further back every 7919th byte is enough.
        let places = (0..12_000.min(bytes.len())).step_by(17).chain((12_000..bytes.len()).step_by(7919));
        for (i, place) in places.enumerate() {
            let mut bytes = bytes.clone();
            bytes[place] ^= 1 << (i % 8);
            // Whatever it answers; with all checks it must see the damage.
            let unchecked = use_it(&runtime, bytes.clone(), Verify::Header);
            if let Err(e) = &unchecked {
                assert_ne!(e.status(), Status::INTERNAL, "{name} byte {place}: {e}");
            }
            if i % 16 == 0 {
                assert!(use_it(&runtime, bytes, Verify::Full).is_err(), "{name} byte {place}");
            }
        }
    }
}

#[test]
fn metadata_that_lies_is_refused() {
    let runtime = runtime(1, None);
    let lies = [
        ("/model/vocab", "4294967295"),
        ("/model/width", "0"),
        ("/model/width", "16777216"),
        ("/model/context", "0"),
        ("/model/layers", "[]"),
        ("/model/ropes", "[]"),
        ("/model/tied", "\"yes\""),
        ("/model/architecture", "\"perceptron\""),
        ("/model/final_norm/eps", "-1"),
        ("/model/layers/0/attention/heads/heads", "7"),
        ("/model/layers/0/attention/heads/head_dim", "4096"),
        ("/model/layers/0/attention/heads/rope", "9"),
        ("/model/layers/0/attention/heads/qkv_bias", "true"),
        ("/model", "null"),
    ];
    let Some((_, bytes)) = files().into_iter().find(|(name, _)| name == "llama_tied") else { return };
    let file = llm_format::File::parse(&bytes).unwrap();
    let plan: Vec<_> = file
        .tensors()
        .iter()
        .map(|t| llm_format::TensorPlan { name: t.name.clone(), ty: t.ty, shape: t.shape.clone() })
        .collect();
    let rewritten = |change: Option<(&str, &str)>| {
        let mut metadata = serde_json::Value::Object(file.metadata().clone());
        if let Some((at, lie)) = change {
            let place = metadata.pointer_mut(at).unwrap_or_else(|| panic!("{at} is not in the metadata"));
            *place = serde_json::from_str(lie).unwrap();
        }
        let out = std::io::Cursor::new(Vec::new());
        let mut writer =
            llm_format::Writer::new(out, metadata.as_object().unwrap(), Vec::new(), &plan).unwrap();
        for (i, tensor) in file.tensors().iter().enumerate() {
            writer.append(i, file.data(tensor)).unwrap();
        }
        writer.complete().unwrap().0.into_inner()
    };
    use_it(&runtime, rewritten(None), Verify::Full).unwrap();
    for lie in lies {
        let error = use_it(&runtime, rewritten(Some(lie)), Verify::Full).expect_err(lie.0);
        let expected = [Status::BAD_FORMAT, Status::UNSUPPORTED];
        assert!(expected.contains(&error.status()), "{lie:?}: {:?} {error}", error.status());
    }
}
