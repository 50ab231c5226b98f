//! The slow twin is `fancy-regex`, from which most of the dialect is taken.

use super::*;
use llm_format::tokens::Scanner;
use proptest::prelude::*;

fn ours(pattern: &str, text: &str) -> Result<Vec<Range<usize>>> {
    let mut out = Vec::new();
    Matcher::new(Pattern::Regex(pattern.to_owned()))?.each(text, |m| out.push(m))?;
    Ok(out)
}

fn twins(regex: &fancy_regex::Regex, text: &str) -> Vec<Range<usize>> {
    regex.find_iter(text).map(|m| m.unwrap().range()).collect()
}

fn same(pattern: &str, texts: &[&str]) {
    let regex = fancy_regex::Regex::new(pattern).unwrap_or_else(|e| panic!("{pattern:?}: {e}"));
    for text in texts {
        assert_eq!(ours(pattern, text).unwrap(), twins(&regex, text), "{pattern:?} in {text:?}");
    }
}

/// Patterns of published tokenizers, as their files have them, and more of the kind.
const PUBLISHED: [&str; 40] = [
    // BLOOM
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
    // CLIP
    r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    // DeepSeek LLM and coder
    r"[\r\n]",
    r"\s?\p{L}+",
    r"\s?\p{P}+",
    r"[一-龥ࠀ-一가-퟿]+",
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕ]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    r"\p{N}+",
    // DeepSeek V3
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
    // Mistral's Tekken
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    // Kimi K2
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    // Ling and Seed
    r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    // Qwen 3.5, GLM 4, MiniMax
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    // Falcon, Chameleon
    r"[0-9][0-9][0-9]",
    r"<sentinel:[0-9]+>",
    r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
    r"([\t\n]|    |  )",
    r"[\p{P}!-/:-@\[-`{-~]",
    // digits by threes from the right: SuperBPE, Trinity
    r"(?=(\d{3})+(?!\d))",
    r"(?<=\d)(?=(?:\d{3})+(?!\d))",
    r"(?<!\d)\d{1,3}(?=(?:\d{3})*\b)",
    // rewritten GPT-4o
    r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    // T5, XLM-R and others, as replacements
    r" {2,}",
    r"\s+",
    r"^\s+|\s+\z",
    r"[\u{200b}\x{ad}\u00a0]",
    r"(?m)^#+ .*$",
    r"(?s)<.*?>",
    r"(?i)straße|ſ+|[k-m]+",
    r"\bto\b|\Be|[[:alpha:]]{4}",
    r"(?>a+|ab)c|(?<word>\w+?)-",
    r"(?<=[.!?]) +|(?<=\p{Lu}{2,3})x|(?<!a|bb)c",
    r"[^\W\d_]+|[a-z&&[^aeiou]]|[\]\-\\]|[]x]",
    r"(?:ab?)*?c|(?:a|b){2,3}?|(?:ab)*+",
];

const TEXTS: [&str; 14] = [
    "",
    " ",
    "  \n \n  ",
    "it's 'S 'ſt they'LL 've'Re 'x ''d don't DON'T",
    "a  b\t\tc \r\n\r\n d  \n",
    "1234567 ½ Ⅻ ١٢٣٤٥ 12 3456 x1000000y 999",
    "x\u{a0}y\u{3000}z\u{85}w\u{200b}\u{ad}",
    "ǅǅabc ABCdef ʰʰA a\u{301}B\u{301} \u{301}\u{301}x HTTPServer XMLx",
    "!!!\n\n/x ?/\r\n/ $%^&*() «quoted» -- x-y <b>bold</b> \\ ] [",
    "漢字かな。カナ 가나다 abc漢字 𠀀𠀁 😀😃 🇩🇪 end",
    "# title\n## more\nnot # this\n<sentinel:12><sentinel:x> IMGIMGABCZ IMGIMGABCDEZ",
    "Straße STRASSE ſſ KLM \u{212a}elvin to toe ate, e to-do ababc aabbc bbc ac abc",
    "end   ",
    "end\n  \n\n",
];

#[test]
fn published_expressions_match_as_in_the_slow_twin() {
    for pattern in PUBLISHED.into_iter().chain(Scanner::ALL.map(Scanner::regex)) {
        same(pattern, &TEXTS);
    }
}

#[test]
fn expressions_of_the_shared_tokenizers_match_as_in_the_slow_twin() {
    let mut seen = 0;
    for root in ["data/tokenizers", "reference/tokenizers"] {
        let Some(root) = llm_testdata::shared(root) else { continue };
        for dir in std::fs::read_dir(root).unwrap() {
            let Ok(text) = std::fs::read_to_string(dir.unwrap().path().join("tokenizer.json")) else {
                continue;
            };
            for (_, after) in text.match_indices("\"Regex\"").map(|(at, m)| text.split_at(at + m.len())) {
                let quoted = after.trim_start_matches([':', ' ', '\n']);
                let mut values = serde_json::Deserializer::from_str(quoted).into_iter::<String>();
                same(&values.next().unwrap().unwrap(), &TEXTS);
                seen += 1;
            }
        }
    }
    assert!(seen > 0 || llm_testdata::shared("reference/tokenizers").is_none());
}

/// A pattern of the dialect. `hard`: with what only a backtracking engine has.
fn pattern() -> impl Strategy<Value = String> {
    let set = prop::sample::select(vec![
        "a",
        "b",
        "c",
        "é",
        "ab",
        r"\s",
        r"\S",
        r"\d",
        r"\w",
        r"\W",
        ".",
        r"\p{L}",
        r"\p{Lu}",
        r"\P{L}",
        "[ab]",
        "[^ab]",
        r"[^\s\p{L}]",
        r"[a-c&&[^b]]",
        r"\r",
        r"\n",
        "'",
        r"\x61",
        "(?i:A)",
        "(?i:k[s-t])",
    ]);
    let place = prop::sample::select(vec![r"\b", r"\B", "$", "^", r"\z"]);
    let atom = prop_oneof![12 => set.prop_map(String::from), 1 => place.prop_map(String::from)];
    let taken = prop::sample::select(vec![
        "?", "*", "+", "{2}", "{1,2}", "{2,}", "??", "*?", "+?", "{1,2}?", "?+", "*+", "++", "{1,3}+",
    ]);
    atom.prop_recursive(4, 24, 4, move |inner| {
        let some = prop::collection::vec(inner.clone(), 1..4).prop_map(|all| all.concat());
        // A body that cannot be empty: what a round that takes nothing means differs between engines.
        let body = (prop::sample::select(vec!["a", "b", r"\s", "[bc]", "é"]), some.clone());
        prop_oneof![
            3 => some.clone(),
            3 => prop::collection::vec(some.clone(), 2..4).prop_map(|all| format!("(?:{})", all.join("|"))),
            3 => (body, taken.clone()).prop_map(|((a, b), q)| format!("(?:{a}{b}){q}")),
            2 => (prop::sample::select(vec![r"\s", "a", "[^b]", r"\p{L}", r"\w"]), taken.clone())
                .prop_map(|(a, q)| format!("{a}{q}")),
            1 => some.clone().prop_map(|x| format!("({x})")),
            1 => some.clone().prop_map(|x| format!("(?>{x})")),
            1 => some.clone().prop_map(|x| format!("(?={x})")),
            1 => some.prop_map(|x| format!("(?!{x})")),
            1 => prop::sample::select(vec!["(?<=a)", "(?<!a)", "(?<=ab|c)", r"(?<!\s\w)", "(?<=a+)", r"(?<!\p{L}{1,2})"])
                .prop_map(String::from),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1200))]
    #[test]
    fn any_expression_matches_any_text_as_in_the_slow_twin(
        pattern in pattern(), texts in prop::collection::vec("([abcABkKst é1 \r\n']|\u{212a}|ſ){0,12}", 3),
    ) {
        if let Ok(regex) = fancy_regex::Regex::new(&pattern) {
            for text in &texts {
                let twin: Result<Vec<_>, _> = regex.find_iter(text).map(|m| m.map(|m| m.range())).collect();
                if let Ok(twin) = twin {
                    prop_assert_eq!(ours(&pattern, text).unwrap(), twin, "{:?} in {:?}", &pattern, text);
                }
            }
        }
    }

    #[test]
    fn any_text_as_an_expression_is_taken_or_refused(
        pattern in r"([abc()\[\]{}|*+?\\^$.,:=!<>pPxuL&\-12 é]){0,24}", text in "[abc1é ]{0,8}",
    ) {
        let _ = ours(&pattern, &text);
    }
}

#[test]
fn what_is_not_known_is_named() {
    let error = |pattern: &str| ours(pattern, "").unwrap_err().message().to_owned();
    for (pattern, word) in [
        (r"(a)\1", "back reference"),
        (r"(?<n>a)\k<n>", "back reference"),
        (r"\Ga", r"`\G`"),
        (r"a\K", r"`\K`"),
        (r"(?(1)a|b)", "`(`"),
        (r"(?x)a b", "`x`"),
        (r"\p{Nothing}", "Nothing"),
        (r"[b-a]", "range"),
        ("a**", "repetition of a repetition"),
        ("*a", "nothing that `*` could repeat"),
        ("(a", "without a `)`"),
        ("a)", "without a `(`"),
        ("[a", "without a `]`"),
        ("a{3,2}", "asks for more than it allows"),
        (r"\", "backslash"),
        (r"\x{110000}", "number"),
        (&"(".repeat(100), "within each other"),
        ("(?:(?:(?:ab){99}){99}){99}", "written out"),
        (&format!("(?:{}){{99}}", "ab".repeat(10_000)), "texts take more"),
        (&(0..400).map(|i| format!(r"[\p{{L}}{i}]")).collect::<String>(), "classes take more"),
        (&(0..4000).map(|i| format!("[a{i}]")).collect::<String>(), "classes have more"),
        (&"a".repeat(LONGEST + 1), "at most"),
    ] {
        let error = error(pattern);
        assert!(error.contains(word), "{pattern:.40}: {error}");
    }
}

#[test]
fn expressions_end_whatever_the_text() {
    let text = "a".repeat(30_000);
    for pattern in [
        "(?:a+)+b",
        "(?:a|a)*b",
        "(?:(?:a*)*)*b",
        "(?:a?){30}b",
        "(?>a*)b",
        "(?<=a*b)",
        "(?:(?>a)*+)b",
        "(?<!(?:a|x)*b)b|(?=(?:a|x)*y)",
    ] {
        let answer = ours(pattern, &text);
        assert!(answer.map_or_else(|e| e.message().contains("gave up"), |m| m.is_empty()), "{pattern}");
    }
    // A look behind whose inside goes beyond the place is gone back from without looking for its border anew.
    assert!(ours("(?<=(?:a|b)*)", &text).unwrap_err().message().contains("gave up"));
    // Long runs of what is simple need no ways to remember.
    assert_eq!(ours(r"\p{L}+|\s+(?!\S)", &"é".repeat(1 << 21)).unwrap().first(), Some(&(0..1 << 22)));
    assert_eq!(ours("(?:ab)+|.", &"ab".repeat(1 << 18)).unwrap().first(), Some(&(0..1 << 19)));
    assert!(ours("(?:(?:){1000}){1000}", "a").is_ok());
}

#[test]
fn a_run_that_leads_to_nothing_is_passed_over_whole() {
    for pattern in
        [r"\s+$", r"\s*\z", r"\s{3,}(?!\S)", r"(\d+)x", r"\w{2,}?-", r"[ab]++c", r"k*(?<=kk)t", r"\s+(?=\w)."]
    {
        same(pattern, &TEXTS);
        same(pattern, &["aab abc aac", "kkkt kt kkkk t", "  a   b    c", "123x 12 3x", "abc-d a-"]);
    }
    // Text that does not end in white space, as a list of numbers in columns.
    let wide = " ".repeat(20_000) + "1";
    assert_eq!(ours(r"\s+$", &wide).unwrap().first(), None);
    assert_eq!(ours(r"\s+$", &(wide + "  ")).unwrap().first(), Some(&(20_001..20_003)));
}
