#!/usr/bin/env python3
"""libllm's trainer beside PyTorch on this machine's CPU, a step each in turn: medians, ratios and the most memory.

    cargo bench -p llm-train --bench speed --no-run         # prints the program's path
    python benches/peers/training.py --ours target/release/deps/speed-... --model gpt2 --rounds 5 --out record.json

Each engine is a process of its own that waits for its turn, so all see the same state of the machine. A step is forward,
backward, clipping to norm 1 and AdamW (PyTorch: its fused one). PyTorch runs in float32 and under bfloat16 autocast, each
eager and through torch.compile; --modes leaves some out. Needs the package torch; torch.compile needs a C++ compiler.
--wait waits for Enter when all engines have done their first steps (compilation takes minutes): for a machine that has
to be made idle by hand.

Beside the tokens of a second the table has those of a processor's second, which other work on the machine disturbs less;
with one thread nothing of it is spent on waiting.

Both have GPT-2's design: LayerNorm, learned positions, GELU in its tanh form, biases, the head tied to the embedding.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

# layers, heads, width, context, vocabulary, batch: those of training/benches/speed.rs
MODELS = {"baby-gpt": (6, 6, 384, 256, 65, 12), "gpt2": (12, 12, 768, 1024, 50257, 1)}
MODES = ["f32-eager", "f32-compile", "bf16-eager", "bf16-compile"]


def torch_steps(name, mode, threads):
    """Yields after every step: its seconds, its processor seconds and its loss."""
    import torch
    import torch.nn as nn
    import torch.nn.functional as F

    layers, heads, width, context, vocab, batch = MODELS[name]

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x):
            b, t, d = x.shape
            q, k, v = (y.view(b, t, heads, d // heads).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(d, 2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
            return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))

    class Gpt(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(vocab, width), nn.Embedding(context, width)
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
            self.norm = nn.LayerNorm(width)

        def forward(self, ids, targets):
            x = self.tokens(ids) + self.positions.weight
            for block in self.blocks:
                x = block(x)
            logits = F.linear(self.norm(x), self.tokens.weight)
            return F.cross_entropy(logits.view(-1, vocab), targets.reshape(-1))

    torch.set_num_threads(threads)
    torch.manual_seed(1)
    kind, how = mode.split("-")
    model = Gpt()
    for p in model.parameters():
        if p.dim() > 1:
            nn.init.normal_(p, std=0.02)
    run = torch.compile(model) if how == "compile" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    ids = torch.randint(0, min(vocab, 65), (batch, context + 1))
    x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    while True:
        began, busy = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "bf16"):
            loss = run(x, y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield time.perf_counter() - began, time.process_time() - busy, loss.item()


def peer(name, mode, threads):
    """A step for every line of standard input, answered as `speed --turns` does."""
    steps = torch_steps(name, mode, threads)
    print("ready", flush=True)
    for _ in sys.stdin:
        seconds, busy, loss = next(steps)
        # kilobytes on Linux; a compiler's process is not counted
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(seconds, busy, most, loss, flush=True)


class Engine:
    def __init__(self, name, command):
        self.name, self.times, self.busy, self.most, self.loss = name, [], [], 0, None
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name}: ended with {self.process.wait()}")
        return line

    def step(self, keep):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds, busy, most, loss = map(float, self.answer().split())
        self.most, self.loss = int(most), loss
        if keep:
            self.times.append(seconds)
            self.busy.append(busy)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ours", help="the program of `cargo bench -p llm-train --bench speed --no-run`")
    p.add_argument("--set", nargs="*", default=[], help="KEY=VALUE settings of ours")
    p.add_argument("--model", choices=MODELS, default="baby-gpt")
    p.add_argument("--modes", nargs="*", choices=MODES, default=MODES)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--warm", type=int, default=2, help="steps of each that are not counted")
    p.add_argument("--wait", action="store_true")
    p.add_argument("--out")
    p.add_argument("--peer", choices=MODES, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.peer:
        return peer(a.model, a.peer, a.threads)
    if not a.ours:
        p.error("--ours is needed")
    itself = [sys.executable, __file__, "--model", a.model, "--threads", str(a.threads), "--peer"]
    engines = [Engine("ours", [a.ours, a.model, str(a.threads), "--turns", *a.set])]
    engines += [Engine(mode, [*itself, mode]) for mode in a.modes]
    for e in engines:
        e.answer()
        for _ in range(a.warm):
            e.step(False)
    if a.wait:
        print("ready; Enter begins", flush=True)
        sys.stdin.readline()
    for _ in range(a.rounds):
        for e in engines:
            time.sleep(0.2)  # threads of the one before stop spinning
            e.step(True)
    for e in engines:
        e.close()
    _, _, _, context, _, batch = MODELS[a.model]
    tokens = context * batch
    ours, ours_busy = statistics.median(engines[0].times), statistics.median(engines[0].busy)
    record = {}
    for e in engines:
        middle = statistics.median(e.times)
        record[e.name] = {
            "tokens_per_second": tokens / middle,
            "lowest": tokens / max(e.times),
            "highest": tokens / min(e.times),
            "ours_over_it": middle / ours,
            "tokens_per_processor_second": tokens / statistics.median(e.busy),
            "bytes": e.most,
        }
        busy = statistics.median(e.busy)
        print(f"{e.name:13} {tokens / middle:7.0f} tokens/s ({tokens / max(e.times):.0f} to {tokens / min(e.times):.0f})"
              f"   ours / it {middle / ours:5.2f}   a processor second {tokens / busy:5.0f}, ours / it {busy / ours_busy:5.2f}"
              f"   {e.most / 1e6:6.0f} MB   loss {e.loss:.3f}")
    if a.out:
        with open(a.out, "w") as f:
            json.dump({"model": a.model, "rounds": a.rounds, "engines": record}, f, indent=1)


main()
