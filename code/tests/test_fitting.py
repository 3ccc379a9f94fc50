"""Recipes: schedules, averages, losses, an interruption that changes nothing, and several processes."""
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CODE, make_tree
from timm.layers import BatchNormAct2d
from torch.nn import functional as F

import checkpoints
import fitting
from classes import build
from datasets import load
from devices import Device, share_batch_norm
from fitting import Average, Recipe, finished, fit, loss_of, plateaus


@pytest.fixture
def data(tmp_path):
    return load(str(make_tree(tmp_path / "set", train=100, test=10)))


def test_one_cycle_goes_up_and_down_to_nothing():
    recipe = Recipe(schedule="one-cycle", warmup=0.25)
    assert [recipe.factor(done, []) for done in (0, 0.125, 0.25, 0.625, 1)] == [0, 0.5, 1, 0.5, 0]
    assert Recipe().factor(0.9, []) == 1


def rows(*losses):
    return [{"val_loss": loss} for loss in losses]


def test_a_plateau_lowers_the_rate_and_then_ends_the_run():
    recipe = Recipe(epochs=30, schedule="plateau")
    assert plateaus(rows(3, 2, 1)) == 0
    assert plateaus(rows(3, 2, 2.5, 2.4)) == 1
    assert plateaus(rows(3, 2, 2.5, 2.4, 2.3, 2.2)) == 2
    assert recipe.factor(0.1, rows(3, 2, 2.5, 2.4)) == pytest.approx(0.1)
    assert not finished(recipe, [])
    assert not finished(recipe, rows(1, 2, 2, 2, 2))
    assert finished(recipe, rows(1, 2, 2, 2, 2, 2))
    assert not finished(Recipe(epochs=30), rows(1, 2, 2, 2, 2, 2))
    assert finished(Recipe(epochs=2), rows(2, 1))


def test_the_average_is_a_plain_mean_first_and_a_running_one_later():
    weights = {"w": torch.zeros(2), "count": torch.tensor(0)}
    average = Average(weights, steps=4)
    values = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    expected = np.zeros(2)
    for i, value in enumerate(values):
        average.add({"w": torch.from_numpy(value), "count": torch.tensor(i)})
        expected = expected + (value - expected) / min(i + 1, 4)
        np.testing.assert_allclose(average.weights["w"], expected, rtol=1e-5)
    np.testing.assert_allclose(values[:4].mean(0), Average_of(values[:4]), rtol=1e-5)


def Average_of(values):
    average = Average({"w": torch.zeros(2)}, steps=4)
    for value in values:
        average.add({"w": torch.from_numpy(value)})
    return average.weights["w"]


def test_the_loss_of_two_heads_with_unknown_objects():
    torch.manual_seed(0)
    output, recipe = torch.randn(4, 11), Recipe(object_weight=0.3)
    targets = torch.tensor([[1, 3], [0, -1], [1, 9], [0, 0]])
    known = targets[:, 1] >= 0
    expected = (F.binary_cross_entropy_with_logits(output[:, 0], targets[:, 0].float())
                + 0.3 * F.cross_entropy(output[known, 1:], targets[known, 1]))
    torch.testing.assert_close(loss_of(output, targets, {"fake": 1, "object": 10}, recipe), expected)
    targets[:, 1] = -1
    torch.testing.assert_close(loss_of(output, targets, {"fake": 1, "object": 10}, recipe),
                               F.binary_cross_entropy_with_logits(output[:, 0], targets[:, 0].float()))
    smooth = loss_of(output[:, :1], targets[:, :1], {"fake": 1}, Recipe(label_smoothing=0.2))
    torch.testing.assert_close(smooth, F.binary_cross_entropy_with_logits(
        output[:, 0], torch.tensor([0.9, 0.1, 0.9, 0.1])))


def test_weight_decay_spares_biases_and_batchnorm():
    network, decayed = build("Compact", width=8, blocks=1), 0
    optimizer = fitting.SGD(network.parameters(), Recipe(lr=0.1, weight_decay=0.5))
    before = [parameter.detach().clone() for parameter in network.parameters()]
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for old, new in zip(before, network.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old * (0.95 if old.ndim > 1 else 1))
        decayed += old.ndim > 1
    assert decayed > 3


STRONG = Recipe(epochs=4, batch_size=32, lr=0.05, nesterov=True, weight_decay=5e-4, schedule="one-cycle",
                label_smoothing=0.1, augment=("flip", "shift"), average=10, precision="bf16")


@pytest.mark.parametrize("stop", [1, 3])
def test_an_interrupted_strong_run_ends_in_the_same_bits(data, stop):
    def run(state=None, until=None):
        torch.manual_seed(0)
        states = []
        network = build("Compact", width=8, blocks=1)

        def after_epoch(state):
            states.append(state)
            if state["epoch"] == until:
                raise InterruptedError

        try:
            fit(network, data.split("train"), data.split("val"), STRONG, seed=1, state=state,
                after_epoch=after_epoch)
        except InterruptedError:
            return states[-1]
        return network.state_dict(), [row["val_loss"] for row in states[-1]["history"]]

    whole, losses = run()
    resumed, again = run(run(until=stop))
    assert losses == again
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def trained_by(processes, name, *flags):
    """A checkpoint of train.py in so many processes: (network, facts)."""
    start = [sys.executable] if processes == 1 else [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port",
        "29561"]
    done = subprocess.run([*start, str(CODE / "train.py"), *flags, "-mf", name], text=True, timeout=300,
                          capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    network, facts = checkpoints.load(name)
    said = [done.stdout.count(words) for words in ("data: ", "parameters", "kept epoch")]
    assert said == [1, 1, 1]  # once, by the first process
    assert done.stdout.count("val accuracy") == facts["epochs"]
    assert facts["recipe"]["processes"] == processes
    return network, facts


def test_two_processes_train_as_one(data):
    """Same pictures, same steps: only the order of the sums differs, so weights agree to about 1e-6."""
    flags = ["--data", data.source, "-ep", "2", "-bs", "32", "-lr", "0.01"]
    (one, facts), (two, others) = trained_by(1, "one", *flags), trained_by(2, "two", *flags)
    for key, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[key], value, rtol=0, atol=1e-5)
    assert others["metrics"]["val_loss"] == pytest.approx(facts["metrics"]["val_loss"], rel=1e-4)
    moved = one.fc3.weight - build("CIFAKE_CNN").fc3.weight
    assert moved.abs().max() > 1e-3  # it did train


def test_two_processes_whiten_and_normalise_as_one(data):
    """BatchNorm's statistics included; were they of each one's share, 1e-2 would not do."""
    flags = ["--data", data.source, "--model", "Compact", "-ep", "1", "-bs", "32", "-lr", "0.05",
             "--precision", "fp32"]
    (one, _), (two, _) = trained_by(1, "one", *flags), trained_by(2, "two", *flags)
    assert one.whitening.kernels.any()
    assert torch.equal(two.whitening.kernels, one.whitening.kernels)
    for key, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[key], value, rtol=0, atol=1e-5)
    assert one.head.weight.abs().max() > 1e-3  # it did train


@pytest.fixture
def one_process(tmp_path):
    """A gloo group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0,
                                         world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("kind", "shape"), [(torch.nn.BatchNorm2d, (6, 5, 4, 4)),
                                             (BatchNormAct2d, (6, 5, 4, 4)), (torch.nn.BatchNorm1d, (6, 5))])
def test_batchnorm_of_all_is_torchs_for_one(kind, shape, training, one_process):
    torch.manual_seed(0)
    theirs, mine = kind(5).train(training), kind(5).train(training)
    with torch.no_grad():
        for values in (theirs.weight, theirs.bias, theirs.running_mean):
            values.uniform_(-1, 1)
    mine.load_state_dict(theirs.state_dict())
    keys = list(mine.state_dict())
    share_batch_norm(mine)
    found = []
    for layer in (theirs, mine):
        x = torch.from_numpy(np.random.default_rng(0).normal(3, 2, shape).astype(np.float32)).requires_grad_()
        output = layer(x)
        output.pow(3).sum().backward()
        found.append((output, x.grad, layer.weight.grad, layer.bias.grad))
    for expected, own in zip(*found, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)
    assert list(mine.state_dict()) == keys
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[key], value)
    with torch.autocast("cpu", torch.bfloat16):
        assert mine(x.bfloat16()).dtype == theirs(x.bfloat16()).dtype


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_whitens_as_one_would(data, rank):
    """Before torch's processes tell each other theirs."""
    def whitened(device):
        network = build("Compact", width=8)
        fit(network, data.split("train"), data.split("val"), replace(STRONG, epochs=0), device=device,
            state={"epoch": 0, "history": [], "best": {"weights": network.state_dict()}})
        return network.whitening.kernels

    cpu = torch.device("cpu")
    assert torch.equal(whitened(Device(cpu, None, rank, 2)), whitened(Device(cpu)))


class Processes:
    """What Fabric is asked for when a network is wrapped."""

    def setup_module(self, network):
        return network


@pytest.mark.parametrize(("kind", "world", "synchronised"), [("cuda", 2, True), ("cuda", 1, False),
                                                             ("cpu", 2, False)])
def test_batchnorm_counts_over_all_gpus(kind, world, synchronised):
    torch.manual_seed(0)
    network = build("Backbone", name="efficientnet_b0", size=32, heads={"fake": 1}).eval()
    pictures, keys = torch.randn(2, 3, 32, 32), list(network.state_dict())
    before, weights = network(pictures), list(network.parameters())
    wrapped = Device(torch.device(kind), Processes(), 0, world).wrap(network)
    kinds = [isinstance(layer, torch.nn.SyncBatchNorm) for layer in wrapped.modules()
             if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)]
    assert kinds
    assert set(kinds) == {synchronised}
    torch.testing.assert_close(wrapped(pictures), before)  # the activations inside timm's layers too
    assert list(network.state_dict()) == keys
    assert all(mine is theirs for mine, theirs in zip(network.parameters(), weights, strict=True))
