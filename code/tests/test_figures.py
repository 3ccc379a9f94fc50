"""The figure of a run is drawn from its CSV files alone."""
import numpy as np
import pytest
from conftest import make_tree
from matplotlib import pyplot as plt
from PIL import Image

import figures
import test
import train
from files import TellError, folder


def test_a_run_leaves_a_figure(tmp_path):
    tree = make_tree(tmp_path / "easy", train=100)
    train.main(["-ep", "2", "-mf", "one", "--data", str(tree)])
    test.main(["-mf", "one", "--data", str(tree)])
    path = figures.main(["-mf", "one", "--data", str(tree)])["figure"]
    assert path == str(folder("figures") / "one-easy-test.png")
    picture = Image.open(path)
    assert picture.width > 1500
    assert len(set(picture.convert("L").tobytes())) > 50
    assert not plt.get_fignums()


def test_nothing_to_draw_is_one_line():
    with pytest.raises(TellError, match="history-none.csv: not there; run train.py and test.py -mf none"):
        figures.main(["-mf", "none", "--data", "sample"])


def test_roc_passes_through_the_thresholds_point():
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.4, 0.9])
    figure, ax = plt.subplots()
    figures.plot_roc(ax, labels, scores, 0.5)
    curve, _, point = (np.column_stack(line.get_data()) for line in ax.get_lines())
    assert point.tolist() == [[0.5, 0.5]]
    assert [0.5, 0.5] in curve.tolist()
    assert curve[0].tolist() == [0, 0]
    assert curve[-1].tolist() == [1, 1]
    plt.close(figure)
