//! Grammars of formats. What matches is of the format; a few rare members of some formats do not match: leap seconds
//! away from UTC, quoted local parts of mail addresses, internationalised names in their `xn--` form.

const YEAR_LEAP: &str = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)";
const ZONE: &str = "(?:[zZ]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";
const BYTE: &str = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";
const GROUP: &str = "[0-9a-fA-F]{1,4}";

/// What the engine's own grammar serves for.
const OF_THE_ENGINE: [&str; 5] = ["duration", "email", "ipv4", "uuid", "uri"];
/// What is spelled out here.
const OURS: [&str; 5] = ["date", "time", "date-time", "hostname", "ipv6"];

/// How a format is asserted.
pub(super) enum Format {
    /// By the engine.
    Known,
    /// By a pattern and a length.
    Pattern(String, Option<u32>),
}

/// The assertion of a format; `None` for one without a grammar.
pub(super) fn assertion(name: &str) -> Option<Format> {
    let pattern = match name {
        _ if OF_THE_ENGINE.contains(&name) => return Some(Format::Known),
        "date" => date(),
        "time" => time(),
        "date-time" => format!("{}[tT]{}", date(), time()),
        "ipv6" => ipv6(),
        "hostname" => {
            let label = label();
            return Some(Format::Pattern(format!("^{label}(?:\\.{label})*$"), Some(253)));
        }
        _ => return None,
    };
    Some(Format::Pattern(format!("^(?:{pattern})$"), None))
}

/// All names, for messages.
pub(super) fn names() -> String {
    [&OF_THE_ENGINE[..], &OURS[..]].concat().join(", ")
}

/// RFC 3339, full-date, with the length of every month.
fn date() -> String {
    let long = "(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])";
    let short = "(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)";
    let february = "02-(?:0[1-9]|1[0-9]|2[0-8])";
    format!("(?:[0-9]{{4}}-(?:{long}|{short}|{february})|{YEAR_LEAP}-02-29)")
}

/// RFC 3339, full-time; a leap second only where it can be seen to be one.
fn time() -> String {
    let ordinary = format!("(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]+)?{ZONE}");
    format!("(?:{ordinary}|23:59:60(?:\\.[0-9]+)?(?:[zZ]|[+-]00:00))")
}

/// RFC 1123, a label of up to 63 characters; none with two hyphens in third and fourth place.
fn label() -> String {
    let (ends, inner) = ("[a-zA-Z0-9]", "[a-zA-Z0-9-]");
    let long = format!("{inner}(?:{ends}{inner}|-{ends}){inner}{{0,58}}{ends}");
    format!("(?:{ends}(?:{ends}|{inner}{ends}|{inner}{{2}}{ends}|{long})?)")
}

/// RFC 3986, IPv6address.
fn ipv6() -> String {
    let last = format!("(?:{GROUP}:{GROUP}|(?:{BYTE}\\.){{3}}{BYTE})");
    let before = |most: usize| match most {
        0 => format!("(?:{GROUP})?"),
        most => format!("(?:(?:{GROUP}:){{0,{most}}}{GROUP})?"),
    };
    let mut forms = vec![format!("(?:{GROUP}:){{6}}{last}"), format!("::(?:{GROUP}:){{5}}{last}")];
    for (most, groups) in (0..5).zip((0..5).rev()) {
        forms.push(format!("{}::(?:{GROUP}:){{{groups}}}{last}", before(most)));
    }
    forms.push(format!("{}::{GROUP}", before(5)));
    forms.push(format!("{}::", before(6)));
    forms.join("|")
}
