"""Maps of a logit, checked against closed forms, the packages, and a network whose reasons are known."""
import itertools
import zipfile

import numpy as np
import pytest
import torch
from conftest import CODE, encoded, make_tree
from PIL import Image
from torch import nn

import bench_lime
import checkpoints
import explain
import lime_shap
import scoring
from classes import CIFAKE_CNN, build, fake_logit
from datasets import load
from decode import decode
from files import TellError, folder


class Linear(nn.Module):
    """Logit = sum of weights * pixels, so that every pixel's share is known."""

    heads, normalisation = {"fake": 1}, {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}

    def __init__(self, size: int = 32):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(3, size, size, generator=torch.Generator().manual_seed(0)))
        self.eval()

    def forward(self, x):
        return (x * self.weights).sum(dim=(1, 2, 3))[:, None]

    def shares(self, pictures: np.ndarray, fill: np.ndarray) -> np.ndarray:
        """What each pixel adds to the logit, compared with `fill`: (n, h, w)."""
        one, other = (lime_shap.normalised(self, each) for each in (pictures, fill))
        return ((one - other) * self.weights).sum(dim=1).detach().numpy()


def some(n: int = 3, size: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3, size, size)).astype(np.uint8)


def compact(mirror: bool = True) -> nn.Module:
    """Of two heads, so that a map of another column than FAKE's would show."""
    torch.manual_seed(3)
    network = build("Compact", width=8, objects=10)
    network.mirror = mirror
    network.whitening.fit(lime_shap.normalised(network, some(20)))
    nn.init.normal_(network.head.weight)
    nn.init.normal_(network.stages[3].two[1].weight)
    return network.eval()


def in_cells(maps: np.ndarray) -> np.ndarray:
    """Sums over cells of 4 x 4 pixels: (n, 32, 32) -> (n, 64)."""
    return maps.reshape(len(maps), 8, 4, 8, 4).sum(axis=(2, 4)).reshape(len(maps), 64)


@pytest.mark.parametrize("heads", [{"fake": 1, "object": 3}, {"object": 3, "generator": 4}])
def test_the_logit_is_that_of_scoring(heads):
    outputs = torch.randn(5, sum(heads.values()))
    found = lime_shap.column_of_fake(outputs, heads)
    assert np.allclose(found, fake_logit(outputs.numpy(), heads), atol=1e-6)


def test_pictures_are_normalised_and_mirrored_as_for_scoring(tmp_path):
    data, network = load(str(make_tree(tmp_path / "set", train=4, test=4))), compact()
    found = lime_shap.score_all(network, lime_shap.normalised(network, explain.pictures_of(data, network)))
    assert np.allclose(found, scoring.logits(network, data), atol=1e-4)


def test_a_linear_network_is_explained_exactly():
    network, pictures = Linear(), some()
    shares = network.shares(pictures, lime_shap.mean_colour(pictures))
    assert np.allclose(explain.integrated_gradients(network, pictures), shares, atol=1e-4)
    corner = shares[:, :4, :4].sum(axis=(1, 2))  # its first pixel lies in one window only
    assert np.allclose(explain.occlusion(network, pictures)[:, 0, 0], corner, atol=1e-3)
    cells = lime_shap.segments_of(pictures[0])
    for fill in lime_shap.FILLS:
        filled = np.stack([lime_shap.filled(one, cells, fill) for one in pictures])
        wanted = in_cells(network.shares(pictures, filled))
        assert np.allclose(in_cells(lime_shap.shap(network, pictures, fill=fill)) / 16, wanted, atol=1e-2)
        weights = in_cells(lime_shap.lime(network, pictures, fill=fill)) / 16
        assert np.allclose(weights * (208 + 4) / 208, wanted, atol=1e-2)  # ridge's shrinking taken back


def test_masks_are_orthogonal_and_come_with_their_complements():
    for samples, parts in ((208, 64), (20, 53), (256, 3)):
        masks = lime_shap.paired_masks(samples, parts, np.random.default_rng(1))
        signs = 2 * masks.astype(int) - 1
        assert len(masks) >= samples
        assert (signs.T @ signs == len(masks) * np.eye(parts)).all()
        assert (masks[:len(masks) // 2] != masks[len(masks) // 2:]).all()


def test_lime_has_the_weights_of_the_package():
    from lime.lime_base import LimeBase
    random = np.random.default_rng(0)
    masks = lime_shap.paired_masks(208, 64, random)
    logits = random.standard_normal(len(masks)) + masks @ random.standard_normal(64)
    flat = LimeBase(kernel_fn=np.ones_like)
    _, found, _, _ = flat.explain_instance_with_data(masks, logits[:, None], np.zeros(len(masks)), 0, 64,
                                                     feature_selection="none")
    wanted = [weight for _, weight in sorted(found)]
    assert np.allclose(lime_shap.lime_operator(masks) @ logits, wanted)


def test_lime_of_the_whole_package_agrees():
    network, (picture,) = Linear(), some(1)
    theirs = bench_lime.package(network, picture)
    ours = in_cells(lime_shap.lime(network, picture)[None])[0] / 16
    assert np.corrcoef(theirs, ours)[0, 1] > 0.999


def test_shap_is_captums_exact_shapley_value():
    from captum.attr import ShapleyValues

    def game(x):
        return x[:, 0] * x[:, 1] - 2 * x[:, 2] * x[:, 3] * x[:, 0] + 3 * x[:, 1]

    # All masks of four parts, as often as the Shapley kernel has them: 2 : 1 : 2 for sizes 1, 2, 3.
    all_masks = [mask for mask in itertools.product((False, True), repeat=4) if 0 < sum(mask) < 4]
    drawn = [mask for mask in all_masks for _ in range(1 if sum(mask) == 2 else 2)]
    masks = np.array([[False] * 4, [True] * 4, *drawn])
    found = lime_shap.shapley_operator(masks) @ game(torch.tensor(masks).float()).numpy()
    exact = ShapleyValues(game).attribute(torch.ones(1, 4))[0].numpy()
    assert np.allclose(found, exact, atol=1e-4)


def test_drawn_shap_masks_have_the_kernels_sizes():
    masks, _ = lime_shap.shap_plan(4, 40_000, 0)
    sizes = np.bincount(masks[2:].sum(axis=1), minlength=5)[1:4] / 40_000
    assert np.allclose(sizes, [4 / 11, 3 / 11, 4 / 11], atol=0.01)


@pytest.mark.parametrize(("network", "layer"), [
    (lambda: build("CIFAKE_CNN"), "conv2"), (lambda: build("CIFAKE_CNN", attn=True), "conv2"),
    (compact, "stages.3"), (lambda: build("ResNet18"), "body.layer2")],
    ids=["base", "attn", "Compact", "ResNet18"])
def test_the_layer_of_grad_cam(network, layer):
    network = network().eval()
    assert explain.cam_layer(network, 32) is network.get_submodule(layer)


def test_grad_cam_is_the_packages_with_its_other_sign():
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.image import scale_cam_image
    network, pictures = compact(), some()
    x = lime_shap.normalised(network, pictures)
    layer = explain.cam_layer(network, 32)
    raw = explain.raw_cam(network, layer, x)
    assert raw.min() < 0 < raw.max()
    for sign in (1, -1):
        theirs = GradCAM(network, [layer])(x, [lambda output, sign=sign: sign * output[0]] * len(x))
        scaled = scale_cam_image(np.maximum(sign * raw, 0), (32, 32))
        assert np.allclose(scale_cam_image(scaled), theirs, atol=1e-5)  # the package scales twice


def test_hirescam_before_mean_and_linear_layer_is_the_packages_of_picture_minus_colour():
    from pytorch_grad_cam import HiResCAM
    network, pictures = compact(mirror=False), some()
    last, theirs = network.stages[4], []  # after it one gradient everywhere, whatever the picture
    views = [lime_shap.normalised(network, each) for each in (pictures, lime_shap.mean_colour(pictures))]
    for x in views:
        cam = HiResCAM(explain.OneView(network), [last])
        theirs.append(cam.get_cam_image(x, last, None, *explain.at_layer(cam, x), False))
        cam.activations_and_grads.release()
    assert np.allclose(explain.path_cam(network, last, *views), theirs[0] - theirs[1], atol=1e-5)


def examples() -> np.ndarray:
    """The 48 pictures of CIFAKE that the page shows: uint8 (48, 3, 32, 32)."""
    with zipfile.ZipFile(CODE.parent / "library" / "page" / "examples.zip") as archive:
        files = [archive.read(name) for name in archive.namelist() if name.endswith(".jpg")]
    return np.stack([decode(file)[0] for file in files]).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("name", ["compact", "base_model"])
def test_hirescam_of_committed_networks_adds_up_to_the_logit(name):
    network, _ = checkpoints.load(str(CODE.parent / "models" / f"{name}.pth"))
    logits, start = (lime_shap.score_all(network, lime_shap.normalised(network, each))
                     for each in (examples(), lime_shap.mean_colour(examples())))
    maps, gap = explain.hirescam(network, examples()), logits - start
    sums = maps.sum(axis=(1, 2))
    assert abs(sums - gap).mean() < 0.05 * abs(gap).mean()
    assert (np.sign(sums) == np.sign(gap)).mean() > 0.9
    real = logits < 0
    assert (sums[real] < 0).mean() > 0.9
    assert (np.sign(sums) == np.sign(logits)).mean() > 0.75
    if name == "compact":  # what it is for
        plain = explain.grad_cam(network, examples()).sum(axis=(1, 2))
        assert (plain[real] < 0).mean() < 0.1


def test_the_map_of_conv2_lies_where_its_receptive_fields_are():
    network = CIFAKE_CNN().eval()
    with torch.no_grad():
        for layer in (network.conv1, network.conv2):  # both pass on the pixel in the middle of their field
            layer.weight.zero_()
            layer.bias.zero_()
            layer.weight[0, 0, 2, 2] = 1
        for layer in (network.fc1, network.fc2, network.fc3):
            layer.weight.fill_(0.01)
    picture = np.zeros((3, 32, 32), np.uint8)
    picture[:, 10:12, 20:22] = 255
    found = explain.grad_cam(network, picture)
    assert found.min() >= 0  # the dark rest, which ReLU cuts off, counts for nothing
    row, column = np.unravel_index(found.argmax(), (32, 32))
    assert row in (10, 11)
    assert column in (20, 21)


@pytest.mark.parametrize("method", [explain.grad_cam, explain.hirescam, explain.integrated_gradients,
                                    explain.occlusion])
def test_a_mirroring_network_has_mirrored_maps(method):
    network, pictures = compact(), some()
    maps, mirrored = method(network, pictures), pictures[..., ::-1]
    assert np.allclose(method(network, mirrored)[..., ::-1], maps, atol=1e-3 * abs(maps).max())
    one_sided = method(compact(mirror=False), mirrored)[..., ::-1]
    assert not np.allclose(one_sided, maps, atol=0.01 * abs(maps).max())


def test_integrated_gradients_and_shap_add_up():
    network, pictures = compact(), some()
    gap = (lime_shap.score_all(network, lime_shap.normalised(network, pictures))
           - lime_shap.score_all(network, lime_shap.normalised(network, lime_shap.mean_colour(pictures))))
    sums = explain.integrated_gradients(network, pictures).sum(axis=(1, 2))
    assert np.allclose(sums, gap, atol=0.05 * abs(gap).max())
    shapley = in_cells(lime_shap.shap(network, pictures, samples=64, fill="picture")).sum(axis=1) / 16
    assert np.allclose(shapley, gap, atol=1e-3)


@pytest.mark.parametrize("method", [lime_shap.lime, lime_shap.shap])
def test_rounding_changes_maps_a_little_and_only_of_wide_networks(method, monkeypatch):
    """Whatever this processor can do: it is told that it multiplies bfloat16, or that it does not."""
    maps = {}
    for name in ("base_model", "sturdy"):
        monkeypatch.setenv("TELL_MODELS", str(CODE.parent / "models"))
        network = checkpoints.load(name)[0]
        for able in (False, True):
            monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: {"avx512_bf16": able})
            maps[name, able] = in_cells(method(network, some(1), samples=128))
    assert np.array_equal(maps["base_model", False], maps["base_model", True])
    assert not np.array_equal(maps["sturdy", False], maps["sturdy", True])
    for exact, rounded in zip(maps["sturdy", False], maps["sturdy", True], strict=True):
        assert np.corrcoef(exact, rounded)[0, 1] > 0.99


@pytest.mark.parametrize("name", explain.METHODS)
def test_one_picture_or_many_and_nothing_is_left_behind(name):
    network, pictures = compact(), some(2)
    many = explain.METHODS[name](network, pictures)
    assert many.shape == (2, 32, 32)
    assert many.dtype == np.float32
    assert np.allclose(explain.METHODS[name](network, pictures[1]), many[1], atol=1e-4)
    assert all(weights.grad is None for weights in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def test_large_pictures_have_superpixels():
    pictures = np.kron(some(2, 8), np.ones((1, 1, 12, 12), np.uint8))
    parts = lime_shap.segments_of(pictures[0])
    assert 20 < parts.max() < 128
    assert set(np.unique(parts)) == set(range(parts.max() + 1))
    assert explain.lime(Linear(96), pictures).shape == (2, 96, 96)


def test_what_cannot_be_explained_is_said():
    network = compact()
    for wrong in (some()[0].astype(float), some().transpose(0, 2, 3, 1), some()[0, 0]):
        with pytest.raises(TellError, match=r"takes uint8 pixels \(3, h, w\)"):
            explain.lime(network, wrong)
    with pytest.raises(TellError, match="no fill is called 'grey'"):
        explain.lime(network, some(), fill="grey")
    with pytest.raises(TellError, match="evaluation mode"):
        explain.lime(compact().train(), some())
    with pytest.raises(TellError, match="Linear has none at 32"):
        explain.grad_cam(Linear(), some())


@pytest.fixture
def checkpoint():
    facts = {"threshold": 0.5, "threshold_source": "default", "data": "none", "seed": 0}
    content = checkpoints.pack(build("CIFAKE_CNN"), "CIFAKE_CNN", {}, **facts)
    checkpoints.write(folder("models") / "one.pth", content)


def test_the_command_line_draws_own_pictures_and_names_bad_ones(checkpoint, tmp_path, capsys):
    (tmp_path / "good.png").write_bytes(encoded(Image.effect_noise((70, 50), 90).convert("RGB"), "PNG"))
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    files = [str(tmp_path / name) for name in ("good.png", "bad.jpg", "none.jpg")]
    found = explain.main(["-mf", "one", "--input", *files])
    assert found["names"] == ["good.png"]
    assert found["figure"] == str(folder("figures") / "explain-one.png")
    assert Image.open(found["figure"]).width > 1500
    assert set(found["maps"]) == set(explain.METHODS)
    printed = capsys.readouterr().out
    assert "bad.jpg: not a readable picture" in printed
    assert "none.jpg: No such file" in printed
    with pytest.raises(TellError, match="none of the 2 files"):
        explain.main(["-mf", "one", "--input", *files[1:]])


def test_zero_is_white_and_the_signs_have_their_colours():
    maps = np.zeros((1, 32, 32))
    maps[0, 0, :2] = 5, -5
    figure = explain.plot_maps(some(1), ["one"], {"occlusion": maps})
    image = figure.axes[1].images[0]
    shades = image.cmap(image.norm(image.get_array()))[0, :3, :3]
    figure.clear()
    assert np.allclose(shades[0] * 255, [0xD5, 0x5E, 0x00], atol=1)
    assert np.allclose(shades[1] * 255, [0x00, 0x72, 0xB2], atol=1)
    assert np.allclose(shades[2], 1, atol=0.01)
