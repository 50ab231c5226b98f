"""PyTorch's speed on the baby GPT, to run in turn with `cargo bench -p llm-train`.

6 layers, 6 heads, width 384, context 256, vocabulary 65, batch 12: forward, backward, clip, AdamW.
Usage: python baby_gpt_torch.py [f32|bf16] [eager|compile] [steps]; needs the package torch.
"""

import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

WIDTH, HEADS, LAYERS, CONTEXT, VOCAB, BATCH = 384, 6, 6, 256, 65, 12


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = (y.view(b, t, HEADS, d // HEADS).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(d, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Baby(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCAB, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, ids, targets):
        x = self.tokens(ids) + self.positions.weight
        for block in self.blocks:
            x = block(x)
        logits = self.norm(x) @ self.tokens.weight.T
        return F.cross_entropy(logits.view(-1, VOCAB), targets.reshape(-1))


def main():
    kind = sys.argv[1] if len(sys.argv) > 1 else "f32"
    mode = sys.argv[2] if len(sys.argv) > 2 else "eager"
    steps = int(sys.argv[3]) if len(sys.argv) > 3 else 8
    torch.set_num_threads(2)
    torch.manual_seed(1)
    model = Baby()
    step_model = torch.compile(model) if mode == "compile" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    ids = torch.randint(0, VOCAB, (BATCH, CONTEXT + 1))
    times = []
    for _ in range(steps + 2):
        began = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "bf16"):
            loss = step_model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - began)
    times = sorted(times[2:])
    print(f"torch {torch.__version__} {kind} {mode}: {BATCH * CONTEXT / times[len(times) // 2]:.0f} tokens/s")


main()
