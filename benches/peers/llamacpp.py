#!/usr/bin/env python3
"""libllm beside llama.cpp on this machine's CPU: turn by turn in one run, medians and ratios.

    python3 -m venv peer && CC=clang CXX=clang++ CMAKE_ARGS="-DGGML_NATIVE=ON" \\
        peer/bin/pip install gguf numpy --no-binary llama-cpp-python llama-cpp-python
    cargo build --release
    peer/bin/python benches/peers/llamacpp.py --shape llama-1b --types q4 q8 --out record.json

Both engines get a file of the same shape with random weights; Q4_0 stands beside q4, Q8_0 beside q8, F16 beside f16.
Bits per weight differ a little (Q4_0 4.5, q4 4.3125; Q8_0 8.5, q8 8.0625), so the bytes of both files are in the
report. So are the two limits of the machine: a loop that only reads, and one that only multiplies. Neither file holds a tokenizer: llama.cpp's start is measured without the half second it would take to build
one. Its clock starts after Python and its library are up; ours when the process is started.

What a round does, in turn: `libllm bench`, then the peer's figures in a process of its own. --peer names the Pythons
with a build of the peer; per figure the best build counts. The flag --isa passes LLM_ISA on to ours, for a comparison
without AMX.

On a machine with AMX the build above uses it for everything, and one without may do better in some figures. There, a
second build stands beside it: GGML_NATIVE alone decides while it is on, whatever GGML_AMX_* say, so it names what it
uses, and pip must not take the first build out of its cache:

    python3 -m venv noamx && CC=clang CXX=clang++ CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_SSE42=ON -DGGML_AVX=ON \\
        -DGGML_AVX2=ON -DGGML_BMI2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON \\
        -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON -DGGML_AMX_TILE=OFF -DGGML_AMX_INT8=OFF -DGGML_AMX_BF16=OFF" \\
        noamx/bin/pip install --no-cache-dir gguf numpy --no-binary llama-cpp-python llama-cpp-python
    peer/bin/python benches/peers/llamacpp.py --peer peer/bin/python noamx/bin/python --out record.json

The report's peer_builds say what each build uses (AMX_INT8 = 1). PyTorch chooses when it runs, so training.py needs one
build only.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

SHAPES = {
    # converter/src/random.rs, the same numbers
    "smol-135m": dict(arch="llama", width=576, layers=30, heads=9, kv=3, dim=64, inner=1536, vocab=49152),
    "llama-1b": dict(arch="llama", width=2048, layers=16, heads=32, kv=8, dim=64, inner=8192, vocab=128256),
    "llama-8b": dict(arch="llama", width=4096, layers=32, heads=32, kv=8, dim=128, inner=14336, vocab=128256, untied=True),
    "qwen-0.5b": dict(arch="qwen2", width=896, layers=24, heads=14, kv=2, dim=64, inner=4864, vocab=151936),
    "moe-small": dict(arch="llama", width=1024, layers=16, heads=16, kv=4, dim=64, inner=1792, vocab=32000,
                      experts=8, active=2, untied=True),
}
PEER_TYPE = {"q4": "Q4_0", "q8": "Q8_0", "f16": "F16"}


def write_gguf(path, shape, kind):
    """A GGUF file of the shape: random codes, scales that keep activations in range, norms of one."""
    import gguf
    import numpy as np

    s = SHAPES[shape]
    rng = np.random.default_rng(1)
    types = gguf.GGMLQuantizationType
    w = gguf.GGUFWriter(path, s["arch"])
    w.add_context_length(131072)
    w.add_embedding_length(s["width"])
    w.add_block_count(s["layers"])
    w.add_feed_forward_length(s["inner"])
    w.add_head_count(s["heads"])
    w.add_head_count_kv(s["kv"])
    w.add_rope_dimension_count(s["dim"])
    w.add_key_length(s["dim"])
    w.add_value_length(s["dim"])
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(5e5)
    w.add_vocab_size(s["vocab"])
    w.add_tokenizer_model("no_vocab")
    if "experts" in s:
        w.add_expert_count(s["experts"])
        w.add_expert_used_count(s["active"])

    def matrix(name, *dims):
        cols = dims[-1]
        rows = 1
        for d in dims[:-1]:
            rows *= d
        std = (1.0 / cols) ** 0.5
        if kind == "F16":
            period = rng.standard_normal((128, cols)).astype(np.float16) * np.float16(std)
            data = np.resize(period, (rows, cols)).reshape(dims)
            return w.add_tensor(name, data)
        blocks = cols // 32
        body = 16 if kind == "Q4_0" else 32
        scale = std / 4.6 if kind == "Q4_0" else std / 73.9  # codes are uniform: -8..7 or -128..127
        one = np.empty((128, blocks, 2 + body), np.uint8)
        one[:, :, :2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
        one[:, :, 2:] = rng.integers(0, 256, (128, blocks, body), np.uint8)
        data = np.resize(one.reshape(128, -1), (rows, blocks * (2 + body)))
        raw = types.Q4_0 if kind == "Q4_0" else types.Q8_0
        w.add_tensor(name, data.reshape(*dims[:-1], data.shape[-1]), raw_dtype=raw)

    def ones(name, n):
        w.add_tensor(name, np.ones(n, np.float32))

    width, kv = s["width"], s["kv"] * s["dim"]
    matrix("token_embd.weight", s["vocab"], width)
    if s.get("untied"):
        matrix("output.weight", s["vocab"], width)
    ones("output_norm.weight", width)
    for i in range(s["layers"]):
        p = f"blk.{i}."
        ones(p + "attn_norm.weight", width)
        ones(p + "ffn_norm.weight", width)
        for name, rows in (("attn_q", s["heads"] * s["dim"]), ("attn_k", kv), ("attn_v", kv)):
            matrix(p + name + ".weight", rows, width)
            if s["arch"] == "qwen2":
                w.add_tensor(p + name + ".bias", np.zeros(rows, np.float32))
        matrix(p + "attn_output.weight", width, s["heads"] * s["dim"])
        if "experts" in s:
            w.add_tensor(p + "ffn_gate_inp.weight", rng.standard_normal((s["experts"], width), np.float32) * 0.02)
            for name, rows, cols in (("gate", s["inner"], width), ("up", s["inner"], width), ("down", width, s["inner"])):
                matrix(f"{p}ffn_{name}_exps.weight", s["experts"], rows, cols)
        else:
            for name, rows, cols in (("gate", s["inner"], width), ("up", s["inner"], width), ("down", width, s["inner"])):
                matrix(f"{p}ffn_{name}.weight", rows, cols)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def anonymous_bytes():
    with open("/proc/self/status") as f:
        for line in f:
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
    return 0


def peer(args):
    """One round of the peer, in this process; prints one JSON object."""
    import ctypes

    import llama_cpp as l

    silent = l.llama_log_callback(lambda level, text, data: None)
    l.llama_log_set(silent, ctypes.c_void_p())
    before = anonymous_bytes()
    began = time.perf_counter()
    l.llama_backend_init()
    mp = l.llama_model_default_params()
    mp.n_gpu_layers = 0
    model = l.llama_model_load_from_file(args.model.encode(), mp)
    if not model:
        sys.exit(f"{args.model}: the peer could not load it")
    cp = l.llama_context_default_params()
    cp.n_ctx = 4096
    cp.n_batch = cp.n_ubatch = 512
    cp.n_threads = cp.n_threads_batch = args.threads
    cp.n_seq_max = max(args.batch, default=1)
    cp.kv_unified = True
    ctx = l.llama_init_from_model(model, cp)
    memory = l.llama_get_memory(ctx)
    vocab = SHAPES[args.shape]["vocab"]
    batch = l.llama_batch_init(512, 0, 1)

    def step(tokens):
        """(id, position, sequence, wants logits) of each token."""
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, logits) in enumerate(tokens):
            batch.token[i] = token % vocab
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = logits
        if l.llama_decode(ctx, batch) != 0:
            sys.exit("the peer's llama_decode failed")
        l.llama_get_logits_ith(ctx, len(tokens) - 1)[0]

    def prompt(n, sequence=0):
        step([(i * 7919 + 13, i, sequence, i == n - 1) for i in range(n)])

    prompt(8)
    report = {"start_to_first_token_ms": (time.perf_counter() - began) * 1e3,
              "anonymous_bytes": anonymous_bytes() - before}
    l.llama_memory_clear(memory, True)
    prompt(args.prefill)
    l.llama_memory_clear(memory, True)
    began = time.perf_counter()
    prompt(args.prefill)
    report["prefill"] = args.prefill / (time.perf_counter() - began)
    for i in range(2):
        step([(i, args.prefill + i, 0, True)])
    began = time.perf_counter()
    for i in range(args.decode):
        step([(i * 104729 + 7, args.prefill + 2 + i, 0, True)])
    report["decode"] = args.decode / (time.perf_counter() - began)
    for n in args.batch:
        l.llama_memory_clear(memory, True)
        for s in range(n):
            prompt(32, s)
        steps = max(args.decode // 4, 4)
        step([(i, 32, i, True) for i in range(n)])
        began = time.perf_counter()
        for t in range(steps):
            step([(t * 104729 + i, 33 + t, i, True) for i in range(n)])
        report[f"batch{n}"] = n * steps / (time.perf_counter() - began)
    report["info"] = l.llama_print_system_info().decode().strip()
    print(json.dumps(report))


def ours(args, model, isa):
    """One round of `libllm bench`, and one per batch size."""
    env = dict(os.environ, **({"LLM_ISA": isa} if isa else {}))

    def bench(*flags):
        command = [args.libllm, "bench", "-m", model, "-t", str(args.threads), "-c", "4096", "-r", "1", "--json", *flags]
        return json.loads(subprocess.run(command, check=True, capture_output=True, env=env).stdout)

    r = bench("-p", str(args.prefill), "-n", str(args.decode))
    report = {
        "isa": r["isa"],
        "prefill": r["prefill_tokens_per_second"]["median"],
        "decode": r["decode_tokens_per_second"]["median"],
        "start_to_first_token_ms": r["start_to_first_token_ms"]["median"],
        "anonymous_bytes": r["anonymous_bytes_after_first_token"]["median"],
        "share_of_read_bandwidth": r["decode_share_of_read_bandwidth"],
        "read_bytes_per_second": r["read_bytes_per_second"]["median"],
        # 0 where the instruction set has no loop to compare with
        "share_of_multiply_peak": r.get("prefill_share_of_multiply_peak") or 0.0,
    }
    for n in args.batch:
        r = bench("-p", "32", "-n", str(max(args.decode // 4, 4)), "-b", str(n))
        report[f"batch{n}"] = r["decode_tokens_per_second"]["median"]
    return report


def compare(args):
    args.work.mkdir(parents=True, exist_ok=True)
    result = {"shape": args.shape, "threads": args.threads, "rounds": args.rounds, "types": {}}
    for ty in args.types:
        gguf_file = args.work / f"{args.shape}-{PEER_TYPE[ty]}.gguf"
        if not gguf_file.exists():
            write_gguf(gguf_file, args.shape, PEER_TYPE[ty])
        own_file = args.work / f"{args.shape}-{ty}.llm"
        if not own_file.exists():
            subprocess.run([args.libllm, "bench", "--random", args.shape, "--type", ty, "-m", own_file,
                            "-r", "1", "-p", "1", "-n", "1", "-c", "64"], check=True, capture_output=True)
        rounds = {"ours": [], **{p: [] for p in args.peer}}
        for _ in range(args.rounds):
            rounds["ours"].append(ours(args, own_file, args.isa))
            for p in args.peer:
                command = [p, __file__, "--one-round", "--model", str(gguf_file), "--shape", args.shape,
                           "--threads", str(args.threads), "--prefill", str(args.prefill), "--decode", str(args.decode),
                           "--batch", *map(str, args.batch)]
                rounds[p].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
            print(ty, {k: v[-1] for k, v in rounds.items()}, file=sys.stderr, flush=True)
        median = {who: {k: statistics.median(r[k] for r in rs) for k, v in rs[0].items() if not isinstance(v, str)}
                  for who, rs in rounds.items()}
        best, ratio = {}, {}
        for figure in ["prefill", "decode", *(f"batch{n}" for n in args.batch)]:
            best[figure] = max(median[p][figure] for p in args.peer)
            ratio[figure] = median["ours"][figure] / best[figure]
        for figure in ["start_to_first_token_ms", "anonymous_bytes"]:
            best[figure] = min(median[p][figure] for p in args.peer)
            ratio[figure] = best[figure] / median["ours"][figure]
        result["types"][ty] = {
            "isa": rounds["ours"][0]["isa"], "peer_builds": [rs[0]["info"] for p, rs in rounds.items() if p != "ours"],
            "file_bytes": {"ours": own_file.stat().st_size, "peer": gguf_file.stat().st_size},
            "ours": median["ours"], "best_peer": best, "times_better": ratio,
        }
        print(f"\n{args.shape} {ty} ({PEER_TYPE[ty]}), {args.threads} threads, medians of {args.rounds}")
        print(f"{'':26}{'ours':>14}{'peer':>14}{'times better':>14}")
        for figure, r in ratio.items():
            print(f"{figure:26}{median['ours'][figure]:14.1f}{best[figure]:14.1f}{r:14.2f}")
        print(f"decode reads {100 * median['ours']['share_of_read_bandwidth']:.0f} % of the bare read loop, "
              f"prefill multiplies {100 * median['ours']['share_of_multiply_peak']:.0f} % of the bare multiply loop", flush=True)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--shape", default="llama-1b", choices=SHAPES)
    a.add_argument("--types", nargs="+", default=["q4", "q8"], choices=PEER_TYPE)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--rounds", type=int, default=5)
    a.add_argument("--prefill", type=int, default=512)
    a.add_argument("--decode", type=int, default=64)
    a.add_argument("--batch", type=int, nargs="*", default=[8, 16])
    a.add_argument("--libllm", default="target/release/libllm")
    a.add_argument("--isa", help="LLM_ISA for ours")
    a.add_argument("--peer", nargs="+", default=[sys.executable], help="Pythons with a build of the peer each")
    a.add_argument("--work", type=Path, default=Path("target/peers"))
    a.add_argument("--out", type=Path)
    a.add_argument("--one-round", action="store_true", help=argparse.SUPPRESS)
    a.add_argument("--model", help=argparse.SUPPRESS)
    args = a.parse_args()
    peer(args) if args.one_round else compare(args)


if __name__ == "__main__":
    main()
