//! Texts made to hurt: each ends, within limits, with a constraint that works or an error.

use llm::Status;
use llm::constraint::{Constraint, Limits, State};

use crate::{schema, small};

#[test]
fn schemas_of_any_depth_end_with_an_error() {
    let Some(tokenizer) = small() else { return };
    let depth = 100_000;
    for (open, close) in
        [("{\"items\":", "}"), ("[", "]"), ("{\"properties\":{\"a\":", "}}"), ("{\"not\":", "}")]
    {
        let text = format!("{}true{}", open.repeat(depth), close.repeat(depth));
        let limits = Limits { text_bytes: text.len(), ..Limits::default() };
        let e = Constraint::json_schema(&tokenizer, &text, &limits, None).unwrap_err();
        assert_eq!(e.status(), Status::SCHEMA, "{e}");
        assert!([Status::BUDGET, Status::SCHEMA].contains(&schema(&tokenizer, &text).unwrap_err().status()));
    }
    // As deep through references, which are plain to read.
    let mut text = String::from("{\"$ref\":\"#/$defs/d0\",\"$defs\":{");
    let links = 5_000;
    for i in 0..links {
        text += &format!("\"d{i}\":{{\"items\":{{\"$ref\":\"#/$defs/d{}\"}}}},", (i + 1) % links);
    }
    text.pop();
    text += "}}";
    let limits = Limits { text_bytes: text.len(), ..Limits::default() };
    let constraint = Constraint::json_schema(&tokenizer, &text, &limits, None).unwrap();
    assert!(State::new(&constraint).mask().is_ok());
}

#[test]
fn a_name_as_long_as_the_schema_is_not_kept_for_every_part_of_it() {
    let Some(tokenizer) = small() else { return };
    // Forty thousand paths of 120 kB each.
    let (long, many) = ("n".repeat(120_000), "{},".repeat(40_000));
    let text = format!("{{\"properties\":{{\"{long}\":{{\"prefixItems\":[{many}7]}}}}}}");
    let e = schema(&tokenizer, &text).unwrap_err();
    assert_eq!(e.status(), Status::SCHEMA);
    assert!(e.message().contains("n/prefixItems/40000: expected an object or a boolean, got 7"));
    // As many anchors and resources below an address.
    let address = "a/".repeat(60_000);
    let text = format!("{{\"$id\":\"http://x/{address}\",\"prefixItems\":[{many}7]}}");
    let e = schema(&tokenizer, &text).unwrap_err();
    assert_eq!(e.status(), Status::SCHEMA);
    assert_eq!(e.message(), "schema, at the root: expected an address of at most 1024 bytes, got 120009");
}

#[test]
fn patterns_made_to_hurt_end() {
    let Some(tokenizer) = small() else { return };
    let long: String = "[ab]".repeat(20_000);
    let patterns = [
        "(x+x+)+y".to_owned(),
        "(a?){500}a{500}".to_owned(),
        "((((a{1,100}){1,100}){1,100}){1,100}){1,100}".to_owned(),
        "(.*a.{200})".to_owned(),
        "(.*){50}".to_owned(),
        "a".repeat(100_000),
        long,
        "(".repeat(100_000),
        format!("{}a{}", "(".repeat(100_000), ")".repeat(100_000)),
        "[".repeat(10_000),
        "a|".repeat(50_000),
        "(?i)".to_owned() + &"ß".repeat(10_000),
        "\\p{L}{1000}".to_owned(),
        "(a|b|ab)*c".repeat(200),
        "(?:.*[^a]){30}b".to_owned(),
    ];
    for pattern in &patterns {
        follow(Constraint::regex(&tokenizer, pattern, &Limits::default(), None), pattern);
        let in_schema = serde_json::json!({ "type": "string", "pattern": pattern }).to_string();
        follow(schema(&tokenizer, &in_schema), pattern);
        let in_grammar = format!("start: /{}/", pattern.replace('/', "\\/"));
        follow(Constraint::lark(&tokenizer, &in_grammar, &Limits::default(), None), pattern);
    }
}

#[test]
fn grammars_made_to_hurt_end() {
    let Some(tokenizer) = small() else { return };
    let mut chain = String::from("start: r0\n");
    for i in 0..5_000 {
        chain += &format!("r{i}: r{}\n", i + 1);
    }
    chain += "r5000: \"x\"\n";
    let grammars = [
        "start: start start | \"a\" | \"\"".to_owned(),
        "start: start".to_owned(),
        chain,
        format!("start: {}\"a\"{}", "(".repeat(100_000), ")".repeat(100_000)),
        format!("start: {}", "\"a\" ".repeat(50_000)),
        "start: a\na: b\nb: a".to_owned(),
        "start: \"a\"~1000000".to_owned(),
        "start: x{0,100000}\nx: \"a\" | \"b\" x".to_owned(),
        String::new(),
        "start: \"".to_owned(),
    ];
    for grammar in &grammars {
        follow(Constraint::lark(&tokenizer, grammar, &Limits::default(), None), grammar);
    }
}

#[test]
fn schemas_that_multiply_end() {
    let Some(tokenizer) = small() else { return };
    let option = |i: usize| serde_json::json!({ "properties": { format!("p{i}"): { "const": i } } });
    let wide: Vec<_> = (0..40).map(option).collect();
    let product: Vec<_> = (0..8).map(|_| serde_json::json!({ "anyOf": wide })).collect();
    let patterns: serde_json::Map<_, _> =
        (0..60).map(|i| (format!("^(.*a.{{{i}}})+$"), serde_json::json!({ "type": "string" }))).collect();
    for text in [
        serde_json::json!({ "allOf": product }).to_string(),
        serde_json::json!({ "patternProperties": patterns }).to_string(),
        serde_json::json!({ "enum": (0..20_000).collect::<Vec<_>>() }).to_string(),
        serde_json::json!({ "minItems": 1_000_000_000u64, "maxItems": 2_000_000_000u64 }).to_string(),
        serde_json::json!({ "type": "string", "minLength": 1_000_000_000u64 }).to_string(),
        serde_json::json!({ "type": "number", "multipleOf": 1e-300 }).to_string(),
        serde_json::json!({ "type": "integer", "multipleOf": 123_456_789_123u64, "minimum": 7 }).to_string(),
    ] {
        follow(schema(&tokenizer, &text), &text);
    }
}

/// Asks a constraint for a few tokens; nothing but a limit may stop it.
fn follow(constraint: llm::Result<Constraint>, text: &str) {
    let text: String = text.chars().take(60).collect();
    let constraint = match constraint {
        Ok(constraint) => constraint,
        Err(e) => {
            let known = [Status::GRAMMAR, Status::SCHEMA, Status::BUDGET];
            return assert!(known.contains(&e.status()), "{text}: {:?} {e}", e.status());
        }
    };
    let mut state = State::new(&constraint);
    for _ in 0..20 {
        let next = match state.mask() {
            Ok(mask) => mask
                .iter()
                .enumerate()
                .find(|(_, word)| **word != 0)
                .map(|(i, word)| i as u32 * 32 + word.trailing_zeros()),
            Err(e) => {
                return assert!([Status::BUDGET, Status::DEAD_END].contains(&e.status()), "{text}: {e}");
            }
        };
        match next.map(|id| state.advance(id as i32)) {
            Some(Ok(())) if !state.is_complete() => {}
            Some(Err(e)) => return assert_eq!(e.status(), Status::BUDGET, "{text}: {e}"),
            _ => return,
        }
    }
}
