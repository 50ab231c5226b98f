//! Schemas and instances of the published collections.

use std::io::Read as _;

use llguidance::ParserFactory;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::ApproximateTokEnv;
use llm_testdata::{json_lines, shared};
use serde_json::Value;

use crate::writing::writings;
use crate::{Spelling, Verdict, accepts, schema, small};

/// A schema with instances.
pub struct Row {
    pub name: String,
    pub schema: Value,
    /// Instance, and whether it is valid.
    pub tests: Vec<(Value, bool)>,
}

fn row(value: &Value, name: String) -> Row {
    let tests = value["tests"].as_array().unwrap();
    let test = |t: &Value| (t["data"].clone(), t["valid"].as_bool().unwrap());
    Row { name, schema: value["schema"].clone(), tests: tests.iter().map(test).collect() }
}

/// A suite's groups; those of an older draft say so, which the files leave to the directory they came from.
pub fn suite(file: &str, draft: Option<&str>) -> Option<Vec<Row>> {
    let rows = json_lines(&shared(&format!("data/schemas/{file}"))?);
    let each = |value: &Value| {
        let mut row = row(value, format!("{}: {}", value["file"].as_str().unwrap(), value["description"]));
        if let (Some(draft), Value::Object(keywords)) = (draft, &mut row.schema) {
            keywords.entry("$schema").or_insert_with(|| draft.into());
        }
        row
    };
    Some(rows.iter().map(each).collect())
}

pub fn maskbench() -> Option<Vec<Row>> {
    let path = shared("data/schemas/maskbench-sample.jsonl.gz")?;
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    let rows = text.split('\n').filter(|line| !line.is_empty());
    Some(
        rows.map(|line| serde_json::from_str::<Value>(line).unwrap())
            .map(|value| row(&value, value["name"].as_str().unwrap().to_owned()))
            .collect(),
    )
}

/// What came of a collection.
#[derive(Default, Debug)]
struct Tally {
    schemas: usize,
    compiled: usize,
    engine: usize,
    blocked: Vec<String>,
    let_through: Vec<String>,
    /// Valid, and met a limit.
    limits: Vec<String>,
}

fn judge(rows: &[Row]) -> Option<Tally> {
    let tokenizer = small()?;
    let spelling = Spelling::new(&tokenizer);
    let environment = ApproximateTokEnv::single_byte_env();
    let mut factory = ParserFactory::new_simple(&environment).unwrap();
    factory.quiet();
    let mut tally = Tally { schemas: rows.len(), ..Tally::default() };
    for row in rows {
        if is_told_otherwise(&row.name) {
            continue;
        }
        let engine = factory.create_parser(TopLevelGrammar::from_json_schema(row.schema.clone()));
        tally.engine += usize::from(engine.is_ok());
        let constraint = match schema(&tokenizer, &row.schema.to_string()) {
            Ok(constraint) => constraint,
            Err(e) => {
                let budget = e.status() == llm::Status::BUDGET;
                assert!(budget || e.message().contains(" at "), "{}: no path in {e}", row.name);
                if std::env::var_os("LLM_SCHEMAS_SAY").is_some() {
                    println!("{} {}: {e}", if engine.is_ok() { "LOST" } else { "both" }, row.name);
                }
                continue;
            }
        };
        tally.compiled += 1;
        for (data, valid) in
            row.tests.iter().filter(|(data, valid)| !(*valid && is_left_out(&row.name, data)))
        {
            let mut written = writings(&row.schema, data);
            let masks = written.len() == 1 && written[0].len() < 200;
            if !valid {
                written.push(data.to_string());
            }
            let verdicts: Vec<_> =
                written.iter().map(|text| accepts(&constraint, &spelling.ids(text), masks)).collect();
            let taken = verdicts.contains(&Verdict::Taken);
            let line = || format!("{}: {data} {}", row.name, row.schema);
            match (valid, taken) {
                (false, true) => tally.let_through.push(line()),
                (true, false) if verdicts.contains(&Verdict::Limit) => tally.limits.push(line()),
                (true, false) => tally.blocked.push(line()),
                _ => {}
            }
        }
    }
    Some(tally)
}

/// Groups of the suites that say the opposite of what is promised: that `format` and the description of contents assert
/// nothing, or that the latter do.
fn is_told_otherwise(name: &str) -> bool {
    name.starts_with("format: ") || name.starts_with("optional/content: ")
}

/// Members of formats that the grammars leave out.
fn is_left_out(name: &str, data: &Value) -> bool {
    let text = data.as_str().unwrap_or_default();
    match name.split(": ").next() {
        Some("optional/format/hostname") => text.to_lowercase().contains("xn--"),
        Some("optional/format/email") => text.starts_with('"') || text.contains("[IPv6:"),
        Some("optional/format/time" | "optional/format/date-time") => {
            text.contains(":60") && !text.contains("23:59")
        }
        _ => false,
    }
}

/// A fault of the engine: of texts under a length, made of a counted number of words of any length
/// (`^(?:\\S+\\s+){0,49}\\S+$`), it refuses valid ones.
const BLOCKED: [&str; 1] = ["Github_hard---o62065"];

fn holds(name: &str, rows: Option<Vec<Row>>) {
    let Some(tally) = rows.and_then(|rows| judge(&rows)) else { return };
    println!("{name}: {} of {} compile, {} by the engine alone", tally.compiled, tally.schemas, tally.engine);
    for (what, lines) in
        [("blocked", &tally.blocked), ("let through", &tally.let_through), ("met a limit", &tally.limits)]
    {
        lines.iter().for_each(|line| println!("  {what}: {}", line.chars().take(600).collect::<String>()));
    }
    let blocked = tally.blocked.iter().filter(|line| !BLOCKED.iter().any(|name| line.starts_with(name)));
    assert!(blocked.count() == 0 && tally.let_through.is_empty(), "{name}");
    assert!(tally.limits.len() <= tally.schemas / 250, "{name}: {} met a limit", tally.limits.len());
    assert!(tally.compiled >= tally.engine, "{name}: the engine alone compiles more");
}

#[test]
fn draft_2020_12_holds() {
    holds("draft 2020-12", suite("test-suite-draft2020-12.jsonl", None));
}

#[test]
fn draft_7_holds() {
    let draft = "http://json-schema.org/draft-07/schema#";
    holds("draft 7", suite("test-suite-draft7.jsonl", Some(draft)));
}

#[test]
fn maskbench_holds() {
    holds("maskbench", maskbench());
}
