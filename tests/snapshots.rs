//! Snapshots that are damaged, or of anything else: a status, and session and pool as they were, their numbers and the
//! logits that come next among them.

#[path = "support/lora.rs"]
mod lora;
#[path = "support/stories.rs"]
mod stories;
mod support;

use std::path::Path;
use std::sync::Arc;

use llm::Status;
use llm::adapter::Adapter;
use llm::constraint::{Constraint, Limits};
use llm::kv::{KvOptions, KvPool, KvStats, KvType};
use llm::model::Model;
use llm::sampler::{Sampler, SamplingParams, Stage};
use llm::session::snapshot::SnapshotInfo;
use llm::session::{Level, Session, SessionOptions};
use llm_format::quant::Type;
use support::{Reference, logits, model, runtime};

/// A small generator, the same numbers every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n
    }

    fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn reference(name: &str) -> Option<Reference> {
    Reference::all().into_iter().find(|reference| reference.name == name)
}

/// A pool in use, beside the session that is restored into: a session at work, pages that wait to be found, and pages
/// that the session itself has reserved.
struct Scene {
    pool: KvPool,
    session: Session,
    other: Session,
    ids: Vec<i32>,
    /// Logits behind each of `ids`.
    expected: Vec<f32>,
    stats: KvStats,
}

impl Scene {
    fn new(model: &Model, ids: &[i32]) -> Self {
        let pool = KvPool::new(model, &KvOptions { page: 16, ..Default::default() }).unwrap();
        let make = || Session::in_pool(&pool, SessionOptions::default()).unwrap();
        let (mut other, mut gone) = (make(), make());
        other.prefill(&ids[..37], None, None).unwrap();
        gone.prefill(&ids[40..80], None, None).unwrap();
        drop(gone);
        let mut session = make();
        session.reserve(20).unwrap();
        let expected = logits(model, &SessionOptions::default(), &ids[..60]);
        let stats = pool.stats();
        assert!(stats.used > 3 && stats.cached > 1);
        Self { pool, session, other, ids: ids.to_vec(), expected, stats }
    }

    fn refuse(&mut self, bytes: &[u8], what: &dyn Fn() -> String) -> Status {
        match self.session.restore(bytes) {
            Ok(_) => panic!("{}: accepted", what()),
            Err(e) => {
                assert!(self.session.is_empty() && self.pool.stats() == self.stats, "{}: {e}", what());
                e.status()
            }
        }
    }

    fn row(&self, held: usize) -> &[f32] {
        let vocab = self.expected.len() / 60;
        &self.expected[(held - 1) * vocab..held * vocab]
    }

    /// Both sessions go on with the bits they would have had, and back.
    fn go_on(&mut self) {
        assert_eq!(bits(self.other.logits().unwrap()), bits(self.row(37)));
        let mut fork = self.other.fork().unwrap();
        fork.prefill(&self.ids[37..41], None, None).unwrap();
        assert_eq!(bits(fork.logits().unwrap()), bits(self.row(41)));
        drop(fork);
        self.session.prefill(&self.ids[..20], None, None).unwrap();
        assert_eq!(bits(self.session.logits().unwrap()), bits(self.row(20)));
        self.back();
    }

    /// Empties the session, whatever it was restored to.
    fn back(&mut self) {
        self.session.reset();
        self.session.reserve(20).unwrap();
        self.stats = self.pool.stats();
    }
}

/// What a damaged snapshot may be called.
const DAMAGE: [Status; 4] = [Status::BAD_FORMAT, Status::BAD_VERSION, Status::CHECKSUM, Status::MISMATCH];

/// Puts the length and the checksum in place that `bytes` should have.
fn refit(bytes: &mut [u8]) {
    if bytes.len() >= 28 {
        let length = bytes.len() as u64;
        bytes[16..24].copy_from_slice(&length.to_le_bytes());
        let crc = llm_format::crc32c(&bytes[28..]);
        bytes[24..28].copy_from_slice(&crc.to_le_bytes());
    }
}

/// A snapshot of 37 tokens, and how long its header is.
fn snapshot(model: &Model, ids: &[i32]) -> (Vec<u8>, usize) {
    let mut session = Session::new(model, SessionOptions { page: 16, ..Default::default() }).unwrap();
    session.prefill(&ids[..37], None, None).unwrap();
    let whole = session.snapshot(b"of the host").unwrap();
    let content = 37 * 4 + model.spec().vocab as usize * 4 + 11;
    let page = session.pool().stats().page_bytes as usize;
    let header = whole.len() - content - 3 * page;
    assert!((104..256).contains(&header));
    (whole, header)
}

#[test]
fn every_truncation_is_refused_and_changes_nothing() {
    let Some(reference) = reference("llama_untied") else { return };
    let model = model(&runtime(1, None), &reference.dir, Type::Q4);
    let ids = reference.ids("long.input_ids");
    let (whole, _) = snapshot(&model, &ids);
    let mut scene = Scene::new(&model, &ids);
    for end in 0..whole.len() {
        let status = scene.refuse(&whole[..end], &|| format!("cut to {end}"));
        assert_eq!(status, Status::BAD_FORMAT, "cut to {end}");
        // Length and checksum prove nothing: the parts have to fit by themselves.
        let mut bytes = whole[..end].to_vec();
        refit(&mut bytes);
        let status = scene.refuse(&bytes, &|| format!("cut to {end} and made to fit"));
        assert_eq!(status, Status::BAD_FORMAT, "cut to {end} and made to fit");
    }
    for more in 1..200 {
        let mut bytes = whole.clone();
        bytes.resize(whole.len() + more, 0);
        scene.refuse(&bytes, &|| format!("{more} bytes more"));
        refit(&mut bytes);
        scene.refuse(&bytes, &|| format!("{more} bytes more, made to fit"));
    }
    scene.go_on();
    assert_eq!(scene.session.restore(&whole).unwrap(), b"of the host");
    scene.session.prefill(&ids[37..60], None, None).unwrap();
    assert_eq!(bits(scene.session.logits().unwrap()), bits(scene.row(60)));
}

/// One change of `bytes`, in the first `within` of them. Returns what it was.
fn mutate(bytes: &mut [u8], within: usize, dice: &mut Dice) -> String {
    let at = dice.below(within);
    let n = (1 + dice.below(64)).min(bytes.len() - at);
    match dice.below(6) {
        0 => {
            let bit = dice.below(8);
            bytes[at] ^= 1 << bit;
            format!("bit {bit} of byte {at}")
        }
        1 => {
            bytes[at] = dice.byte();
            format!("byte {at} is {}", bytes[at])
        }
        2 => {
            let value = [0, 255][dice.below(2)];
            bytes[at..at + n].fill(value);
            format!("{n} bytes from {at} on are {value}")
        }
        3 => {
            bytes[at..at + n].fill_with(|| dice.byte());
            format!("{n} bytes from {at} on are random")
        }
        4 => {
            let to = dice.below(within.min(bytes.len() - n));
            bytes.copy_within(at..at + n, to);
            format!("{n} bytes from {at} on are at {to} too")
        }
        _ => {
            let at = at / 4 * 4;
            let value = [0, 1, 2, 15, 17, 36, 38, 0x7fff_ffff, 0x8000_0000, u32::MAX][dice.below(10)];
            let n = 4.min(bytes.len() - at);
            bytes[at..at + n].copy_from_slice(&value.to_le_bytes()[..n]);
            format!("the number at {at} is {value}")
        }
    }
}

#[test]
fn ten_thousand_mutations_are_refused_or_are_other_contents() {
    let Some(reference) = reference("llama_untied") else { return };
    let model = model(&runtime(1, None), &reference.dir, Type::Q4);
    let ids = reference.ids("long.input_ids");
    let (whole, header) = snapshot(&model, &ids);
    let mut scene = Scene::new(&model, &ids);
    let mut dice = Dice(5);
    let (mut refused, mut accepted) = (0, 0);
    while refused + accepted < 10_000 {
        let mut bytes = whole.clone();
        // Half of them in the header, where the numbers are.
        let within = if dice.below(2) == 0 { header } else { whole.len() };
        let mut what = String::new();
        for _ in 0..1 + dice.below(3) {
            what.push_str(&mutate(&mut bytes, within, &mut dice));
            what.push_str(", ");
        }
        let fits = dice.below(2) == 0;
        if fits {
            let said = bytes[16..24].to_vec();
            refit(&mut bytes);
            bytes[16..24].copy_from_slice(&said); // the length is a number of the header as others are
            what.push_str("checksum made to fit");
        }
        if bytes == whole {
            continue;
        }
        if fits && bytes[..24] == whole[..24] && bytes[28..header] == whole[28..header] {
            // Tokens, logits, the host's bytes and pages may be anything: a checksum proves nothing about who wrote
            // them. The session is what they say, and harmless.
            match scene.session.restore(&bytes) {
                Err(e) => {
                    assert_eq!(e.status(), Status::BAD_FORMAT, "{what}: {e}");
                    assert!(scene.session.is_empty() && scene.pool.stats() == scene.stats, "{what}");
                }
                Ok(_) => {
                    let decoded = scene.session.decode(ids[0], None);
                    let allowed =
                        decoded.as_ref().map_or_else(|e| e.status() == Status::UNSUPPORTED, |()| true);
                    assert!(allowed, "{what}: {decoded:?}");
                    scene.back();
                }
            }
            accepted += 1;
        } else {
            let status = scene.refuse(&bytes, &|| what.clone());
            assert!(DAMAGE.contains(&status), "{what}: {status:?}");
            refused += 1;
        }
        if (refused + accepted) % 500 == 0 {
            scene.go_on();
        }
    }
    assert!(refused > 7_000 && accepted > 1_000, "{refused} refused, {accepted} with other contents");
    assert_eq!(scene.session.restore(&whole).unwrap(), b"of the host");
    assert_eq!(scene.session.tokens(), &ids[..37]);
}

/// Restores the file at `path` into a session of `model` and `pool`, which must refuse it with `status` and go on as if
/// nothing had happened.
fn mismatch(model: &Model, kv: KvOptions, options: SessionOptions, path: &Path, status: Status) {
    let what = format!("{model:?}, {kv:?}, {options:?}");
    let pool = KvPool::new(model, &kv).unwrap();
    let mut other = Session::in_pool(&pool, SessionOptions { max_tokens: 64, ..options.clone() }).unwrap();
    other.prefill(&[1, 2, 3], None, None).unwrap();
    let logits = bits(other.logits().unwrap());
    let mut session = Session::in_pool(&pool, options.clone()).unwrap();
    let before = pool.stats();
    let error = session.restore_from(path).expect_err(&what);
    assert_eq!(error.status(), status, "{what}: {error}");
    assert!(session.is_empty() && session.logits().is_err());
    // A restore that had to look for pages may have let cached ones go; none are here.
    assert_eq!(KvStats { hit_tokens: before.hit_tokens, ..pool.stats() }, before, "{what}");
    assert_eq!(bits(other.logits().unwrap()), logits);
    session.prefill(&[1, 2, 3], None, None).unwrap();
    assert_eq!(bits(session.logits().unwrap()), logits, "{what}");
}

#[test]
fn a_snapshot_of_anything_else_is_a_mismatch_and_changes_nothing() {
    let (Some(reference), Some(dynamic)) = (reference("llama_untied"), reference("llama_rope_dynamic"))
    else {
        return;
    };
    let runtime = runtime(1, None);
    let model = support::model(&runtime, &reference.dir, Type::Q4);
    let ids = reference.ids("long.input_ids");
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("session.snap");
    let kvs = [KvType::F32, KvType::F16, KvType::I8F16, KvType::I8];
    let pages = [16, 32, 64];
    let levels = [Level::BatchInvariant, Level::Portable];
    for (i, &kv) in kvs.iter().enumerate() {
        for (j, &page) in pages.iter().enumerate() {
            for (k, &determinism) in levels.iter().enumerate() {
                let options = SessionOptions { kv, page, determinism, ..Default::default() };
                let mut session = Session::new(&model, options).unwrap();
                session.prefill(&ids[..20], None, None).unwrap();
                session.snapshot_to(&path, b"").unwrap();
                session.snapshot_to(&path, b"over it").unwrap();
                assert_eq!(std::fs::read_dir(&place).unwrap().count(), 1);
                let info = SnapshotInfo::read(&std::fs::read(&path).unwrap()).unwrap();
                assert_eq!((info.kv, info.page_tokens, info.determinism), (kv, page, determinism));
                assert_eq!((info.tokens, info.fingerprint), (ids[..20].to_vec(), model.fingerprint()));
                // One thing differs at a time.
                let pool = |kv, page| KvOptions { kv, page, ..Default::default() };
                let session = |determinism| SessionOptions { determinism, ..Default::default() };
                let check = |kv, page, level| {
                    mismatch(&model, pool(kv, page), session(level), &path, Status::MISMATCH);
                };
                check(kvs[(i + 1) % kvs.len()], page, determinism);
                check(kv, pages[(j + 1) % pages.len()], determinism);
                check(kv, page, levels[1 - k]);
            }
        }
    }
    // The last one is of i8, pages of 64, portable.
    let kv = || KvOptions { kv: KvType::I8, ..Default::default() };
    let options = || SessionOptions { determinism: Level::Portable, ..Default::default() };
    let other = support::model(&runtime, &reference.dir, Type::Q8);
    mismatch(&other, kv(), options(), &path, Status::MISMATCH);
    let short = SessionOptions { max_tokens: 19, ..options() };
    mismatch(&model, kv(), short, &path, Status::CONTEXT_FULL);
    mismatch(&model, kv(), options(), &place.path().join("none"), Status::NOT_FOUND);
    mismatch(&model, kv(), options(), place.path(), Status::INVALID_ARG);
    let text = place.path().join("text");
    std::fs::write(&text, "no snapshot").unwrap();
    mismatch(&model, kv(), options(), &text, Status::BAD_FORMAT);

    let mut taken = Session::new(&model, SessionOptions { kv: KvType::I8, ..options() }).unwrap();
    assert_eq!(taken.restore_from(&path).unwrap(), b"over it");
    let before = bits(taken.logits().unwrap());
    assert_eq!(taken.restore_from(&path).unwrap_err().status(), Status::BAD_STATE);
    assert_eq!((taken.len(), bits(taken.logits().unwrap())), (20, before));

    // Rotations that follow a declared length.
    let model = support::model(&runtime, &dynamic.dir, Type::Q8);
    let with = |rope_length| SessionOptions { rope_length: Some(rope_length), ..Default::default() };
    let mut session = Session::new(&model, with(200)).unwrap();
    session.prefill(&ids[..20], None, None).unwrap();
    session.snapshot_to(&path, b"").unwrap();
    mismatch(&model, KvOptions::default(), with(201), &path, Status::MISMATCH);
}

#[test]
fn a_pool_without_room_refuses_a_snapshot_and_keeps_what_it_has() {
    let Some(reference) = reference("llama_untied") else { return };
    let model = model(&runtime(1, None), &reference.dir, Type::Q4);
    let ids = reference.ids("long.input_ids");
    let (whole, _) = snapshot(&model, &ids);
    let mut scene = Scene::new(&model, &ids);
    scene.session.reset();
    scene.other.pin();
    scene.pool.clear_cache();
    scene.pool.resize(scene.pool.stats().page_bytes * 4).unwrap();
    scene.stats = scene.pool.stats();
    // Two of the three pages are those of the session at work; for the third there is room.
    scene.session.restore(&whole).unwrap();
    assert_eq!(scene.pool.stats().used, 4);
    scene.session.reset();
    let stats = scene.pool.stats();
    let mut last = Session::in_pool(&scene.pool, SessionOptions::default()).unwrap();
    last.reserve(1).unwrap();
    let full = scene.pool.stats();
    assert_eq!((stats.used, full.used, full.free), (3, 4, 0));
    assert_eq!(scene.session.restore(&whole).unwrap_err().status(), Status::KV_FULL);
    let now = scene.pool.stats();
    assert_eq!(KvStats { hit_tokens: full.hit_tokens, ..now }, full);
    assert!(scene.session.is_empty());
    assert_eq!(bits(scene.other.logits().unwrap()), bits(scene.row(37)));
    drop(last);
    scene.session.restore(&whole).unwrap();
    scene.session.prefill(&ids[37..48], None, None).unwrap();
    assert_eq!(bits(scene.session.logits().unwrap()), bits(scene.row(48)));
}

/// Sessions that differ from the snapshot's in one thing: other adapters, their scales and order, weights, layouts.
#[test]
fn adapters_and_models_other_than_the_snapshots_are_refused_and_nothing_changes() {
    let (Some(reference), Some(other)) = (reference("llama_untied"), reference("llama_tied")) else { return };
    let runtime = runtime(1, None);
    let model = support::model(&runtime, &reference.dir, Type::Q4);
    let ids = reference.ids("long.input_ids");
    let place = tempfile::tempdir().unwrap();
    let [one, two] = [1, 2].map(|seed| {
        let (peft, out) = (place.path().join("peft"), place.path().join(format!("{seed}.llm")));
        lora::Peft::random(&reference.dir, seed, 3, |module| module.ends_with("q_proj")).write(&peft);
        let options = llm_convert::adapter::AdapterOptions::default();
        llm_convert::adapter::convert_adapter(&peft, &reference.dir, &out, &options).unwrap();
        Adapter::open_path(&model, &out).unwrap()
    });
    let sets: [&[(&Adapter, f32)]; 7] = [
        &[],
        &[(&one, 1.0)],
        &[(&one, 1.0 + f32::EPSILON)],
        &[(&one, -1.0)],
        &[(&two, 1.0)],
        &[(&one, 1.0), (&two, 1.0)],
        &[(&two, 1.0), (&one, 1.0)],
    ];
    let session = |pool: &KvPool, set: &[(&Adapter, f32)]| {
        let mut session = Session::in_pool(pool, SessionOptions::default()).unwrap();
        let set: Vec<_> = set.iter().map(|&(adapter, scale)| (adapter.clone(), scale)).collect();
        session.set_adapters(&set).unwrap();
        session
    };
    let kv = || KvOptions { page: 16, ..Default::default() };
    let snapshots = sets.map(|set| {
        let mut session = session(&KvPool::new(&model, &kv()).unwrap(), set);
        session.prefill(&ids[..37], None, None).unwrap();
        let row = bits(session.logits().unwrap());
        (session.snapshot(b"").unwrap(), row)
    });
    for (i, set) in sets.iter().enumerate() {
        let pool = KvPool::new(&model, &kv()).unwrap();
        let mut beside = session(&pool, set);
        beside.prefill(&ids[..20], None, None).unwrap();
        let row = bits(beside.logits().unwrap());
        let mut restored = session(&pool, set);
        restored.reserve(9).unwrap();
        let before = pool.stats();
        for (j, (bytes, _)) in snapshots.iter().enumerate().filter(|(j, _)| *j != i) {
            let error = restored.restore(bytes).expect_err("other adapters");
            assert_eq!(error.status(), Status::MISMATCH, "{j} into {i}: {error}");
            assert!(
                restored.is_empty() && restored.logits().is_err() && pool.stats() == before,
                "{j} into {i}"
            );
            assert_eq!(restored.adapters().len(), set.len());
        }
        assert_eq!(bits(beside.logits().unwrap()), row);
        restored.restore(&snapshots[i].0).unwrap();
        assert_eq!(bits(restored.logits().unwrap()), snapshots[i].1, "set {i}");
    }
    // The same layout with other weights, the same weights in another type, and others altogether.
    let path = place.path().join("session.snap");
    std::fs::write(&path, &snapshots[0].0).unwrap();
    let merged = tempfile::tempdir().unwrap();
    let change =
        lora::Peft::random(&reference.dir, 3, 1, |module| module.ends_with("layers.0.self_attn.q_proj"));
    lora::merge(&reference.dir, &[(&change, 1.0)], merged.path());
    for (dir, ty) in [(merged.path(), Type::Q4), (&reference.dir, Type::Q3), (&other.dir, Type::Q4)] {
        let model = support::model(&runtime, dir, ty);
        mismatch(&model, kv(), SessionOptions::default(), &path, Status::MISMATCH);
    }
}

/// Processes in containers have the same number each time.
#[test]
fn what_a_killed_process_left_beside_a_snapshot_hinders_nobody() {
    let Some(reference) = reference("llama_untied") else { return };
    let model = model(&runtime(1, None), &reference.dir, Type::Q4);
    let mut session = Session::new(&model, SessionOptions::default()).unwrap();
    session.prefill(&[1, 2, 3], None, None).unwrap();
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("session.snap");
    // names are counted per process, and other tests of this one take some
    for n in 0..1000 {
        let name = format!(".session.snap.{}-{n}.tmp", std::process::id());
        std::fs::write(place.path().join(name), "begun").unwrap();
    }
    session.snapshot_to(&path, b"").unwrap();
    assert_eq!(SnapshotInfo::read(&std::fs::read(&path).unwrap()).unwrap().tokens, [1, 2, 3]);
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 1001);
    // What is no file is not taken away, and what names a directory, there or not, is none.
    let directory = place.path().join("new/");
    for path in [place.path(), Path::new(".."), Path::new(""), directory.as_path()] {
        let error = session.snapshot_to(path, b"").unwrap_err();
        assert_eq!(error.status(), Status::INVALID_ARG, "{error}");
    }
    let error = session.snapshot_to(&place.path().join("nowhere/session.snap"), b"").unwrap_err();
    assert_eq!(error.status(), Status::NOT_FOUND, "{error}");
    assert!(error.message().contains("nowhere") && error.detail("os_error").is_some(), "{error}");
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 1001);
}

#[test]
fn versions_other_than_ours_are_refused_by_number() {
    let Some(reference) = reference("llama_untied") else { return };
    let model = model(&runtime(1, None), &reference.dir, Type::Q4);
    let ids = reference.ids("long.input_ids");
    let (whole, _) = snapshot(&model, &ids);
    let mut scene = Scene::new(&model, &ids);
    for version in [0u32, 2, 3, 0x0100_0000, u32::MAX] {
        let mut bytes = whole.clone();
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        assert_eq!(scene.refuse(&bytes, &|| format!("version {version}")), Status::BAD_VERSION);
        refit(&mut bytes);
        assert_eq!(scene.refuse(&bytes, &|| format!("version {version}, fits")), Status::BAD_VERSION);
        assert_eq!(SnapshotInfo::read(&bytes).unwrap_err().status(), Status::BAD_VERSION);
        // A later version may be longer than ours, or shorter.
        assert_eq!(scene.refuse(&bytes[..12], &|| format!("version {version} alone")), Status::BAD_VERSION);
    }
    scene.go_on();
}

/// What a sampler cannot be loaded into, beside its session's snapshot.
#[test]
fn samplers_other_than_the_saved_one_are_refused_and_go_on_as_they_would_have() {
    let dir = tempfile::tempdir().unwrap();
    let Some((checkpoint, _)) = stories::checkpoint(dir.path()) else { return };
    let model = support::model(&runtime(1, None), &checkpoint, Type::Q8);
    let tokenizer = model.tokenizer().unwrap().clone();
    let choice = |texts: &[&str]| Constraint::choice(&tokenizer, texts, &Limits::default(), None).unwrap();
    let (pets, colours) = (choice(&["cat", "dog"]), choice(&["red", "blue"]));
    let make = |constraint: Option<&Constraint>, stages: &[(Stage, bool)]| {
        let params = SamplingParams { temperature: 0.7, seed: 3, ..Default::default() };
        let mut sampler = Sampler::new(&params).unwrap();
        sampler.set_constraint(constraint);
        for &(stage, pure) in stages {
            sampler.add_processor(stage, pure, Arc::new(|_, _| Ok(())));
        }
        sampler
    };
    let (before, after) = ((Stage::BeforePenalties, true), (Stage::AfterPenalties, true));
    type Kind<'a> = (Option<&'a Constraint>, &'a [(Stage, bool)]);
    let kinds: [Kind<'_>; 8] = [
        (None, &[]),
        (Some(&pets), &[]),
        (Some(&colours), &[]),
        (None, &[before]),
        (None, &[after]),
        (None, &[(Stage::AfterPenalties, false)]),
        (None, &[before, after]),
        (Some(&pets), &[before]),
    ];
    let mut session = Session::new(&model, SessionOptions::default()).unwrap();
    session.prefill(&[1, 403, 407], None, None).unwrap();
    let logits = session.logits().unwrap().to_vec();
    let step = |sampler: &mut Sampler, at: u64| {
        let id = sampler.sample(&logits, at).unwrap().id;
        sampler.accept(id).unwrap();
        id
    };
    for (i, &(constraint, stages)) in kinds.iter().enumerate() {
        let mut saved = make(constraint, stages);
        step(&mut saved, 0);
        let snapshot = session.snapshot(&saved.save()).unwrap();
        let extra = SnapshotInfo::read(&snapshot).unwrap().extra;
        for (j, &(constraint, stages)) in kinds.iter().enumerate() {
            let mut other = make(constraint, stages);
            let mut twin = make(constraint, stages);
            match other.loaded(&extra) {
                Ok(mut loaded) => {
                    assert_eq!(i, j, "the sampler of kind {i} was loaded into one of kind {j}");
                    if !loaded.is_complete() {
                        assert_eq!(step(&mut loaded, 1), step(&mut saved, 1));
                    }
                }
                Err(e) => {
                    assert_eq!(e.status(), Status::MISMATCH, "{i} into {j}: {e}");
                    assert!(i != j, "{i}: {e}");
                }
            }
            assert_eq!((step(&mut other, 0), other.save()), (step(&mut twin, 0), twin.save()));
        }
    }
    let plain = make(None, &[]);
    let bytes = plain.save();
    for (at, value, status) in
        [(0, b'L', Status::BAD_FORMAT), (8, 0, Status::BAD_VERSION), (8, 2, Status::BAD_VERSION)]
    {
        let mut bytes = bytes.clone();
        bytes[at] = value;
        assert_eq!(plain.loaded(&bytes).err().unwrap().status(), status);
    }
    assert!(!Sampler::is_saved(b"of the host") && Sampler::is_saved(&bytes));
}
