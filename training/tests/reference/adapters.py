"""Logits of small models with adapters, by peft: of adapters made here and of its own.

    LLM_TRAIN_REFERENCE=DIR cargo test -p llm-train --lib reference
    python training/tests/reference/adapters.py DIR [NAME...]

Writes peft.json and the adapters peft-* beside this file; with names those cases alone, the others stay as they are. Needs
torch, transformers and peft.
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
# the model of a case and what its adapter is like; a model's name is also a case with an adapter that was made here
CASES = {
    "llama": ("llama", dict(target_modules=["q_proj", "v_proj", "down_proj"])),
    "gpt2": ("gpt2", dict(target_modules=["c_attn", "mlp.c_proj"], use_rslora=True)),
    # modules by an expression; ranks and factors of some: of one by its whole name, of a layer; no module ends in `.proj`
    "patterns": (
        "llama",
        dict(
            target_modules=r"model\.layers\.\d+\.(self_attn\.[qvo]_proj|mlp\.(gate|down)_proj)",
            rank_pattern={"^model.layers.0.self_attn.q_proj": 1, r"layers\.1\.mlp\..*": 2, "v_proj|gate_proj": 5},
            alpha_pattern={"o_proj": 2.5, r"layers\.1\..*_proj": 7, "proj": 100},
        ),
    ),
    # modules of some layers, one left out, the factors by the roots of ranks
    "layers": (
        "llama",
        dict(
            target_modules=["q_proj", "up_proj", "down_proj"],
            layers_to_transform=[1],
            exclude_modules=["up_proj"],
            use_rslora=True,
            rank_pattern={"q_proj": 2},
            alpha_pattern={"mlp.down_proj": 3},
        ),
    ),
}


def base(path):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def logits(model):
    rows = torch.arange(12)
    out = model(input_ids=(rows * 7 % model.config.vocab_size).view(2, 6), use_cache=False).logits
    return [float(f"{v:.8g}") for v in out.flatten().tolist()]


def main():
    source, names = Path(sys.argv[1]), sys.argv[2:]
    result = json.loads((HERE / "peft.json").read_text()) if names else {}
    for name in names or CASES:
        model, how = CASES[name]
        result[name] = {}
        if name == model:
            ours = PeftModel.from_pretrained(base(source / model), source / "adapters" / model).eval()
            result[name]["ours"] = logits(ours)
        torch.manual_seed(5)
        config = LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **how)
        theirs = get_peft_model(base(source / model), config).eval()
        with torch.no_grad():
            for key, p in theirs.named_parameters():
                if "lora_B" in key:
                    p.normal_(std=0.2)
        theirs.save_pretrained(HERE / f"peft-{name}")
        (HERE / f"peft-{name}" / "README.md").unlink(missing_ok=True)
        saved = HERE / f"peft-{name}" / "adapter_config.json"
        settings = json.loads(saved.read_text()) | {"base_model_name_or_path": "base"}
        saved.write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")
        # as the file says: patterns are sorted there, and the first that fits counts
        again = PeftModel.from_pretrained(base(source / model), HERE / f"peft-{name}").eval()
        result[name]["theirs"] = logits(again)
    (HERE / "peft.json").write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
