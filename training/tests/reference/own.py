"""Logits, losses and gradients of models in our own layout, by a plain model of PyTorch that reads `spec`, in f64.

    LLM_TRAIN_REFERENCE=DIR cargo test -p llm-train --lib reference
    python training/tests/reference/own.py DIR/own

Opens each model of DIR/own and writes own.json beside this file. Gradients are those of the tokens' summed loss and,
once for each token, of what routers add. Of every layer with experts that is

    router_aux_loss_coef · E · Σ_e f_e · P_e    Switch Transformers (arXiv:2101.03961, 4 to 6), in DeepSeek-V3's form
                                                for k experts of a token (arXiv:2412.19437, 17 to 20)
    router_z_loss_coef · mean(lse²)             ST-MoE (arXiv:2202.08906, 5); lse: log-sum-exp of a row's logits

P_e is the mean of the scores, each row's divided by their sum; f_e the share of all rows' choices that expert e got.
So Σ_e f_e is 1 for every k; transformers' `load_balancing_loss_func`, given one layer's logits, is k times as much.
Needs what designs.py does.
"""

import functools
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from designs import summary
from safetensors.torch import load_file

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "relu2": lambda x: F.relu(x).square(),
}
SCORES = {"softmax": functools.partial(torch.softmax, dim=-1), "sigmoid": torch.sigmoid}


def only(part, **expected):
    """Refuses what no design has, which this model leaves out."""
    for key, value in expected.items():
        assert part[key] == value, f"{key} is {part[key]}, expected {value}"


def rotate(x, rope):
    """`[.., length, dim]`: the first values of each head, turned by their position."""
    only(rope, scaling="none")
    n, length = rope["dim"], x.shape[-2]
    turned, rest = x[..., :n], x[..., n:]
    rates = rope["theta"] ** (-torch.arange(0, n, 2, dtype=x.dtype) / n)
    angles = torch.arange(length, dtype=x.dtype)[:, None] * rates
    cos, sin = angles.cos(), angles.sin()
    halves = rope["pairs"] == "halves"
    a, b = turned.chunk(2, -1) if halves else (turned[..., 0::2], turned[..., 1::2])
    a, b = a * cos - b * sin, b * cos + a * sin
    turned = torch.cat((a, b), -1) if halves else torch.stack((a, b), -1).flatten(-2)
    return torch.cat((turned, rest), -1)


class Model:
    def __init__(self, spec, weights):
        only(spec, embedding_scale=1, head_bias=False, logit_scale=1, logit_softcap=None)
        self.spec, self.weights = spec, weights

    def linear(self, x, name):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def norm(self, x, norm, name):
        if norm is None:
            return x
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        if norm["kind"] == "layer":
            return F.layer_norm(x, weight.shape, weight, bias, norm["eps"])
        return F.rms_norm(x, weight.shape, weight, norm["eps"])

    def parts_norm(self, x, norm, name):
        """Of each part as wide as the weight: a head, or all of them."""
        parts = x.unflatten(-1, (-1, len(self.weights[f"{name}.weight"])))
        return self.norm(parts, norm, name).flatten(-2)

    def attend(self, q, k, v, scale, window=None, slopes=()):
        """`[batch, heads, length, dim]`, heads of k and v for as many of q."""
        at = torch.arange(q.shape[-2])
        ahead = at[None, :] - at[:, None]
        seen = (ahead <= 0) & (ahead > -(window or len(at)))
        slopes = torch.tensor(slopes or [0.0] * q.shape[1], dtype=q.dtype)
        mask = (slopes[:, None, None] * ahead).masked_fill(~seen, -torch.inf)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
        return y.transpose(1, 2).flatten(2)

    def heads(self, x, a, at):
        only(a, softcap=None, sinks=False)
        q, k, v = (self.linear(x, f"{at}.{part}_proj") for part in "qkv")
        if a["qk_norm"]:
            q, k = (self.parts_norm(x, a["qk_norm"]["norm"], f"{at}.{name}_norm") for x, name in ((q, "q"), (k, "k")))
        q, k, v = (x.unflatten(-1, (-1, a["head_dim"])).transpose(1, 2) for x in (q, k, v))
        if a["rope"] is not None:
            q, k = (rotate(x, self.spec["ropes"][a["rope"]]) for x in (q, k))
        return self.attend(q, k, v, a["scale"], a["window"], a["alibi"])

    def latent(self, x, a, at):
        """Keys and values of every head, made of the compressed ones."""
        only(a, bias=False)
        if a["q_rank"]:
            q = self.norm(self.linear(x, f"{at}.q_a_proj"), a["norm"], f"{at}.q_a_layernorm")
            q = self.linear(q, f"{at}.q_b_proj")
        else:
            q = self.linear(x, f"{at}.q_proj")
        q = q.unflatten(-1, (a["heads"], -1)).transpose(1, 2)
        q, turned = q.split((a["nope_dim"], a["rope_dim"]), -1)
        c = self.linear(x, f"{at}.kv_a_proj_with_mqa")
        c, shared = c.split((a["kv_rank"], a["rope_dim"]), -1)
        c, shared = self.norm(c, a["norm"], f"{at}.kv_a_layernorm"), shared[:, None]
        if a["rope_dim"]:
            turned, shared = (rotate(x, self.spec["ropes"][a["rope"]]) for x in (turned, shared))
        k = torch.einsum("blr,hrn->bhln", c, self.weights[f"{at}.k_absorb.weight"])
        v = torch.einsum("blr,hvr->bhlv", c, self.weights[f"{at}.v_absorb.weight"])
        k = torch.cat((k, shared.expand(-1, a["heads"], -1, -1)), -1)
        return self.attend(torch.cat((q, turned), -1), k, v, a["scale"])

    def gated(self, x, f, at):
        gate = ACTIVATIONS[f["activation"]](self.linear(x, f"{at}.gate_proj"))
        return self.linear(gate * self.linear(x, f"{at}.up_proj"), f"{at}.down_proj")

    def experts(self, x, f, at):
        """The output, the balance loss and the z loss. Every expert computes every row; the weight of most is 0."""
        only(f, router_bias=False)
        only(f["expert"], bias=False)
        logits = self.linear(x, f"{at}.gate").flatten(0, 1)
        scores = SCORES[f["scoring"]](logits)
        ranks = scores + self.weights.get(f"{at}.gate.e_score_correction_bias", 0)
        if f["groups"] > 1:
            groups = ranks.unflatten(-1, (f["groups"], -1))
            best = groups.topk({"max": 1, "top_two": 2}[f["group_rank"]], -1).values.sum(-1)
            kept = best.topk(f["active_groups"], -1).indices
            left = torch.ones_like(best, dtype=torch.bool).scatter(-1, kept, False)
            ranks = groups.masked_fill(left[..., None], -torch.inf).flatten(-2)
        chosen = F.one_hot(ranks.topk(f["active"], -1).indices, f["count"]).sum(-2)
        weights = scores * chosen
        if f["normalize"]:
            weights = weights / weights.sum(-1, keepdim=True)
        weights = f["scale"] * weights.view(*x.shape[:2], -1)
        gate, up, down = (self.weights[f"{at}.experts.{part}_proj.weight"] for part in ("gate", "up", "down"))
        gate, up = (torch.einsum("bld,eid->blei", x, matrix) for matrix in (gate, up))
        y = torch.einsum("ble,blei,edi->bld", weights, ACTIVATIONS[f["expert"]["activation"]](gate) * up, down)
        if f["shared"]:
            only(f["shared"], gate=False)
            y = y + self.gated(x, f["shared"]["dense"], f"{at}.shared_expert")
        share = chosen.to(x.dtype).mean(0) / f["active"]
        mean = (scores / scores.sum(-1, keepdim=True)).mean(0)
        return y, f["count"] * (share * mean).sum(), logits.logsumexp(-1).square().mean()

    def forward(self, ids):
        """Logits, and both losses of the routers, summed over the layers."""
        spec, losses = self.spec, torch.zeros(2, dtype=torch.float64)
        x = self.weights["model.embed_tokens.weight"][ids]
        if spec["learned_positions"]:
            x = x + self.weights["model.embed_positions.weight"][: ids.shape[1]]
        x = self.norm(x, spec["embedding_norm"], "model.embed_norm")
        for i, layer in enumerate(spec["layers"]):
            only(layer, parallel=False)
            at = f"model.layers.{i}"
            [(kind, a)] = layer["attention"].items()
            h = self.norm(x, layer["attention_norm"], f"{at}.input_layernorm")
            y = {"heads": self.heads, "latent": self.latent}[kind](h, a, f"{at}.self_attn")
            y = self.linear(y, f"{at}.self_attn.o_proj")
            x = x + self.norm(y, layer["attention_post_norm"], f"{at}.attention_post_norm")
            [(kind, f)] = layer["ffn"].items()
            h = self.norm(x, layer["ffn_norm"], f"{at}.post_attention_layernorm")
            if kind == "experts":
                y, balance, z = self.experts(h, f, f"{at}.mlp")
                losses = losses + torch.stack((balance, z))
            elif kind == "gated":
                y = self.gated(h, f, f"{at}.mlp")
            else:
                y = ACTIVATIONS[f["activation"]](self.linear(h, f"{at}.mlp.up_proj"))
                y = self.linear(y, f"{at}.mlp.down_proj")
            x = x + self.norm(y, layer["ffn_post_norm"], f"{at}.ffn_post_norm")
        x = self.norm(x, spec["final_norm"], "model.norm")
        head = "model.embed_tokens" if spec["tied"] else "lm_head"
        return F.linear(x, self.weights[f"{head}.weight"]), losses


def reference(path):
    config = json.loads((path / "config.json").read_text())
    spec = config["spec"]
    weights = {name: w.double() for name, w in load_file(path / "model.safetensors").items()}
    # what only the choice of experts reads has no gradient, nor has a table of sines; everything else must have one
    fixed = ("e_score_correction_bias",) + ("embed_positions.weight",) * config.get("fixed_positions", False)
    trained = {name: w for name, w in sorted(weights.items()) if not name.endswith(fixed)}
    for w in trained.values():
        w.requires_grad_()
    vocab, rows = spec["vocab"], torch.arange(2 * spec["context"])
    ids, targets = (rows * 7 % vocab).view(2, -1), rows * 5 % vocab
    logits, (balance, z) = Model(spec, weights).forward(ids)
    loss = F.cross_entropy(logits.flatten(0, 1), targets, reduction="sum")
    routers = config["router_aux_loss_coef"] * balance + config["router_z_loss_coef"] * z
    (loss + len(rows) * routers).backward()
    return {
        "logits": [float(f"{v:.7g}") for v in logits.flatten().tolist()],
        "loss": loss.item(),
        "gradients": {name: summary(w.grad) for name, w in trained.items()},
    }


def main():
    lines = []
    for path in sorted(p for p in Path(sys.argv[1]).iterdir() if (p / "config.json").exists()):
        print(path.name)
        lines.append(f"{json.dumps(path.name)}: {json.dumps(reference(path))}")
    out = Path(__file__).with_suffix(".json")
    out.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{out}: {out.stat().st_size} bytes, torch {torch.__version__}")


if __name__ == "__main__":
    main()
