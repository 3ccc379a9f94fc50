"""Where training runs: one CPU process as it is; GPUs, bfloat16 and several processes by Lightning Fabric.

    torchrun --nproc_per_node 2 code/train.py ...        two processes, on CPU or on two GPUs

Fabric is imported only where it has something to do: it takes seconds, and for one process in
float32 on the CPU it would change nothing.

Several processes train as one does, up to the order of sums, since BatchNorm counts over the pictures of all
of them: torch's own on GPUs, batch_norm_of_all on the CPU. There, in float32, weights and statistics of
Compact after five steps at a rate of 0.05 agree with those of one process to 1e-5 (tested); at rates at which
training itself is unstable the last bits grow.
"""
import logging
import os
from dataclasses import dataclass
from functools import partial
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
        elif self.world > 1:
            share_batch_norm(network)
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


def share_batch_norm(network: nn.Module) -> None:
    """Let BatchNorm count over all CPU processes in training; parameters, buffers and their keys stay."""
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.forward = partial(batch_norm_of_all, layer)


class MeanOfAll(torch.autograd.Function):
    """The mean of a tensor over all processes, and of its gradient: the loss is the mean of theirs."""

    @staticmethod
    def forward(context, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total / torch.distributed.get_world_size()

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        return MeanOfAll.forward(context, gradient)


def batch_norm_of_all(layer: nn.Module, x: Tensor) -> Tensor:
    """What `layer` gives for (batch, channels, ...), in training for the equal shares of all processes."""
    if not layer.training:
        return type(layer).forward(layer, x)
    each, shape = [0, *range(2, x.ndim)], (-1, *[1] * (x.ndim - 2))
    centre = MeanOfAll.apply(x.float().mean(each, keepdim=True))
    spread = MeanOfAll.apply((x - centre).square().mean(each, keepdim=True))
    n = torch.distributed.get_world_size() * x.numel() // x.shape[1]
    with torch.no_grad():
        layer.num_batches_tracked += 1
        layer.running_mean.lerp_(centre.flatten(), layer.momentum)
        layer.running_var.lerp_(spread.flatten() * (n / (n - 1)), layer.momentum)
    scale = layer.weight.view(shape) * torch.rsqrt(spread + layer.eps)
    found = ((x - centre) * scale + layer.bias.view(shape)).to(x.dtype)
    return layer.act(layer.drop(found)) if hasattr(layer, "act") else found  # timm's has both inside


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
