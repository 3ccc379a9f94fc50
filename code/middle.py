"""The general detector's network: middle layers of a frozen ImageNet network, then one linear layer.

The first blocks of an ImageNet network see texture, its last ones objects; what generated pictures share lies
between (Koutlis and Papadopoulos, "RINE", arXiv:2402.19091). general.py fits the linear layer.
"""
import torch
from torch import Tensor, nn

from detectors import enlarged, timm_body
from files import TellError


class General(nn.Module):
    """Channel means and spreads of some blocks of a network of timm, frozen, then a linear layer.

    (batch, 3, h, w) float -> logits (batch, 1); smaller pictures are enlarged to `size`. name: a network of
    the EfficientNet family; blocks: which stages are read, from 0; weights: nothing, "hub", or a file. Later
    stages are not kept.
    """

    heads = {"fake": 1}
    frozen = ("stem", "stages")

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
            width = self.eval().features(torch.zeros(1, 3, size, size)).shape[1]
        self.head = nn.Linear(width, 1)

    def features(self, x: Tensor) -> Tensor:
        """What the linear layer is given: (batch, 3, h, w) -> (batch, columns)."""
        x, found = self.stem(x), []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.read:
                spread, mean = torch.std_mean(x, dim=(2, 3), correction=0)
                found += [mean, spread]
        return torch.cat(found, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(enlarged(x, self.size)))
