"""Fakes made from real pictures by small autoencoders: a pair that differs in nothing but the decoder.

Same scene, size, and file: what is left is what decoders leave, so a detector cannot learn anything else
from such a pair (Rajan et al., "Aligned Datasets", arXiv:2410.11835; Wang et al., "DIRE", ICCV 2023).
"""
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, LATENT = 24, 8  # channels of the coarsest layer are twice WIDTH; of the code, LATENT
SIDE, BATCH, STEPS = 64, 6, 600
LARGEST = 384  # pixels of the shorter side that are reconstructed


# How generators double height and width: (channels in, channels out) -> layer.
KINDS = {
    "nearest": lambda i, o: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(i, o, 3, padding=1)),
    "transposed 4": lambda i, o: nn.ConvTranspose2d(i, o, 4, 2, 1),
    "transposed 3": lambda i, o: nn.ConvTranspose2d(i, o, 3, 2, 1, output_padding=1),
    "pixel shuffle": lambda i, o: nn.Sequential(nn.Conv2d(i, 4 * o, 3, padding=1), nn.PixelShuffle(2)),
}


class Autoencoder(nn.Module):
    """A quarter of height and width, LATENT channels in steps of 1/4, beside the mean of each 4 x 4 square.

    (batch, 3, h, w) float in [-1, 1], h and w multiples of 4 -> the same shape, reconstructed.
    """

    def __init__(self, kind: str):
        super().__init__()
        wide = 2 * WIDTH
        self.encoder = nn.Sequential(nn.Conv2d(3, WIDTH, 4, 2, 1), nn.SiLU(), nn.Conv2d(WIDTH, wide, 4, 2, 1),
                                     nn.SiLU(), nn.Conv2d(wide, wide, 3, padding=1), nn.SiLU(),
                                     nn.Conv2d(wide, LATENT, 1))
        self.decoder = nn.Sequential(nn.Conv2d(LATENT, wide, 3, padding=1), nn.SiLU(),
                                     nn.Conv2d(wide, wide, 3, padding=1), nn.SiLU(),
                                     KINDS[kind](wide, wide), nn.SiLU(),
                                     KINDS[kind](wide, WIDTH), nn.SiLU(), nn.Conv2d(WIDTH, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(self.encoder(x) / 3) * 3
        code = code + ((code * 4).round() / 4 - code).detach()  # rounded, with the gradient of the unrounded
        return self.decoder(code) + F.interpolate(F.avg_pool2d(x, 4), scale_factor=4, mode="bilinear")


def difference(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of pictures and of their gradients: without these, edges stay soft."""
    parts = ((x, y), (x.diff(dim=2), y.diff(dim=2)), (x.diff(dim=3), y.diff(dim=3)))
    return sum(F.l1_loss(one, other) for one, other in parts)


def train(pictures: list[np.ndarray], kind: str, seed: int) -> Autoencoder:
    """An autoencoder for pictures uint8 (h, w, 3), of which random squares of SIDE pixels are learnt."""
    torch.manual_seed(seed)
    random, network = np.random.default_rng(seed), Autoencoder(kind)
    pictures = [picture for picture in pictures if min(picture.shape[:2]) >= SIDE]
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, STEPS)
    for _ in range(STEPS):
        chosen = [pictures[i] for i in random.integers(len(pictures), size=BATCH)]
        x = to_tensor(np.stack([square(picture, SIDE, random) for picture in chosen]))
        loss = difference(network(x), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def square(picture: np.ndarray, side: int, random: np.random.Generator) -> np.ndarray:
    """A random piece of (h, w, 3), side x side."""
    top, left = (int(random.integers(length - side + 1)) for length in picture.shape[:2])
    return picture[top:top + side, left:left + side]


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 (b, h, w, 3) -> float32 (b, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1


@torch.inference_mode()
def reconstructed(picture: np.ndarray, network: Autoencoder) -> np.ndarray:
    """The fake of a real picture uint8 (h, w, 3), h and w multiples of 4, of the same shape."""
    found = network(to_tensor(picture[None]))[0].permute(1, 2, 0)
    return ((found.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
