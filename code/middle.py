"""The general detector's network: middle layers of a frozen network, and a small one for the finest detail.

The first blocks of an ImageNet network see texture, its last ones objects; what generated pictures share lies
between (Koutlis and Papadopoulos, "RINE", arXiv:2402.19091). general.py fits both parts.
"""
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors import timm_body
from files import TellError


class MiddleLayers(nn.Module):
    """Channel means and spreads of some blocks of a network of timm, frozen, then a linear layer.

    (batch, 3, h, w) float -> logits (batch, 1). name: a network of the EfficientNet family; blocks: which
    stages are read, from 0; weights: nothing, "hub", or a file. Later stages are not kept.
    """

    heads = {"fake": 1}

    def __init__(self, name: str, size: int, blocks: list[int], weights: str | None = None):
        super().__init__()
        body = timm_body(name, weights)
        if not hasattr(body, "blocks") or not hasattr(body, "conv_stem") or max(blocks) >= len(body.blocks):
            raise TellError(f"{name} has no stages {blocks} that can be read; take an EfficientNet of timm")
        self.normalisation = {key: list(body.pretrained_cfg[key]) for key in ("mean", "std")}
        self.size, self.read = size, tuple(blocks)
        self.stem = nn.Sequential(body.conv_stem, body.bn1)
        self.stages = body.blocks[:max(blocks) + 1]
        self.requires_grad_(False)
        with torch.inference_mode():
            self.head = nn.Identity()
            width = self.eval()(torch.zeros(1, 3, size, size)).shape[1]
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, found = self.stem(x), []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.read:
                spread, mean = torch.std_mean(x, dim=(2, 3), correction=0)
                found += [mean, spread]
        return self.head(torch.cat(found, dim=1))


class Detail(nn.Module):
    """Five convolutions over a picture and its gradients: (batch, 3, h, w) in [-1, 1] -> logits (batch, 1).

    The mean over all places comes before the linear layer, so pieces of any size can teach it.
    """

    widths = (24, 32, 48, 64, 96)

    def __init__(self):
        super().__init__()
        layers = []
        for inputs, outputs in zip((9, *self.widths), self.widths, strict=False):
            layers += [nn.Conv2d(inputs, outputs, 3, 1 if inputs == 9 else 2, 1, bias=False),
                       nn.BatchNorm2d(outputs), nn.ReLU()]
        self.layers, self.dropout = nn.Sequential(*layers), nn.Dropout(0.3)
        self.head = nn.Linear(self.widths[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        across, down = F.pad(x.diff(dim=3), (0, 1)), F.pad(x.diff(dim=2), (0, 0, 0, 1))
        x = self.layers(torch.cat((x, 4 * across, 4 * down), dim=1))
        return self.head(self.dropout(x.mean(dim=(2, 3))))


class General(nn.Module):
    """The sum of the logits of MiddleLayers and Detail: (batch, 3, h, w) float -> (batch, 1)."""

    heads = {"fake": 1}

    def __init__(self, name: str, size: int, blocks: list[int], weights: str | None = None):
        super().__init__()
        self.middle, self.detail, self.size = MiddleLayers(name, size, blocks, weights), Detail(), size
        self.normalisation, self.frozen = self.middle.normalisation, ("middle.stem", "middle.stages")
        if self.normalisation != {"mean": [0.5] * 3, "std": [0.5] * 3}:
            raise TellError(f"{name} wants other pixels than -1 to 1, which the detail part takes")

    def forward(self, x: Tensor) -> Tensor:
        return self.middle(x) + self.detail(x)
