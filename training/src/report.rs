//! A run's report: one HTML file with its curves as SVG, for any browser, without a network.

use std::fmt::Write;

use serde_json::Value;

use crate::config::Config;

/// Size of a chart's plane.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 220.0;
/// Most points of a curve; of more, neighbours are averaged.
const POINTS: usize = 800;

/// A curve: what it is called, its colour, its points.
struct Curve {
    name: &'static str,
    color: &'static str,
    points: Vec<(f64, f64)>,
}

/// The report of the rows of `metrics`.
pub(crate) fn html(config: &Config, metrics: &str) -> String {
    let rows: Vec<Value> = metrics.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let curve = |name: &'static str, key: &str, color: &'static str| {
        let point = |r: &Value| Some((r.get("step")?.as_f64()?, r.get(key)?.as_f64()?));
        Curve { name, color, points: thin(rows.iter().filter_map(point).collect()) }
    };
    let charts = [
        (
            "Loss, nats per token",
            vec![
                curve("training", "loss", "#3b6fb6"),
                curve("held out", "held_out_nats_per_token", "#c8553d"),
            ],
        ),
        ("Learning rate", vec![curve("rate", "lr", "#3b6fb6")]),
        ("Gradient norm before clipping", vec![curve("norm", "grad_norm", "#3b6fb6")]),
        ("Tokens per second", vec![curve("tokens/s", "tokens_per_second", "#3b6fb6")]),
    ];
    let last = |key: &str| rows.iter().rev().find_map(|r| r.get(key)?.as_f64());
    let held_out = rows.iter().filter_map(|r| r.get("held_out_nats_per_token")?.as_f64());
    let best = held_out.fold(None, |best: Option<f64>, x| Some(best.map_or(x, |b| b.min(x))));
    let show = |x: Option<f64>| x.map_or("–".into(), |x| format!("{x:.4}"));
    let mut out = String::from(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Training</title><style>\n\
         body{font:15px system-ui,sans-serif;max-width:720px;margin:2em auto;padding:0 1em;color:#222;background:#fff}\n\
         h2{font-size:1em;margin:1.6em 0 .3em}svg{width:100%;height:auto}text{font-size:11px;fill:#555}\n\
         pre{background:#f5f5f3;padding:1em;overflow:auto}td{padding:.1em 1.2em .1em 0}\n</style></head><body>\n",
    );
    let step = last("step").unwrap_or(0.0);
    let _ = writeln!(out, "<h1>{}</h1>\n<table>", escape(&config.out.display().to_string()));
    for (name, value) in [
        ("steps", format!("{step} of {}", config.steps)),
        ("loss of the last step", show(last("loss"))),
        ("held-out loss, last", show(last("held_out_nats_per_token"))),
        ("held-out loss, best", show(best)),
        ("nats per byte, last", show(last("held_out_nats_per_byte"))),
    ] {
        let _ = writeln!(out, "<tr><td>{name}</td><td>{value}</td></tr>");
    }
    out.push_str("</table>\n");
    for (title, curves) in &charts {
        chart(&mut out, title, curves);
    }
    let _ = writeln!(out, "<h2>Settings</h2>\n<pre>{}</pre>\n</body></html>", escape(&config.to_json()));
    out
}

/// At most [`POINTS`] points, each the mean of as many neighbours.
fn thin(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let each = points.len().div_ceil(POINTS).max(1);
    let mean = |c: &[(f64, f64)]| {
        let n = c.len() as f64;
        (c.iter().map(|p| p.0).sum::<f64>() / n, c.iter().map(|p| p.1).sum::<f64>() / n)
    };
    points.chunks(each).map(mean).collect()
}

fn chart(out: &mut String, title: &str, curves: &[Curve]) {
    let all = || curves.iter().flat_map(|c| &c.points).filter(|p| p.1.is_finite());
    let range = |of: fn(&(f64, f64)) -> f64| {
        all().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)))
    };
    let ((left, right), (low, high)) = (range(|p| p.0), range(|p| p.1));
    if left > right {
        return;
    }
    let (right, high) = (right.max(left + 1.0), if high > low { high } else { low + 1.0 });
    let x = |v: f64| 60.0 + (v - left) / (right - left) * (WIDTH - 70.0);
    let y = |v: f64| 10.0 + (high - v) / (high - low) * (HEIGHT - 40.0);
    let _ = writeln!(out, "<h2>{title}</h2>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    for i in 0..5 {
        let share = f64::from(i) / 4.0;
        let (v, at) = (low + share * (high - low), left + share * (right - left));
        let _ = writeln!(
            out,
            "<line x1=\"60\" x2=\"{}\" y1=\"{2:.1}\" y2=\"{2:.1}\" stroke=\"#e5e5e2\"/>\
             <text x=\"54\" y=\"{3:.1}\" text-anchor=\"end\">{1}</text>\
             <text x=\"{4:.1}\" y=\"{5}\" text-anchor=\"middle\">{at:.0}</text>",
            WIDTH - 10.0,
            number(v),
            y(v),
            y(v) + 4.0,
            x(at),
            HEIGHT - 12.0
        );
    }
    for (i, curve) in curves.iter().enumerate().filter(|(_, c)| !c.points.is_empty()) {
        let points: Vec<String> = curve
            .points
            .iter()
            .filter(|p| p.1.is_finite())
            .map(|(a, b)| format!("{:.1},{:.1}", x(*a), y(*b)))
            .collect();
        let color = curve.color;
        let _ = writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{color}\" stroke-width=\"1.5\" points=\"{}\"/>",
            points.join(" ")
        );
        // A line through one point is not seen.
        if let [point] = points.as_slice()
            && let Some((x, y)) = point.split_once(',')
        {
            let _ = writeln!(out, "<circle cx=\"{x}\" cy=\"{y}\" r=\"3\" fill=\"{color}\"/>");
        }
        if curves.len() > 1 {
            let at = 20.0 + 14.0 * i as f64;
            let _ = writeln!(
                out,
                "<text x=\"{}\" y=\"{at}\" text-anchor=\"end\" style=\"fill:{color}\">{}</text>",
                WIDTH - 14.0,
                curve.name
            );
        }
    }
    out.push_str("</svg>\n");
}

/// A number for an axis.
fn number(v: f64) -> String {
    match v.abs() {
        a if a >= 1e5 || (a < 1e-3 && a > 0.0) => format!("{v:.1e}"),
        a if a >= 100.0 => format!("{v:.0}"),
        a if a >= 1.0 => format!("{v:.2}"),
        _ => format!("{v:.4}"),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_holds_every_curve_and_asks_for_nothing_from_outside() {
        let rows: String = (1..=2000)
            .map(|i| {
                let held = if i % 100 == 0 { format!("{{\"step\":{i},\"held_out_nats_per_token\":3.5}}\n") } else { String::new() };
                format!(
                    "{{\"step\":{i},\"loss\":{},\"lr\":1e-4,\"grad_norm\":0.5,\"tokens_per_second\":900}}\n{held}",
                    8.0 / f64::from(i)
                )
            })
            .collect();
        let config = Config { out: "a<b".into(), ..Config::default() };
        let page = html(&config, &(rows + "half a li"));
        assert_eq!(page.matches("<polyline").count(), 5);
        assert!(page.contains("a&lt;b") && page.contains("2000 of 2000") && page.contains("3.5000"));
        assert!(!page.contains("http") && !page.contains("<script"));
        assert!(page.len() < 100_000, "{}", page.len());
        assert_eq!(html(&config, "").matches("<polyline").count(), 0);
        assert!(!page.contains("<circle"));
        let once =
            html(&config, "{\"step\":1,\"loss\":3}\n{\"step\":2,\"loss\":2,\"held_out_nats_per_token\":2.5}");
        assert_eq!(once.matches("<circle").count(), 1, "one evaluation is seen, too");
    }
}
