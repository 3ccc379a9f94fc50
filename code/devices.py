"""Where training runs: one CPU process as it is; GPUs, bfloat16 and several processes by Lightning Fabric.

    torchrun --nproc_per_node 2 code/train.py ...        two processes, on CPU or on two GPUs

Fabric is imported only where it has something to do: it takes seconds, and for one process in
float32 on the CPU it would change nothing.

Several processes train as one does, up to the order of sums. On GPUs BatchNorm counts over the pictures of
all of them; on the CPU, where gloo cannot, over each one's share, and the first one's statistics are kept:
there only networks without BatchNorm come out as from one process.
"""
import logging
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from classes import pick_device

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}


@dataclass(frozen=True)
class Device:
    """What the training loop has to know: where tensors lie, and which share of a batch is its own."""
    device: torch.device
    fabric: Any = None  # lightning_fabric.Fabric, or None for one plain CPU process
    rank: int = 0
    world: int = 1

    def wrap(self, network: nn.Module) -> nn.Module:
        """`network` as it is called in training: on the device, in the precision, averaging gradients."""
        if self.world > 1 and self.device.type == "cuda":
            from timm.layers import convert_sync_batchnorm  # torch's drops the activation in timm's layers
            network = convert_sync_batchnorm(network)
        return self.fabric.setup_module(network) if self.fabric else network.to(self.device)

    def backward(self, loss: Tensor) -> None:
        self.fabric.backward(loss) if self.fabric else loss.backward()

    def mean(self, value: Tensor) -> Tensor:
        """The mean of `value` over the processes."""
        return self.fabric.all_reduce(value, reduce_op="mean") if self.world > 1 else value

    def share(self, n: int) -> slice:
        """Which of n pictures this process scores."""
        return slice(self.rank * n // self.world, (self.rank + 1) * n // self.world)

    def gather(self, share: Tensor) -> Tensor:
        """The shares of all processes, of any lengths, in the order of the whole, in each process."""
        if self.world == 1:
            return share
        parts = [None] * self.world
        torch.distributed.all_gather_object(parts, share.cpu())
        return torch.cat(parts)


def open_device(name: str, precision: str = "fp32") -> Device:
    """name: "auto", "cpu" or "cuda"; precision: "fp32" or "bf16". TellError where there is no GPU."""
    device, world = pick_device(name), int(os.environ.get("WORLD_SIZE", 1))
    if device.type == "cpu" and world == 1 and precision == "fp32":
        return Device(device)
    from lightning_fabric import Fabric
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # no line about its precision
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", 1))
    fabric = Fabric(accelerator=device.type, devices=world // nodes, num_nodes=nodes,
                    strategy="ddp" if world > 1 else "auto", precision=PRECISIONS[precision])
    fabric.launch()
    return Device(fabric.device, fabric, fabric.global_rank, fabric.world_size)
