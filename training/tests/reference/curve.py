"""200 steps of GPT-2's design in PyTorch, from the weights, data and settings that the tests wrote.

    LLM_TRAIN_REFERENCE=DIR cargo test -p llm-train --test curve -- --include-ignored
    python training/tests/reference/curve.py DIR [NAME]

Trains from DIR/curve-NAME/begin and writes the losses to curve.json beside this file. Samples are drawn here by the rule
of the trainer (a Feistel network keyed by seed and epoch), written anew. Needs torch and transformers.
"""

import json
import math
import struct
import sys
from pathlib import Path

import numpy
import torch
import transformers

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def bits(seed, stream, a, b):
    key = mix((seed + GOLDEN) & MASK) ^ (mix(stream) * GOLDEN & MASK)
    return mix((mix(key ^ mix((a + GOLDEN) & MASK)) + b * GOLDEN) & MASK)


def permuted(seed, epoch, index, n):
    half = max(-(-(n - 1).bit_length() // 2), 1)
    mask = (1 << half) - 1
    x = index
    while True:
        left, right = x >> half, x & mask
        for turn in range(4):
            left, right = right, left ^ (bits(seed, 2, epoch, turn << 32 | right) & mask)
        x = left << half | right
        if x < n:
            return x


def rate(o, steps, step):
    if step < o["warmup"]:
        return o["rate"] * (step + 1) / o["warmup"]
    part = min((step - o["warmup"]) / max(steps - o["warmup"] - 1, 1), 1)
    return o["min_rate"] + (o["rate"] - o["min_rate"]) * 0.5 * (1 + math.cos(math.pi * part))


def train(place):
    config = json.loads((place / "begin/training.json").read_text())["config"]
    raw = (place / "data/train.tokens").read_bytes()
    width, tokens = struct.unpack_from("<I", raw, 12)[0], struct.unpack_from("<Q", raw, 32)[0]
    ids = numpy.frombuffer(raw, dtype={2: "<u2", 4: "<u4"}[width], count=tokens, offset=128).astype("int64")
    model = transformers.GPT2LMHeadModel.from_pretrained(
        place / "begin", dtype=torch.float32, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    ).train()
    o, length, batch = config["optim"], config["model"]["context"], config["batch"]
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": o["decay"]},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(o["beta1"], o["beta2"]), eps=o["eps"])
    losses, sample, starts = [], 0, tokens - length
    for step in range(config["steps"]):
        rows = []
        for _ in range(batch):
            at = permuted(config["seed"], sample // starts, sample % starts, starts)
            rows.append(ids[at : at + length + 1])
            sample += 1
        rows = torch.from_numpy(numpy.stack(rows))
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), o["clip"])
        for group in optimizer.param_groups:
            group["lr"] = rate(o, config["steps"], step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(f"{loss.item():.8g}"))
        if step % 20 == 0:
            print(place.name, step, losses[-1], flush=True)
    return losses


def main():
    names = sys.argv[2:] or ["small", "baby"]
    out = Path(__file__).with_name("curve.json")
    for name in names:
        losses = train(Path(sys.argv[1]) / f"curve-{name}")
        known = json.loads(out.read_text()) if out.exists() else {}
        known[name] = losses
        lines = [f"{json.dumps(key)}: {json.dumps(known[key])}" for key in sorted(known)]
        out.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{out}: transformers {transformers.__version__}, torch {torch.__version__}")


main()
