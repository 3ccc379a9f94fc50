"""The stronger networks: our own for 32 pixels, ResNet-18 with a stem for them, and any network of timm.

Like every network they return logits (batch, columns) named by `heads`, and carry `normalisation`. With
`mirror` they are scored by the mean of the logits of a picture and of its mirror image.
"""
import warnings
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from files import TellError

warnings.filterwarnings("ignore", "IProgress not found")  # timm and captum import tqdm's bar for notebooks

# Mean and standard deviation of CIFAKE's training pixels.
CIFAKE_NORMALISATION = {"mean": [0.472, 0.463, 0.418], "std": [0.238, 0.237, 0.266]}


class Whitening(nn.Module):
    """A frozen first convolution whose outputs are uncorrelated, of equal variance: its patches, whitened.

    (batch, 3, h, w) -> (batch, 54, h, w): the 27 principal components of 3 x 3 patches, and their
    negatives, after ReLU. Fine detail, where generators differ from cameras, has a hundredth of the
    variance of brightness; after whitening a step of training moves both alike. After the first layer
    of K. Jordan, "94% on CIFAR-10 in 3.29 seconds", arXiv:2404.00498, section 3.2.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("kernels", torch.zeros(54, 3, 3, 3))

    def fit(self, pixels: Tensor) -> None:
        """Set the kernels from normalised pictures, float (n, 3, h, w)."""
        patches = F.unfold(pixels.float(), 3).transpose(1, 2).reshape(-1, 27)
        variance, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        kernels = (directions / torch.sqrt(variance + 5e-4)).T.reshape(-1, 3, 3, 3)
        self.kernels.copy_(torch.cat((kernels, -kernels)))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.conv2d(x, self.kernels, padding=1))


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    """3 x 3 convolution and BatchNorm, of the same height and width."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))


class Halve(nn.Module):
    """Convolution, BatchNorm, maximum of each 2 x 2 square, ReLU (after it: the same for a quarter)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.convolution = convolution(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.max_pool2d(self.convolution(x), 2))


class Residual(nn.Module):
    """x + f(x), f two 3 x 3 convolutions that start as zero (He et al. 2016; Goyal et al. 2017)."""

    def __init__(self, channels: int):
        super().__init__()
        self.one, self.two = convolution(channels, channels), convolution(channels, channels)
        nn.init.zeros_(self.two[1].weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.two(F.relu(self.one(x))))


class Compact(nn.Module):
    """Our own network for 32-pixel pictures: whitened patches, then three halvings with residual blocks.

    (batch, 3, h, w) float -> logits (batch, 1), or (batch, 1 + objects) with an object head. `wide`: the
    last stage, of 4 x 4 places, is twice as wide and has a residual block too, which costs a quarter more
    time. Not `whitened`: a first layer that is learnt with the others, convolution, BatchNorm and ReLU.
    """

    mirror = True
    wide_convolutions = True

    def __init__(self, width: int = 48, blocks: int = 1, objects: int = 0, wide: bool = False,
                 whitened: bool = True):
        super().__init__()
        self.normalisation = CIFAKE_NORMALISATION
        self.heads = {"fake": 1, "object": objects} if objects else {"fake": 1}
        # "whitening" either way: the name in checkpoints.
        self.whitening = Whitening() if whitened else nn.Sequential(convolution(3, 54), nn.ReLU())
        last = 4 * width if wide else 2 * width
        self.stages = nn.Sequential(
            Halve(54, width), *(Residual(width) for _ in range(blocks)),
            Halve(width, 2 * width), *(Residual(2 * width) for _ in range(blocks)),
            Halve(2 * width, last), *(Residual(last) for _ in range(blocks if wide else 0)))
        self.head = nn.Linear(last, sum(self.heads.values()))
        nn.init.zeros_(self.head.weight)

    def whiten(self, batches) -> None:
        """Fit a whitened first layer to about 5,000 pictures, unless it is: later layers know it as it is."""
        if not isinstance(self.whitening, Whitening) or self.whitening.kernels.any():
            return
        some = islice(batches.epoch(0), -(-5_000 // batches.batch_size))
        self.whitening.fit(torch.cat([pixels for pixels, _ in some]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.whitening(x)).mean(dim=(2, 3)))


def enlarged(x: Tensor, size: int) -> Tensor:
    """Pictures (batch, 3, h, w) of less than `size` at size x size: bicubic, as Pillow does in tiles.py."""
    return x if x.shape[-1] >= size else F.interpolate(x, size=(size, size), mode="bicubic", antialias=True)


class Backbone(nn.Module):
    """A network of timm by its name, with linear heads: (batch, 3, h, w) float -> logits (batch, columns).

    Pictures smaller than `size` are enlarged to it, which is a change of its own: no detail is added, and
    traces at the finest scale become coarser. weights: nothing, "hub", or a file.
    """

    def __init__(self, name: str, heads: dict[str, int], size: int, weights: str | None = None):
        super().__init__()
        self.heads, self.size = heads, size
        self.body = timm_body(name, weights)
        self.normalisation = {key: list(self.body.pretrained_cfg[key]) for key in ("mean", "std")}
        self.head = nn.Linear(self.body.num_features, sum(heads.values()))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(enlarged(x, self.size)))


def timm_body(name: str, weights: str | None) -> nn.Module:
    """A network of timm without its classifier; one clear line where name or weights cannot be had."""
    import timm  # seconds, so only where it is needed
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5]) or "none like it"
        raise TellError(f"no network is called {name!r}; those of timm that are near: "
                        f"{near}; ours: CIFAKE_CNN, Compact, Wide, Plain, ResNet18")
    if weights and weights != "hub" and not Path(weights).is_file():
        raise TellError(f"--weights {weights}: no such file")
    overlay = {"file": weights} if weights and weights != "hub" else None
    if weights == "hub":
        no_retries_offline()
    try:
        return timm.create_model(name, pretrained=bool(weights), num_classes=0,
                                 pretrained_cfg_overlay=overlay)
    except Exception as error:  # hub, network and file errors share no base class; each is "no weights"
        reason = str(error).strip().splitlines()[0][:100] if str(error).strip() else ""
        raise TellError(f"{name}: no pretrained weights from {weights} ({type(error).__name__}: {reason}); "
                        "connect to huggingface.co, or give --weights FILE, or --from-scratch") from error


def no_retries_offline() -> None:
    """Where the hub does not answer: what lies in its cache or an error at once, not a minute of retries."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session
    try:
        get_session().head(constants.ENDPOINT, timeout=3)
    except Exception:  # of whichever client this version has; the request itself says more
        constants.HF_HUB_OFFLINE = True


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016) with a stem for 32 pixels: 4 x 4 at stride 2, no pooling.

    (batch, 3, 32, 32) float -> logits (batch, 1), or (batch, 1 + objects) with an object head.
    """

    mirror = True
    wide_convolutions = True

    def __init__(self, objects: int = 0):
        import timm
        super().__init__()
        self.normalisation = CIFAKE_NORMALISATION
        self.heads = {"fake": 1, "object": objects} if objects else {"fake": 1}
        self.body = timm.create_model("resnet18", num_classes=sum(self.heads.values()), zero_init_last=True)
        self.body.conv1 = nn.Conv2d(3, 64, 4, 2, 1, bias=False)
        self.body.maxpool = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)
