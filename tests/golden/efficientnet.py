"""Make efficientnet.npz: timm's logits of EfficientNets on seeded weights, float32 and float64, on the CPU.

    pip install torch timm
    python tests/golden/efficientnet.py

`NAME/float32` and `NAME/float64`, (2, 1000): timm's model in evaluation mode, its state dict `seeded.checkpoint(…)` of
its own names and shapes, on `seeded.images(2, SIZE)`. At 75 pixels some sizes on the way are odd, some even.
Made with timm 1.0.31 and torch 2.14.1.
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import seeded

NAMES = ("efficientnet_b0", "efficientnet_b3", "efficientnet_b7", "tf_efficientnet_b0", "tf_efficientnet_b4")
SIZE = 75


def main() -> None:
    import timm
    import torch

    logits = {}
    images = torch.from_numpy(seeded.images(2, SIZE).transpose(0, 3, 1, 2).copy())
    for name in NAMES:
        model = timm.create_model(name).eval()
        state = seeded.checkpoint({key: list(value.shape) for key, value in model.state_dict().items()})
        model.load_state_dict({key: torch.from_numpy(np.asarray(value)) for key, value in state.items()})
        with torch.no_grad():
            logits[f"{name}/float32"] = model(images).numpy()
            logits[f"{name}/float64"] = model.double()(images.double()).numpy()
            one_by_one = torch.cat([model.float()(image[None]) for image in images]).numpy()
        exact = logits[f"{name}/float64"]
        error = np.abs(logits[f"{name}/float32"] - exact).max() / np.abs(exact).max()
        apart = np.abs(one_by_one - logits[f"{name}/float32"]).max() / np.abs(exact).max()
        print(f"{name}: largest {np.abs(exact).max():.3g}, float32 off by {error:.1e}, one by one by {apart:.1e}")
    np.savez_compressed(HERE / "efficientnet.npz", **logits)


if __name__ == "__main__":
    main()
