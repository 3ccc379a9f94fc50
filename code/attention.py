"""What the attention layer does: its gates, channel by channel, on real and on fake pictures."""
import numpy as np
import torch
from torch import nn

from classes import Batches
from datasets import ImageSet


@torch.inference_mode()
def gates(network: nn.Module, data: ImageSet) -> np.ndarray:
    """The SRM gate of each channel for every picture: float32 (n, channels), from 0 to 1."""
    found = []
    hook = network.attend.register_forward_hook(
        lambda layer, inputs, output: found.append(layer.gates(inputs[0]).flatten(1)))
    for pixels, _ in Batches(data, 256, network.normalisation):
        network.eval()(pixels)
    hook.remove()
    return torch.cat(found).numpy()


def gate_table(values: np.ndarray, labels: np.ndarray) -> list[dict]:
    """For each channel: mean gate on real and on fake pictures, their spread, and Cohen's d."""
    rows = []
    for channel, column in enumerate(values.T):
        real, fake = column[labels == 0], column[labels == 1]
        pooled = np.sqrt((real.var(ddof=1) + fake.var(ddof=1)) / 2)
        rows.append({"channel": channel, "real_mean": real.mean(), "fake_mean": fake.mean(),
                     "real_sd": real.std(ddof=1), "fake_sd": fake.std(ddof=1),
                     "cohens_d": (fake.mean() - real.mean()) / pooled})
    return rows
