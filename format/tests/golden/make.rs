//! Makes the golden files: those that must open, with what they decode to, and those that must be refused, with the
//! reason. Every byte is decided here, so that they can be made again and compared.

use llm_format::{
    File, Index, NewSection, Section, TensorPlan, Writer, header, kind, quant, quant::Type, tokens,
};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::io::Cursor;

/// A file: its path under `golden/` and its bytes.
pub type Golden = (String, Vec<u8>);

/// What a file in `bad/` must be refused with.
#[derive(Serialize, serde::Deserialize)]
pub struct Refusal {
    /// `parse` or, for damage that only reading everything shows, `verify`.
    pub by: String,
    /// Name of the error's kind.
    pub kind: String,
    /// A part of the message.
    pub message: String,
}

/// What a file in `ok/` holds.
#[derive(Serialize)]
struct Contents<'a> {
    identity: String,
    metadata: &'a Map<String, Value>,
    sections: Vec<Value>,
    tensors: Vec<Decoded<'a>>,
}

/// A decoded tensor: `values` row-major without padding. For integer types also the bytes as they multiply:
/// `int8[row][k]`, and `scales[row][k / 256]`.
#[derive(Serialize)]
struct Decoded<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    ty: &'static str,
    shape: &'a [u64],
    values: Vec<f32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    int8: Vec<Vec<i8>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    scales: Vec<Vec<f32>>,
}

/// All golden files.
pub fn all() -> Vec<Golden> {
    let mut out = ok();
    out.extend(bad());
    out
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

/// Numbers that look like weights: a sum of four uniform ones out of a linear congruential generator, no libm.
fn weights(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 16_777_216.0 - 0.5
    };
    (0..count).map(|_| ((uniform() + uniform()) + (uniform() + uniform())) * 0.0625).collect()
}

fn write(metadata: Value, sections: Vec<NewSection>, tensors: &[(&str, Type, &[u64])]) -> Vec<u8> {
    let plan: Vec<TensorPlan> = tensors
        .iter()
        .map(|(name, ty, shape)| TensorPlan { name: (*name).into(), ty: *ty, shape: shape.to_vec() })
        .collect();
    let out = Cursor::new(Vec::new());
    let mut writer =
        Writer::new(out, &object(metadata), sections, &plan).expect("a plan that can be written");
    for (index, (_, _, shape)) in tensors.iter().enumerate() {
        let values = weights(shape.iter().product::<u64>() as usize, 1 + index as u64);
        writer.append_values(index, &values).expect("writing to memory");
    }
    writer.complete().expect("a complete file").0.into_inner()
}

/// A byte-level vocabulary of three letters, one merge and an end token.
fn tokenizer() -> NewSection {
    let token = |text: &str, flags| tokens::Token { bytes: text.into(), flags, score: 0.0 };
    let plain = tokens::flag::PRESENT | tokens::flag::INDEXED;
    let end = plain | tokens::flag::SPECIAL | tokens::flag::ADDED | tokens::flag::END;
    let mut tables = tokens::Tables {
        settings: tokens::setting::BYTE_LEVEL,
        tokens: vec![token("a", plain), token("b", plain), token("ab", plain), token("<end>", end)],
        merges: vec![tokens::Merge { left: 0, right: 1, rank: 0, merged: 2 }],
        special: [None, Some(3), None, None],
        added: vec![tokens::Added {
            id: 3,
            content: b"<end>".to_vec(),
            pattern: b"<end>".to_vec(),
            normalized: false,
            flags: tokens::added::SPECIAL,
        }],
        ..tokens::Tables::default()
    };
    tables.byte_ids[usize::from(b'a')] = 0;
    tables.byte_ids[usize::from(b'b')] = 1;
    NewSection { kind: kind::TOKENIZER, required: false, data: tables.encode().expect("small tables") }
}

/// A file of a later minor version, with an optional section of a kind that is not known.
fn newer() -> Vec<u8> {
    let section = NewSection { kind: 0x4321, required: false, data: b"added by a later version".to_vec() };
    let mut bytes = write(json!({ "name": "newer-minor" }), vec![section], &[("w", Type::Q8, &[2, 40])]);
    put(&mut bytes, 10, &9u16.to_le_bytes());
    header::seal(&mut bytes);
    bytes
}

fn ok() -> Vec<Golden> {
    let unknown =
        NewSection { kind: 0x1234, required: false, data: b"skipped by who does not know it".to_vec() };
    let named = |name: &str| json!({ "name": name });
    let files = [
        ("empty", write(json!({}), vec![], &[])),
        ("vector", write(named("vector"), vec![], &[("v", Type::F32, &[5])])),
        ("f32", write(named("f32"), vec![], &[("w", Type::F32, &[3, 100])])),
        ("f16", write(named("f16"), vec![], &[("w", Type::F16, &[33, 7])])),
        ("bf16", write(named("bf16"), vec![], &[("w", Type::Bf16, &[2, 130])])),
        ("newer-minor", newer()),
        ("q8", write(named("q8"), vec![], &[("w", Type::Q8, &[2, 300])])),
        ("q8-rows", write(named("q8-rows"), vec![], &[("w", Type::Q8, &[33, 3])])),
        ("q6", write(named("q6"), vec![], &[("w", Type::Q6, &[2, 300])])),
        ("q5", write(named("q5"), vec![], &[("w", Type::Q5, &[2, 300])])),
        ("q3", write(named("q3"), vec![], &[("w", Type::Q3, &[2, 300])])),
        ("q2", write(named("q2"), vec![], &[("w", Type::Q2, &[2, 300])])),
        ("q4", write(named("q4"), vec![], &[("w", Type::Q4, &[3, 300])])),
        ("q4-experts", write(named("q4-experts"), vec![], &[("w", Type::Q4, &[2, 2, 129])])),
        (
            "sections",
            write(
                json!({ "name": "sections", "tokenizer": { "kind": "bpe" }, "text": "\u{e9}\u{1f600}" }),
                vec![unknown, tokenizer()],
                &[
                    ("z.weight", Type::Q4, &[1, 1]),
                    ("a.bias", Type::F32, &[1]),
                    ("m.weight", Type::Q8, &[1, 256]),
                ],
            ),
        ),
    ];
    let mut out = Vec::new();
    for (name, bytes) in files {
        out.push((format!("ok/{name}.json"), contents(&bytes)));
        out.push((format!("ok/{name}.llm"), bytes));
    }
    out
}

fn contents(bytes: &[u8]) -> Vec<u8> {
    let file = File::parse(bytes).expect("a file of the writer");
    let section = |s: &Section| json!({ "kind": s.kind, "required": s.flags == 1, "offset": s.offset, "length": s.len });
    let contents = Contents {
        identity: file.identity().iter().map(|b| format!("{b:02x}")).collect(),
        metadata: file.metadata(),
        sections: file.index().sections().iter().map(section).collect(),
        tensors: file.tensors().iter().map(|t| decoded(&file, t)).collect(),
    };
    let mut text = serde_json::to_vec(&contents).expect("JSON");
    text.push(b'\n');
    text
}

fn decoded<'a>(file: &File<'_>, tensor: &'a llm_format::Tensor) -> Decoded<'a> {
    let data = file.data(tensor);
    let (ty, shape) = (tensor.ty, &tensor.shape);
    let mut out =
        Decoded { name: &tensor.name, ty: ty.name(), shape, values: vec![], int8: vec![], scales: vec![] };
    let [.., rows, cols] = shape[..] else {
        out.values = data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        return out;
    };
    let matrix = quant::matrix_bytes(ty, rows, cols).expect("a checked shape") as usize;
    let (rows, cols) = (rows as usize, cols as usize);
    for matrix in data.chunks_exact(matrix) {
        out.values.extend(quant::decode(ty, matrix, rows, cols));
        if !ty.is_integer() {
            continue;
        }
        for row in 0..rows {
            let (mut ints, mut scales) = (Vec::new(), Vec::new());
            for block in 0..cols.div_ceil(quant::INPUTS) {
                let mut part = [0; quant::INPUTS];
                scales.push(quant::decode_int8(ty, matrix, rows, cols, row, block, &mut part));
                ints.extend(part);
            }
            ints.truncate(cols);
            out.int8.push(ints);
            out.scales.push(scales);
        }
    }
    out
}

/// Files to damage: without tensors, with one vector, with two.
struct Base {
    plain: Vec<u8>,
    one: Vec<u8>,
    two: Vec<u8>,
}

/// Where the tensor table of `bytes` begins.
fn table(bytes: &[u8]) -> usize {
    Index::parse(bytes).ok().and_then(|i| i.section(kind::TENSORS)).expect("a table").start
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Makes the checksums right again, so that one defect alone is left.
fn mend(mut bytes: Vec<u8>) -> Vec<u8> {
    let word = |bytes: &[u8], at: usize| {
        let found = bytes.get(at..).and_then(|b| b.first_chunk());
        found.map_or(usize::MAX, |b| u64::from_le_bytes(*b) as usize)
    };
    let header_len = word(&bytes, 12) & 0xffff_ffff;
    for at in (64..header_len.min(bytes.len())).step_by(32) {
        let (offset, len) = (word(&bytes, at + 8), word(&bytes, at + 16));
        if let Some(section) = offset.checked_add(len).and_then(|end| bytes.get(offset..end)) {
            let crc = crc32c::crc32c(section);
            put(&mut bytes, at + 24, &crc.to_le_bytes());
        }
    }
    if let Some(behind) = bytes.get(header_len..) {
        let identity = *blake3::hash(behind).as_bytes();
        put(&mut bytes, 32, &identity);
    }
    header::seal(&mut bytes);
    bytes
}

/// A file with this text where `plain` has its metadata: header, metadata, table of no tensors.
fn with_metadata(text: &[u8]) -> Vec<u8> {
    let table_at = (128 + text.len()).next_multiple_of(64);
    let mut bytes = vec![0; table_at + 16];
    put(&mut bytes, 0, &header::MAGIC);
    put(&mut bytes, 8, &header::MAJOR.to_le_bytes());
    put(&mut bytes, 10, &header::MINOR.to_le_bytes());
    put(&mut bytes, 12, &128u32.to_le_bytes());
    let len = bytes.len() as u64;
    put(&mut bytes, 16, &len.to_le_bytes());
    put(&mut bytes, 24, &2u32.to_le_bytes());
    for (at, kind, offset, len) in [(64, 1u32, 128, text.len()), (96, 2, table_at, 16)] {
        put(&mut bytes, at, &kind.to_le_bytes());
        put(&mut bytes, at + 4, &1u32.to_le_bytes());
        put(&mut bytes, at + 8, &(offset as u64).to_le_bytes());
        put(&mut bytes, at + 16, &(len as u64).to_le_bytes());
    }
    put(&mut bytes, 128, text);
    mend(bytes)
}

fn bad() -> Vec<Golden> {
    let base = Base {
        plain: write(json!({ "name": "plain" }), vec![], &[]),
        one: write(json!({ "name": "one" }), vec![], &[("a", Type::F32, &[3])]),
        two: write(json!({ "name": "two" }), vec![], &[("a", Type::F32, &[3]), ("b", Type::F32, &[4])]),
    };
    let mut out = Vec::new();
    let mut refused = |name: &str, by: &str, kind: &str, message: &str, bytes: Vec<u8>| {
        let refusal = Refusal { by: by.into(), kind: kind.into(), message: message.into() };
        let mut text = serde_json::to_vec(&refusal).expect("JSON");
        text.push(b'\n');
        out.push((format!("bad/{name}.json"), text));
        out.push((format!("bad/{name}.llm"), bytes));
    };

    // The header.
    let patch = |at: usize, value: &[u8]| {
        let mut bytes = base.plain.clone();
        put(&mut bytes, at, value);
        mend(bytes)
    };
    let raw = |at: usize, value: &[u8]| {
        let mut bytes = base.plain.clone();
        put(&mut bytes, at, value);
        bytes
    };
    let format = "bad-format";
    refused("nothing", "parse", format, "not a .llm file", vec![]);
    refused("magic", "parse", format, "not a .llm file", raw(0, b"GGUF"));
    refused("text-transfer", "parse", format, "not a .llm file", raw(4, b"\n\x1a\n"));
    refused("cut-in-header", "parse", format, "ends inside its header", base.plain[..40].to_vec());
    refused("cut-in-sections", "parse", format, "ends inside its header", base.plain[..100].to_vec());
    refused("cut-in-metadata", "parse", format, "cut short", base.plain[..140].to_vec());
    refused("cut-in-tensor", "parse", format, "cut short", base.one[..base.one.len() - 1].to_vec());
    refused("appended", "parse", format, "appended", [&base.plain[..], b"x"].concat());
    refused("major-older", "parse", "bad-version", "file version 0.0", patch(8, &0u16.to_le_bytes()));
    refused("major-newer", "parse", "bad-version", "file version 2.0", patch(8, &2u16.to_le_bytes()));
    refused("header-checksum", "parse", "checksum", "header: expected CRC-32C", raw(64 + 8, &[0xff]));
    refused("header-length-small", "parse", format, "header length 63", patch(12, &63u32.to_le_bytes()));
    refused("header-length-huge", "parse", format, "header length 4294967295", patch(12, &[0xff; 4]));
    refused("section-count", "parse", format, "sections take a header of", patch(24, &3u32.to_le_bytes()));
    refused("section-count-huge", "parse", format, "sections take a header of", patch(24, &[0xff; 4]));

    // Sections: the first entry is metadata at 64, the second the tensor table at 96.
    refused("section-flags", "parse", format, "unknown flags", patch(68, &3u32.to_le_bytes()));
    refused("section-reserved", "parse", format, "reserved field", patch(92, &1u32.to_le_bytes()));
    refused(
        "section-beyond-end",
        "parse",
        format,
        "reach beyond the file",
        patch(96 + 16, &(1u64 << 40).to_le_bytes()),
    );
    refused("section-overflow", "parse", format, "reach beyond the file", patch(96 + 16, &[0xff; 8]));
    refused(
        "section-in-header",
        "parse",
        format,
        "what lies before it ends at",
        patch(64 + 8, &64u64.to_le_bytes()),
    );
    refused(
        "section-overlap",
        "parse",
        format,
        "what lies before it ends at",
        patch(96 + 8, &128u64.to_le_bytes()),
    );
    refused("section-unaligned", "parse", format, "a multiple of 64", patch(64 + 8, &129u64.to_le_bytes()));
    refused("section-empty", "parse", format, "0 bytes at", patch(64 + 16, &0u64.to_le_bytes()));
    refused("metadata-twice", "parse", format, "is there twice", patch(96, &1u32.to_le_bytes()));
    refused("metadata-missing", "parse", format, "metadata section is missing", {
        let mut bytes = patch(64, &900u32.to_le_bytes());
        put(&mut bytes, 68, &0u32.to_le_bytes());
        mend(bytes)
    });
    refused("table-missing", "parse", format, "tensor table is missing", {
        let mut bytes = patch(96, &900u32.to_le_bytes());
        put(&mut bytes, 100, &0u32.to_le_bytes());
        mend(bytes)
    });
    let stranger = NewSection { kind: 900, required: true, data: vec![1] };
    let required = write(json!({}), vec![stranger], &[]);
    refused("section-unknown-required", "parse", "unsupported", "kind 900 is required", required);

    // Metadata.
    refused("metadata-utf8", "parse", format, "not UTF-8", with_metadata(b"{\"name\":\"\xff\"}"));
    refused("metadata-json", "parse", format, "not acceptable JSON", with_metadata(b"{\"name\":}"));
    refused("metadata-trailing", "parse", format, "not acceptable JSON", with_metadata(b"{} {}"));
    refused("metadata-array", "parse", format, "expected a JSON object", with_metadata(b"[1]"));
    refused(
        "metadata-key-twice",
        "parse",
        format,
        "stands twice",
        with_metadata(b"{\"a\":{\"b\":1,\"b\":2}}"),
    );
    let deep = [b"{\"a\":".to_vec(), vec![b'['; 200], vec![b']'; 200], b"}".to_vec()].concat();
    refused("metadata-deep", "parse", format, "recursion limit", with_metadata(&deep));

    // The tensor table of `plain`: no tensors.
    let at = table(&base.plain);
    refused("table-short", "parse", format, "expected 16 or more", {
        let mut bytes = base.plain[..base.plain.len() - 1].to_vec();
        let len = bytes.len() as u64;
        put(&mut bytes, 16, &len.to_le_bytes());
        put(&mut bytes, 96 + 16, &15u64.to_le_bytes());
        mend(bytes)
    });
    refused("tensor-count-huge", "parse", format, "4294967295 tensors", patch(at, &[0xff; 4]));
    refused("table-reserved", "parse", format, "do not make", patch(at + 4, &[1]));
    refused("names-overflow", "parse", format, "do not make", patch(at + 8, &[0xff; 8]));

    // The table at the same place in `one` and `two`: entries of 64 bytes, then the name "a" or the names "ab".
    let at = table(&base.two) + 16;
    assert_eq!(at, table(&base.one) + 16);
    let patch_of = |base: &[u8], from: usize, value: &[u8]| {
        let mut bytes = base.to_vec();
        put(&mut bytes, at + from, value);
        mend(bytes)
    };
    let patch = |from: usize, value: &[u8]| patch_of(&base.one, from, value);
    let word = |v: u64| v.to_le_bytes();
    refused("name-empty", "parse", format, "a name of 0 bytes", patch(0, &0u32.to_le_bytes()));
    refused("name-beyond", "parse", format, "a name of 900 bytes", patch(0, &900u32.to_le_bytes()));
    refused("name-utf8", "parse", format, "not UTF-8", patch(64, &[0xff]));
    refused("names-descend", "parse", format, "must ascend", patch_of(&base.two, 128, b"ba"));
    refused("name-twice", "parse", format, "must ascend", patch_of(&base.two, 128, b"aa"));
    refused("type-unknown", "parse", "unsupported", "unknown weight type 77", patch(4, &77u32.to_le_bytes()));
    refused("dims-zero", "parse", format, "0 dimensions", patch(8, &0u32.to_le_bytes()));
    refused("dims-four", "parse", format, "4 dimensions", patch(8, &4u32.to_le_bytes()));
    refused("dim-zero", "parse", format, "shape [0, 0, 0, 0]", patch(16, &word(0)));
    refused("dim-huge", "parse", format, "expected 1 to 2147483647", patch(16, &word(u64::MAX / 4 + 4)));
    refused("dim-unused", "parse", format, "then zeros", patch(24, &word(1)));
    refused("vector-not-f32", "parse", format, "a vector of type q8", patch(4, &Type::Q8.id().to_le_bytes()));
    refused("shape-overflow", "parse", format, "overflows", {
        let mut bytes = patch(8, &3u32.to_le_bytes());
        for dim in 0..3 {
            put(&mut bytes, at + 16 + 8 * dim, &word(quant::MAX_DIM));
        }
        mend(bytes)
    });
    refused("length-wrong", "parse", format, "16 bytes, shape [3]", patch(56, &word(16)));
    refused("tensor-unaligned", "parse", format, "a multiple of 4096", patch(48, &word(4100)));
    refused("tensor-beyond-end", "parse", format, "reach beyond the file", patch(48, &word(1 << 40)));
    refused(
        "tensor-offset-overflow",
        "parse",
        format,
        "reach beyond the file",
        patch(48, &word(u64::MAX - 4095)),
    );
    refused("tensor-in-front", "parse", format, "begins inside", patch(48, &word(0)));
    refused(
        "tensors-overlap",
        "parse",
        format,
        "begins inside tensor \"a\"",
        patch_of(&base.two, 64 + 48, &word(4096)),
    );
    refused("tail-unaccounted", "parse", format, "is the last part and ends at", {
        let mut bytes = [&base.one[..], &[0; 8]].concat();
        let len = bytes.len() as u64;
        put(&mut bytes, 16, &word(len));
        mend(bytes)
    });
    refused("gap", "parse", format, "expected less than 4096", {
        let mut bytes = base.one.clone();
        let tail = bytes.split_off(4096);
        bytes.extend([0; 4096]);
        bytes.extend(tail);
        let len = bytes.len() as u64;
        put(&mut bytes, 16, &word(len));
        put(&mut bytes, at + 48, &word(8192));
        mend(bytes)
    });

    // Damage that only reading everything shows.
    let flip = |place: usize| {
        let mut bytes = base.one.clone();
        bytes[place] ^= 1;
        bytes
    };
    refused("damaged-metadata", "verify", "checksum", "the metadata section", flip(128 + 10));
    refused("damaged-table", "verify", "checksum", "the tensor table", flip(at + 12));
    refused("damaged-tensor", "verify", "checksum", "tensor \"a\"", flip(4096 + 3));
    refused("damaged-padding", "verify", "checksum", "padding before tensor \"a\"", flip(4096 - 100));
    refused("identity", "verify", "checksum", "identity: the header states", {
        let mut bytes = flip(40);
        header::seal(&mut bytes);
        bytes
    });
    out
}
