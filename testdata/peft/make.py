"""Makes the adapters beside this file with PEFT, for the reference checkpoints: make.py REFERENCE_DIRECTORY

Made with peft 0.21.2, transformers 5.23.0, torch 2.15.0. Every adapter is random; `logits` are those of the last four
positions of the reference's short prompt, computed by PEFT in float64.
"""
import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

CASES = {
    # matrices stored [in, out], q, k and v in one
    "gpt2": dict(target_modules=["c_attn", "c_proj"], r=2, lora_alpha=8, fan_in_fan_out=True),
    # q, k and v in one, gate and up in one; the scale by the root of the rank
    "phi3": dict(target_modules=["qkv_proj", "gate_up_proj", "o_proj", "down_proj"], r=3, lora_alpha=6, use_rslora=True),
    # q, k and v head by head; ranks and scales of some modules
    "gpt_neox": dict(
        target_modules=["query_key_value", "dense"], r=4, lora_alpha=8,
        rank_pattern={"dense": 6}, alpha_pattern={"dense": 3},
    ),
    # latent attention
    "deepseek_v3": dict(target_modules=["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj"], r=4, lora_alpha=8),
}

here = Path(__file__).parent
for name, how in CASES.items():
    torch.manual_seed(1)
    base = Path(sys.argv[1]) / name
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
    )
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **how)).eval()
    lora = [p for n, p in model.named_parameters() if "lora_" in n]
    for p in lora:
        p.data = (p.data * 0.5).to(torch.float32).to(p.dtype)
    ids = load_file(base / "reference.safetensors")["short.input_ids"].long()[None]
    with torch.no_grad():
        logits = model(ids).logits[0, -4:].float().contiguous()
    for p in lora:
        p.data = p.data.to(torch.float32)
    out = here / name
    model.save_pretrained(out)
    save_file({"logits": logits}, out / "logits.safetensors")
    (out / "README.md").unlink()
    config = json.loads((out / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = name
    (out / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
