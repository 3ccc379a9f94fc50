"""A checkpoint says all about itself; everything that is none is refused in one line."""
import pickle
import re
import subprocess
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from conftest import CODE, assert_one_line, run_tell

import checkpoints
from classes import build
from datasets import load
from files import TellError, folder
from scoring import predict

FACTS = {"threshold": 0.4, "threshold_source": "a test", "data": "tiny", "seed": 7}


def save(name="one", attn=False, **changes):
    torch.manual_seed(0)
    network = build("CIFAKE_CNN", attn=attn).eval()
    content = checkpoints.pack(network, "CIFAKE_CNN", {"attn": attn}, **FACTS) | changes
    checkpoints.write(checkpoints.path_of(name), content)
    return network


@pytest.mark.parametrize("attn", [False, True])
def test_round_trip_needs_no_architecture(attn):
    network = save(attn=attn)
    found, facts = checkpoints.load("one")
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(found(x), network(x))
    assert not found.training
    assert facts["labels"].startswith("fake = 1, real = 0")
    assert facts["heads"] == {"fake": 1}
    assert {key: facts[key] for key in FACTS} == FACTS
    assert facts["normalisation"] == found.normalisation == {"mean": [0.5] * 3, "std": [0.5] * 3}


def test_convolutions_of_a_large_network_take_half_the_room():
    torch.manual_seed(0)
    network = build("ResNet18").eval()
    path = checkpoints.path_of("large")
    checkpoints.write(path, checkpoints.pack(network, "ResNet18", {}, **FACTS))
    assert path.stat().st_size < 23e6 < 4 * sum(p.numel() for p in network.parameters())
    found, _ = checkpoints.load("large")
    x = torch.randn(4, 3, 32, 32)
    assert next(found.parameters()).dtype == torch.float32
    assert torch.allclose(found(x), network(x), atol=2e-3)
    assert not torch.equal(found(x), network(x))


def test_names_and_paths(tmp_path, monkeypatch):
    assert checkpoints.path_of("one") == checkpoints.path_of("one.pth") == folder("models") / "one.pth"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.pth").write_bytes(b"")
    assert checkpoints.path_of("here.pth") == tmp_path / "here.pth"
    assert checkpoints.path_of(str(tmp_path / "x/y.pth")) == tmp_path / "x/y.pth"


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def bad_files(tmp_path):
    torch.save({"x": Payload(tmp_path / "ran")}, tmp_path / "payload.pth")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps({"x": Payload(tmp_path / "ran")}))
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "lfs.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"weights": {}}, tmp_path / "other.pth")
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive:
        archive.writestr("a", "b")
    save("whole")
    whole = checkpoints.path_of("whole").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[:len(whole) // 2])
    no_file = "not a checkpoint that can be loaded safely: damaged, cut short, or not written by torch"
    return {"payload": "not a checkpoint that can be loaded safely: it holds code, not only numbers$",
            "pickle": no_file, "text": no_file, "empty": no_file, "lfs": "git lfs pull",
            "list": "holds a list", "other": "not a checkpoint of Tell", "zip": no_file, "cut": no_file,
            "missing": "no such checkpoint"}


def test_what_is_no_checkpoint_is_refused_and_runs_nothing(tmp_path):
    for name, words in bad_files(tmp_path).items():
        with pytest.raises(TellError, match=words) as caught:
            checkpoints.load(str(tmp_path / f"{name}.pth"))
        assert "\n" not in str(caught.value), name
    assert not (tmp_path / "ran").exists()


def test_a_raw_pickle_is_refused_without_a_warning_of_torchs(tmp_path, recwarn):
    bad_files(tmp_path)
    with pytest.raises(TellError, match="pickle.pth: not a checkpoint"):
        checkpoints.load(str(tmp_path / "pickle.pth"))
    assert not recwarn.list


def weights_with(key, value):
    return build("CIFAKE_CNN").state_dict() | {key: value}


HALF = [0.5] * 3


@pytest.mark.parametrize(("changes", "words"), [
    ({"architecture": ["CIFAKE_CNN"]}, r"its architecture is \['CIFAKE_CNN'\], not a name"),
    ({"arguments": 3}, "its arguments is 3, not a dictionary"),
    ({"arguments": {"attn": torch.zeros(2)}}, "its weights do not fit CIFAKE_CNN"),
    ({"threshold": "x"}, "its threshold is 'x', not a number from 0 to 1"),
    ({"threshold": float("nan")}, "its threshold is nan"), ({"threshold": True}, "its threshold is True"),
    ({"threshold": 1.5}, "its threshold is 1.5"), ({"threshold": torch.zeros(2)}, "its threshold is tensor"),
    ({"threshold_source": 1}, "its threshold_source is 1, not text"), ({"data": None}, "its data is None"),
    ({"normalisation": {"mean": 1}}, "its normalisation is {'mean': 1}, not mean and std, three numbers"),
    ({"normalisation": {"mean": HALF, "std": HALF[:2]}}, "its normalisation"),
    ({"normalisation": {"mean": HALF, "std": [0.5, 0.5, 0]}}, "its normalisation"),
    ({"normalisation": {"mean": ["a", 0, 0], "std": HALF}}, "its normalisation"),
    ({"calibration": "good"}, "its calibration is 'good', not a dictionary"),
    ({"recipe": [1]}, "its recipe is"), ({"pictures": {"val": 1}}, "its pictures is {'val': 1}"),
    ({"heads": 7}, "its heads is 7"), ({"heads": {"fake": torch.zeros(2)}}, "its heads is"),
    ({"heads": {"fake": 7}}, "its heads are {'fake': 7}, those of its network {'fake': 1}"),
    ({"weights": 7}, "do not fit CIFAKE_CNN"), ({"weights": weights_with("fc3.bias", "x")}, "do not fit"),
    ({"weights": weights_with(3, torch.zeros(1))}, "do not fit"),
    ({"weights": weights_with("fc3.bias", torch.tensor([np.nan]))}, "1 of its weights are not finite.*fc3"),
    ({"weights": weights_with("conv1.bias", torch.full((6,), np.inf))}, "not finite, the first: conv1.bias")])
def test_malformed_checkpoints_are_one_clear_line(changes, words):
    save("odd", **changes)
    with pytest.raises(TellError, match=words) as caught:
        checkpoints.load("odd")
    assert "\n" not in str(caught.value)
    assert "odd.pth: " in str(caught.value)


@pytest.mark.parametrize(("key", "value", "words"), [
    ("fc3.weight", "x", "its 'fc3.weight' is a str, no tensor"), ("fc3.bias", [1.0], "is a list, no tensor"),
    (7, torch.zeros(1), "its 7 is"), ("attend.bn.num_batches_tracked", "x", "is a str, no tensor"),
    ("attend.bn.num_batches_tracked", torch.ones(2), "do not fit"),
    ("fc3.weight", torch.full((1, 84), np.nan), "not finite, the first: fc3.weight")])
def test_malformed_files_of_the_course_project_are_one_clear_line(key, value, words, tmp_path):
    torch.save(weights_with(key, value), tmp_path / "course.pth")
    with pytest.raises(TellError, match=words) as caught:
        checkpoints.load(str(tmp_path / "course.pth"))
    assert "\n" not in str(caught.value)


def test_a_smoke_run_says_so_where_its_data_is_named():
    assert checkpoints.trained_on({"data": "cifake", "smoke": False}) == "cifake"
    assert checkpoints.trained_on({"data": "not recorded"}) == "not recorded"
    save("smoke", smoke=True, pictures={"train": 640, "val": 640})
    facts = checkpoints.load("smoke")[1]
    assert checkpoints.trained_on(facts) == "tiny (smoke run: 640 pictures)"
    assert facts["data"] == "tiny"


@pytest.mark.parametrize("path", sorted((CODE.parent / "models").glob("*.pth")), ids=lambda path: path.stem)
def test_every_committed_checkpoint_loads(path):
    assert checkpoints.trained_on(checkpoints.load(str(path))[1])


def test_weights_of_another_network_are_refused():
    save("unknown", architecture="ResNet999")
    with pytest.raises(TellError, match="made for the network 'ResNet999'"):
        checkpoints.load("unknown")
    save("mixed", attn=True, arguments={"attn": False})
    with pytest.raises(TellError, match="do not fit CIFAKE_CNN"):
        checkpoints.load("mixed")
    weights = build("CIFAKE_CNN").state_dict() | {"fc1.weight": torch.zeros(3, 3)}
    save("shape", weights=weights)
    with pytest.raises(TellError, match="do not fit CIFAKE_CNN.*fc1.weight"):
        checkpoints.load("shape")
    save("bare", weights={})
    with pytest.raises(TellError, match="do not fit"):
        checkpoints.load("bare")


def test_incomplete_checkpoints_are_refused():
    checkpoints.write(checkpoints.path_of("only"), {"format": checkpoints.FORMAT})
    with pytest.raises(TellError, match="an incomplete checkpoint, without architecture, arguments"):
        checkpoints.load("only")
    save("odd", arguments={"depth": 3})
    with pytest.raises(TellError, match="do not fit CIFAKE_CNN"):
        checkpoints.load("odd")
    weights = build("CIFAKE_CNN").state_dict()
    del weights["fc3.bias"]
    checkpoints.write(checkpoints.path_of("course"), dict(weights))
    with pytest.raises(TellError, match="not a checkpoint of Tell"):
        checkpoints.load("course")


def test_a_checkpoint_from_elsewhere_does_not_take_the_name_of_ours(tmp_path):
    assert checkpoints.model_name("base_model") == "base_model"
    assert checkpoints.model_name(str(tmp_path / "base_model.pth")).startswith("base_model-")


def test_leftovers_of_killed_writers_are_removed():
    save("one")
    leftover = folder("models") / ".one.pth.999999999.tmp"
    leftover.write_bytes(b"half")
    save("one")
    assert not leftover.exists()


@pytest.mark.parametrize("attention", [False, True])
def test_the_course_projects_files_are_turned_round(tree, tmp_path, attention):
    """Bare state dictionaries: P(real), and the attention layer always there, used or not."""
    torch.manual_seed(2)
    theirs = build("CIFAKE_CNN", attn=True)
    if attention:
        theirs.train()(torch.randn(16, 3, 32, 32))  # BatchNorm counts a batch
    theirs.eval()
    assert set(theirs.state_dict()) >= {"attend.cfc.weight", "attend.bn.num_batches_tracked"}
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    network, facts = checkpoints.load(str(tmp_path / "theirs.pth"))
    assert facts["arguments"] == {"attn": attention}
    if not attention:
        theirs.attend = torch.nn.Identity()
    data = load(str(tree)).split("test")
    x = torch.from_numpy(data.pixels[data.rows]).float() / 127.5 - 1
    with torch.no_grad():
        probability_of_real = torch.sigmoid(theirs(x))[:, 0].numpy()
    np.testing.assert_allclose(predict(network, data), 1 - probability_of_real, atol=1e-6)


def test_full_disk_leaves_the_old_checkpoint(tmp_path):
    save("one")
    before = checkpoints.path_of("one").read_bytes()
    code = f"""
import sys; sys.path.insert(0, {str(CODE)!r})
import resource
import checkpoints
from classes import build
from files import command_line
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
content = checkpoints.pack(build("CIFAKE_CNN"), "CIFAKE_CNN", {{"attn": False}})
command_line(lambda: checkpoints.write(checkpoints.path_of("one"), content))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert_one_line(done, "one.pth: not written", "untouched")
    assert checkpoints.path_of("one").read_bytes() == before
    assert [path.name for path in folder("models").iterdir()] == ["one.pth"]


def test_the_command_line_refuses_in_one_line(tmp_path, tree):
    bad_files(tmp_path)
    assert_one_line(run_tell("test.py", "-mf", tmp_path / "payload.pth", "--data", tree), "payload.pth",
                    "loaded safely")
    assert not (tmp_path / "ran").exists()


def test_the_commit_is_marked_when_a_file_in_use_differs_from_it(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path,
                       check=True, capture_output=True)
    for name in ("used", "other"):
        (tmp_path / f"{name}.py").write_text("")
    git("init")
    monkeypatch.setattr(checkpoints, "HERE", tmp_path)
    assert checkpoints.commit() == "none"
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setitem(sys.modules, "used", types.SimpleNamespace(__file__=str(tmp_path / "used.py")))
    head = checkpoints.commit()
    assert re.fullmatch("[0-9a-f]{10}", head)
    (tmp_path / "other.py").write_text("1")
    assert checkpoints.commit() == head
    (tmp_path / "used.py").write_text("1")
    assert checkpoints.commit() == head + "+"


def test_names_that_no_file_can_have_and_files_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(TellError, match="cannot be a path"):
        checkpoints.load("x" * 300 + ".pth")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(TellError, match="no such checkpoint"):
        checkpoints.load(str(tmp_path / "folder.pth"))
    checkpoints.write(tmp_path / "one.pth", {})
    monkeypatch.setattr("builtins.open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "denied")))
    with pytest.raises(TellError, match="one.pth: cannot be read"):
        checkpoints.read(tmp_path / "one.pth")


def test_a_call_from_python_is_no_command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/lib/ipykernel_launcher.py", "-f", "kernel.json"])
    assert checkpoints.command() == "from Python"
    monkeypatch.setattr(sys, "argv", ["/anywhere/train.py", "-ep", "1"])
    assert checkpoints.command() == "python code/train.py -ep 1"
