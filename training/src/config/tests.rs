//! Settings that are read, refused and written.

use super::*;
use crate::design::Position;

#[test]
fn unknown_keys_are_refused_with_the_nearest_known_name() {
    let e = Config::from_json(r#"{"model": {"layer": 3}}"#).unwrap_err();
    assert!(e.message().contains("model.layers"), "{e}");
    let e = Config::default().set("optim.warm_up=3").unwrap_err();
    assert!(e.message().contains("optim.warmup"), "{e}");
    assert!(Config::default().set("batch").is_err());
    let e = Config::from_json(r#"{"curriculum": [{"until": 3}, {"untill": 9}]}"#).unwrap_err();
    assert!(e.message().contains("curriculum.1.untill") && e.message().contains("1.until\""), "{e}");
    let e = Config::default().set(r#"mixture=[{"data": "web", "wieght": 3}]"#).unwrap_err();
    assert!(e.message().contains("mixture.0.weight"), "{e}");
    assert!(Config::default().set("batch=many").is_err());
}

#[test]
fn a_value_that_cannot_be_read_or_is_out_of_range_is_named_with_what_was_expected() {
    let said = |text: &str| Config::from_text(text).unwrap_err().message().to_string();
    let e = said("steps: 5\nmodel: {layers: two}\n");
    assert!(e.contains("model.layers = \"two\": ") && e.contains("expected a whole number"), "{e}");
    let e = said(r#"{"batch": 3, "steps": -5}"#);
    assert!(e.contains("steps = -5: ") && e.contains("expected a whole number, 0 or more"), "{e}");
    let e = said("optim: {kind: sgd}");
    assert!(e.contains("optim.kind = \"sgd\": ") && e.contains("expected one of `adamw`"), "{e}");
    for (text, place) in [
        ("model: 5", "model = 5: "),
        ("steps: {a: 1}", "steps = {\"a\":1}: "),
        ("curriculum: [{until: x}]", "curriculum = [{\"until\":\"x\"}]: "),
        ("optim: {clip: true}", "optim.clip = true: "),
    ] {
        let e = said(text);
        assert!(e.contains(place) && e.contains("expected "), "{text}: {e}");
    }
    let usual = || Config { model: ModelConfig { vocab: 9, ..ModelConfig::tiny() }, ..Config::default() };
    for (assignment, expected) in [
        ("optim.rate=-1", "optim.rate = -1: expected above 0"),
        ("optim.beta2=1", "optim.beta2 = 1: expected 0 or more, below 1"),
        ("decay_share=2", "optim.decay_share = 2: expected above 0, at most 1"),
        ("galore_every=0", "optim.galore_every = 0: expected above 0"),
        ("optim.rate=5e-5", "optim.min_rate = 0.0001: expected at most optim.rate, 0.00005"),
        ("threads=1025", "threads = 1025: expected at most 1024, or 0 for the cores"),
        ("lora.targets=q_proj", "lora.targets: without lora.rank the whole model would be trained"),
        ("model.dropout=1.5", "model.dropout = 1.5: expected 0 or more, below 1"),
    ] {
        let mut config = usual();
        config.set(assignment).unwrap();
        assert_eq!(config.check().unwrap_err().message(), expected);
    }
    let mut config = usual();
    for assignment in ["min_rate=0", "beta1=0", "decay=0", "clip=0", "decay_share=1"] {
        config.set(assignment).unwrap();
    }
    config.check().unwrap();
    (config.optim.min_rate, config.optim.schedule) = (1.0, Schedule::Constant);
    config.check().unwrap();
}

#[test]
#[cfg(unix)]
fn a_directory_without_a_name_in_text_is_refused_and_shown() {
    use std::os::unix::ffi::OsStrExt;
    let out = PathBuf::from(std::ffi::OsStr::from_bytes(b"run\xff"));
    let model = ModelConfig { vocab: 9, ..ModelConfig::tiny() };
    let config = Config { out, model, ..Config::default() };
    assert!(config.to_json().contains("\"run\u{fffd}\""));
    let e = config.check().unwrap_err();
    assert!(e.message().contains("run\u{fffd}: expected a name in UTF-8"), "{e}");
}

#[test]
fn one_item_of_a_list_is_changed_by_its_number() {
    let mut c = Config::default();
    c.set("mixture=web=3,books").unwrap();
    c.set(r#"curriculum=[{"until": 100, "length": 64}, {"until": 200, "weights": [0, 1]}]"#).unwrap();
    let mut expected = c.clone();
    for assignment in [
        "mixture.0.weight=0.3",
        "mixture.1.data=2026",
        "curriculum.1.until=150",
        "curriculum.1.weights.0=2",
        "curriculum.0.weights=2,1.5",
        r#"mixture.1={"data": "tales", "weight": 2}"#,
    ] {
        c.set(assignment).unwrap();
    }
    expected.mixture[0].weight = 0.3;
    expected.mixture[1] = Part { data: "tales".into(), weight: 2.0 };
    (expected.curriculum[1].until, expected.curriculum[1].weights[0]) = (150, 2.0);
    expected.curriculum[0].weights = vec![2.0, 1.5];
    assert_eq!(c, expected);
    for (assignment, reason) in [
        ("mixture.2.weight=1", "mixture.2: expected the number of an item: there are 2 items, 0 to 1"),
        ("mixture.first.weight=1", "mixture.first: expected the number of an item: there are 2 items"),
        ("mixture.-1.weight=1", "mixture.-1: expected the number of an item"),
        ("curriculum.1.weights.2=1", "curriculum.1.weights.2: expected the number of an item: there are 2"),
        ("lora.targets.0=q_proj", "lora.targets.0: expected the number of an item: the list is empty"),
        ("mixture.0.wieght=1", "\"mixture.0.wieght\"; the nearest known name is \"mixture.0.weight\""),
        ("mixture.0.weight.more=1", "mixture.0.weight is one value, it has no parts"),
        ("optim.rate.0=1", "optim.rate is one value, it has no parts"),
        ("mixture.0.weight=much", "mixture.0.weight=much: "),
        ("mixture.0=web", "mixture.0=web: "),
        ("weight=1", "unknown configuration key \"weight\""),
    ] {
        let e = c.set(assignment).unwrap_err();
        assert_eq!(e.status(), Status::INVALID_ARG);
        assert!(e.message().contains(reason), "{e}");
    }
    assert_eq!(c, expected, "what was refused changes nothing");
    c.set("curriculum=[]").unwrap();
    let e = c.set("curriculum.0.until=1").unwrap_err();
    assert!(e.message().contains("curriculum.0: expected the number of an item: the list is empty"), "{e}");
    c.set("mixture=web").unwrap();
    let e = c.set("mixture.1.weight=1").unwrap_err();
    assert!(e.message().contains("there is one item, 0"), "{e}");
}

#[test]
fn overrides_reach_every_level_and_survive_json() {
    let mut c = Config::preset("baby-gpt").unwrap();
    for assignment in ["optim.rate=0.5", "layers=3", "data=some/where", "position=rope", "decay=0"] {
        c.set(assignment).unwrap();
    }
    assert_eq!((c.optim.rate, c.model.layers, c.model.position), (0.5, 3, Position::Rope));
    assert_eq!((c.data.to_str(), c.optim.decay), (Some("some/where"), 0.0));
    c.set("lora.targets=q_proj,v_proj").unwrap();
    assert_eq!(c.lora.targets, ["q_proj", "v_proj"]);
    c.set("mixture=web=3,books").unwrap();
    c.set(r#"curriculum=[{"until": 100, "length": 64}, {"until": 200, "weights": [0, 1]}]"#).unwrap();
    let parts: Vec<(&str, f64)> = c.mixture.iter().map(|p| (p.data.to_str().unwrap(), p.weight)).collect();
    assert_eq!(parts, [("web", 3.0), ("books", 1.0)]);
    assert_eq!((c.curriculum[0].length, &c.curriculum[1].weights[..]), (64, &[0.0, 1.0][..]));
    assert_eq!(Config::from_json(&c.to_json()).unwrap(), c);
    assert_eq!(Config::from_text(&c.to_yaml().unwrap()).unwrap(), c);
    assert_eq!(Config::from_text("model:\n  layers: 3\n").unwrap().model.layers, 3);
    assert_eq!(Config::from_text("# nothing\n").unwrap(), Config::default());
    assert!(Config::from_text("model:\n  layer: 3\n").unwrap_err().message().contains("model.layers"));
    // names that look like numbers
    for assignment in ["out=2026", "data=true", "from=\"null\"", "lora.targets=7"] {
        c.set(assignment).unwrap();
    }
    assert_eq!((c.out.to_str(), c.data.to_str()), (Some("2026"), Some("true")));
    assert_eq!((c.from.to_str(), &c.lora.targets[..]), (Some("null"), &["7".to_string()][..]));
    assert_eq!(Config::from_text(&c.to_yaml().unwrap()).unwrap(), c);
    let e = c.set("eps=1").unwrap_err();
    assert!(e.message().contains("model.eps"), "{e}");
}
