//! What goes wrong outside: a full disk, damaged data, another tokenizer. Nothing of a run is lost, and it goes on.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Output};

use llm::error::Status;
use llm_train::{Config, ModelConfig, Phase, PrepareOptions, Trainer, prepare, train};

mod common;
use common::{advance, bits, data, run, setup};

/// Not a claim of its own: the child of tests below, which trains in `LLM_TRAIN_TEST_RUN` to the step
/// `LLM_TRAIN_TEST_STEPS` and says how that ended.
#[test]
fn child_that_trains() {
    let variable = |name: &str| std::env::var(name).ok();
    let (Some(dir), Some(steps)) = (variable("LLM_TRAIN_TEST_RUN"), variable("LLM_TRAIN_TEST_STEPS")) else {
        return;
    };
    let dir = Path::new(&dir);
    let out = variable("LLM_TRAIN_TEST_OUT").map_or(dir.join("run"), Into::into);
    let config = Config { steps: steps.parse().unwrap(), out, ..steady(dir) };
    match train(&config, &mut |_| ControlFlow::Continue(())) {
        Ok(summary) => println!("ended after {}", summary.steps),
        Err(e) => println!("failed: {e}"),
    }
}

/// The configuration of [`setup`], whose data is there already, with a rate that does not depend on the last step.
fn steady(dir: &Path) -> Config {
    let mut config = if dir.join("data").exists() { common::settings(dir) } else { setup(dir) };
    config.optim.min_rate = config.optim.rate;
    config
}

/// Runs a shell command in which `"$@"` is the child that trains to `steps`.
fn shell(script: &str, dir: &Path, steps: u64) -> Output {
    Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_trains", "--quiet", "--nocapture"])
        .env("LLM_TRAIN_TEST_RUN", dir)
        .env("LLM_TRAIN_TEST_STEPS", steps.to_string())
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}

#[test]
fn a_checkpoint_that_finds_no_room_leaves_the_one_before_and_the_run_goes_on_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let config = steady(dir.path());
    let expected = bits(run(&config, 12).weights());
    let first = shell("exec \"$@\"", dir.path(), 4);
    assert!(said(&first).contains("ended after 4"), "{}", said(&first));
    let size = fs::metadata(config.out.join("step-00000004/model.safetensors")).unwrap().len();

    // no file may grow beyond half a model: units are 512 or 1024 bytes
    let limit = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", size / 2 / 1024);
    let failed = shell(&limit, dir.path(), 8);
    let text = said(&failed);
    assert!(text.contains("failed: the checkpoint was not written"), "{text}");
    assert!(text.contains("model.safetensors: ") && text.contains("File too large"), "{text}");
    let left: Vec<_> = fs::read_dir(&config.out)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.contains("step-"))
        .collect();
    assert_eq!(left, ["step-00000004"]);

    let last = shell("exec \"$@\"", dir.path(), 12);
    assert!(said(&last).contains("ended after 12"), "{}", said(&last));
    let whole = Trainer::resume(&config, &config.out.join("step-00000012")).unwrap();
    assert_eq!(bits(whole.weights()), expected);
}

#[test]
fn a_run_on_a_full_disk_goes_on_when_there_is_space() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, copy) = (dir.path().join("disk"), dir.path().join("copy"));
    fs::create_dir(&disk).unwrap();
    // whoever is not root is it in a user namespace, where the system gives one
    let mounts = |flags: &&str| {
        let mut tried = Command::new("unshare");
        tried.args([*flags, "mount", "-t", "tmpfs", "none"]).arg(&disk);
        tried.output().is_ok_and(|o| o.status.success())
    };
    let Some(flags) = ["-rm", "-m"].into_iter().find(mounts) else {
        llm_testdata::lacks("the right to mount a small disk: a run on a full one is shown by a limit alone");
        return;
    };
    let config = steady(dir.path());
    run(&config, 4).save(&dir.path().join("one")).unwrap();
    let size: u64 = fs::read_dir(dir.path().join("one"))
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap().len().next_multiple_of(4096))
        .sum();
    // room for one checkpoint and a half, then for many
    let script = format!(
        "mount -t tmpfs -o size={} none {disk} && LLM_TRAIN_TEST_OUT={disk}/run && export LLM_TRAIN_TEST_OUT && \
         \"$@\" && ls -A {disk}/run && mount -o remount,size=64m {disk} && \"$@\" && cp -r {disk}/run {copy}",
        size * 3 / 2 + (64 << 10),
        disk = disk.display(),
        copy = copy.display()
    );
    let output = Command::new("unshare")
        .args([flags, "sh", "-c", &script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_trains", "--quiet", "--nocapture"])
        .env("LLM_TRAIN_TEST_RUN", dir.path())
        .env("LLM_TRAIN_TEST_STEPS", "12")
        .output()
        .unwrap();
    let text = said(&output);
    assert!(text.contains("failed: ") && text.contains("No space left on device"), "{text}");
    assert!(!text.lines().any(|l| l.starts_with(".step-")), "{text}");
    assert!(text.contains("step-00000004") && text.contains("ended after 12"), "{text}");
    let whole = Trainer::resume(&config, &copy.join("step-00000012")).unwrap();
    assert_eq!(bits(whole.weights()), bits(run(&config, 12).weights()));
}

#[test]
#[cfg(target_os = "linux")]
fn token_files_on_a_full_disk_leave_the_older_ones() {
    let dir = tempfile::tempdir().unwrap();
    let config = setup(dir.path());
    let read = |name: &str| fs::read(config.data.join(name)).unwrap();
    let names = ["train.tokens", "held_out.tokens", "tokenizer.json"];
    let before = names.map(read);
    let other = dir.path().join("other.txt");
    fs::write(&other, "another text of some lines\n".repeat(2000)).unwrap();
    let options = PrepareOptions {
        inputs: vec![other.into()],
        tokenizer: dir.path().join("tokenizer.json"),
        output: config.data.clone(),
        ..PrepareOptions::default()
    };
    for name in ["train", "held_out"] {
        let part = config.data.join(format!("{name}.tokens.part"));
        std::os::unix::fs::symlink("/dev/full", &part).unwrap();
        let e = prepare(&options).unwrap_err();
        assert_eq!(e.status(), Status::IO);
        assert!(e.message().contains(&format!("{name}.tokens.part: ")), "{e}");
        assert!(e.message().contains("No space left on device"), "{e}");
        assert!(!part.exists() && names.map(read) == before, "{name}");
    }
    prepare(&options).unwrap();
    assert!(names.map(read) != before);
}

#[test]
fn a_damaged_id_ends_a_step_without_a_change_and_the_run_goes_on_once_it_is_mended() {
    let dir = tempfile::tempdir().unwrap();
    let config = setup(dir.path());
    let expected = bits(run(&config, 6).weights());
    let trainer = run(&config, 3);
    let checkpoint = dir.path().join("checkpoint");
    trainer.save(&checkpoint).unwrap();
    let before = bits(trainer.weights());
    drop(trainer);

    let path = config.data.join("train.tokens");
    let good = fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[128..128 + 4000].fill(0xff);
    fs::write(&path, &bad).unwrap();
    let mut trainer = Trainer::resume(&config, &checkpoint).unwrap();
    let e = (0..50).find_map(|_| trainer.step().err()).unwrap();
    assert_eq!(e.status(), Status::BAD_FORMAT);
    assert!(e.message().contains("train.tokens: id 65535 at "), "{e}");
    if trainer.steps_done() == 3 {
        assert_eq!(bits(trainer.weights()), before);
    }
    drop(trainer);
    // a whole run compares checksums first
    let e = train(&config, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert_eq!(e.status(), Status::CHECKSUM);
    assert!(e.message().contains("train.tokens: checksum"), "{e}");

    fs::write(&path, &good).unwrap();
    let mut trainer = Trainer::resume(&config, &checkpoint).unwrap();
    advance(&mut trainer, 3);
    assert_eq!(bits(trainer.weights()), expected);
}

#[test]
fn a_run_does_not_go_on_with_data_of_another_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let config = setup(dir.path());
    let checkpoint = dir.path().join("checkpoint");
    run(&config, 2).save(&checkpoint).unwrap();
    let tokenizer = dir.path().join("tokenizer.json");
    let text = fs::read_to_string(&tokenizer).unwrap();
    fs::write(&tokenizer, text + "\n").unwrap();
    let inputs = vec![dir.path().join("text.txt").into()];
    let output = dir.path().join("again");
    prepare(&PrepareOptions { inputs, tokenizer, output: output.clone(), ..Default::default() }).unwrap();
    let e = Trainer::resume(&Config { data: output, ..config.clone() }, &checkpoint).err().unwrap();
    assert_eq!(e.status(), Status::MISMATCH);
    assert!(e.message().contains("another tokenizer"), "{e}");
    // token files and a tokenizer of different origin
    fs::copy(dir.path().join("tokenizer.json"), config.data.join("tokenizer.json")).unwrap();
    let e = Trainer::new(&config).err().unwrap();
    assert!(e.message().contains("do not belong together"), "{e}");
}

#[test]
fn a_model_is_not_trained_on_with_data_of_another_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let config = setup(dir.path());
    let checkpoint = dir.path().join("checkpoint");
    run(&config, 2).save(&checkpoint).unwrap();
    let output = dir.path().join("again");
    data(&dir.path().join("text.txt"), 270, dir.path().join("tokenizer.json"), output.clone());
    let config = Config { from: checkpoint, ..config };
    Trainer::new(&config).unwrap();
    let e = Trainer::new(&Config { data: output, ..config }).err().unwrap();
    assert_eq!(e.status(), Status::MISMATCH);
    assert!(e.message().contains("another tokenizer than the model to begin from: model."), "{e}");
}

#[test]
fn a_run_that_cannot_be_is_refused_before_it_begins() {
    let dir = tempfile::tempdir().unwrap();
    let config = setup(dir.path());
    let refused = |config: &Config| Trainer::new(config).err().unwrap();
    let e = refused(&Config { batch: 1 << 20, ..config.clone() });
    assert_eq!(e.status(), Status::NO_MEMORY);
    assert!(e.message().contains("a pass ") && e.message().contains("GB"), "{e}");
    // so is one that a later stretch of its curriculum makes too large
    let e = refused(&Config {
        model: ModelConfig { context: 2048, ..config.model.clone() },
        length: 16,
        batch: 8192,
        curriculum: vec![Phase { until: 3, length: 2048, weights: vec![] }],
        ..config.clone()
    });
    assert_eq!(e.status(), Status::NO_MEMORY);
    assert!(e.message().contains("a pass "), "{e}");
    let e = refused(&Config { accumulate: usize::MAX, ..config.clone() });
    assert_eq!(e.status(), Status::NO_MEMORY);
    assert!(e.message().contains("a step's tokens ") && e.message().contains("`accumulate`"), "{e}");
    let e = refused(&Config { batch: 1 << 40, ..config.clone() });
    assert!(e.message().contains("batch = 1099511627776: with 16 tokens each"), "{e}");
    let e = refused(&Config { data: dir.path().join("nowhere"), ..config.clone() });
    assert!(e.message().contains("train.tokens: there is none; `libllm data prepare` makes it"), "{e}");
    let (inputs, tokenizer) = (vec![dir.path().join("text.txt").into()], dir.path().join("tokenizer.json"));
    let output = dir.path().join("whole");
    let whole =
        PrepareOptions { inputs, tokenizer, output: output.clone(), held_out: 0.0, ..Default::default() };
    prepare(&whole).unwrap();
    let e = train(&Config { data: output, patience: 3, ..config }, &mut |_| ControlFlow::Continue(()));
    assert!(e.unwrap_err().message().contains("patience = 3: the data has no held-out text"));
}
