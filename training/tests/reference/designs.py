"""Logits, losses and gradients of small models of every published layout, by transformers.

    LLM_TRAIN_REFERENCE=DIR cargo test -p llm-train --lib reference
    python training/tests/reference/designs.py DIR
    python training/tests/reference/designs.py REFERENCES checkpoints.json

Opens each model of DIR and writes designs.json beside this file; with another name losses and gradients alone, of sequences of
16 tokens: those of the shared reference checkpoints. Needs torch and transformers.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file


def summary(tensor):
    x = tensor.double().flatten()
    signs = torch.cos(torch.arange(len(x), dtype=torch.float64) * 0.7 + 0.3)
    return [float(f"{v:.9g}") for v in ((x * signs).sum().item(), x.norm().item())]


def reference(path, length=None):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model.get_input_embeddings().padding_idx = None  # transformers would give the padding's row no gradient
    vocab = model.config.vocab_size
    config = json.loads((path / "config.json").read_text())
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    length = length or next(config[k] for k in names if k in config)
    rows = torch.arange(2 * length)
    ids, targets = (rows * 7 % vocab).view(2, length), rows * 5 % vocab
    logits = model(input_ids=ids, use_cache=False).logits.reshape(-1, vocab)
    loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    loss.backward()
    # gradients under the names and in the shapes of a checkpoint
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.grad if p.grad is not None else torch.zeros_like(p))
    with tempfile.TemporaryDirectory() as out:
        model.save_pretrained(out)
        gradients = load_file(Path(out) / "model.safetensors")
    # what is no parameter has no gradient
    gradients = {name: g for name, g in gradients.items() if not name.endswith("e_score_correction_bias")}
    return {
        "logits": [float(f"{v:.8g}") for v in logits.flatten().tolist()],
        "loss": loss.item(),
        "gradients": {name: summary(g) for name, g in sorted(gradients.items())},
    }


def main():
    source, name = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "designs.json"
    result = {}
    for path in sorted(p for p in source.iterdir() if (p / "config.json").exists()):
        print(path.name)
        result[path.name] = reference(path, None if name == "designs.json" else 16)
        if name != "designs.json":
            del result[path.name]["logits"]
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in result.items()]
    out = Path(__file__).with_name(name)
    out.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{out}: {out.stat().st_size} bytes, transformers {transformers.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
