//! Expressions of `tokenizer.json` mean what Oniguruma takes them for, or are refused.
//!
//! The oracle is the published Python package (`tokenizers` 0.23.3, which holds Oniguruma): what it made of each text is
//! written down here. The Rust crate of these tests matches with another engine and gives other answers.

use llm::Status;
use llm::mmap::Bytes;
use llm::tokenizer::{EncodeOptions, Tokenizer};
use llm_convert::tokenizer::from_hf_json;
use llm_format::tokens::Scanner;
use llm_testdata::shared;
use serde_json::{Map, Value, json};

const PLAIN: EncodeOptions = EncodeOptions { add_special: false, parse_special: false };

fn level() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false, "trim_offsets": true})
}

/// A tokenizer of the 256 bytes, before which matches of `expression` are replaced by `<>`.
fn replacing(expression: &str) -> llm::Result<Tokenizer> {
    let name = |byte: u8| llm_format::tokens::byte_to_char(byte).to_string();
    let vocab: Map<String, Value> = (0..=255u8).map(|byte| (name(byte), json!(byte))).collect();
    let whole = json!({"added_tokens": [], "pre_tokenizer": level(), "decoder": level(),
        "normalizer": {"type": "Replace", "pattern": {"Regex": expression}, "content": "<>"},
        "model": {"type": "BPE", "vocab": vocab, "merges": []}});
    Tokenizer::from_tables(Bytes::from(from_hf_json(&whole)?.tables))
}

#[test]
fn expressions_match_as_oniguruma_does() {
    for (expression, text, want) in MATCHES {
        let tokenizer = replacing(expression).unwrap_or_else(|e| panic!("{expression:?}: {}", e.message()));
        let ids = tokenizer.encode(text, PLAIN).unwrap();
        assert_eq!(tokenizer.decode_text(&ids, false).unwrap(), want, "{expression:?} in {text:?}");
    }
}

#[test]
fn what_files_cannot_say_is_refused_by_its_name() {
    for (expression, why) in REFUSED {
        let refused = replacing(expression).map(|_| ()).unwrap_err();
        assert_eq!(refused.status(), Status::UNSUPPORTED, "{expression:?}");
        assert!(refused.message().contains(why), "{expression:?}: {}", refused.message());
    }
    let long = replacing(&"a".repeat(70_000)).map(|_| ()).unwrap_err();
    assert!(long.message().contains("70000 bytes"), "{}", long.message());
    let deep = replacing(&format!("{}a{}", "(".repeat(30_000), ")".repeat(30_000))).map(|_| ()).unwrap_err();
    assert!(deep.message().contains("within each other"), "{}", deep.message());
}

/// A `▁` before each piece that `expression` makes of a text, then a token for every byte.
fn splitting(expression: &str) -> Tokenizer {
    let vocab: Map<String, Value> = std::iter::once(("▁".to_owned(), json!(0)))
        .chain((0..=255).map(|byte| (format!("<0x{byte:02X}>"), json!(byte + 1))))
        .collect();
    let split =
        json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false});
    let mark = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false});
    let whole = json!({"added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, mark]},
        "model": {"type": "BPE", "byte_fallback": true, "vocab": vocab, "merges": []}});
    Tokenizer::from_tables(Bytes::from(from_hf_json(&whole).unwrap().tables)).unwrap()
}

#[test]
fn real_texts_fall_into_the_pieces_of_the_published_package() {
    let Some(texts) = shared("data/text") else { return };
    // Of the first 100 000 characters of each text: how many ids, and FNV-1a over them.
    let wants: [(&str, [(usize, u64); 3]); 3] = [
        // What tiktoken reads otherwise: there `{1,3}+` is possessive and `$` the end of the text.
        (
            Scanner::Cl100k.regex(),
            [
                (102_472, 0x6a1d_36f9_7091_90e5),
                (310_054, 0x3025_0425_d1d0_1d8e),
                (104_006, 0xc233_e6f1_aa20_c760),
            ],
        ),
        (
            r"^[[:upper:]]\w*|[[:alpha:]]+|[[:digit:]]{2}?|[[:punct:]]+$|[[:punct:]]|\s+",
            [
                (117_499, 0xa359_c2cf_43fc_0153),
                (321_604, 0x47cb_770d_5a74_63be),
                (121_114, 0x6703_287e_45dc_5dec),
            ],
        ),
        (
            r"\b[[:^punct:]]{1,4}\b|\W+?$|(?i)the|[a-f]{2,3}+|(?m)\..",
            [
                (117_894, 0x047c_8bfb_3b5c_f9d7),
                (307_476, 0xffe6_dcd4_f2b6_19b8),
                (119_748, 0xf947_2aa8_7563_dfce),
            ],
        ),
    ];
    for (expression, wants) in wants {
        let tokenizer = splitting(expression);
        for (file, want) in ["wiki-demo.txt", "wagahaiwa-nekodearu.txt", "c4-demo.jsonl"].iter().zip(wants) {
            let text = std::fs::read_to_string(texts.join(file)).unwrap();
            let text: String = text.chars().take(100_000).collect();
            let ids = tokenizer.encode(&text, PLAIN).unwrap();
            let hash = ids.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, id| {
                (hash ^ u64::from(*id as u32)).wrapping_mul(0x0100_0000_01b3)
            });
            assert_eq!((ids.len(), hash), want, "{expression:?} in {file}");
        }
    }
}

#[test]
fn published_expressions_keep_their_scanner() {
    for scanner in Scanner::ALL.into_iter().filter(|s| *s != Scanner::Cl100k) {
        let split = json!({"type": "Split", "pattern": {"Regex": scanner.regex()}, "behavior": "Isolated"});
        let model = json!({"type": "BPE", "vocab": {"a": 0}, "merges": []});
        let whole =
            json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level()]}, "model": model});
        let tables = from_hf_json(&whole).unwrap().tables;
        // Only an expression without a scanner is written out.
        let text = scanner.regex().as_bytes();
        assert!(!tables.windows(text.len()).any(|part| part == text), "{scanner:?}");
    }
}

/// What is refused, and a part of the reason.
const REFUSED: [(&str, &str); 24] = [
    (r"(a)\1", r"`\1`"),
    (r"(?<n>a)\k<n>", r"`\k`"),
    (r"a\Kb", r"`\K`"),
    (r"\Ga", r"`\G`"),
    (r"\X|\R", r"`\X`"),
    (r"[\R]", r"`\R` in a class"),
    (r"\pL+", r"`\p` without a name"),
    (r"(?x) a", "`x`"),
    (r"(?~ab)", "`~`"),
    (r"(?W)\w", "`W`"),
    (r"(?#c)a", "`#`"),
    (r"(?i)groß", "`ß` in any case"),
    (r"(?i)class", "`ss` in any case"),
    (r"(?i)[\p{L}]", r"`\p{L}` in a class in any case"),
    (r"(?i)[[:^upper:]]", r"`\p{Uppercase}` in a class in any case"),
    (r"\d{3,1}", "`{3,1}`"),
    (r"a+*", "a repetition of a repetition"),
    (r"(?:\b|a){2}{2}", "a repetition of a repetition"),
    (r"^*a", "a repetition of what takes no characters"),
    (r"(?=a)+", "a repetition of what takes no characters"),
    (r"[[:foo:]]", "`[:foo:]`"),
    (r"[\d-a]", "a `-` behind a set"),
    (r"\xc3\xa9", r"`\x`"),
    (r"a)", "a `)` without a `(`"),
];

/// An expression, a text, and the text with every match replaced.
#[rustfmt::skip] // a line each
const MATCHES: [(&str, &str, &str); 298] = [
    ("^b", "a\nb", "a\n<>"),
    ("a$", "a\nb", "<>\nb"),
    ("\\s+$", "a  \nb", "a<>\nb"),
    ("$", "a\nb\n", "a<>\nb<>\n<>"),
    ("^", "a\nb\n", "<>a\n<>b\n"),
    ("(?m)a.b", "a\nb", "<>"),
    ("a.b", "a\nb", "a\nb"),
    ("\\d{1,3}+", "1234567", "<>"),
    ("\\d{1,3}+5", "12345", "<>"),
    ("\\d{2}+", "12345", "<>5"),
    ("\\d{1,3}?", "12345", "<><><><><>"),
    ("\\d{3}?", "1234567", "<><>7<>"),
    ("\\d{3}?x", "123x4x", "<>4<>"),
    ("\\d{2,}?", "12345", "<><>5"),
    ("\\d{,2}", "12345", "<><><>"),
    ("\\d{,}", "12", "12"),
    ("a++", "aaa", "<>"),
    ("a++a", "aaa", "aaa"),
    ("a*+a", "aaa", "aaa"),
    ("a?+a", "a", "a"),
    ("[[:alpha:]]+", "aéб漢1", "<>1"),
    ("[[:punct:]]+", "!$+<=>^`|~«§、x", "<>x"),
    ("[[:digit:]]+", "1٣x", "<>x"),
    ("[[:space:]]+", "a\u{a0}\u{85} b\u{2028}", "a<>b<>"),
    ("[[:word:]]+", "aé_ -\u{301}\u{203f}1", "<> -<>"),
    ("[[:alnum:]]+", "aé1_٣½", "<>_<>½"),
    ("[[:upper:]]+", "AÉa", "<>a"),
    ("[[:lower:]]+", "aéAªʰ", "<>A<>"),
    ("[[:cntrl:]]+", "\u{1}\u{85}\u{200b}a\u{ad}", "<>\u{200b}a\u{ad}"),
    ("[[:graph:]]+", "a!é \u{a0}\u{85}\u{200b}", "<> \u{a0}\u{85}<>"),
    ("[[:print:]]+", "a!é \u{a0}\n\u{85}\u{200b}", "<>\n\u{85}<>"),
    ("[[:blank:]]+", " \t\u{a0}\u{3000}\n", "<>\n"),
    ("[[:xdigit:]]+", "09afAFg０", "<>g０"),
    ("[[:ascii:]]+", "azé", "<>é"),
    ("[[:^alpha:]]+", "a1-é", "a<>é"),
    ("[^[:alpha:]]+", "a1-é", "a<>é"),
    ("a(?i)b|c", "aB C c AB", "<> C c AB"),
    ("a(?i)b|C", "aB C c AB ab", "<> C c AB <>"),
    ("(?i)a|b", "A B", "<> <>"),
    ("x|(?i)a|b", "x X A B", "<> X <> <>"),
    ("(?:a(?i)b|c)d", "aBd Cd cd aCd", "<> Cd cd <>"),
    ("(?i:a)b", "Ab AB", "<> AB"),
    ("\\w+", "aé_½\u{301}\u{203f}\u{200d}a", "<>\u{200d}<>"),
    ("\\d+", "1٣½²", "<>½²"),
    ("\\s+", " \u{a0}\u{85}\u{2028}\u{180e}\u{200b}\u{b}\u{c}\u{1c}\u{1f}a", "<>\u{180e}\u{200b}<>\u{1c}\u{1f}a"),
    ("\\h+", "09afg", "<>g"),
    ("\\bx", "ax x é\u{301}x -x", "ax <> é\u{301}x -<>"),
    ("\\p{L}+", "aé1", "<>1"),
    ("\\p{Han}", "漢a", "<>a"),
    ("\\p{^L}+", "a12b", "a<>b"),
    ("\\P{^L}+", "a12b", "<>12<>"),
    ("\\p{Alpha}+", "aé1ⅷ", "<>1<>"),
    ("\\p{Punct}+", "!$+<=>«", "<>$+<=><>"),
    ("\\p{P}+", "!$+<=>«", "<>$+<=><>"),
    ("\\p{Letter}+", "ab1", "<>1"),
    ("\\p{Emoji}", "1😀", "<><>"),
    ("\\p{Latin}+", "aé漢", "<>漢"),
    ("\\p{Any}", "a\n", "<><>"),
    ("\\p{LC}", "a1", "<>1"),
    ("\\Z", "a\n", "a<>\n<>"),
    ("\\z", "a\n", "a\n<>"),
    ("\\Aa", "aa", "<>a"),
    ("\\O", "\n", "<>"),
    ("(?<n>a)(b)", "ab", "<>"),
    ("(?-i)a", "a", "<>"),
    ("(?i-m:a)", "A", "<>"),
    ("[a-z&&[^aeiou]]+", "abce", "a<>e"),
    ("[a&&b]", "a&", "a&"),
    ("[]a]+", "]a", "<>"),
    ("[a[b]]+", "ab[]", "<>[]"),
    ("[a-]+", "a-", "<>"),
    ("[-a]+", "a-", "<>"),
    ("[^]a]", "]ab", "]a<>"),
    ("[a\\]]+", "a]", "<>"),
    ("[\\b]", "\u{8}", "<>"),
    ("[(\\s|[.,!?…])]+", " |.(", "<>"),
    ("a]", "a]", "<>"),
    ("{", "{", "<>"),
    ("a{", "a{", "<>"),
    ("a{x}", "a{x}", "<>"),
    ("a{1", "a{1", "<>"),
    ("x{,3}", "xxxx", "<><>"),
    ("ß", "ß ss ẞ", "<> ss ẞ"),
    ("(?i)'s", "'s 'S 'ſ", "<> <> <>"),
    ("(?i)k", "kKK", "<><><>"),
    ("(?i)[a-z]+", "aZKſ", "<>"),
    ("(?i)[^s]", "sSſ a", "sSſ<><>"),
    ("(?i)i", "iIıİ", "<><>ıİ"),
    ("(?i)ǆ", "ǆǅǄ", "<><><>"),
    ("(?i)σ", "σςΣ", "<><><>"),
    ("(?<=a|bc)x", "ax bcx", "a<> bc<>"),
    ("(?<=a+)x", "aax", "aa<>"),
    ("(?<=a{2})x", "aax", "aa<>"),
    ("(?<=(?:a|bc))x", "ax bcx", "a<> bc<>"),
    ("(?<=a?)x", "ax", "a<>"),
    ("|a", "ba", "<>b<>a<>"),
    ("a|", "ba", "<>b<>"),
    ("()", "ba", "<>b<>a<>"),
    ("\\x41", "A", "<>"),
    ("\\x{41}", "A", "<>"),
    ("\\x4", "\u{4}", "<>"),
    ("\\u0041", "A", "<>"),
    ("\\a\\e\\f\\v", "\u{7}\u{1b}\u{c}\u{b}", "<>"),
    ("\\-\\/\\ \\<\\>\\'\\é", "-/ <>'é", "<>"),
    ("\\d*?x", "12x", "<>"),
    ("(?:ab){2}+", "ababababab", "<>ab"),
    ("(?:ab){2}?", "ababababab", "<><>a<>b<>"),
    ("a{0}", "a", "<>a<>"),
    ("a{0,0}b", "ab", "a<>"),
    ("a{2}??", "aaa", "<>a<>a<>a<>"),
    ("a??", "aaa", "<>a<>a<>a<>"),
    ("a{2,3}?+", "aaaaaa", "<>"),
    ("(?:a|b)*c", "abc", "<>"),
    ("(?:a*)*b", "aab", "<>"),
    ("(a*)+", "aab", "<>b<>"),
    ("[a~~b]", "~ab", "<><><>"),
    ("[\\w&&[^\\d]]+", "ab1", "<>1"),
    ("[[:alpha:]&&[^b]]+", "abc", "<>b<>"),
    ("[:alpha:]+", "alph:", "<>"),
    ("[\\h]+", "af", "<>"),
    ("[^\\n]+", "a\nb", "<>\n<>"),
    ("[^a]", "\n", "<>"),
    ("[a-\\x{7a}]+", "az", "<>"),
    ("[\\x61-\\x7a]+", "az", "<>"),
    ("[\\u4e00-\\u9fff]+", "漢", "<>"),
    ("[a&&b&&c]", "a", "a"),
    ("[a||b]", "a|b", "<><><>"),
    ("[^a&&b]", "abc", "<><><>"),
    ("[ab&&bc]", "abc", "a<>c"),
    ("[^ab&&bc]", "abc", "<>b<>"),
    ("(?i)x\\p{L}y", "xssy xßy xsy", "xssy <> <>"),
    ("(?i)x\\wy", "xssy", "xssy"),
    ("(?i)x[^a]y", "xssy", "xssy"),
    ("(?i)x[à-ÿ]y", "xssy", "xssy"),
    ("(?i)x\\P{N}y", "xssy", "xssy"),
    ("(?i)x\\Sy", "xssy", "xssy"),
    ("(?i)x.y", "xssy", "xssy"),
    ("(?i)x[^\\s\\p{N}]y", "xssy", "xssy"),
    ("(?i)\\p{Lu}+", "aAbB", "a<>b<>"),
    ("(?i)\\P{Lu}+", "abAB1", "<>AB<>"),
    ("(?i)[^\\p{Lu}]+", "abAB1", "abAB<>"),
    ("(?i)\\bk", "k", "<>"),
    ("(?i:s)s", "ß", "ß"),
    ("(?i)s+", "ß ss", "ß <>"),
    ("(?i)s{2}", "ß", "ß"),
    ("(?i)s[s]", "ß", "ß"),
    ("(?i)[s]s", "ß", "ß"),
    ("(?i)xs|sy", "ß", "ß"),
    ("(?i)s?s", "ß", "ß"),
    ("(?i)ss+", "ß ßs sß", "ß ßs sß"),
    ("(?i)'n", "ŉ", "ŉ"),
    ("a{,}", "a{,}", "<>"),
    ("\\d{2,3}+?", "1234567", "<><>7"),
    ("\\d{2,3}?+", "1234567", "<>7"),
    ("\\d{2}+?", "1234567", "<><><>7"),
    ("\\d{2,}+", "1234567", "<>"),
    ("\\d{,3}+", "1234567", "<>"),
    ("\\d{,3}?", "1234", "<>1<>2<>3<>4<>"),
    ("\\d{2}+x|\\d", "1234x", "<>"),
    ("[0-9-a]+", "0-9a", "<>"),
    ("[--a]+", "-/a", "<>"),
    ("[a-c-e]+", "abc-de", "<>d<>"),
    ("[\\]-a]+", "]^a", "<>"),
    ("[+--]+", "+,-", "<>"),
    ("[a&b]+", "a&b", "<>"),
    ("[a-z&&b-c&&c]+", "abc", "ab<>"),
    ("[a^]+", "a^", "<>"),
    ("[a\\-z]+", "a-z", "<>"),
    ("[[:a]]+", ":a]", "<>]"),
    ("[a[:^digit:]]+", "a1-", "<>1<>"),
    ("[\\[:alpha:]+", "[:alph", "<>"),
    ("[^[:^alpha:]]+", "ab1", "<>1"),
    ("[^\\W]+", "ab-", "<>-"),
    ("[^\\P{L}]+", "ab-", "<>-"),
    ("[\\s\\S]+", "a\n", "<>"),
    ("[^^]+", "a^", "<>^"),
    ("[!-/:-@\\[-`{-~]+", "!/[`{~a", "<>a"),
    ("[#]+ #", "## #", "<>"),
    ("\\#\\ ", "# ", "<>"),
    ("[ -~]+", "aé", "<>é"),
    ("(?m)^a$", "b\na\nb", "b\n<>\nb"),
    ("(?m:.)", "\n", "<>"),
    ("(?-m:.)", "\n", "\n"),
    ("(?m-i:.)", "\n", "<>"),
    ("(?mi:.)", "\n", "<>"),
    ("(?i:)", "\n", "<>\n<>"),
    ("\\u00e9", "é", "<>"),
    ("\\x7f", "\u{7f}", "<>"),
    ("\\x{e9}", "é", "<>"),
    ("[[:punct:]]*+(?!b)", "é$", "<>é<>"),
    ("\\w", "cc", "<><>"),
    ("(?m:(?<=a)\\B)*+", "$A$$ÉA\nA\u{200d}1,", "<>$<>A<>$<>$<>É<>A<>\n<>A<>\u{200d}<>1<>,<>"),
    ("[^\\s\\p{N}]{1,3}+(?i)", "B²ÉA2b2", "<>²<>2<>2"),
    ("(?i)\\d*", "a1$", "<>a<>$<>"),
    ("(?i)", "éa", "<>é<>a<>"),
    ("(?<!1)(?:\\w[^a]{1,3}[ab]?+)+?", "a²A", "<>"),
    ("^\\n{2}?", "A", "<>A"),
    (".*$", "bécB\u{200d}", "<>"),
    ("(?!b)\\d{2}?1{1,3}", "b2Bc²_ \n1c", "b2Bc²_ \n<>c"),
    ("(?m:(?i:\\W??|))*+", "ABa²\n_éA", "<>A<>B<>a<>²<>\n<>_<>é<>A<>"),
    ("(?:é+)(?i)", " _.aBé2Aé!1A2.", " _.aB<>2A<>!1A2."),
    ("[[:alpha:]]{1,3}?", "-$B.\u{200d}Éé.É", "-$<>.\u{200d}<><>.<>"),
    ("[[:alpha:]]{,2}.{2}", "A,-", "<>"),
    ("(?m:[a-c&&[^b]]+?(|){2,}+)*\\B", "1_Bb1.É.aA\u{200d}é", "1<>_<>B<>b<>1.É.<>A\u{200d}é"),
    ("(?<!1)[a-c&&[^b]]++\\W{1,3}", "2b-a ", "2b-<>"),
    ("\\w*[^a]+", "!\nÉ\u{200d}²²-", "<>"),
    ("^|é{2,}", "2É$b$ 1AaBB é", "<>2É$b$ 1AaBB é"),
    ("(?<=a)(?m)(?:[ab]*){2}?\\B", "Aaé²B", "Aa<>é²B"),
    ("[[:alpha:]]", "Ébcaé2,", "<><><><><>2,"),
    ("|\\d{1,3}+", "\n_1\u{200d}Aé$!-1_", "<>\n<>_<>1<>\u{200d}<>A<>é<>$<>!<>-<>1<>_<>"),
    ("[^a]*|\\p{L}+?", "1!_\n", "<>"),
    ("é{2} {1,3}?|", "Bc\nÉ ", "<>B<>c<>\n<>É<> <>"),
    ("\\S{1,3}?\\z", " !aÉ²BA.\u{200d}", " !aÉ²B<>"),
    ("[[:punct:]]{1,3}?(\\w{2,}+)*+\\s?", "c_,\u{200d}1²", "c<><>\u{200d}1²"),
    ("(?i:|1*)*+(?i)a?+", "!", "<>!<>"),
    ("$[[:alpha:]]{,2}|", "\u{200d}2,c!c.\u{200d}A", "<>\u{200d}<>2<>,<>c<>!<>c<>.<>\u{200d}<>A<>"),
    ("(?m)(?:(?i)\\p{L}??){2}+\\S", "2!,1$b", "<><><><><><>"),
    ("|a{2}?(?<!1)", "Bb2B1²a.$\n_", "<>B<>b<>2<>B<>1<>²<>a<>.<>$<>\n<>_<>"),
    ("(?m:\\B)+?|", "2..cB_$1.A", "<>2<>.<>.<>c<>B<>_<>$<>1<>.<>A<>"),
    ("\\s*\\Z", "A\u{200d}aA.-", "A\u{200d}aA.-<>"),
    ("(?i)|", "1a_2A \nbé1_BÉ", "<>1<>a<>_<>2<>A<> <>\n<>b<>é<>1<>_<>B<>É<>"),
    ("|(?>[a-c&&[^b]]{1,3}){2} {1,3}+", "c A,1", "<>c<> <>A<>,<>1<>"),
    ("(?!b)((?!b)(?>\\z|)+?)*\\b", "\n 2bb². 2", "\n <>2bb²<>. <>2<>"),
    ("\\w+?", "2ab-c", "<><><>-<>"),
    ("\\S{1,3}?", "a-\u{200d}1a\nb\n ", "<><><><><>\n<>\n "),
    ("(?>|[^a]{1,3}+b{,2})??(?<!1)", "\ncaéB-", "<>\n<>c<>a<>é<>B<>-<>"),
    ("é?(?i)", ".BÉ__,é,éÉ-\u{200d}É", "<>.<>B<>É<>_<>_<>,<>,<>É<>-<>\u{200d}<>É<>"),
    ("(?i)(?i)", "$12c²É_$!", "<>$<>1<>2<>c<>²<>É<>_<>$<>!<>"),
    ("1*(?i)(?i)", ",-", "<>,<>-<>"),
    ("(?:\\B|(?i))", "É$A_", "<>É<>$<>A<>_<>"),
    ("[^a].{2,}(?i)", "²b\nÉ$", "²b<>"),
    ("(?> {,2}[[:punct:]]{,2}){1,3}+ {2}?", "é\u{200d}\nÉ2_,é\ncA.a!", "<>é<>\u{200d}<>\n<>É<>2<>é<>\n<>c<>A<>a<>"),
    ("((?m:.{2})*){2}+", "2ÉÉ$2,", "<>"),
    ("\\s{1,3}?\\p{L}?+", "$é\u{200d}\nÉ-21", "$é\u{200d}<>-21"),
    ("[[:alpha:]]??", ",2b,b\n,1É,éÉ_", "<>,<>2<>b<>,<>b<>\n<>,<>1<>É<>,<>é<>É<>_<>"),
    ("\\s{1,3}[[:alpha:]]{2}?|", "-_-A2c", "<>-<>_<>-<>A<>2<>c<>"),
    ("(?:(?i)){2}?(?<!1)(\\S{2}a??\\n*+){2}+", ",11$$\n!B\u{200d}c 1", "<>$\n<> 1"),
    ("\\S{2}?", " ,$b1\n 1", "<> <><>\n<> <>1<>"),
    ("(\\s{1,3}\\w??\\S{2})*?", "\n\u{200d}$B-$$b", "<>\n<>\u{200d}<>$<>B<>-<>$<>$<>b<>"),
    (".?[^\\s\\p{N}]??", "B-B_É\u{200d} 2$²b1", "<><><><><><><><><><><><>"),
    ("\\w*.{,2}[[:punct:]]{2}+", "a!$²!\n", "<>²!\n"),
    ("[[:punct:]]{,2}\\A", "!²-é\n\né112a", "<>!²-é\n\né112a"),
    ("\\b1é{,2}", "1a2.\u{200d}a!a2!!a", "<>a2.\u{200d}a!a2!!a"),
    ("|[^a]*\\z", "Ab!²É._aa!$!A", "<>A<>b<>!<>²<>É<>.<>_<>a<>a<>!<>$<>!<>A<>"),
    ("[^a]*\\b", "1-bé", "<>"),
    ("(?i).++(?i)", "!É!A$\n2", "<>\n<>"),
    ("(?m:[^\\s\\p{N}]??)", "é²bé2\nb. ", "<>é<>²<>b<>é<>2<>\n<>b<>.<> <>"),
    ("(?:(?:[[:alpha:]]{1,3}(?<=\\n)))*+", "\u{200d},\u{200d}!c.Éc", "<>\u{200d}<>,<>\u{200d}<>!<>c<>.<>É<>c<>"),
    ("[[:punct:]]?(?i)", "c1a\n-.É", "<>c<>1<>a<>\n<><>É<>"),
    ("^\\w{1,3}+", "A,\u{200d}!É_Bb\n", "<>,\u{200d}!É_Bb\n"),
    ("[a-c&&[^b]]+?", "cA1", "<>A1"),
    ("(?m:(?m:1{,2}|)++){2,}\\W{2}?", "A,,\nÉc\u{200d}.,21", "<>A<>\n<>É<>c<>,<>2<>"),
    ("((?:\\S){2,}+[^a]1+)*+", "é", "<>é<>"),
    ("\\s*+[^a]++", "c,a,²aB²cc", "<>a<>a<>"),
    ("[[:punct:]]{2,}|\\W?+", " É-a", "<>É<>a<>"),
    ("|(?i)b++", "\u{200d}É", "<>\u{200d}<>É<>"),
    ("(?m:.){,2}|", ".", "<>"),
    ("[^\\s\\p{N}]", "cB,  BÉÉ!ÉÉ²!", "<><><>  <><><><><><>²<>"),
    ("\\n*?[a-c&&[^b]]++", "12!bc", "12!b<>"),
    ("(?m)(?:(?m)(?:a{2}a??|){2}+)", ".b$BÉÉ-$c\nA", "<>.<>b<>$<>B<>É<>É<>-<>$<>c<>\n<>A<>"),
    ("[^a]++1*+", "$1c__2!2", "<>"),
    ("\\w{1,3}?|.{,}", "$A", "$<>"),
    ("\\b\\d?+ ??", "Éaba\u{200d}b-\u{200d}\u{200d}bA\u{200d},", "<>Éaba<>\u{200d}<>b<>-\u{200d}\u{200d}<>bA<>\u{200d},"),
    ("[[:alpha:]]??\\w{2}?\\Z", "É .\ncé-.bA", "É .\ncé-.<>"),
    ("\\w++(?:|\\d{1,3}?){,2}\\s{2}?", "2\u{200d}", "<>\u{200d}"),
    ("[1-9-]{2}?", "b²$_!$\u{200d}ééc!", "<>b<>²<>$<>_<>!<>$<>\u{200d}<>é<>é<>c<>!<>"),
    ("\\S\\b", "__\nb", "_<>\n<>"),
    (" *+b{1,3}?", "$ca1cb -,-", "$ca1c<> -,-"),
    ("\\S*?a++[1-9-]{1,3}+", "\u{200d}  a\u{200d}B$éAA2-a-", "\u{200d}  <>"),
    ("[a-c&&[^b]]??^", "bb\u{200d}c1!_ ", "<>bb\u{200d}c1!_ "),
    ("|(?m:|)??", "- \n", "<>-<> <>\n<>"),
    ("(?:(?:(?i)||\\B)?+){2}+", "2éBc!Éc._\n²", "<>2<>é<>B<>c<>!<>É<>c<>.<>_<>\n<>²<>"),
    ("[[:punct:]]*(?i)", "\u{200d}1éé.\u{200d}", "<>\u{200d}<>1<>é<>é<>\u{200d}<>"),
    ("($)*", "-$$B\u{200d}", "<>-<>$<>$<>B<>\u{200d}<>"),
    ("\\s?+(?m:[a-c&&[^b]]{2}?)++b*?", ".B_é-", "<>.<>B<>_<>é<>-<>"),
    ("[^a]?", "A22a$$\n,B2\n", "<><><>a<><><><><><><>"),
    ("..*?((?:(?i)\\n{,2}|))", "BA ,.,b2_.", "<><><><><><><><><><>"),
    ("\\Z(?i)\\w{,2}", "a,.1\u{200d}\u{200d}$", "a,.1\u{200d}\u{200d}$<>"),
    ("\\S{1,3}(?i:(?:|\\s*? )++(?i)){2}?a{1,3}", "² 2²1,c21Éa", "² 2²1,c<>"),
    ("\\p{L}.{1,3}\\w?", "É.é1- c1", "<>- <>"),
    ("\\b", "\nbb\u{200d}2-b1,", "\n<>bb<>\u{200d}<>2<>-<>b1<>,"),
    ("|[^a]", "B\u{200d}c,ABBcb$", "<>B<>\u{200d}<>c<>,<>A<>B<>B<>c<>b<>$<>"),
    ("(?i)1{2}|", "Aé$A", "<>A<>é<>$<>A<>"),
    ("[a-c&&[^b]]+", "!aaB", "!<>B"),
    ("(?m:|)??(?i)|", "B²c-aB²", "<>B<>²<>c<>-<>a<>B<>²<>"),
    ("(?i)a{2}?|", "$1²,\u{200d}A,a1", "<>$<>1<>²<>,<>\u{200d}<>A<>,<>a<>1<>"),
    ("a??(?i:\\d){1,3}+", "\u{200d}b!!b1É1,\u{200d}A$B_", "\u{200d}b!!b<>É<>,\u{200d}A$B_"),
    ("(?i)(a)++", "b1\n_Ac_", "b1\n_<>c_"),
    ("(?m)(?:[ab]{1,3}+1|)+?|", ".².ÉB\n-", "<>.<>²<>.<>É<>B<>\n<>-<>"),
    ("\\d??|\\S{1,3}+", "!ÉB\u{200d}bÉ1,c-1,!_", "<>!<>É<>B<>\u{200d}<>b<>É<>1<>,<>c<>-<>1<>,<>!<>_<>"),
    ("(?m)(?:|\\n*\\W){2}?a{1,3}", "\u{200d}²é2ca_c2bb\n,É", "\u{200d}²é2c<>_c2bb\n,É"),
    ("[^a]{1,3}(?i).", "$-2A Aé,", "<><>"),
    ("(?<!1)(?:\\p{L}?(?:|\\b|).{2,}+){2,}", "--A!c.", "<>"),
    ("(?:\\B\\w{2})?(?<!1)é{1,3}", "²cé", "²c<>"),
    ("(?:\\s{1,3}?){1,3}\\S{1,3}?(?i)", " éBé", "<>Bé"),
    ("(?m:[^a]){1,3}?", "!\u{200d}", "<><>"),
    ("b{2}?", ". -!2É.11é_--2", "<>.<> <>-<>!<>2<>É<>.<>1<>1<>é<>_<>-<>-<>2<>"),
    ("\\n*?[a-c&&[^b]]+?|", "é", "<>é<>"),
];
