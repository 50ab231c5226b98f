//! How an instance is written so that a constraint can take it: fields in the schema's order, whole numbers without
//! fraction. JSON leaves both open; a generated text fixes them.

use std::collections::HashMap;

use serde_json::{Map, Value};

/// Texts of `data`, of which a valid instance's constraint must take one: as it stands, in the order of the schema's
/// `properties`, and, where few, in all orders of fields.
pub fn writings(schema: &Value, data: &Value) -> Vec<String> {
    let mut order = HashMap::new();
    fields(schema, &mut order);
    let first = ordered(data, &order);
    let mut texts = vec![text(data), text(&first)];
    texts.dedup();
    if let Value::Object(map) = &first
        && (2..=5).contains(&map.len())
    {
        let names: Vec<&String> = map.keys().collect();
        for order in permutations(names.len()) {
            let shuffled: Map<String, Value> =
                order.iter().map(|&i| (names[i].clone(), map[names[i]].clone())).collect();
            texts.push(text(&Value::Object(shuffled)));
        }
    }
    texts
}

/// JSON with whole numbers in digits alone.
fn text(value: &Value) -> String {
    match value {
        Value::Number(number) if number.is_f64() => match number.as_f64() {
            Some(x) if x.fract() == 0.0 => format!("{x:.0}"),
            _ => number.to_string(),
        },
        Value::Array(items) => format!("[{}]", items.iter().map(text).collect::<Vec<_>>().join(",")),
        Value::Object(map) => {
            let fields: Vec<_> = map
                .iter()
                .map(|(name, value)| format!("{}:{}", Value::from(name.as_str()), text(value)))
                .collect();
            format!("{{{}}}", fields.join(","))
        }
        _ => value.to_string(),
    }
}

/// Every name under `properties`, by first appearance.
fn fields(schema: &Value, order: &mut HashMap<String, usize>) {
    match schema {
        Value::Object(keywords) => {
            if let Some(Value::Object(names)) = keywords.get("properties") {
                for name in names.keys() {
                    let next = order.len();
                    order.entry(name.clone()).or_insert(next);
                }
            }
            keywords.values().for_each(|value| fields(value, order));
        }
        Value::Array(items) => items.iter().for_each(|item| fields(item, order)),
        _ => {}
    }
}

fn ordered(data: &Value, order: &HashMap<String, usize>) -> Value {
    match data {
        Value::Array(items) => items.iter().map(|item| ordered(item, order)).collect(),
        Value::Object(map) => {
            let mut names: Vec<&String> = map.keys().collect();
            names.sort_by_key(|name| order.get(*name).copied().unwrap_or(usize::MAX));
            names.into_iter().map(|name| (name.clone(), ordered(&map[name], order))).collect()
        }
        _ => data.clone(),
    }
}

fn permutations(n: usize) -> Vec<Vec<usize>> {
    let mut all = vec![vec![]];
    for next in 0..n {
        all = all
            .into_iter()
            .flat_map(|p: Vec<usize>| {
                (0..=p.len()).map(move |at| {
                    let mut q = p.clone();
                    q.insert(at, next);
                    q
                })
            })
            .collect();
    }
    all
}
