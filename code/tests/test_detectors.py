"""The stronger networks: what their parts do, and that timm's are taken with clear errors."""
import numpy as np
import pytest
import torch
from conftest import make_tree
from torch import nn

import checkpoints
from classes import Batches, build, fake_logit, freeze, parameters, training_mode
from datasets import load
from detectors import Halve, Whitening
from files import TellError
from fitting import Recipe, fit


@pytest.fixture
def data(tmp_path):
    return load(str(make_tree(tmp_path / "set", train=100, test=10)))


def test_whitened_patches_are_uncorrelated_and_of_equal_variance():
    torch.manual_seed(0)
    smooth = nn.functional.avg_pool2d(torch.randn(200, 3, 36, 36), 5, 1)
    layer = Whitening()
    layer.fit(smooth)
    out = nn.functional.conv2d(smooth, layer.kernels[:27]).transpose(0, 1).reshape(27, -1)
    second = out @ out.T / out.shape[1]
    patches = nn.functional.unfold(smooth, 3).transpose(1, 2).reshape(-1, 27)
    variance = torch.linalg.eigvalsh(patches.T @ patches / len(patches))
    torch.testing.assert_close(second, torch.diag(variance / (variance + 5e-4)), atol=1e-3, rtol=1e-3)
    both = layer(smooth)
    assert both.shape == (200, 54, 32, 32)
    assert both.min() == 0
    assert not (both[:, :27] * both[:, 27:]).any()  # a component and its negative
    assert parameters(layer) == 0


def test_compact_whitens_its_first_layer_before_the_first_step(data):
    network = build("Compact", width=8, blocks=1)
    assert not network.whitening.kernels.any()
    fit(network, data.split("train"), data.split("val"), Recipe(epochs=1, batch_size=32, lr=0.01))
    assert network.whitening.kernels.any()


def test_plain_is_compact_with_a_first_layer_that_learns(data):
    width, blocks = 8, 1
    plain = build("Plain", width=width, blocks=blocks)
    assert parameters(plain) == parameters(build("Compact", width=width, blocks=blocks)) + 54 * 27 + 2 * 54
    before = plain.whitening[0][0].weight.clone()
    fit(plain, data.split("train"), data.split("val"), Recipe(epochs=1, batch_size=32, lr=0.01))
    assert not torch.equal(plain.whitening[0][0].weight, before)


@pytest.mark.parametrize("name", ["Plain", "Compact"])
def test_a_saved_network_loads_with_its_first_layer(name, tmp_path):
    network = build(name, width=8).eval()
    network.whiten(Batches(load(str(make_tree(tmp_path / "set", train=100, test=10))).split("train"), 32,
                           network.normalisation))
    nn.init.normal_(network.head.weight)
    checkpoints.write(tmp_path / "own.pth", checkpoints.pack(
        network, name, {"width": 8}, threshold=0.5, threshold_source="test", data="set", seed=0))
    again, _ = checkpoints.load(str(tmp_path / "own.pth"))
    x = torch.randn(3, 3, 32, 32)
    assert torch.equal(again(x), network(x))


def test_going_on_from_a_network_keeps_its_first_layer(data):
    network = build("Compact", width=8, blocks=1)
    network.whitening.fit(torch.randn(40, 3, 32, 32))  # as other pictures had made it
    before = network.whitening.kernels.clone()
    fit(network, data.split("train"), data.split("val"), Recipe(epochs=1, batch_size=32, lr=0.01))
    assert torch.equal(network.whitening.kernels, before)


@pytest.mark.parametrize(("name", "heads"), [("Compact", {"fake": 1}), ("ResNet18", {"fake": 1}),
                                             ("Compact", {"fake": 1, "object": 10}),
                                             ("ResNet18", {"fake": 1, "object": 10}),
                                             ("Wide", {"fake": 1, "object": 10}),
                                             ("Plain", {"fake": 1, "object": 10})])
def test_heads_name_the_columns(name, heads):
    network = build(name, objects=heads.get("object", 0)).eval()
    assert network.heads == heads
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, sum(heads.values()))


def test_pooling_before_relu_is_pooling_after_it():
    block, x = Halve(5, 7).train(), torch.randn(3, 5, 8, 8)
    usual = nn.functional.max_pool2d(nn.functional.relu(block.convolution(x)), 2)
    assert torch.equal(block(x), usual)


def test_a_residual_block_starts_as_the_identity():
    network = build("Compact", width=8).train()
    x = torch.rand(4, 8, 16, 16)
    assert torch.equal(network.stages[1](x), x)


def test_fake_logit_sums_the_generators():
    outputs = np.random.default_rng(0).normal(size=(50, 9 + 1000)).astype(np.float32)
    heads = {"generator": 9, "object": 1000}
    softmax = np.exp(outputs[:, :9]) / np.exp(outputs[:, :9]).sum(1, keepdims=True)
    expected = softmax[:, 1:].sum(1)
    np.testing.assert_allclose(1 / (1 + np.exp(-fake_logit(outputs, heads))), expected, rtol=1e-4)
    np.testing.assert_array_equal(fake_logit(outputs, {"object": 3, "fake": 1}), outputs[:, 3])


def test_frozen_parts_stay_to_the_last_bit_batchnorm_included(data):
    torch.manual_seed(0)
    network = build("Compact", width=8, blocks=1)
    recipe = Recipe(epochs=1, batch_size=32, lr=0.05)
    fit(network, data.split("train"), data.split("val"), recipe)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.whiten = lambda batches: None
    freeze(network, ["stages.1", "stages.0"])
    fit(network, data.split("train"), data.split("val"), recipe)
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    frozen = {key for key in before if key.startswith(("stages.1.", "stages.0."))}
    assert any("running_mean" in key for key in frozen)
    assert not changed & frozen
    assert "head.weight" in changed
    assert any(key.startswith("stages.3") for key in changed)
    training_mode(network)
    assert not network.stages[1].training
    assert network.stages[2].training


def test_freezing_a_part_that_is_not_there():
    with pytest.raises(TellError, match="--freeze body: no such part; there are: .*stages.0"):
        freeze(build("Compact"), ["body"])


def test_a_network_of_timm_with_own_heads_enlarges_small_pictures():
    network = build("Backbone", name="efficientnet_b0", heads={"fake": 1}, size=64).eval()
    small = torch.randn(2, 3, 32, 32)
    large = nn.functional.interpolate(small, size=(64, 64), mode="bilinear")
    torch.testing.assert_close(network(small), network(large))
    assert network.normalisation["mean"] == pytest.approx([0.485, 0.456, 0.406])


def test_pretrained_weights_from_a_file_and_from_nowhere(tmp_path, monkeypatch):
    import timm
    torch.manual_seed(0)
    theirs = timm.create_model("resnet18", num_classes=1000)
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    resnet = {"name": "resnet18", "heads": {"fake": 1}, "size": 64}
    network = build("Backbone", **resnet, weights=str(tmp_path / "resnet18.pth"))
    assert torch.equal(network.body.conv1.weight, theirs.conv1.weight)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(TellError, match="no pretrained weights from .*--weights FILE, or --from-scratch"):
        build("Backbone", **resnet, weights=str(tmp_path / "bad.pth"))
    with pytest.raises(TellError, match="--weights nowhere.pth: no such file"):
        build("Backbone", **resnet, weights="nowhere.pth")
    with pytest.raises(TellError, match="no network is called 'resnet1888'; those of timm"):
        build("Backbone", **resnet | {"name": "resnet1888"})


def test_batches_name_the_object_and_move_pictures(data):
    half = {"mean": [0.5] * 3, "std": [0.5] * 3}
    train = data.split("train")
    pixels, targets = next(iter(Batches(train, 16, half, heads=("object", "fake"))))
    assert (targets[:, 0].numpy() == train.objects[:16]).all()
    assert (targets[:, 1].numpy() == train.labels[:16]).all()
    moving = Batches(train, 16, half, seed=1, augment=("flip", "shift"))
    still = Batches(train, 16, half, seed=1)
    order, (shift, flip) = moving.order(2), moving.moves(2)
    assert shift.min() == -2
    assert shift.max() == 2
    assert 0.3 < flip.float().mean() < 0.7
    seen, plain = (torch.cat([pixels for pixels, _ in batches.epoch(2)]) for batches in (moving, still))
    for i in range(len(order)):
        padded = nn.functional.pad(plain[i], (2, 2, 2, 2), mode="reflect")
        down, right = (shift[i] + 2).tolist()
        expected = padded[:, down:down + 32, right:right + 32]
        assert torch.equal(seen[i], expected.flip(2) if flip[i] else expected)


@pytest.mark.parametrize("augment", [(), ("flip", "shift")])
def test_the_shares_of_two_processes_are_the_batch_of_one(data, augment):
    half = {"mean": [0.5] * 3, "std": [0.5] * 3}
    train = data.split("train")
    whole = list(Batches(train, 16, half, seed=1, augment=augment).epoch(3))
    parts = [list(Batches(train, 16, half, seed=1, augment=augment, part=(i, 2)).epoch(3)) for i in (0, 1)]
    for (pixels, targets), *shares in zip(whole, *parts, strict=True):
        for i, (some, wanted) in enumerate(shares):
            assert torch.equal(some, pixels[i::2])
            assert torch.equal(wanted, targets[i::2])
    with pytest.raises(TellError, match="cannot be shared by 3 processes"):
        Batches(train, 16, half, seed=1, part=(0, 3))
