"""Learn the finest detail of fakes from small squares: the part of the general detector trained from nothing.

A batch holds pieces of real and fake pictures, each source and class as often as its weight says, and pairs
of a real picture and its reconstruction (reconstruct.py).
"""
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from middle import Detail
from reconstruct import square, to_tensor

SIDE, STEPS = 64, 250
SINGLE, PAIRED = 12, 6  # pieces of a batch from pictures as they came, and pairs


@dataclass(frozen=True)
class Pairs:
    """Real pictures and their reconstructions, both re-saved alike."""
    squares: np.ndarray  # uint8 (n, 2: real and reconstructed, h, w, 3)
    rows: np.ndarray     # int (n,), the pictures that they were made from

    def of(self, pictures: np.ndarray) -> "Pairs":
        """Those that were made from some of `pictures`, int (m,)."""
        mine = np.flatnonzero(np.isin(self.rows, pictures))
        return Pairs(self.squares[mine], self.rows[mine])


def train(squares: np.ndarray, flat: np.ndarray, labels: np.ndarray, weights: np.ndarray, pairs: Pairs,
          seed: int) -> Detail:
    """A Detail for squares[flat], with labels bool (n,) and weights (n,) of these; no other picture is seen.

    squares: uint8 (m, h, w, 3); flat: int (n,), rows of it; pairs: of pictures that may be seen, or none.
    """
    torch.manual_seed(seed)
    random, network = np.random.default_rng(seed), Detail()
    network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, STEPS)
    for _ in range(STEPS):
        pieces, wanted = batch(squares, flat, labels, weights / weights.sum(), pairs, random)
        x = to_tensor(pieces).contiguous(memory_format=torch.channels_last)
        loss = F.binary_cross_entropy_with_logits(network(x)[:, 0], wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def batch(squares: np.ndarray, flat: np.ndarray, labels: np.ndarray, shares: np.ndarray, pairs: Pairs,
          random: np.random.Generator) -> tuple[np.ndarray, torch.Tensor]:
    """Pieces uint8 (b, SIDE, SIDE, 3), all mirrored in half of the batches, and their labels float (b,)."""
    chosen = random.choice(len(flat), SINGLE, p=shares)
    pieces = [square(squares[i], SIDE, random) for i in flat[chosen]]
    wanted = labels[chosen].tolist()
    for i in random.integers(len(pairs.rows), size=PAIRED) if len(pairs.rows) else ():
        top, left = random.integers(squares.shape[1] - SIDE + 1, size=2)
        pieces += list(pairs.squares[i, :, top:top + SIDE, left:left + SIDE])
        wanted += [False, True]
    found = np.stack(pieces)
    found = found[:, :, ::-1] if random.random() < 0.5 else found
    return np.ascontiguousarray(found), torch.tensor(wanted, dtype=torch.float32)


@torch.inference_mode()
def logits(network: Detail, squares: np.ndarray, flat: np.ndarray) -> np.ndarray:
    """The logit of FAKE of squares[flat], float64 (n,)."""
    parts = [to_tensor(squares[rows]).contiguous(memory_format=torch.channels_last)
             for rows in np.array_split(flat, -(-len(flat) // 16))]
    return np.concatenate([network(part)[:, 0].numpy() for part in parts]).astype(np.float64)
