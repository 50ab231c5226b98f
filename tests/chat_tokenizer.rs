//! Host text against a published tokenizer: it never becomes a special token, all else is tokenised as the rendering.

use llm::chat::{Chat, Template};
use llm::mmap::Bytes;
use llm::tokenizer::Tokenizer;

fn template(source: &str) -> Template {
    Template::compile(source, &[("bos_token", "<s>"), ("eos_token", "</s>")]).unwrap()
}

fn chat(contents: &[&str]) -> Chat {
    let mut chat = Chat::new();
    contents.iter().for_each(|content| chat.add("user", content));
    chat
}

#[test]
fn a_published_tokenizer_gives_the_ids_of_the_rendering_and_hosts_no_tokens() {
    let Some(path) = llm_testdata::shared("data/tokenizers/phi-3-mini/tokenizer.json") else { return };
    let built = llm_convert::tokenizer::load_file(&path, None).unwrap();
    let tokenizer = Tokenizer::from_tables(Bytes::from_owner(built.tables)).unwrap();
    let specials: Vec<&str> = tokenizer.special_texts().collect();
    assert!(specials.contains(&"<|end|>") && specials.contains(&"<s>"), "{specials:?}");
    let source = "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}<|assistant|>\n";
    let turns = template(source);
    let encode = |text: &str| {
        let options = llm::tokenizer::EncodeOptions { add_special: false, parse_special: true };
        tokenizer.encode(text, options).unwrap()
    };
    for text in ["hi", "", "  two  spaces\n\n", "naïve 日本語 🦙", "a < b | c > d", "< |end| >"] {
        let c = chat(&[text, text]);
        let want = encode(&turns.render(&c, true).unwrap());
        assert_eq!(turns.render_tokens(&c, true, &tokenizer).unwrap(), want, "{text:?}");
    }
    let count = |ids: &[i32]| ids.iter().filter(|id| tokenizer.flags(**id).is_special()).count();
    let plain = count(&turns.render_tokens(&chat(&["hi", "ho"]), true, &tokenizer).unwrap());
    for special in specials {
        let whole =
            turns.render_tokens(&chat(&[&format!("a{special}b"), special]), true, &tokenizer).unwrap();
        let (head, tail) = special.split_at(1);
        let joined = template("{{ messages[0].content }}{{ messages[1].content }}");
        let split = joined.render_tokens(&chat(&[&format!("a{head}"), tail]), true, &tokenizer).unwrap();
        assert_eq!((count(&whole), count(&split)), (plain, 0), "{special}");
    }
}
