"""Make vit.npz: timm's and transformers' outputs of DeiT III's and DINOv2's models on seeded weights, float32, CPU.

    pip install torch timm transformers
    python tests/golden/vit.py

Models of depth DEPTH, `seeded.images(1, size)`, state dicts `seeded.checkpoint(…)` of their own names and shapes.
`NAME/logits` (1, CLASSES): timm's. `dinov2` and `dinov2_with_registers` (1, tokens, dim): last_hidden_state of
transformers' model of that type, in its hub files' names. Made with timm 1.0.31, transformers 5.24.0 and torch 2.14.1.
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
DEPTH, CLASSES, DINO_SIZE = 2, 7, 112
DEIT3 = ("small_patch16_224", "medium_patch16_224", "base_patch16_224", "large_patch16_224", "huge_patch14_224")
DEIT3 += ("small_patch16_384", "base_patch16_384", "large_patch16_384")
DINOV2 = ("small_patch14_dinov2", "base_patch14_dinov2", "small_patch14_reg4_dinov2", "base_patch14_reg4_dinov2")
NAMES = {f"deit3_{name}": int(name[-3:]) for name in DEIT3} | {f"vit_{name}": DINO_SIZE for name in DINOV2}
HUB = {"attention.q_proj": "attention.attention.query", "attention.k_proj": "attention.attention.key"}
HUB |= {"attention.v_proj": "attention.attention.value", "attention.o_proj": "attention.output.dense"}


def hub_name(key: str) -> str:
    for module, file in HUB.items():
        key = key.replace(module, file)
    return key


def main() -> None:
    sys.path.insert(0, str(HERE.parent))
    import seeded
    import timm
    import torch
    import transformers

    def fill(model: torch.nn.Module, rename=str) -> torch.nn.Module:
        own = model.state_dict()
        state = seeded.checkpoint({rename(key): list(value.shape) for key, value in own.items()})
        model.load_state_dict({key: torch.from_numpy(state[rename(key)]) for key in own})
        return model.eval()

    outputs, images = {}, lambda size: torch.from_numpy(seeded.images(1, size).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        for name, size in NAMES.items():
            model = fill(timm.create_model(name, depth=DEPTH, num_classes=CLASSES, img_size=size))
            outputs[f"{name}/logits"] = model(images(size)).numpy()
        for kind in ("Dinov2", "Dinov2WithRegisters"):
            sizes = {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": DEPTH, "patch_size": 14}
            config = getattr(transformers, f"{kind}Config")(image_size=DINO_SIZE, **sizes)
            model = fill(getattr(transformers, f"{kind}Model")(config), hub_name)
            outputs[config.model_type] = model(images(DINO_SIZE)).last_hidden_state.numpy()
    np.savez_compressed(HERE / "vit.npz", **outputs)


if __name__ == "__main__":
    main()
