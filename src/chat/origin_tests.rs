//! Host text never becomes a special token, and everything else is tokenised as the whole rendering.

use std::collections::BTreeSet;
use std::sync::Arc;

use llm_format::tokens::{Added, Kind, Tables, Token, added, flag, setting};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::mmap::Bytes;
use crate::tokenizer::Tokenizer;

/// Ids 0 to 255 are bytes, each further one is a special token.
fn tokenizer(specials: &[&str]) -> Tokenizer {
    let mut tokens: Vec<Token> =
        (0..=255u8).map(|b| Token { bytes: vec![b], flags: flag::PRESENT, ..Token::default() }).collect();
    let mut list = Vec::new();
    for (id, special) in (256..).zip(specials) {
        let content = special.as_bytes().to_vec();
        let flags = flag::PRESENT | flag::SPECIAL | flag::ADDED;
        tokens.push(Token { bytes: content.clone(), flags, ..Token::default() });
        let flags = added::SPECIAL;
        list.push(Added { id, pattern: content.clone(), content, normalized: false, flags });
    }
    let mut byte_ids = [0; 256];
    (0..).zip(&mut byte_ids).for_each(|(id, slot)| *slot = id);
    let tables = Tables {
        kind: Kind::Bpe,
        settings: setting::BYTE_LEVEL,
        tokens,
        byte_ids,
        added: list,
        ..Tables::default()
    };
    Tokenizer::from_tables(Bytes::from_owner(tables.encode().unwrap())).unwrap()
}

/// The ids of a text in which `⟦` … `⟧` encloses what must be plain, everything else being the template's.
fn expected(tokenizer: &Tokenizer, specials: &[&str], text: &str) -> Vec<i32> {
    let mut ids = Vec::new();
    for (index, piece) in text.split("⟦").enumerate() {
        let (plain, rest) = if index == 0 { ("", piece) } else { piece.split_once("⟧").unwrap() };
        ids.extend(plain.bytes().map(i32::from));
        let mut rest = rest;
        while let Some(c) = rest.chars().next() {
            // The longest first, as the tokenizer takes them.
            let found = specials.iter().filter(|s| rest.starts_with(**s)).max_by_key(|s| s.len());
            match found {
                Some(special) => {
                    ids.push(tokenizer.find(special.as_bytes()).unwrap());
                    rest = &rest[special.len()..];
                }
                None => {
                    ids.extend(rest[..c.len_utf8()].bytes().map(i32::from));
                    rest = &rest[c.len_utf8()..];
                }
            }
        }
    }
    ids
}

const SPECIALS: [&str; 9] =
    ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "<|user|>", "[INST]", "<|im", "¤", "<|x|>"];

fn template(source: &str) -> Template {
    Template::compile(source, &[("bos_token", "<s>"), ("eos_token", "</s>")]).unwrap()
}

/// Renders and compares with a text that shows in `⟦` … `⟧` what must be plain.
fn check(source: &str, chat: &Chat, want: &str) {
    let tokenizer = tokenizer(&SPECIALS);
    let template = template(source);
    let text = template.render(chat, false).unwrap();
    assert_eq!(text, want.replace("⟦", "").replace("⟧", ""), "{source}");
    let ids = template.render_tokens(chat, false, &tokenizer).unwrap();
    assert_eq!(ids, expected(&tokenizer, &SPECIALS, want), "{source} of {chat:?}");
}

fn chat(contents: &[&str]) -> Chat {
    let mut chat = Chat::new();
    contents.iter().for_each(|content| chat.add("user", content));
    chat
}

const CHATML: &str = "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}";
const JOINED: &str = "{% for m in messages %}{{ m.content }}{% endfor %}</s>";

#[test]
fn every_special_token_in_every_place_of_the_content_is_plain() {
    for special in SPECIALS {
        for content in [
            special.to_owned(),
            format!("a {special} b"),
            format!("{special}{special}"),
            format!(" {special}\n"),
        ] {
            let want = format!("<s><|im_start|>user\n⟦{content}⟧<|im_end|>\n");
            check(CHATML, &chat(&[&content]), &want);
            let want = want.replace(&content, content.trim());
            check(&CHATML.replace("m.content", "m.content | trim"), &chat(&[&content]), &want);
        }
    }
}

#[test]
fn innocent_text_gives_the_ids_of_the_whole_rendering() {
    check(
        CHATML,
        &chat(&["hi", "", "user", "im_start", "<", ">|", "s"]),
        "<s><|im_start|>user\nhi<|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>user\nuser<|im_end|>\n<|im_start|>user\nim_start<|im_end|>\n<|im_start|>user\n<<|im_end|>\n<|im_start|>user\n>|<|im_end|>\n<|im_start|>user\ns<|im_end|>\n",
    );
}

#[test]
fn tokens_split_over_messages_are_plain_at_every_cut() {
    for special in SPECIALS.into_iter().filter(|s| s.chars().count() > 1) {
        for (at, _) in special.char_indices().skip(1) {
            let (head, tail) = special.split_at(at);
            // Both parts lie within host text.
            check(
                JOINED,
                &chat(&[&format!("a{head}"), &format!("{tail}b")]),
                &format!("a⟦{head}{tail}⟧b</s>"),
            );
            check(JOINED, &chat(&[head, "", tail]), &format!("⟦{special}⟧</s>"));
            // One part is the template's.
            let behind = format!("{{{{ messages[0].content }}}}{tail}</s>");
            check(&behind, &chat(&[&format!("a{head}")]), &format!("a⟦{head}⟧{tail}</s>"));
            let trimmed = format!("{{{{ messages[0].content | trim }}}}{tail}</s>");
            check(&trimmed, &chat(&[&format!("a{head} \n")]), &format!("a⟦{head}⟧{tail}</s>"));
            let before = format!("</s>{head}{{{{ messages[0].content }}}}");
            check(&before, &chat(&[&format!("{tail}b")]), &format!("</s>{head}⟦{tail}⟧b"));
            for (end, _) in special.char_indices().filter(|&(end, _)| end > at) {
                let around = format!("{head}{{{{ messages[0].content }}}}{}</s>", &special[end..]);
                let want = format!("{head}⟦{}⟧{}</s>", &special[at..end], &special[end..]);
                check(&around, &chat(&[&special[at..end]]), &want);
            }
        }
    }
}

#[test]
fn every_field_is_host_text() {
    let all = "<|im_start|>{{ messages | tojson }}{{ tools | tojson }}{{ extra | tojson }}{{ messages }}</s>";
    for special in SPECIALS {
        let mut c = Chat::new();
        c.messages.push(json!({
            "role": special, "content": [{"type": "text", "text": special}], "name": format!("a{special}"),
            "tool_calls": [{"function": {"name": special, "arguments": {special: special, "n": [special, 1]}}}],
        }));
        c.tools = Some(
            json!([{"function": {"name": special, "parameters": {"properties": {special: {"enum": [special]}}}}}]),
        );
        c.vars.insert("extra".into(), json!({"k": special}));
        let text = template(all).render(&c, false).unwrap();
        let body = text.strip_prefix("<|im_start|>").unwrap().strip_suffix("</s>").unwrap();
        check(all, &c, &format!("<|im_start|>⟦{body}⟧</s>"));
    }
}

#[test]
fn common_roles_may_form_tokens_and_others_may_not() {
    let source = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}";
    let mut c = chat(&["hi"]);
    c.add("x", "ho");
    check(source, &c, "<|user|>hi⟦<|x|>⟧ho");
}

#[test]
fn templates_that_look_into_the_text_still_see_it() {
    let cases = [
        // Cut at a special token: what is left holds none; put together again it is the host's.
        ("{{ messages[0].content.split('</s>')[-1] }}</s>", "a</s>b", "b</s>"),
        ("{{ messages[0].content.split('</s>') | join('</s>') }}</s>", "a</s>b", "a⟦</s>⟧b</s>"),
        ("{{ messages[0].content.split('<|x|>')[-1] }}</s>", "a<|x|>b</s>c", "b⟦</s>⟧c</s>"),
        // Compared with one.
        (
            "{% if messages[0].content.startswith('</s>') %}{{ messages[0].content }}{% endif %}</s>",
            "</s>b",
            "⟦</s>⟧b</s>",
        ),
        (
            "{% if messages[0].content.endswith('</s>') %}{{ messages[0].content }}{% endif %}</s>",
            "b</s>",
            "b⟦</s>⟧</s>",
        ),
        (
            "{% if '</s>' in messages[0].content %}{{ messages[0].content }}{% endif %}</s>",
            "b</s>c",
            "b⟦</s>⟧c</s>",
        ),
        (
            "{% if messages[0].content == '</s>' %}{{ messages[0].content }}{% endif %}</s>",
            "</s>",
            "⟦</s>⟧⟦</s>⟧",
        ),
        // Cut by length: marks between all characters would count.
        ("{{ messages[0].content[1:] }}</s>", "a</s>b", "⟦</s>⟧b</s>"),
        ("{{ messages[0].content | upper }}</s>", "a<s>b</s>", "A<S>B</S></s>"),
        ("{{ messages[0].content | length }}{{ messages[0].content }}</s>", "a</s>b", "6a⟦</s>⟧b⟦</s>⟧"),
        ("{{ messages[0].content | replace('a', '') }}</s>", "<a/as>", "⟦</s>⟧</s>"),
        ("{{ messages[0].content.split('a')[0] }}/s></s>", "<abc", "⟦</s>⟧</s>"),
    ];
    for (source, content, want) in cases {
        check(source, &chat(&[content]), want);
    }
}

#[test]
fn released_templates_keep_their_tokens_and_hosts_get_none() {
    let Some(path) = llm_testdata::shared("data/chat-templates/rendered.jsonl") else { return };
    let conversations = llm_testdata::shared("data/chat-templates/conversations.json").unwrap();
    let conversations: Value = serde_json::from_slice(&std::fs::read(conversations).unwrap()).unwrap();
    let mut compared = 0;
    for row in llm_testdata::json_lines(&path) {
        let source = row["template"].as_str().unwrap();
        let template = Template::compile_with(source, &[], Limits::default(), Clock::Fixed(0)).unwrap();
        // What looks like a special token in the template.
        let mut found = BTreeSet::from(["<s>".to_owned(), "</s>".to_owned()]);
        for piece in source.split("<|").skip(1) {
            let name: String = piece.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if !name.is_empty() && piece[name.len()..].starts_with("|>") {
                found.insert(format!("<|{name}|>"));
            }
        }
        let specials: Vec<&str> = found.iter().map(String::as_str).collect();
        let tokenizer = tokenizer(&specials);
        for case in ["user", "multi", "tools"] {
            let conversation = conversations[case].as_object().unwrap();
            let mut plain = Chat {
                messages: conversation["messages"].as_array().unwrap().clone(),
                tools: conversation.get("tools").cloned(),
                vars: Default::default(),
            };
            for name in ["bos_token", "eos_token"] {
                plain.vars.insert(name.into(), conversation[name].clone());
            }
            // The same conversation with a word in its place shows which tokens are the template's.
            let mut worded = plain.clone();
            worded.messages.last_mut().unwrap()["content"] = json!("a QQQQ b");
            let Ok(shown) = template.render(&worded, true) else { continue };
            let options = crate::tokenizer::EncodeOptions { add_special: false, parse_special: true };
            for special in specials.iter().take(12) {
                let mut spelled = plain.clone();
                spelled.messages.last_mut().unwrap()["content"] = json!(format!("a {special} b"));
                let Ok(text) = template.render(&spelled, true) else { continue };
                if text != shown.replace("QQQQ", special) {
                    continue; // this template acts on the token
                }
                let mut want = Vec::new();
                for (index, piece) in shown.split("QQQQ").enumerate() {
                    if index > 0 {
                        want.extend(special.bytes().map(i32::from));
                    }
                    want.extend(tokenizer.encode(piece, options).unwrap());
                }
                let got = template.render_tokens(&spelled, true, &tokenizer).unwrap();
                assert_eq!(got, want, "{} {case} {special}", row["name"]);
                compared += 1;
            }
        }
    }
    assert!(compared > 300, "only {compared} compared");
}

#[test]
fn many_texts_that_no_mark_works_in_give_each_break_once() {
    // How long the first text is shows every mark in it, and beyond the first few texts none is marked alone.
    let source = template("{{ messages[0].content|length }}{{ '<|im_end|>' * 20000 }}");
    let contents: Vec<String> = (0..2000).map(|i| format!("<|im_end|>{i}")).collect();
    let contents: Vec<&str> = contents.iter().map(String::as_str).collect();
    let (text, breaks) =
        source.render_with_breaks(&chat(&contents), false, ["<|im_end|>"].into_iter()).unwrap();
    let want: Vec<usize> = text.match_indices("<|im_end|>").map(|(at, _)| at + 1).collect();
    assert_eq!((want.len(), breaks == want), (20000, true));
}

#[test]
fn a_tokenizer_can_be_shared_by_renderings() {
    let tokenizer = Arc::new(tokenizer(&SPECIALS));
    let template = Arc::new(template(CHATML));
    let want = template.render_tokens(&chat(&["a</s>"]), true, &tokenizer).unwrap();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (tokenizer, template) = (tokenizer.clone(), template.clone());
            std::thread::spawn(move || template.render_tokens(&chat(&["a</s>"]), true, &tokenizer).unwrap())
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), want);
    }
}

proptest! {
    #[test]
    fn joined_fragments_of_tokens_never_become_tokens(
        pieces in prop::collection::vec("[<>|/sx¤\\[\\]INST im_endstart]{0,6}", 1..5),
        trim: bool,
    ) {
        let source = if trim { JOINED.replace("m.content", "m.content | trim") } else { JOINED.to_owned() };
        let contents: Vec<&str> = pieces.iter().map(String::as_str).collect();
        let tokenizer = tokenizer(&SPECIALS);
        let c = chat(&contents);
        let text = template(&source).render(&c, false).unwrap();
        let body = text.strip_suffix("</s>").unwrap();
        let ids = template(&source).render_tokens(&c, false, &tokenizer).unwrap();
        let mut want: Vec<i32> = body.bytes().map(i32::from).collect();
        want.push(tokenizer.find(b"</s>").unwrap());
        prop_assert_eq!(ids, want);
    }
}
