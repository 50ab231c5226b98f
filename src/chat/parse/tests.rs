//! Every format by example, every cutting against the whole text, and whole texts against a slow twin.

use proptest::prelude::*;

use super::*;

fn text(kind: Kind, text: &str) -> Segment {
    Segment { kind, text: text.to_owned(), name: None, id: None, complete: true }
}

fn tool(name: &str, arguments: &str) -> Segment {
    Segment {
        kind: Kind::ToolCall,
        text: arguments.to_owned(),
        name: Some(name.to_owned()),
        id: None,
        complete: true,
    }
}

const FORMATS: [Format; 6] =
    [Format::Plain, Format::Hermes, Format::Llama3, Format::Mistral, Format::DeepSeek, Format::Harmony];

#[test]
fn each_format_is_taken_apart() {
    use Format::{DeepSeek, Harmony, Hermes, Llama3, Mistral, Plain};
    let (say, think) = (|s| text(Kind::Text, s), |s| text(Kind::Reasoning, s));
    let cases: Vec<(Format, &str, Vec<Segment>)> = vec![
        (Plain, " Hello there. \n", vec![say("Hello there.")]),
        (Plain, "<think>\nso\n</think>\n\nYes.", vec![think("so"), say("Yes.")]),
        (Plain, "so it is</think>Yes.", vec![think("so it is"), say("Yes.")]),
        (
            Hermes,
            "I look.\n<tool_call>\n{\"name\": \"find\", \"arguments\": {\"q\": \"a b\"}}\n</tool_call>\n<tool_call>\n\
             {\"name\": \"now\", \"arguments\": {}}\n</tool_call><|im_end|>",
            vec![say("I look."), tool("find", "{\"q\":\"a b\"}"), tool("now", "{}")],
        ),
        (
            Hermes,
            "<tool_call>\n<function=sum>\n<parameter=a>\n1\n</parameter>\n<parameter=s>\nx\ny\n</parameter>\n\
             </function>\n</tool_call>",
            vec![tool("sum", "{\"a\":1,\"s\":\"x\\ny\"}")],
        ),
        (Hermes, "<tool_call>not a call</tool_call>", vec![say("<tool_call>not a call")]),
        (Llama3, "{\"name\": \"f\", \"parameters\": {\"x\": 1}}<|eot_id|>", vec![tool("f", "{\"x\":1}")]),
        (Llama3, "{\"other\": 1}", vec![say("{\"other\": 1}")]),
        (
            Llama3,
            "<|python_tag|>{\"name\": \"f\", \"parameters\": {}}; {\"name\": \"g\", \"parameters\": {}}<|eom_id|>",
            vec![tool("f", "{}"), tool("g", "{}")],
        ),
        (Llama3, "<|python_tag|>web.call(query=\"x\")<|eom_id|>", vec![tool("web", "{\"query\":\"x\"}")]),
        (Llama3, "<|python_tag|>print(1)", vec![tool("python", "{\"code\":\"print(1)\"}")]),
        (
            Mistral,
            "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"x\": [1]}, \"id\": \"abc\"}]</s>",
            vec![Segment { id: Some("abc".into()), ..tool("f", "{\"x\":[1]}") }],
        ),
        (
            Mistral,
            "[THINK]hm[/THINK]ok[TOOL_CALLS]f[ARGS]{\"x\": 1}[TOOL_CALLS]g[CALL_ID]k1[ARGS]{}",
            vec![
                think("hm"),
                say("ok"),
                tool("f", "{\"x\":1}"),
                Segment { id: Some("k1".into()), ..tool("g", "{}") },
            ],
        ),
        (
            DeepSeek,
            "<think>a</think>b<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"x\": 1}\n```\
             <｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            vec![think("a"), say("b"), tool("f", "{\"x\":1}"), tool("g", "{}")],
        ),
        (
            Harmony,
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.f \
             <|constrain|>json<|message|>{\"x\": 1}<|call|>",
            vec![think("hm"), tool("f", "{\"x\":1}")],
        ),
        (
            Harmony,
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>",
            vec![think("a"), say("b")],
        ),
        (Harmony, "no message at all", vec![say("no message at all")]),
    ];
    for (format, whole, want) in cases {
        assert_eq!(Answer::parse(format, false, whole), want, "{format:?} {whole}");
        // Character by character.
        let mut answer = Answer::new(format, false);
        for c in whole.chars() {
            answer.push(c.encode_utf8(&mut [0; 4]));
        }
        answer.finish();
        assert_eq!(answer.segments(), want, "{format:?} {whole}");
    }
}

#[test]
fn an_answer_that_begins_in_reasoning_is_reasoning_from_the_start() {
    assert!(Answer::begins_reasoning("<|im_start|>assistant\n<think>\n"));
    assert!(!Answer::begins_reasoning("<think></think>"));
    let mut answer = Answer::new(Format::DeepSeek, true);
    answer.push("so ");
    assert_eq!((answer.segments()[0].kind, answer.segments()[0].complete), (Kind::Reasoning, false));
    answer.push("far</think> yes");
    answer.finish();
    assert_eq!(answer.segments(), [text(Kind::Reasoning, "so far"), text(Kind::Text, "yes")]);
}

#[test]
fn a_call_that_is_cut_off_is_told_as_far_as_it_came() {
    let segments = Answer::parse(Format::Hermes, false, "a<tool_call>{\"name\": \"f\", \"argu");
    assert_eq!((segments[1].kind, segments[1].complete), (Kind::ToolCall, false));
    assert_eq!(segments[1].text, "{\"name\": \"f\", \"argu");
    let mut answer = Answer::new(Format::Harmony, false);
    answer.push("<|channel|>commentary to=functions.find<|message|>{\"q\":");
    assert_eq!(answer.segments()[0].name.as_deref(), Some("find"));
    assert_eq!(answer.segments()[0].text, "{\"q\":");
    answer.finish();
    let [call] = answer.segments() else { panic!("{:?}", answer.segments()) };
    assert_eq!((call.kind, call.complete, &call.text[..]), (Kind::ToolCall, false, "{\"q\":"));
    assert_eq!(call.name.as_deref(), Some("find"));
}

#[test]
fn texts_longer_than_what_is_looked_through_at_once_are_whole() {
    let long = "漢字 and words ".repeat(100);
    let whole = format!(
        "<think>{long}</think>{long}<tool_call>{{\"name\": \"f\", \"arguments\": {{\"x\": \"{long}\"}}}}</tool_call>"
    );
    let want = [
        text(Kind::Reasoning, long.trim()),
        text(Kind::Text, long.trim()),
        tool("f", &json!({ "x": long }).to_string()),
    ];
    assert_eq!(Answer::parse(Format::Hermes, false, &whole), want);
}

#[test]
fn half_an_object_before_many_marks_is_looked_at_once() {
    // Were it read again behind every mark, this would take minutes.
    let half = format!("{{\"a\":[{}", "1,".repeat(100_000));
    let whole = format!("{half}{}", "</s>".repeat(20_000));
    assert_eq!(Answer::parse(Format::Llama3, false, &whole), [text(Kind::Text, &half)]);
    let call = "{\"name\": \"f\", \"parameters\": {}}</s></s> so</s>";
    assert_eq!(Answer::parse(Format::Llama3, false, call), [tool("f", "{}"), text(Kind::Text, "so")]);
}

#[test]
fn published_templates_name_their_format() {
    let Some(path) = llm_testdata::shared("data/chat-templates/rendered.jsonl") else { return };
    let formats: std::collections::HashMap<String, Format> = llm_testdata::json_lines(&path)
        .iter()
        .map(|row| {
            (row["name"].as_str().unwrap().to_owned(), Format::of_template(row["template"].as_str().unwrap()))
        })
        .collect();
    for (name, format) in [
        ("Qwen-Qwen3-0.6B", Format::Hermes),
        ("Qwen3-Coder", Format::Hermes),
        ("NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", Format::Hermes),
        ("meta-llama-Llama-3.2-3B-Instruct", Format::Llama3),
        ("mistralai-Mistral-Nemo-Instruct-2407", Format::Mistral),
        ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", Format::DeepSeek),
        ("openai-gpt-oss-120b", Format::Harmony),
        ("google-gemma-2-2b-it", Format::Plain),
    ] {
        assert_eq!(formats[name], format, "{name}");
    }
}

/// The twin of Hermes without ends of turns: whole text, by splitting.
fn hermes_twin(whole: &str) -> Vec<Segment> {
    let mut out: Vec<Segment> = Vec::new();
    let say = |out: &mut Vec<Segment>, kind, s: &str| {
        if !s.trim().is_empty() {
            out.push(text(kind, s.trim()));
        }
    };
    let (mut rest, mut kind, mut reasoned) = (whole, Kind::Text, false);
    loop {
        let marks = ["<think>", "</think>", "<tool_call>"];
        let Some((at, mark)) = marks.iter().filter_map(|m| Some((rest.find(m)?, *m))).min() else { break };
        say(&mut out, kind, &rest[..at]);
        rest = &rest[at + mark.len()..];
        match mark {
            "<think>" => (kind, reasoned) = (Kind::Reasoning, true),
            "</think>" => {
                if kind == Kind::Text && !reasoned {
                    out.iter_mut().filter(|s| s.kind == Kind::Text).for_each(|s| s.kind = Kind::Reasoning);
                }
                (kind, reasoned) = (Kind::Text, true);
            }
            _ => {
                kind = Kind::Text;
                let (body, tail, closed) = match rest.split_once("</tool_call>") {
                    Some((body, tail)) => (body, tail, true),
                    None => (rest, "", false),
                };
                match call::calls(Body::Object, body, None) {
                    Some(calls) => out.extend(calls),
                    None if closed => out.push(text(Kind::Text, format!("<tool_call>{body}").trim())),
                    None => {
                        out.push(Segment { complete: false, ..text(Kind::ToolCall, body) });
                    }
                }
                rest = tail;
            }
        }
    }
    say(&mut out, kind, rest);
    out
}

fn fragment() -> impl Strategy<Value = String> {
    let marks = [
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<|im_end|>",
        "<|python_tag|>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<|channel|>",
        "analysis",
        "final",
        "<|message|>",
        "<|end|>",
        "<|call|>",
        "<|start|>assistant",
        " to=functions.f",
        "{\"name\": \"f\", \"arguments\": {}}",
        "{\"name\": \"g\", \"parameters\": {\"a\": 1}}",
        "<function=h><parameter=k>v</parameter></function>",
        "<think",
        "<",
        "|",
        "｜",
        " ",
        "\n",
        "word",
        "é",
    ];
    prop_oneof![4 => prop::sample::select(marks.to_vec()).prop_map(str::to_owned), 1 => "[a-z<>| ]{0,6}"]
}

proptest! {
    #[test]
    fn any_cutting_gives_what_the_whole_text_gives(
        parts in prop::collection::vec(fragment(), 0..14), cuts in prop::collection::vec(0usize..200, 0..8),
        format in prop::sample::select(FORMATS.to_vec()), in_reasoning: bool,
    ) {
        let whole = parts.concat();
        let want = Answer::parse(format, in_reasoning, &whole);
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|&c| whole.is_char_boundary(c) && c <= whole.len()).collect();
        cuts.sort_unstable();
        let mut answer = Answer::new(format, in_reasoning);
        let mut from = 0;
        for cut in cuts.into_iter().chain([whole.len()]) {
            answer.push(&whole[from..cut]);
            from = cut;
        }
        answer.finish();
        prop_assert_eq!(answer.segments(), &want[..]);
    }

    #[test]
    fn whole_texts_equal_splitting_them(parts in prop::collection::vec(fragment(), 0..14)) {
        let whole = parts.concat().replace("<|im_end|>", "");
        prop_assert_eq!(Answer::parse(Format::Hermes, false, &whole), hermes_twin(&whole), "{}", whole);
    }
}
