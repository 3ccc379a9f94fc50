"""Networks as the course project has them, and batches that show every picture as they say."""
import numpy as np
import pytest
import torch
from conftest import make_tree
from PIL import Image
from torch import nn

from classes import (
    BLOCK,
    Batches,
    SRMLayer,
    build,
    convolved_and_pooled,
    freeze,
    parameters,
    pick_device,
    pool,
    training_mode,
)
from datasets import load
from detectors import enlarged
from files import TellError

HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


@pytest.mark.parametrize(("attn", "count"), [(False, 61_241), (True, 61_265)])
def test_parameter_counts(attn, count):
    assert parameters(build("CIFAKE_CNN", attn=attn)) == count


def test_network_is_the_usual_layers_in_the_usual_order():
    torch.manual_seed(0)
    network = build("CIFAKE_CNN")
    usual = nn.Sequential(network.conv1, nn.ReLU(), nn.MaxPool2d(2), network.conv2, nn.ReLU(),
                          nn.MaxPool2d(2), nn.Flatten(), network.fc1, nn.ReLU(), network.fc2, nn.ReLU(),
                          network.fc3)
    x = torch.randn(8, 3, 32, 32)
    torch.testing.assert_close(network(x), usual(x), rtol=1e-5, atol=1e-6)
    assert network(x).shape == (8, 1)
    assert network.heads == {"fake": 1}


@pytest.mark.parametrize("shape", [(3, 6, 28, 28), (2, 16, 10, 10)])
def test_pooling_gives_the_same_bits_with_and_without_gradient(shape):
    x = torch.randn(shape).round(decimals=1).to(memory_format=torch.channels_last)  # with ties
    with torch.inference_mode():
        assert torch.equal(pool(x), nn.functional.max_pool2d(x, 2))
    assert torch.equal(pool(x), nn.functional.max_pool2d(x, 2))


@pytest.mark.parametrize("n", [1, 33])
def test_the_first_layer_and_its_pooling_at_once_give_the_same_and_hooks_still_see_the_layer(n):
    network, x = build("CIFAKE_CNN").eval(), torch.randn(n, 3, 32, 32)
    expected, seen = pool(network.conv1(x)), []
    with torch.no_grad():
        found = convolved_and_pooled(network.conv1, x)
        assert found.shape == (n, 6, 14, 14)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        network.conv1.register_forward_hook(lambda layer, inputs, output: seen.append(output.shape))
        network(x)
    assert seen == [(n, 6, 28, 28)]


def test_attention_sits_behind_the_first_pooling():
    network = build("CIFAKE_CNN", attn=True)
    shapes = []
    network.attend.register_forward_hook(lambda layer, inputs, output: shapes.append(output.shape))
    network(torch.randn(4, 3, 32, 32))
    assert shapes == [(4, 6, 14, 14)]


def test_srm_follows_its_equations():
    torch.manual_seed(1)
    layer = SRMLayer(6).eval()
    layer.bn.running_mean.uniform_(-1, 1)
    layer.bn.running_var.uniform_(0.5, 2)
    x = torch.randn(5, 6, 7, 9)
    expected = torch.empty_like(x)
    for i in range(5):
        for c in range(6):
            style = torch.stack([x[i, c].mean(), x[i, c].std()])  # unbiased
            z = (layer.cfc.weight[c, 0] * style).sum()
            z = (z - layer.bn.running_mean[c]) / torch.sqrt(layer.bn.running_var[c] + layer.bn.eps)
            expected[i, c] = x[i, c] * torch.sigmoid(layer.bn.weight[c] * z + layer.bn.bias[c])
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)
    assert layer.gates(x).shape == (5, 6, 1, 1)


def test_pictures_of_another_size_are_refused():
    with pytest.raises(TellError, match=r"\(batch, 3, 32, 32\)"):
        build("CIFAKE_CNN")(torch.zeros(1, 3, 64, 64))


def test_unknown_names():
    with pytest.raises(TellError, match="no network is called 'nope'; there are CIFAKE_CNN, Compact"):
        build("nope")
    if not torch.cuda.is_available():
        with pytest.raises(TellError, match="finds no GPU"):
            pick_device("cuda")
    assert pick_device("cpu") == torch.device("cpu")


@pytest.fixture
def data(tmp_path):
    return load(str(make_tree(tmp_path / "set", train=400, test=10))).split("train")


def seen(batches, epoch):
    return [(pixels, labels) for pixels, labels in batches.epoch(epoch)]


def test_without_seed_every_picture_comes_once_in_order(data):
    batches = Batches(data, 7, HALF)
    parts = seen(batches, 0)
    assert len(parts) == len(batches) == -(-len(data) // 7)
    pixels, labels = torch.cat([p for p, _ in parts]), torch.cat([y for _, y in parts])
    expected = (torch.from_numpy(data.pixels[data.rows]).float() / 255 - 0.5) / 0.5
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-6)
    assert (labels[:, 0].numpy() == data.labels).all()
    assert pixels.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert parts[0][0].is_contiguous(memory_format=torch.channels_last)


def test_with_seed_the_whole_set_is_shuffled_anew_each_epoch(data):
    batches = Batches(data, 32, HALF, seed=3)
    assert len(batches) == len(data) // 32
    one, two = batches.order(1), batches.order(2)
    assert len(set(one.tolist())) == len(one) == len(batches) * 32
    assert (one != two).any()
    assert torch.equal(batches.order(1), one)
    assert not torch.equal(Batches(data, 32, HALF, seed=4).order(1), one)
    members = [{frozenset(part.tolist()) for part in order.split(32)} for order in (one, two)]
    assert not members[0] & members[1]  # batches are not the same groups in another order
    parts = seen(batches, 1)
    assert len(parts) == len(batches) > BLOCK // 32
    assert {len(labels) for _, labels in parts} == {32}
    assert torch.equal(torch.cat([labels for _, labels in parts])[:, 0],
                       torch.from_numpy(data.labels)[one].long())


def test_normalisation_is_the_networks(data):
    odd = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    pixels, _ = next(iter(Batches(data, 4, odd)))
    raw = data.pixels[data.rows[:4]] / 255
    expected = (raw - np.array(odd["mean"]).reshape(3, 1, 1)) / np.array(odd["std"]).reshape(3, 1, 1)
    np.testing.assert_allclose(pixels, expected, atol=1e-5)


def test_a_batch_larger_than_the_set(data):
    with pytest.raises(TellError, match="batch size 9999 is larger"):
        Batches(data, 9999, HALF, seed=0)


def test_parts_that_a_network_freezes_itself_stay_frozen():
    network = build("General", name="tf_efficientnet_lite0", size=32, blocks=[0])
    freeze(network, [])
    training_mode(network)
    assert not any(layer.training for part in (network.stem, network.stages) for layer in part.modules())
    assert network.head.training


def test_pictures_are_enlarged_as_pillow_does():
    random = np.random.default_rng(0)
    picture = np.cumsum(random.integers(-9, 10, (32, 32, 3)), axis=1).clip(-90, 90).astype(np.int16) + 128
    picture = picture.astype(np.uint8)
    found = enlarged(torch.from_numpy(picture).permute(2, 0, 1)[None].float(), 64)[0].permute(1, 2, 0).numpy()
    wanted = np.asarray(Image.fromarray(picture).resize((64, 64), Image.Resampling.BICUBIC))
    assert abs(found.clip(0, 255) - wanted).max() < 1.2  # Pillow rounds after rows and after columns
    assert enlarged(torch.zeros(1, 3, 70, 70), 64).shape == (1, 3, 70, 70)
