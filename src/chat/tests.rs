//! The published renderings, and those of Jinja2.

use serde_json::{Map, Value};

use super::*;

/// 2025-07-10 12:00:00 UTC, the time of the recorded renderings.
const CLOCK: Clock = Clock::Fixed(1_752_148_800);

fn rows(file: &str) -> Option<Vec<Value>> {
    llm_testdata::shared(&format!("data/chat-templates/{file}")).map(|path| llm_testdata::json_lines(&path))
}

fn render(template: &str, context: &Map<String, Value>) -> Result<String> {
    Template::compile_with(template, &[], Limits::default(), CLOCK)?.render_context(context)
}

/// Compares, collecting what differs.
fn compare(failures: &mut Vec<String>, name: &str, got: &Result<String>, want: &str) {
    match got {
        Ok(text) if text == want => {}
        Ok(text) => {
            let same = text.bytes().zip(want.bytes()).take_while(|(a, b)| a == b).count();
            let window = |s: &str| {
                let bytes = &s.as_bytes()[same.saturating_sub(40)..s.len().min(same + 40)];
                String::from_utf8_lossy(bytes).into_owned()
            };
            failures.push(format!("{name}: got {:?}, expected {:?}", window(text), window(want)));
        }
        Err(e) => failures.push(format!("{name}: failed: {e}")),
    }
}

fn report(failures: &[String], count: usize) {
    assert!(failures.is_empty(), "{} of {count} differ:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn published_renderings_are_reproduced() {
    let Some(rows) = rows("published.jsonl") else { return };
    let mut failures = Vec::new();
    // Where a project's own engine renders otherwise than Jinja2, Jinja2 is the rule.
    for row in rows.iter().filter(|row| row["jinja2_agrees"] == true) {
        let got = render(row["template"].as_str().unwrap(), row["context"].as_object().unwrap());
        compare(&mut failures, row["name"].as_str().unwrap(), &got, row["expected"].as_str().unwrap());
    }
    report(&failures, rows.len());
}

#[test]
fn renderings_of_released_templates_are_reproduced() {
    let Some(rows) = rows("rendered.jsonl") else { return };
    let path = llm_testdata::shared("data/chat-templates/conversations.json").unwrap();
    let conversations: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut failures = Vec::new();
    let mut count = 0;
    for row in &rows {
        for case in row["cases"].as_array().unwrap() {
            count += 1;
            let name = format!("{} {}", row["name"], case["case"]);
            let context = conversations[case["case"].as_str().unwrap()].as_object().unwrap();
            let got = render(row["template"].as_str().unwrap(), context);
            match (case["error"].as_str(), &got) {
                (Some(want), Err(e)) if e.message() == want => {}
                (Some(want), got) => {
                    failures.push(format!("{name}: got {got:?}, expected the error {want:?}"))
                }
                (None, got) => compare(&mut failures, &name, got, case["expected"].as_str().unwrap()),
            }
        }
    }
    report(&failures, count);
}

#[test]
fn small_programs_do_what_python_does() {
    let Some(rows) = rows("jinja-units.jsonl") else { return };
    let mut failures = Vec::new();
    for row in &rows {
        let name = row["name"].as_str().unwrap();
        let got = render(row["template"].as_str().unwrap(), row["context"].as_object().unwrap());
        match row["expected"].as_str() {
            Some(want) => compare(&mut failures, name, &got, want),
            None if got.is_err() => {}
            None => failures.push(format!("{name}: got {got:?}, expected {}", row["error"])),
        }
    }
    report(&failures, rows.len());
}
