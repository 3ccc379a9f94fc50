"""train.py: what it keeps, that it learns, and that an interruption changes nothing."""
import io
import subprocess
import sys
import time
from dataclasses import replace

import joblib
import numpy as np
import pytest
import torch
from conftest import CODE, assert_one_line, make_tree, run_tell

import checkpoints
import detectors
import fitting
import train
from classes import build
from datasets import load
from files import TellError, folder, read_csv


@pytest.fixture
def easy(tmp_path):
    return make_tree(tmp_path / "easy", train=480, test=40)


def test_it_learns_and_describes_itself(easy, capsys):
    reached = train.main(["-ep", "4", "-mf", "one", "--data", str(easy), "-lr", "0.01", "--seed", "3"])
    assert reached["val_accuracy"] > 0.95
    _, facts = checkpoints.load("one")
    data = load(str(easy))
    assert facts["data"] == "easy"
    assert facts["fingerprint"] == data.fingerprint
    assert facts["seed"] == 3
    assert facts["pictures"] == {"train": 860, "val": 100}
    assert facts["threshold_source"].startswith("highest accuracy on 100 validation pictures")
    assert {"commit", "command", "date", "machine", "versions", "recipe"} <= facts.keys()
    best = max(facts["history"], key=fitting.merit)
    assert facts["metrics"]["epoch"] == best["epoch"]
    assert facts["threshold"] == best["threshold"]
    assert [int(row["epoch"]) for row in read_csv(folder("results") / "history-one.csv")] == [1, 2, 3, 4]
    said = capsys.readouterr().out
    assert said.count("train loss") == said.count("val accuracy") == 4
    assert "CIFAKE_CNN: 61,241 parameters" in said
    assert sorted(path.name for path in folder("models").iterdir()) == ["one.pth"]


def test_more_fakes_than_reals_are_weighed_and_named(easy, capsys):
    for path in (easy / "train/REAL").glob("00[1-4]*.jpg"):
        path.unlink()
    reached = train.main(["-ep", "1", "-mf", "one", "--data", str(easy)])
    _, facts = checkpoints.load("one")
    assert facts["threshold_source"].startswith("highest balanced accuracy on ")
    assert f"balanced accuracy {reached['val_accuracy_at_threshold']:.2%} at" in capsys.readouterr().out


def test_the_kept_weights_are_those_of_the_best_epoch(easy):
    data = load(str(easy))
    torch.manual_seed(0)
    network = build("CIFAKE_CNN")
    by_epoch = []
    recipe = fitting.Recipe(epochs=3, lr=0.02)
    state = fitting.fit(network, data.split("train"), data.split("val"), recipe,
                        after_epoch=lambda state: by_epoch.append(state["weights"]))
    rows = state["history"]
    best = max(range(3), key=lambda i: fitting.merit(rows[i]))
    kept = by_epoch[best]
    assert all(torch.equal(value, kept[key]) for key, value in network.state_dict().items())
    assert fitting.validate(network, data.split("val"))["val_loss"] == rows[best]["val_loss"]


def test_sgd_has_the_bits_of_torchs():
    torch.manual_seed(0)
    mine, theirs = build("CIFAKE_CNN"), build("CIFAKE_CNN")
    theirs.load_state_dict(mine.state_dict())
    steps = {mine: fitting.SGD(mine.parameters(), fitting.Recipe(lr=0.1, momentum=0.9)),
             theirs: torch.optim.SGD(theirs.parameters(), 0.1, 0.9, fused=True)}
    for _ in range(4):
        pictures = torch.randn(8, 3, 32, 32)
        for network, optimizer in steps.items():
            network(pictures).square().mean().backward()
            optimizer.step()
            network.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))


def test_same_seed_same_weights_other_seed_other_weights(easy):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train.main(["-ep", "1", "-mf", name, "--data", str(easy), "--seed", str(seed), "--smoke"])
    a, b, c = (checkpoints.load(name)[0].state_dict() for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["fc1.weight"], c["fc1.weight"])


@pytest.mark.parametrize("attn", [False, True])
def test_killed_and_resumed_gives_the_same_bits(easy, attn):
    flags = ["-ep", "6", "--data", str(easy), *(["--attn"] if attn else [])]
    assert run_tell("train.py", *flags, "-mf", "whole").returncode == 0
    process = subprocess.Popen([sys.executable, str(CODE / "train.py"), *flags, "-mf", "killed"],
                               stdout=subprocess.PIPE, text=True)
    while "epoch  2/6" not in process.stdout.readline():
        assert process.poll() is None, "ended before it could be killed"
    time.sleep(0.05)  # somewhere inside a later epoch, or inside a write
    process.kill()
    process.communicate()
    assert not checkpoints.path_of("killed").exists()
    done = run_tell("train.py", *flags, "-mf", "killed", "--resume")
    assert done.returncode == 0, done.stderr
    assert "resuming after epoch" in done.stdout
    whole, killed = (checkpoints.load(name) for name in ("whole", "killed"))
    for key, value in whole[0].state_dict().items():
        assert torch.equal(value, killed[0].state_dict()[key]), key
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in whole[1]["history"]]
    assert strip == [{k: v for k, v in row.items() if k != "seconds"} for row in killed[1]["history"]]
    assert whole[1]["threshold"] == killed[1]["threshold"]
    assert not train.unfinished_run("killed").exists()


def interrupted(easy, name="part"):
    """A run that stopped after its first epoch."""
    whole = checkpoints.write
    with pytest.MonkeyPatch.context() as patch:
        def stop(path, content):
            whole(path, content)
            if content["state"]["epoch"]:
                raise KeyboardInterrupt
        patch.setattr(checkpoints, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            train.main(["-ep", "3", "-mf", name, "--data", str(easy)])


def test_resume_refuses_another_recipe(easy, tmp_path):
    interrupted(easy)
    for flags, words in ((["-lr", "0.1"], "another lr"), (["--seed", "5"], "another seed"),
                         (["--attn", "-bs", "64"], r"another arguments .*, bs \(32, not 64\)")):
        with pytest.raises(TellError, match=words):
            train.main(["-ep", "3", "-mf", "part", "--data", str(easy), "--resume", *flags])
    other = make_tree(tmp_path / "other", seed=9)
    with pytest.raises(TellError, match="another data"):
        train.main(["-ep", "3", "-mf", "part", "--data", str(other), "--resume"])
    assert train.main(["-ep", "3", "-mf", "part", "--data", str(easy), "--resume"])["seed"] == 0


def test_resume_refuses_other_threads(easy):
    interrupted(easy)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        with pytest.raises(TellError, match="another threads"):
            train.main(["-ep", "3", "-mf", "part", "--data", str(easy), "--resume"])
    finally:
        torch.set_num_threads(threads)


def test_a_run_that_starts_anew_takes_the_place_of_the_unfinished_one(easy, monkeypatch):
    interrupted(easy)
    monkeypatch.setattr(fitting, "train_epoch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train.main(["-ep", "3", "-mf", "part", "--data", str(easy), "-lr", "0.02"])
    content = checkpoints.read(train.unfinished_run("part"))
    assert (content["recipe"]["lr"], content["state"]["epoch"]) == (0.02, 0)


def test_a_damaged_resume_file_is_one_clear_line(easy):
    train.unfinished_run("part").parent.mkdir(parents=True)
    train.unfinished_run("part").write_bytes(b"half")
    with pytest.raises(TellError, match="part.resume: not a checkpoint"):
        train.main(["-ep", "3", "-mf", "part", "--data", str(easy), "--resume"])


def test_without_a_name_nothing_is_saved_and_it_says_so(easy, capsys):
    train.main(["-ep", "1", "--data", str(easy), "--smoke"])
    assert "nothing will be saved" in capsys.readouterr().out
    assert not folder("models").exists()
    assert not folder("results").exists()


def test_from_another_folder_with_the_course_projects_flags(easy, tmp_path):
    flags = ["-ep", "1", "-bs", "16", "-mf", "there", "--data", easy]
    done = run_tell("train.py", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert checkpoints.path_of("there").exists()
    done = run_tell("test.py", "-mf", "there", "-thr", "0.5", "--data", "easy", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "n = 80" in done.stdout


def test_several_seeds(easy, capsys):
    flags = ["-ep", "2", "-mf", "many", "--data", str(easy), "--seeds", "3", "--seed", "4"]
    results = train.main(flags)["runs"]
    assert [result["seed"] for result in results] == [4, 5, 6]
    said = capsys.readouterr().out
    values = np.array([result["val_accuracy"] for result in results])
    assert f"{values.mean():.2%} ± {values.std(ddof=1):.2%} (sd)" in said
    assert [row["seed"] for row in read_csv(folder("results") / "seeds-many.csv")] == ["4", "5", "6"]
    stamps = {seed: checkpoints.path_of(f"many-s{seed}").stat().st_mtime_ns for seed in (4, 5, 6)}
    again = train.main([*flags, "--resume"])["runs"]  # finished runs are not run again
    assert again == results
    assert stamps == {seed: checkpoints.path_of(f"many-s{seed}").stat().st_mtime_ns for seed in (4, 5, 6)}


def test_seeds_share_the_cores(monkeypatch):
    settings = []
    monkeypatch.setattr(joblib, "cpu_count", lambda: 4)
    monkeypatch.setattr(joblib, "Parallel", lambda n_jobs: lambda jobs: settings.extend(
        arguments[2]["LOCAL_WORLD_SIZE"] for _, arguments, _ in jobs))
    train.run_seeds(train.parser().parse_args(["--seeds", "3"]))
    assert settings == ["3", "3", "3"]


def test_each_seed_goes_on_from_its_own_checkpoint(easy):
    train.main(["-ep", "1", "-mf", "first", "--data", str(easy), "--seeds", "2"])
    train.main(["--from", "first-s{seed}", "-ep", "1", "-lr", "1e-8", "-mf", "second", "--data", str(easy),
                "--seeds", "2"])
    for seed in (0, 1):
        before, after = (checkpoints.load(f"{name}-s{seed}") for name in ("first", "second"))
        assert after[1]["recipe"]["start"] == f"first-s{seed}"
        for own, other in zip(before[0].parameters(), after[0].parameters(), strict=True):
            torch.testing.assert_close(own, other, rtol=0, atol=1e-5)


def test_one_seed_goes_on_when_the_shell_it_was_started_from_ends(easy, monkeypatch):
    parents = iter([4242, *[1] * 1000])
    monkeypatch.setattr(train.os, "getppid", lambda: next(parents))
    assert len(train.main(["-ep", "2", "--data", str(easy), "--seeds", "1"])["runs"]) == 1


@pytest.mark.parametrize("setting", ["HF_ENDPOINT=http://127.0.0.1:9", "HF_ENDPOINT=http://no.host.invalid",
                                     "HF_HUB_OFFLINE=1"])
def test_weights_of_a_hub_out_of_reach_are_one_line_at_once(easy, setting):
    settings = dict([setting.split("=", 1)]) | {"HF_HOME": str(easy / "no_hub")}
    done = run_tell("train.py", "--model", "resnet18", "--size", "32", "--smoke", "--data", easy, **settings)
    # One line: each of the retries, which took 56 s, would have said two.
    assert_one_line(done, "resnet18: no pretrained weights from hub", "--weights FILE", "--from-scratch")


def test_a_wrong_set_is_noticed_before_weights_are_fetched(monkeypatch, tmp_path):
    monkeypatch.setattr(detectors, "no_retries_offline", lambda: pytest.fail("asked for weights"))
    with pytest.raises(TellError, match="nowhere: no such file or folder"):
        train.main(["--model", "resnet18", "--size", "32", "--data", str(tmp_path / "nowhere")])
    with pytest.raises(TellError, match="--weights none.pth: no such file"):
        train.main(["--model", "resnet18", "--weights", "none.pth", "--data", str(tmp_path / "nowhere")])


def test_several_seeds_are_refused_under_torchrun(monkeypatch):
    monkeypatch.setattr(train, "run_seeds", lambda *_: pytest.fail("would wait for ever"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TellError, match="--seeds under torchrun: .*give --seeds to plain python"):
        train.main(["--seeds", "2"])


@pytest.mark.parametrize(("flags", "precision"), [
    (["--model", "resnet18", "--from-scratch", "--size", "32"], "fp32"),
    (["--model", "resnet18", "--from-scratch", "--size", "32", "--precision", "bf16"], "bf16"),
    (["--model", "Compact"], "bf16")])
def test_the_strong_recipe_is_in_float32_for_networks_of_timm_on_a_cpu(easy, flags, precision, monkeypatch):
    reached = {"epoch": 1, "val_accuracy": 1, "val_accuracy_at_threshold": 1, "threshold": 0.5}
    recipes = []
    monkeypatch.setattr(train, "run", lambda args, *_: recipes.append(train.recipe_of(args)) or reached)
    train.main([*flags, "--device", "cpu", "--data", str(easy)])
    assert recipes == [replace(train.RECIPES["strong"], precision=precision)]


def test_bfloat16_learns_too(easy):
    reached = train.main(["-ep", "3", "--data", str(easy), "-lr", "0.01", "--precision", "bf16"])
    assert reached["val_accuracy"] > 0.9


@pytest.mark.parametrize("name", ["Backbone", "General"])
def test_frames_for_other_networks_are_refused(name):
    with pytest.raises(TellError, match=f"--model {name}: a frame for others; give a name of timm"):
        train.main(["--model", name])


TIMM = ["--model", "resnet18", "--from-scratch", "--size", "32"]


@pytest.mark.usefixtures("sample_is_made")
def test_heads_that_cannot_be_trained_are_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(train, "fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(TellError, match="sample: a head generator needs pictures at natural size"):
        train.main([*TIMM, "--heads", "generator", "--data", "sample"])
    with pytest.raises(TellError, match="--heads object: tells no fake from real; add fake or generator"):
        train.main([*TIMM, "--heads", "object", "--data", "sample"])


@pytest.mark.usefixtures("sample_is_made")
@pytest.mark.parametrize(("flags", "words"), [
    (["--from", "one", "--model", "CIFAKE_CNN"], "--model is for a new network; --from one goes on"),
    (["--from", "one", "--heads", "fake"], "--heads is for a new network"),
    (["--from", "one", "--attn"], "--attn is for a new network"),
    (["--from", "one", "--weights", "hub"], "--weights is for a new network"),
    (["--from", "one", "--from-scratch"], "--from-scratch is for a new network"),
    (["--from", "one", "--size", "64"], "--size is for networks of timm; one takes 32 pixels"),
    (["--model", "Compact", "--weights", "hub"], "are for networks of timm; Compact has no others"),
    (["--from-scratch"], "are for networks of timm; CIFAKE_CNN has no others"),
    ([*TIMM, "--weights", "hub"], "exclude each other"),
    (["--object-weight", "1"], "--object-weight is for networks with the head object"),
    (["--heads", "fake", "object"], "CIFAKE_CNN has no head object; a network of timm has it"),
    (["--model", "Compact", "--heads", "fake", "generator"], "Compact has no head generator"),
    (["--group", "set", "--data", "sample"], "sample: --leave-out and --group are for pictures at natural")])
def test_flags_that_would_change_nothing_are_refused(flags, words, monkeypatch):
    monkeypatch.setattr(train, "parts_of", lambda *_: pytest.fail("trained"))
    checkpoints.write(checkpoints.path_of("one"), checkpoints.pack(
        build("CIFAKE_CNN"), "CIFAKE_CNN", {}, threshold=0.5, threshold_source="none", data="x", seed=0))
    with pytest.raises(TellError, match=words):
        train.main(flags)


def test_the_recorded_facts_are_those_of_before(easy):
    """Else --resume would refuse the runs of before."""
    train.main(["-ep", "1", "-mf", "one", "--data", str(easy), "--smoke"])
    facts = checkpoints.load("one")[1]["recipe"]
    before = {"architecture": "CIFAKE_CNN", "arguments": {"attn": False}, "start": None, "freeze": [],
              "group": "content", "leave_out": None, "lr": 0.001, "precision": "fp32", "schedule": "constant"}
    assert facts | before == facts


def test_a_diverging_run_stops_with_a_line(easy):
    with pytest.raises(TellError, match="loss is no longer finite in epoch .; take a smaller -lr"):
        train.main(["-ep", "3", "--data", str(easy), "-lr", "10", "--momentum", "0.99"])


def test_one_picture_a_batch_trains_and_attention_refuses_it(easy):
    train.main(["-ep", "1", "-bs", "1", "--data", str(easy), "--smoke"])
    with pytest.raises(TellError, match="--attn needs -bs 2 or more"):
        train.main(["--attn", "-bs", "1", "--data", str(easy)])


@pytest.mark.parametrize(("flags", "words"), [
    (["-bs", "0"], "'0' is not a whole number of at least 1"), (["-ep", "-3"], "argument -ep"),
    (["-ep", "2.5"], "'2.5' is not a whole number"), (["-lr", "nan"], "'nan' is not a number"),
    (["-lr", "fast"], "'fast' is not a number"), (["--momentum", "1"], "from 0 to 0.9999"),
    (["--epoches", "50"], "unrecognized arguments: --epoches 50"), (["--epoch", "5"], "unrecognized"),
    (["-mf", "../x"], "'../x' is not a plain file name"), (["-mf", ""], "not a plain file name"),
    (["--seed", "-1"], "at least 0"), (["extra"], "unrecognized")])
def test_wrong_flags_are_refused(flags, words, capsys):
    with pytest.raises(SystemExit) as caught:
        train.main(flags)
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert words in error
    assert len(error.strip().splitlines()) == 1


def test_wrong_use_is_refused_by_the_command(easy, tmp_path):
    assert_one_line(run_tell("train.py", "--data", tmp_path / "none"), "none", "no such file or folder")
    assert_one_line(run_tell("train.py", "--resume", "--data", easy), "--resume needs -mf NAME")
    assert_one_line(run_tell("train.py", "--data", easy, "-bs", "99999"), "batch size 99999 is larger")
    assert_one_line(run_tell("train.py", "--data", easy, "-mf", "x", "--smoke", TELL_MODELS="/proc/no"),
                    "/proc/no: cannot be written", "set TELL_MODELS to a folder that can be")


def test_one_value_for_batchnorm_is_one_line(easy):
    flags = ["--model", "efficientnet_b0", "--from-scratch", "--size", "32", "--precision", "fp32"]
    with pytest.raises(TellError, match="-bs 1: .*more than 1 value per channel.*; take a larger one"):
        train.main([*flags, "-bs", "1", "-ep", "1", "--data", str(easy), "--smoke"])


KILLED = f"""
import os, signal, sys
sys.path.insert(0, {str(CODE)!r})
import fitting, train
whole, steps = fitting.Run.step, []
def step(*arguments):
    steps.append(whole(*arguments))
    if len(steps) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return steps[-1]
fitting.Run.step = step
train.main(sys.argv[1:])"""


@pytest.mark.parametrize("older", [None, ["-lr", "0.02"], []], ids=["none", "other flags", "same flags"])
def test_killed_in_the_first_epoch_and_resumed_gives_the_same_bits(easy, older, capsys):
    flags = ["-ep", "2", "--data", str(easy), "-mf"]
    train.main([*flags, "whole"])
    if older is not None:
        train.main([*flags, "killed", *older])
    before = checkpoints.path_of("killed").read_bytes() if older is not None else None
    done = subprocess.run([sys.executable, "-c", KILLED, *flags, "killed"], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert train.unfinished_run("killed").exists()
    assert before is None or checkpoints.path_of("killed").read_bytes() == before
    capsys.readouterr()
    train.main([*flags, "killed", "--resume"])
    said = capsys.readouterr().out
    assert "killed: no epoch is finished yet; starting with the first" in said
    assert said.count("train loss") == 2
    assert "finished already" not in said
    whole, killed = (checkpoints.load(name)[0].state_dict() for name in ("whole", "killed"))
    assert all(torch.equal(value, killed[key]) for key, value in whole.items())
    assert not train.unfinished_run("killed").exists()


def test_resume_starts_a_run_that_was_killed_before_it_wrote_anything(easy, capsys):
    flags = ["-ep", "1", "--data", str(easy), "-mf", "one", "--resume"]
    train.main(flags)
    assert "one: no epoch is finished yet; starting with the first" in capsys.readouterr().out
    other = ["-lr", "0.02", "-bs", "64", "--momentum", "0.5", "--seed", "3", "--precision", "bf16"]
    with pytest.raises(TellError, match=r"one\.pth: a finished run with another bs \(32, not 64\), "
                       r"lr \(0\.001, not 0\.02\), momentum \(0\.9, not 0\.5\) and 2 more"):
        train.main([*flags, *other])
    assert checkpoints.load("one")[1]["recipe"]["lr"] == 0.001  # the finished one stays
    train.main(flags[:-1])
    capsys.readouterr()
    train.main(flags)
    assert "one.pth is finished already" in capsys.readouterr().out


def test_differences_are_named_in_a_short_line(easy, tmp_path):
    interrupted(easy)
    other = make_tree(tmp_path / "other", seed=9)
    resume = ["-ep", "3", "-mf", "part", "--data", str(other), "--resume"]
    with pytest.raises(TellError, match=r"another data \(\w{12}\.\.\., not \w{12}\.\.\.\); give the same"):
        train.main(resume)
    with pytest.raises(TellError, match=r"arguments .*, bs .*, lr \(0.001, not 0.1\) and 1 more; give the"):
        train.main([*resume, "--attn", "-bs", "16", "-lr", "0.1"])


def test_a_checkpoint_under_the_name_of_an_unfinished_run_is_refused(easy):
    train.main(["-ep", "1", "-mf", "part", "--data", str(easy)])
    checkpoints.path_of("part").rename(train.unfinished_run("part"))
    with pytest.raises(TellError, match="part.resume: not an unfinished run"):
        train.main(["-ep", "1", "-mf", "part", "--data", str(easy), "--resume"])


@pytest.mark.parametrize("name", ["MODELS", "RESULTS"])
def test_a_folder_that_cannot_be_written_is_found_before_training(easy, tmp_path, name, monkeypatch):
    monkeypatch.setattr(train, "fit", lambda *_, **__: pytest.fail("trained"))
    (tmp_path / "file").write_text("in the way")
    for place in ("/proc/no", str(tmp_path / "file/below")):
        monkeypatch.setenv(f"TELL_{name}", place)
        with pytest.raises(TellError, match=f"{place}: cannot be written .*set TELL_{name} to a folder"):
            train.main(["-ep", "1", "-mf", "x", "--data", str(easy)])
    assert not folder("results" if name == "MODELS" else "models").exists()


def test_the_loss_is_shown_within_the_samples_150_batches(easy, monkeypatch):
    shown = []

    class Bar(fitting.tqdm):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options | {"disable": False, "file": io.StringIO()})

        def set_postfix(self, **values):
            shown.append(float(values["loss"]))
    monkeypatch.setattr(fitting, "tqdm", Bar)
    train.main(["-ep", "1", "--data", str(easy)])  # 26 batches
    assert len(shown) == 1
    assert shown[0] == pytest.approx(np.log(2), abs=0.05)
