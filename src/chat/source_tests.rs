//! What the engine does not read is rewritten, what costs is counted, and the rest stays as it is.

use super::{budget, source};

fn prepare(source: &str) -> String {
    source::prepare(source).unwrap()
}

#[test]
fn only_what_the_engine_does_not_read_changes() {
    for same in [
        "plain { text } }} %}",
        "{{ a - b - 1 if c else d }}",
        "{%- if x is not none and a.b -%}{% endif +%}",
        "{{ x and not z is not defined }}{% for i, (j, k) in 2 recursive %}{% set (a, b) = c, 1e-5 %}",
        "{# +x 'a' 'b' {% generation %} #}",
        "{% raw %}{{ +x }}{% generation %}{% endraw %}",
        "{{ {'a': {'b': 1}} }}{{ f(x, y=1)[1] | join('+') }}{{ 'a' ~ 1 + 2 }}{% call(a, b) f([1]) %}",
        "{{ 'it\\'s {{ +x }}' }}",
        "{{ unclosed - 'text",
        "{% raw %}{% raw %}{{ +x }}",
        "{%} x {%",
    ] {
        assert_eq!(prepare(same), same);
    }
}

#[test]
fn every_name_of_ours_is_kept_from_templates() {
    let added = include_str!("budget.rs").split("environment.add_").skip(1);
    let mut names: Vec<&str> = added.filter_map(|call| call.split('"').nth(1)).collect();
    names.retain(|name| name.starts_with("llm_"));
    names.sort_unstable();
    assert_eq!(names, budget::OWN);
}

#[test]
fn generation_tags_keep_their_whitespace_control() {
    let source = "a {%- generation -%} b {% endgeneration %}{% if x %}";
    assert_eq!(prepare(source), "a {%- if true -%} b {% endif %}{% if x %}");
}

#[test]
fn signed_booleans_are_numbers() {
    assert_eq!(prepare("{{ -true + +False - x }}"), "{{ -1|llm_part + --0|llm_part - x }}");
}

#[test]
fn operands_that_look_like_operators_are_rewritten() {
    assert_eq!(prepare("{{ +x - (+y) }}"), "{{ --x - (--y) }}");
    assert_eq!(prepare("{{ 'a' \"b\" }}"), "{{ 'a' ~\"b\" }}");
    assert_eq!(prepare("{% if if in in %}"), "{% if variable_if|llm_look in variable_in|llm_look %}");
}

#[test]
fn chains_too_long_for_the_engine_are_refused_with_their_line() {
    for tag in ["-", "+", "not ", "1 + ", "a.", "a | trim | ", "1 if 1 else ", "a(0, 1)[2, 3]", "a(0)("] {
        let e = source::prepare(&format!("a\n\n{{{{ {}1 }}}}", tag.repeat(20_000))).unwrap_err();
        assert_eq!(e, (3, "an expression of more than 1000 words and signs".to_owned()), "{tag}");
    }
    let conditions = |n: usize| format!("{{% if a %}}{}{{% endif %}}", "\n{%- elif a %}".repeat(n));
    assert_eq!(source::prepare(&conditions(500)).unwrap(), conditions(500));
    let e = source::prepare(&conditions(501)).unwrap_err();
    assert_eq!(e, (502, "more than 500 `elif`".to_owned()));
    // Lists may be long, text outside of tags, comments and raw blocks may be of any length.
    let text = "one ".repeat(2000);
    let list = "{'a': [1, 2, 3, 4]}, ".repeat(2000);
    assert_eq!(source::prepare(&format!("{{{{ [{list}] }}}}")).unwrap(), format!("{{{{ [{list}] }}}}"));
    let whole = format!("{text}{{# {text} #}}{{% raw %}}{{{{ {text} {{% endraw %}}{{{{ '{text}' }}}}");
    assert!(source::prepare(&whole).unwrap().starts_with("o{{llm_raw(8000)}}ne one "));
    assert!(source::prepare(&" a".repeat(600)).is_err());
}

#[test]
fn operands_are_counted_without_a_change_of_precedence() {
    for (from, to) in [
        ("a ~ b + 1", "a |llm_text~ b |llm_text+ 1"),
        ("a + b|trim if x in y", "a |llm_part+ b|trim |llm_partif x |llm_lookin y|llm_look"),
        ("a * b ** 2 - 1", "(a )|llm_times*( b ** 2 )|llm_by- 1"),
        ("x ~ a / b * c", "x |llm_text~( (a / b )|llm_times*( c)|llm_by)|llm_text"),
        ("-a[1:].b", "(-llm_of(a)[1:]|llm_slice).b"),
        (
            "a[b].c['d'][e + 1] * -f[-1]",
            "(llm_of(llm_of(a)[(b)|llm_look].c['d'])[(e|llm_part + 1)|llm_look])|llm_times*( -llm_of(f)[-1])|llm_by",
        ),
        ("f(a)[0][1000].99", "llm_of(llm_of(f(a)[0])[1000]).99"),
        (
            "1.5 + (a)[b:c] - 'd'[e]",
            "1.5|llm_part + (llm_of((a))[b:c]|llm_slice)|llm_part - llm_of('d')[(e)|llm_look]",
        ),
        (
            "a is in b[c] or d is in [e][f] or g is h([i])",
            "a is in llm_of(b)[(c)|llm_look] or d is in llm_of([e])[(f)|llm_look] or g is h(([i]|llm_list))",
        ),
        ("a|b[c] ~ d", "a|b[c]|llm_text ~ d|llm_text"),
        ("llm_of(a.llm_of)|llm_raw", "variable_llm_of(a.llm_of)|variable_llm_raw"),
        ("llm_of[b]", "llm_of(variable_llm_of)[(b)|llm_look]"),
        ("llm_of * b", "(variable_llm_of)|llm_times*( b)|llm_by"),
        ("[a, ['b']][0]", "([a, ['b']]|llm_list)[0]"),
        ("f((a, 1), (b))", "f(((a, 1)|llm_list), (b))"),
    ] {
        let squeeze = |text: &str| text.replace(' ', "");
        assert_eq!(squeeze(&prepare(&format!("{{{{ {from}}}}}"))), squeeze(&format!("{{{{{to}}}}}")));
    }
    assert_eq!(prepare("{% set n.x = a, b -%}"), "{% set n.x =( a, b)|llm_kept -%}");
}
