//! Shapes of every design, and of parts that only checkpoints of others have.

use llm::model::arch::Arch;
use llm::model::spec::{Activation, Attention, Experts, Ffn, Heads, Rope, Scaling, Scoring, Spec};

use super::designs;

const CLAMPED: Activation = Activation::ClampedSwiglu { alpha: 1.702, limit: 1.0 };

/// Every shape with its architecture, by name.
pub(crate) fn shapes() -> Vec<(&'static str, &'static Arch, Spec)> {
    let all = designs().into_iter().map(|(name, model)| {
        let (arch, spec) = model.spec().unwrap_or_else(|e| panic!("{name}: {e}"));
        (name, arch, spec)
    });
    all.chain(foreign()).collect()
}

/// Those that no design is.
pub(crate) fn foreign() -> Vec<(&'static str, &'static Arch, Spec)> {
    let with = |base: &str, change: &dyn Fn(&mut Spec)| {
        let (_, model) = designs().into_iter().find(|(name, _)| *name == base).unwrap();
        let (arch, mut spec) = model.spec().unwrap();
        change(&mut spec);
        spec.check().unwrap();
        (arch, spec)
    };
    let experts = |change: &dyn Fn(&mut Experts)| {
        with("own: experts beside a shared one", &|spec| {
            for layer in &mut spec.layers {
                let Ffn::Experts(x) = &mut layer.ffn else { panic!("experts") };
                change(x);
            }
        })
    };
    let biased = |x: &mut Experts| {
        (x.expert.bias, x.router_bias, x.expert.activation) = (true, true, CLAMPED);
    };
    let heads = |base: &str, change: &dyn Fn(&mut Heads)| {
        with(base, &|spec| {
            for layer in &mut spec.layers {
                let Attention::Heads(heads) = &mut layer.attention else { panic!("heads") };
                change(heads);
            }
        })
    };
    // sequences here have six tokens, and three where documents are looked at alone
    let roped = |base: &str, scaling: &dyn Fn(&Rope) -> Scaling| {
        with(base, &|spec| spec.ropes.iter_mut().for_each(|rope| rope.scaling = scaling(rope)))
    };
    let longrope = |rope: &Rope| {
        let factors = |by: f64| (0..rope.dim / 2).map(|i| 1.0 + f64::from(i) * by).collect();
        Scaling::Longrope { short: factors(0.2), long: factors(1.5), original: 4, attention_factor: 1.2 }
    };
    let cases = [
        ("capped scores", heads("own: no positions", &|h| h.softcap = Some(0.3))),
        ("sinks", heads("own: no positions", &|h| h.sinks = true)),
        ("sinks, capped scores, slopes, a window", {
            heads("own: post-norm with biases, window, alibi", &|h| (h.sinks, h.softcap) = (true, Some(0.3)))
        }),
        ("scaled and capped logits, a bias at the head", {
            with("own: no positions", &|spec| {
                (spec.logit_scale, spec.logit_softcap, spec.head_bias) = (0.5, Some(0.6), true);
            })
        }),
        ("angles by the length: dynamic", {
            roped("llama", &|_| Scaling::Dynamic { factor: 2.0, original: 2 })
        }),
        ("angles by the length: longrope", roped("llama", &longrope)),
        ("angles by the length: latent", roped("deepseek_v2, dense", &longrope)),
        ("a switched shared expert", experts(&|x| x.shared.as_mut().unwrap().gate = true)),
        ("biases in clamped experts", {
            experts(&|x| {
                biased(x);
                (x.scoring, x.shared) = (Scoring::SoftmaxOfChosen, None);
            })
        }),
        ("all that experts have", {
            experts(&|x| {
                biased(x);
                let shared = x.shared.as_mut().unwrap();
                (shared.gate, shared.dense.activation) = (true, CLAMPED);
            })
        }),
        ("a clamped gate", {
            with("own: no positions", &|spec| {
                for layer in &mut spec.layers {
                    let Ffn::Gated(d) = &mut layer.ffn else { panic!("gated") };
                    d.activation = CLAMPED;
                }
            })
        }),
    ];
    cases.into_iter().map(|(name, (arch, spec))| (name, arch, spec)).collect()
}
