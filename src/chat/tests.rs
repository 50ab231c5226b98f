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

/// An expression with the variables of no conversation.
fn eval(expression: &str) -> String {
    render(&format!("{{{{ {expression} }}}}"), &Map::new()).unwrap_or_else(|e| format!("error: {e}"))
}

#[test]
fn methods_and_filters_do_what_python_does() {
    // The right-hand sides are what Python 3 prints.
    for (expression, want) in [
        ("'a b  c'.split()", "['a', 'b', 'c']"),
        ("' a b  c '.split(none, 1)", "['a', 'b  c ']"),
        ("' a b  c '.rsplit(none, 1)", "[' a b', 'c']"),
        ("' a b  c '.rsplit(maxsplit=0)", "[' a b  c']"),
        ("'a,b,c'.rsplit(',', 1)", "['a,b', 'c']"),
        ("'a=b=c'.partition('=')", "('a', '=', 'b=c')"),
        ("'abc'.rpartition('=')", "('', '', 'abc')"),
        ("'a\\r\\nb\\n\\nc'.splitlines()", "['a', 'b', '', 'c']"),
        ("'a\\nb\\n'.splitlines(true)", "['a\\n', 'b\\n']"),
        ("'xxaxx'.strip('x') ~ 'xxa'.lstrip('x') ~ 'axx'.rstrip('x')", "aaa"),
        ("\"they're\".title()", "They'Re"),
        ("'aBc'.swapcase()", "AbC"),
        ("'abc'.removeprefix('ab') ~ 'abc'.removesuffix('x')", "cabc"),
        (
            "'ab'.center(5) ~ '|' ~ 'abc'.center(6) ~ '|' ~ 'a'.ljust(3, '.') ~ 'a'.rjust(2)",
            "  ab | abc  |a.. a",
        ),
        ("'-5'.zfill(4) ~ '5'.zfill(3)", "-005005"),
        ("'abcb'.index('b') ~ 'abcb'.rindex('b')", "13"),
        ("[1, 2].index(2) ~ {'a': 1}.copy()", "1{'a': 1}"),
        ("'aaa' | replace('a', 'b', 2)", "bba"),
        ("'a\\nb\\n\\nc' | indent(2)", "a\n  b\n\n  c"),
        ("'a\\nb' | indent('> ', first=true)", "> a\n> b"),
        ("[{'k': 2, 'v': 1}, {'k': 1}, {'k': 2}] | groupby('k') | map(attribute=0) | list", "[1, 2]"),
        ("'a' is sequence and {} is sequence and not 1 is sequence", "True"),
        ("range is callable and not 'a' is callable", "True"),
        ("'0x1f' | int(0, 16) ~ '|' ~ '7.9' | int ~ '|' ~ none | int(3)", "31|7|3"),
        ("[1.0, 1e16, 1e-5, 0.1]", "[1.0, 1e+16, 1e-05, 0.1]"),
        ("['it\\'s', 'a\"b', '\\t\\\\']", "[\"it's\", 'a\"b', '\\t\\\\']"),
        ("(1,) ~ [none, true] ~ {'a': 1}", "(1,)[None, True]{'a': 1}"),
        ("{'ü': '<\"'} | tojson", "{\"ü\": \"<\\\"\"}"),
        // Filters and tests by name are the same ones.
        ("[{'a': '<b> &'}] | map('tojson') | join", "{\"a\": \"<b> &\"}"),
        ("['7', 'B'] | map('int') | list", "[7, 0]"),
        ("['a a'] | map('replace', 'a', 'b', 1) | list", "['b a']"),
        ("['x'] | select('sequence') | list", "['x']"),
        ("'é😀' | tojson(ensure_ascii=true)", "\"\\u00e9\\ud83d\\ude00\""),
    ] {
        assert_eq!(eval(expression), want, "{expression}");
    }
}

#[test]
fn a_template_cannot_run_without_end() {
    let limits = Limits { steps: 10_000, depth: 50, output: 1000 };
    let run = |source: &str| {
        let template = Template::compile_with(source, &[], limits, CLOCK).unwrap();
        template.render_context(&Map::new()).unwrap_err().status()
    };
    assert_eq!(
        run("{% for a in range(1000) %}{% for b in range(1000) %}{% endfor %}{% endfor %}"),
        Status::BUDGET
    );
    assert_eq!(run("{% for a in range(1000) %}0123456789{% endfor %}"), Status::BUDGET);
    assert_eq!(
        run(
            "{% set n = namespace(x='0123456789') %}{% for a in range(40) %}{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}{% endfor %}"
        ),
        Status::BUDGET
    );
    // Values whose text would fill the memory, though their parts are small.
    assert_eq!(run("{{ ['x' * 100000] * 100000 }}"), Status::BUDGET);
    assert_eq!(run("{{ (['x' * 100000] * 100000) | tojson }}"), Status::BUDGET);
    assert_eq!(run("{{ ('x' * 100000) | replace('x', 'y' * 100000) }}"), Status::BUDGET);
    assert_eq!(run("{{ [1] | slice(9223372036854775807) }}"), Status::INVALID_ARG);
    assert_eq!(run("{{ [1] | batch(9223372036854775807, 0) }}"), Status::INVALID_ARG);
    // Recursion ends with an error, not with the stack.
    run("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}");
    run("{% set x = [] %}{% for i in range(500) %}{% set x = [x] %}{% endfor %}{{ nothing.here }}");
}

#[test]
fn a_template_cannot_build_more_than_its_budget() {
    let limits = Limits { steps: 100_000, depth: 50, output: 100_000 };
    let twenty = |body: &str| {
        format!(
            "{{% set n = namespace(x='0123456789', y=[1]) %}}{{% for i in range(40) %}}{body}{{% endfor %}}"
        )
    };
    for source in [
        twenty("{% set n.x = n.x ~ n.x %}"),
        twenty("{% set n.x = n.x + n.x %}"),
        twenty("{% set n.x = n.x * 2 %}"),
        twenty("{% set n.x = 2 * n.x %}"),
        twenty("{% set n.x = n.x.replace('0', '00000000') %}"),
        twenty("{% set n.x = [n.x, n.x]|join %}"),
        twenty("{% set n.x = '%s%s'|format(n.x, n.x) %}"),
        twenty("{% set n.x = '{0}{0}'.format(n.x) %}"),
        twenty("{% set n.y = n.y + n.y %}"),
        twenty("{% set n.y = n.y * 2 %}{{ n.y|list|length }}"),
        twenty("{% set n.y = [n.y, n.y] %}"),
        twenty("{% set n.y = n.y|chain(n.y)|list %}"),
        twenty("{% set n.y = [n.y, n.y]|sum(start=[]) %}"),
        twenty("{% set n.y = [n.y, n.y] %}{{ n.y == n.y }}"),
        twenty(
            "{% macro m() %}0123456789 0123456789 0123456789 0123456789{% endmacro %}\
             {% for j in range(1000) %}{% set n.y = [m(), n.y[1:]] %}{% endfor %}",
        ),
        twenty("{% for j in range(1000) %}{{ ('x' * 9999)[1:]|length }}{% endfor %}"),
        "{{ (['x' * 10000]*100000)|join|length }}".to_owned(),
        "{{ ''.join(['x' * 10000]*100000)|length }}".to_owned(),
        "{{ (['x' * 10000]*100000)|map('upper')|list|length }}".to_owned(),
        "{{ (['x' * 10000]*1000)|sum }}".to_owned(),
        "{{ '%9999999999d'|format(1) }}".to_owned(),
        "{{ '%*d'|format(9999999999, 1) }}".to_owned(),
        "{{ '{:>9999999999}'.format(1) }}".to_owned(),
        "{{ '{:>{}}'.format(1, 9999999999) }}".to_owned(),
        "{{ 'x' * 10 ** 9 }}".to_owned(),
        "{{ 1000000000 // 1 * 'x' }}".to_owned(),
        "{{ ((1,) * 99999999)|length }}".to_owned(),
        "{{ (range(50000)|list)|groupby('x')|length }}".to_owned(),
        "{{ range(50000)|select('in', range(50000))|list|length }}".to_owned(),
        "{% for i in range(10000) %}{{ i in range(10000)|list }}{% endfor %}".to_owned(),
        "{{ ('x,' * 40000).split(',')|length }}".to_owned(),
        "{{ 'x' * 40000 * 40000 }}".to_owned(),
        "{{ '' ~ ['x' * 10000] * 10000 }}".to_owned(),
    ] {
        let template = Template::compile_with(&source, &[], limits, CLOCK).unwrap();
        let e = template.render_context(&Map::new()).unwrap_err();
        let wrong = ["deeper", "sum: expected", "too large"].iter().any(|words| e.message().contains(words));
        assert!(e.status() == Status::BUDGET || wrong, "{source}: {e}");
    }
    // Values that hold themselves or nest without end are refused before they are printed, compared or freed.
    for body in [
        "{% set n.y = [n.y] %}",
        "{% set n.y = {'a': n.y} %}",
        "{% set n.y = (n.y,) %}",
        "{% set n.y = n.y|batch(1)|list %}",
        "{% set n.y = n %}",
        "{% set n.y = [n] %}",
        "{% set n.y = namespace(a=n) %}",
    ] {
        let source = twenty(&format!("{{% for j in range(10) %}}{body}{{% endfor %}}{{{{ n }}}}"));
        let e = Template::compile_with(&source, &[], limits, CLOCK).unwrap().render_context(&Map::new());
        assert!(e.is_err(), "{source}: {e:?}");
    }
}

#[test]
fn items_of_long_texts_count_as_what_is_before_them() {
    let limits = Limits { steps: 1_000_000, depth: 50, output: 1_000_000 };
    let begin = "{% set t = 'x' * 1000000 %}{% set r = range(9999) %}{% set m = {'a': 1} %}";
    let run = |body: &str| {
        let source = format!("{begin}{{% for i in range(9999) %}}{body}{{% endfor %}}");
        Template::compile_with(&source, &[], limits, CLOCK).unwrap().render_context(&Map::new())
    };
    for item in [
        "t[999999 - i]",
        "t[-1]",
        "t[999999]",
        "t.999999",
        "t[999998:999999]",
        "t|attr(999999)",
        "m[t]",
        "m|attr(t)",
        "r[9000]",
        "r[i]",
        "1 is eq t[i]",
        "-[i][i * 0] * t[i]|length",
        "[t[i]]|length",
    ] {
        let e = run(&format!("{{% set z = {item} %}}")).unwrap_err();
        assert_eq!(e.status(), Status::BUDGET, "{item}: {e}");
    }
    // what counts is not the template's to call: a product would be counted by another's factors
    for own in ["9|llm_times", "9|llm_by", "[9]|map('llm_by')|list", "[9]|map('llm_' ~ 'times')|list"] {
        let e = run(&format!("{{% set z = {own} %}}")).unwrap_err();
        assert_eq!(e.status(), Status::INVALID_ARG, "{own}: {e}");
    }
    let e = run("{% set llm_of = dict %}{% macro llm_of(x) %}{% endmacro %}{% set z = t[-1] %}").unwrap_err();
    assert_eq!(e.status(), Status::BUDGET, "{e}");
    assert_eq!(
        eval("'abc'[1] ~ 'abc'[-1] ~ [1, 2][1 - 2] ~ {'a': 3}['a' ~ ''] ~ 'abcd'[1:-1] ~ 'ab'|attr(1)"),
        "bc23bcb"
    );
    assert_eq!(
        eval("[2 is in [1, 2][0:1], 1 is eq [1][1 - 1], -[5][1 - 1], (1, 2).1]"),
        "[False, True, -5, 2]"
    );
}

#[test]
fn what_lazy_filters_give_counts_as_all_that_it_holds() {
    let limits = Limits { steps: 3_000_000, depth: 50, output: 1_000_000 };
    let run = |source: &str| {
        Template::compile_with(source, &[], limits, CLOCK).unwrap().render_context(&Map::new())
    };
    // Each holds the one before it: a hundred thousand of them are more than a stack has room to free.
    for filter in ["[n.y]|select", "[n.y]|map('default', 1)", "[n.y]|reject('none')", "n.y|batch(1)"] {
        let source = format!(
            "{{% set n = namespace(y=[1]) %}}{{% for i in range(99999) %}}{{% set n.y = {filter} %}}{{% endfor %}}"
        );
        let e = run(&source).unwrap_err();
        assert!(e.message().contains("deeper"), "{filter}: {e}");
    }
    // So would these, which show less than they hold.
    for body in [
        "{% set n.y = [n.y][1:] %}",
        "{% set n.y = [[n.y][:0]] %}",
        "{% set n.y = {'a': n.y}.keys() %}",
        "{% set n.y = {'a': n.y}.items()[1:] %}",
        "{% set n.y = {'a': n.y}|reverse %}",
        "{% set n.y = [n.y]|zip([]) %}",
        "{% set n.y = {'a': n.y}|chain({'a': 1}) %}",
        "{% for j in {'a': n.y} %}{% set n.y = loop %}{% endfor %}",
    ] {
        let source =
            format!("{{% set n = namespace(y=[1]) %}}{{% for i in range(40000) %}}{body}{{% endfor %}}");
        match render(&source, &Map::new()) {
            Ok(text) => assert_eq!(text, "", "{body}"),
            Err(e) => assert!(e.message().contains("cannot be put into a namespace"), "{body}: {e}"),
        }
    }
    let e =
        run("{% set m = range(9999)|map('int') %}{{ ([m] * 20000)|map('list')|list|length }}").unwrap_err();
    assert_eq!(e.status(), Status::BUDGET, "{e}");
    let seen = "{% set m = [3, 1]|map('int') %}{% for x in m %}{{ x }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }} {% endfor %}\
                {{ m|list }}{{ m }}{{ m|sum }}{{ m|sort }}{{ m|reverse|list }}";
    assert_eq!(run(seen).unwrap(), "3False22 1True21 [3, 1]<generator object>4[1, 3][1, 3]");
    let seen = "{% set d = {'a': 1, 'b': 2} %}{{ d.keys() }}{{ d.values()|sum }}{% for k, v in d.items() %}{{ k }}{{ v }}{% endfor %}\
                {{ ({'a': 1}|chain({'a': 2, 'b': 3})).items()|list }}{{ [1, 2, 3][::-1][:2] }}{{ [1, 2]|zip('ab') }}";
    assert_eq!(run(seen).unwrap(), "['a', 'b']3a1b2[('a', 2), ('b', 3)][3, 2][(1, 'a'), (2, 'b')]");
}

#[test]
fn names_of_attributes_and_sets_of_characters_may_be_long() {
    let limits = Limits { steps: 3_000_000, depth: 50, output: 1_000_000 };
    let run = |source: &str| {
        Template::compile_with(source, &[], limits, CLOCK).unwrap().render_context(&Map::new())
    };
    for source in [
        "{{ range(9999)|sort(attribute=',' * 100000) }}",
        "{{ range(9999)|sort(false, false, ',' * 100000) }}",
        "{{ ('x' * 30000).strip('y' * 30000 ~ 'x') }}",
        "{{ ('x' * 30000)|trim('y' * 30000 ~ 'x') }}",
        "{% set b = 'x' * 900000 %}{% for i in range(9999) %}{% set z = b|length %}{% endfor %}",
    ] {
        assert_eq!(run(source).unwrap_err().status(), Status::BUDGET, "{source}");
    }
    // Behind what is not there nothing is looked for.
    for filter in ["sum(attribute=dots)", "join(attribute=dots)", "groupby(dots)", "sort(attribute=dots)"] {
        let source = format!("{{% set dots = '.' * 100000 %}}{{{{ (range(999)|{filter})|string|length }}}}");
        assert!(run(&source).is_ok() || filter.starts_with("sort"), "{filter}: {:?}", run(&source));
    }
    assert_eq!(
        eval("[{'a': {'b': 2}}, {'a': {'b': 1}}]|sort(attribute='a.b,a')|map(attribute='a.b')|list"),
        "[1, 2]"
    );
    assert_eq!(eval("' xyx '.strip(' x') ~ 'yxy'|trim('y')"), "yx");
}

/// What an engine renders that is set up like ours, but reads the source as it stands.
fn plain(source: &str) -> Option<String> {
    let mut environment = minijinja::Environment::new();
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_formatter(|out, _, value| Ok(out.write_str(&python::str(value)?)?));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment
        .render_str(
            source,
            minijinja::context! {
            a => "text", b => 7, c => vec![1, 2], d => 2.5, e => "" },
        )
        .ok()
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2000))]
    #[test]
    fn counting_changes_no_expression(
        first in 0usize..14,
        rest in proptest::collection::vec((0usize..19, 0usize..14, 0usize..4), 0..6),
    ) {
        let operands = [
            "a", "b", "c", "d", "e", "3", "'x'", "-b", "a[1:]", "c[::-1]|list", "(a, b)", "[b, a]", "a.upper()", "(b + 2)",
        ];
        let operators = [
            "+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", "in", "not in", "and", "or", "if b else", "| string ~",
            "is string ~", "is divisibleby 2 ~",
        ];
        let blanks = ["", " ", "\n", "  "];
        let mut source = operands[first].to_owned();
        for (operator, operand, blank) in rest {
            source += &format!(" {}{} {}", operators[operator], blanks[blank], operands[operand]);
        }
        let source = format!("{{{{ {source} }}}}");
        let context = serde_json::json!({"a": "text", "b": 7, "c": [1, 2], "d": 2.5, "e": ""});
        if let Some(want) = plain(&source) {
            let got = render(&source, context.as_object().unwrap());
            proptest::prop_assert_eq!(got.ok(), Some(want), "{}", source);
        }
    }
}

#[test]
fn where_the_engine_fails_there_is_an_error() {
    // A slice backwards of what has nothing in it.
    let error = render("{{ [][::-1] }}", &Map::new()).unwrap_err();
    assert_eq!(error.status(), Status::UNSUPPORTED, "{error}");
    assert_eq!(render("{{ [1, 2][::-1] }}", &Map::new()).unwrap(), "[2, 1]");
}

#[test]
fn errors_say_where() {
    let e = Template::compile("line\n{% if %}", &[]).err().unwrap();
    assert_eq!((e.status(), e.detail("line")), (Status::BAD_FORMAT, Some(2)));
    let e = render("a\nb{{ x.y.z }}", &Map::new()).unwrap_err();
    assert!(e.message().contains("line 2"), "{e}");
    let refused = Template::compile("{{ raise_exception('No ' ~ messages[0].role) }}", &[]).unwrap();
    let mut chat = Chat::new();
    chat.add("system", "x");
    let e = refused.render(&chat, true).unwrap_err();
    assert_eq!((e.status(), e.message()), (Status::INVALID_ARG, "No system"));
}

#[test]
fn host_json_is_checked() {
    let mut chat = Chat::new();
    chat.add_json(r#"{"role": "user", "content": [{"type": "text", "text": "hi"}]}"#).unwrap();
    chat.set_tools_json(r#"[{"type": "function"}]"#).unwrap();
    chat.set_var_json("enable_thinking", "false").unwrap();
    let template = "{{ messages[0].content[0].text }}{{ tools|length }}{{ enable_thinking }}{{ add_generation_prompt }}{{ bos_token }}";
    let template = Template::compile(template, &[("bos_token", "<s>")]).unwrap();
    assert_eq!(template.render(&chat, true).unwrap(), "hi1FalseTrue<s>");
    for bad in ["{", "[]", "{}", r#"{"role": 1}"#] {
        assert_eq!(chat.add_json(bad).unwrap_err().status(), Status::INVALID_ARG, "{bad}");
    }
    let deep = format!("{}1{}", "[".repeat(100), "]".repeat(100));
    assert_eq!(chat.set_var_json("x", &deep).unwrap_err().status(), Status::INVALID_ARG);
    assert!(chat.set_tools_json("{}").is_err());
    chat.set_tools_json("null").unwrap();
    assert_eq!(chat.tools, None);
}

#[test]
fn a_model_brings_its_templates_by_name() {
    let both = serde_json::json!({"chat_template": "a", "chat_templates": {"tool_use": "b"}});
    let metadata = both.as_object().unwrap();
    let source = |name| Template::of_model(metadata, None, name).map(|t| t.source().to_owned());
    assert_eq!(source(None).unwrap(), "a");
    assert_eq!(source(Some("default")).unwrap(), "a");
    assert_eq!(source(Some("tool_use")).unwrap(), "b");
    assert_eq!(source(Some("rag")).unwrap_err().status(), Status::NOT_FOUND);
    let e = Template::of_model(&Map::new(), None, None).err().unwrap();
    assert_eq!(e.status(), Status::NOT_FOUND);
}

#[test]
fn sorting_what_has_no_order_is_an_error_or_some_order() {
    // Long enough for a sort that looks out for such orders.
    let list = |item: &dyn Fn(usize) -> String| (0..300).map(item).collect::<Vec<_>>().join(", ");
    let count = |list: &str, filter: &str| eval(&format!("[{list}] | {filter} | length"));
    let numbers =
        list(&|i| if i % 3 == 0 { "'nan' | float".to_owned() } else { (i * 7919 % 301).to_string() });
    assert_eq!(count(&numbers, "sort"), "300");
    assert_eq!(count(&numbers, "sort(reverse=true)"), "300");
    let mixed =
        list(&|i| if i % 2 == 0 { format!("'{}'", i * 7919 % 301) } else { (i * 7919 % 301).to_string() });
    assert!(count(&mixed, "sort").contains("have no order"), "{}", count(&mixed, "sort"));
    let groups = list(&|i| format!("{{'k': {}}}", if i % 2 == 0 { format!("'{i}'") } else { i.to_string() }));
    assert!(count(&groups, "groupby('k')").contains("have no order"));
    // Equal items keep their places, the other way round too.
    let pairs = "[{'k': 2, 'v': 1}, {'k': 1, 'v': 2}, {'k': 2, 'v': 3}, {'k': 1, 'v': 4}, {'k': 1, 'v': 5}]";
    let sorted = |by: &str| eval(&format!("{pairs} | sort({by}) | map(attribute='v') | list"));
    assert_eq!(sorted("attribute='k'"), "[2, 4, 5, 1, 3]");
    assert_eq!(sorted("attribute='k', reverse=true"), "[1, 3, 2, 4, 5]");
}
