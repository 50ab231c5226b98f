"""Logits of small models with adapters, by peft: of adapters made here and of its own.

    LLM_TRAIN_REFERENCE=DIR cargo test -p llm-train --lib reference
    python training/tests/reference/adapters.py DIR

Writes peft.json and the adapters peft-* beside this file. Needs torch, transformers and peft.
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
TARGETS = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "mlp.c_proj"]}


def base(path):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def logits(model):
    rows = torch.arange(12)
    out = model(input_ids=(rows * 7 % model.config.vocab_size).view(2, 6), use_cache=False).logits
    return [float(f"{v:.8g}") for v in out.flatten().tolist()]


def main():
    source, result = Path(sys.argv[1]), {}
    for name, targets in TARGETS.items():
        ours = PeftModel.from_pretrained(base(source / name), source / "adapters" / name).eval()
        torch.manual_seed(5)
        config = LoraConfig(r=4, lora_alpha=6, target_modules=targets, use_rslora=name == "gpt2", task_type="CAUSAL_LM")
        theirs = get_peft_model(base(source / name), config).eval()
        with torch.no_grad():
            for key, p in theirs.named_parameters():
                if "lora_B" in key:
                    p.normal_(std=0.2)
        theirs.save_pretrained(HERE / f"peft-{name}")
        (HERE / f"peft-{name}" / "README.md").unlink(missing_ok=True)
        saved = HERE / f"peft-{name}" / "adapter_config.json"
        settings = json.loads(saved.read_text()) | {"base_model_name_or_path": "base"}
        saved.write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")
        result[name] = {"ours": logits(ours), "theirs": logits(theirs)}
    (HERE / "peft.json").write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
