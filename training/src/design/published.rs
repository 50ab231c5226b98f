//! The published layout that a design equals, and its `config.json`.
//!
//! Layouts differ in what they leave out: each says by its name alone what another has to say by a key. A design that no
//! layout can say goes to our own.

use llm::error::Result;
use serde_json::Map;

use super::*;

impl ModelConfig {
    /// The published layout that this design equals; `libllm` where there is none.
    pub fn layout(&self) -> &'static str {
        use NormDesign::{Layer, Plain, Rms};
        let d = self;
        let plain = d.experts.count == 0 && d.latent.kv_rank == 0;
        let bare = !d.embedding_norm && d.qk_norm == QkDesign::None && d.window == 0;
        let own_head = d.head_dim == 0 || d.head_dim * d.heads == d.width;
        let mha = d.kv_heads == d.heads && own_head;
        let pre = d.norm_place == Place::Pre;
        let llama_like = d.position == Position::Rope && d.norm == Rms && d.gated() && !d.embedding_norm;
        let four = d.ffn == 4 * d.width;
        if plain && mha && pre && d.tied && d.norm == Layer && d.bias == Bias::All && !d.gated() {
            match d.position {
                // a table that is not trained is no table of GPT-2's
                Position::Learned if bare => return "gpt2",
                Position::Alibi if d.embedding_norm && d.feed == Feed::Gelu && four && d.window == 0 => {
                    return if d.qk_norm == QkDesign::None { "bloom" } else { "libllm" };
                }
                _ => {}
            }
        }
        let mpt =
            plain && mha && pre && bare && d.norm == Plain && d.bias == Bias::None && d.feed == Feed::GeluErf;
        if mpt && d.position == Position::Alibi && four && d.tied {
            return "mpt";
        }
        if !llama_like {
            return "libllm";
        }
        let x = &d.experts;
        match (x.count > 0, d.latent.kv_rank > 0) {
            (false, false) => match (d.norm_place, d.qk_norm, d.bias, d.window > 0) {
                (Place::Pre, QkDesign::None, Bias::None | Bias::All, false) => "llama",
                (Place::Pre, QkDesign::None, Bias::None, true) => "mistral",
                (Place::Pre, QkDesign::None, Bias::Qkv, false) if own_head => "qwen2",
                (Place::Pre, QkDesign::Head, Bias::None, false) => "qwen3",
                (Place::Post, QkDesign::Row, Bias::None, false) => "olmo2",
                _ => "libllm",
            },
            (true, false) => {
                let same = x.scoring == ScoringDesign::Softmax
                    && x.active_groups == x.groups
                    && x.scale == 1.0
                    && x.shared == 0
                    && x.dense_layers == 0
                    && (x.ffn == 0 || x.ffn == d.ffn);
                if pre && bare && d.bias == Bias::None && same { "mixtral" } else { "libllm" }
            }
            (moe, true) => {
                // the latent norms of that layout have an epsilon of their own
                let fits = pre && d.eps == 1e-6 && d.feed == Feed::SwiGlu;
                // and its mixtures always have shared experts
                match (fits && (if moe { x.shared > 0 } else { x.dense_layers == 0 }), x.scoring) {
                    (false, _) => "libllm",
                    (true, ScoringDesign::Sigmoid) if moe => "deepseek_v3",
                    (true, _) => "deepseek_v2",
                }
            }
        }
    }

    /// `config.json` of [`ModelConfig::layout`].
    pub fn hugging_face(&self) -> Result<Value> {
        let (m, layout) = (self, self.layout());
        let act = match m.feed {
            Feed::SwiGlu => "silu",
            Feed::GeGlu => "gelu_pytorch_tanh",
            Feed::Gelu => "gelu_new",
            Feed::GeluErf => "gelu",
            Feed::Relu2 => "relu2",
        };
        let class = match layout {
            "gpt2" => "GPT2LMHeadModel",
            "llama" => "LlamaForCausalLM",
            "mistral" => "MistralForCausalLM",
            "qwen2" => "Qwen2ForCausalLM",
            "qwen3" => "Qwen3ForCausalLM",
            "olmo2" => "Olmo2ForCausalLM",
            "mpt" => "MptForCausalLM",
            "bloom" => "BloomForCausalLM",
            "mixtral" => "MixtralForCausalLM",
            "deepseek_v2" => "DeepseekV2ForCausalLM",
            "deepseek_v3" => "DeepseekV3ForCausalLM",
            _ => "LibllmForCausalLM",
        };
        let mut config = Map::new();
        let mut put = |more: Value| {
            if let Value::Object(more) = more {
                config.extend(more);
            }
        };
        put(json!({
            "architectures": [class], "model_type": layout, "vocab_size": m.vocab, "tie_word_embeddings": m.tied,
            // a run puts in the token that ends its data's documents
            "initializer_range": 0.02, "torch_dtype": "float32", "use_cache": true, "eos_token_id": 0,
            // no row of the embedding is one that other tools do not train
            "pad_token_id": null,
        }));
        let shape = json!({
            "hidden_size": m.width, "intermediate_size": m.ffn, "num_hidden_layers": m.layers,
            "num_attention_heads": m.heads, "num_key_value_heads": m.kv_heads, "head_dim": m.head_dim(),
            "max_position_embeddings": m.context, "hidden_act": act, "rms_norm_eps": as_f64(m.eps),
            "rope_theta": m.rope_theta, "rope_scaling": self.scaling(), "attention_dropout": 0.0,
            "bos_token_id": null,
        });
        match layout {
            "gpt2" => put(json!({
                "n_embd": m.width, "n_inner": m.ffn, "n_layer": m.layers, "n_head": m.heads,
                "n_positions": m.context, "n_ctx": m.context, "activation_function": act,
                "layer_norm_epsilon": as_f64(m.eps), "attn_pdrop": as_f64(m.dropout),
                "embd_pdrop": as_f64(m.dropout), "resid_pdrop": as_f64(m.dropout), "scale_attn_weights": true,
                "bos_token_id": 0,
            })),
            "mpt" => put(json!({
                "d_model": m.width, "n_heads": m.heads, "n_layers": m.layers, "expansion_ratio": 4,
                "max_seq_len": m.context, "layer_norm_epsilon": as_f64(m.eps), "no_bias": true,
                "attn_config": {"attn_type": "multihead_attention", "alibi": true, "alibi_bias_max": 8},
            })),
            "bloom" => put(json!({
                "hidden_size": m.width, "n_layer": m.layers, "n_head": m.heads, "seq_length": m.context,
                "layer_norm_epsilon": as_f64(m.eps), "apply_residual_connection_post_layernorm": false,
                "hidden_dropout": 0.0, "attention_dropout": 0.0,
            })),
            "libllm" => put(json!({
                "spec": serde_json::to_value(self.own_spec()?).map_err(|e| invalid(e.to_string()))?,
                "fixed_positions": m.position == Position::Sinusoidal,
            })),
            _ => put(shape),
        }
        match layout {
            "llama" => put(json!({"attention_bias": m.bias == Bias::All, "mlp_bias": m.bias == Bias::All})),
            "mistral" => put(json!({"sliding_window": m.window})),
            "qwen2" => put(json!({"use_sliding_window": false, "sliding_window": null})),
            "qwen3" => {
                put(json!({"use_sliding_window": false, "sliding_window": null, "attention_bias": false}));
            }
            "olmo2" => put(json!({"attention_bias": false})),
            "mixtral" => put(json!({
                "num_local_experts": m.experts.count, "num_experts_per_tok": m.experts.active,
                "router_aux_loss_coef": as_f64(m.experts.balance), "sliding_window": null,
            })),
            "deepseek_v2" | "deepseek_v3" => {
                let (x, l) = (&m.experts, &m.latent);
                // without experts every layer is one of the first, dense ones
                let dense = if x.count > 0 { x.dense_layers } else { m.layers };
                put(json!({
                    "qk_nope_head_dim": l.nope, "qk_rope_head_dim": l.rope, "v_head_dim": l.value,
                    "kv_lora_rank": l.kv_rank, "q_lora_rank": if l.q_rank > 0 { json!(l.q_rank) } else { Value::Null },
                    "head_dim": l.rope, "num_key_value_heads": m.heads, "attention_bias": false, "mlp_bias": false,
                    "n_routed_experts": x.count.max(1), "num_experts_per_tok": x.active.min(x.count.max(1)),
                    "n_shared_experts": x.shared.max(1),
                    "moe_intermediate_size": if x.ffn > 0 { x.ffn } else { m.ffn },
                    "first_k_dense_replace": dense, "n_group": x.groups, "topk_group": x.active_groups,
                    "routed_scaling_factor": as_f64(x.scale), "moe_layer_freq": 1,
                    "aux_loss_alpha": as_f64(x.balance),
                }));
                put(if layout == "deepseek_v3" {
                    // without the layers that predict further tokens
                    json!({"topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": true,
                           "num_nextn_predict_layers": 0})
                } else {
                    let method = if x.groups > 1 { "group_limited_greedy" } else { "greedy" };
                    json!({"topk_method": method, "scoring_func": "softmax", "norm_topk_prob": false})
                });
            }
            _ => {}
        }
        Ok(Value::Object(config))
    }
}
