"""Gates are read where the module makes them, and their table is what it says."""
import numpy as np
import torch
from conftest import make_tree

import attention
from classes import build
from datasets import load


def test_gates_are_those_of_the_forward_pass(tmp_path):
    data = load(str(make_tree(tmp_path / "tree"))).split("test")
    torch.manual_seed(0)
    network = build("CIFAKE_CNN", attn=True).eval()
    found = attention.gates(network, data)
    pixels = torch.from_numpy(data.pixels[data.rows]).float() / 127.5 - 1
    with torch.no_grad():
        before = torch.relu(torch.max_pool2d(network.conv1(pixels), 2))
        ratio = network.attend(before) / before
    expected = torch.nanmedian(ratio.flatten(2), dim=2).values.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert not network.attend._forward_hooks


def test_gate_table():
    values = np.array([[0.1], [0.3], [0.5], [0.7]])
    row = attention.gate_table(values, np.array([0, 0, 1, 1]))[0]
    assert row["real_mean"] == 0.2
    assert round(row["fake_mean"], 6) == 0.6
    assert round(row["cohens_d"], 4) == round(0.4 / np.std([0.1, 0.3], ddof=1), 4)
