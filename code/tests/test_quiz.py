"""People against machines: the published counts, intervals of repeated answers, marks and maps."""
import numpy as np
import pytest
import scipy.stats
from conftest import assert_one_line, run_tell
from hypothesis import given
from hypothesis import strategies as st

import quiz
from files import TellError, folder, read_csv, write_csv
from quiz import Answers, answer_row, clustered, overlap, questions, read_answers


def answers(person, picture, explained, right) -> Answers:
    n = len(right)
    cells = np.zeros((n, quiz.CELLS, quiz.CELLS))
    return Answers(np.array(person), np.array(picture), np.ones(n, int), np.array(explained, int),
                   np.array(right, int), np.ones(n, int), cells.astype(bool), cells)


def test_the_published_counts_give_the_published_test():
    z, p = quiz.two_proportions(*quiz.PUBLISHED)
    assert f"{z:.2f} {p:.3f}" == "-2.36 0.018"
    right, n, right2, n2 = quiz.PUBLISHED
    table = [[right, n - right], [right2, n2 - right2]]
    assert z**2 == pytest.approx(scipy.stats.chi2_contingency(table, correction=False).statistic)


def test_answers_that_repeat_each_other_count_once():
    """20 people each asked once, and the same people asked ten times with the same answers."""
    right = np.random.default_rng(0).random(40) < 0.6
    person, explained = np.arange(40), np.arange(40) % 2
    once = clustered(answers(person, np.arange(40), explained, right))
    often = clustered(answers(np.repeat(person, 10), np.arange(400), np.repeat(explained, 10),
                              np.repeat(right, 10)))
    assert once["difference"] == pytest.approx(often["difference"])
    for row in (once, often):
        assert row["with_counts_as"] == pytest.approx(20, rel=0.15)  # of a bootstrap
    width = once["difference_high"] - once["difference_low"]
    assert often["difference_high"] - often["difference_low"] == pytest.approx(width, rel=0.15)


def test_independent_answers_keep_the_plain_interval():
    """A closed form: with everybody and every picture once, the variance is p (1 - p) / n."""
    right = np.arange(400) % 5 > 0
    row = clustered(answers(np.arange(400), np.arange(400), np.arange(400) // 200, right))
    error = np.sqrt(2 * 0.8 * 0.2 / 200)
    assert row["difference_high"] - row["difference"] == pytest.approx(1.966 * error, rel=0.1)
    assert row["with_counts_as"] == pytest.approx(200, rel=0.15)


def test_a_person_alone_and_a_perfect_score_get_intervals_with_a_width():
    row = clustered(answers(["me"] * 8, list("abcdefgh"), [0, 1] * 4, [1] * 8))
    assert row["people"] == 1
    assert row["with_low"] < 0.6 < row["with"] == row["with_high"] == 1


@pytest.mark.filterwarnings("error")
def test_without_explained_answers_there_is_no_difference():
    row = quiz.analyse(answers(["me", "you"], ["a", "b"], [0, 0], [1, 0]))
    assert np.isnan(row["difference"])
    assert np.isnan(row["z_if_independent"])
    assert row["without_n"] == 2
    assert row["with_n"] == 0


def test_hard_pictures_in_one_condition_fool_the_plain_test_only():
    same, dealt = quiz.false_alarms(False, 40), quiz.false_alarms(True, 40)
    assert same["independent"] > 0.3
    assert same["clustered"] < 0.2
    assert dealt["clustered"] < 0.2


@given(st.integers(1, 20), st.integers(0, 2**31))
def test_a_quiz_is_balanced_and_repeats_no_picture(n, seed):
    labels = np.array([0] * 10 + [1] * 12)
    asked = questions(labels, n, seed)
    chosen = [i for i, _ in asked]
    assert len(set(chosen)) == n
    assert abs(2 * labels[chosen].sum() - n) <= 1
    for label in (0, 1):
        explained = [with_map for i, with_map in asked if labels[i] == label]
        assert abs(2 * sum(explained) - len(explained)) <= 1


def test_a_quiz_needs_enough_pictures_of_either_kind():
    with pytest.raises(TellError, match="3 real and 1 fake"):
        questions(np.array([0, 0, 0, 1]), 4, 0)


def test_marks_on_the_map_overlap_and_marks_elsewhere_do_not():
    random = np.random.default_rng(0)
    maps = np.array([np.outer(*random.random((2, 8))) for _ in range(6)])
    marks = np.array([quiz.strongest(heat, n, random)
                      for n, heat in zip((3, 9, 5, 12, 7, 4), maps, strict=True)])
    found = overlap(marks, maps, np.arange(6), draws=200)
    assert found["iou"] == 1
    assert found["p_moved"] == found["p_other"] == pytest.approx(1 / 201)
    elsewhere = overlap(marks, -maps, np.arange(6), draws=200)
    assert elsewhere["iou"] == 0
    assert elsewhere["p_moved"] > 0.9


def test_a_shared_habit_is_no_agreement_about_the_picture():
    """Everybody marks the middle, every map is high in the middle: only the null of other maps sees it."""
    middle = np.zeros((8, 8))
    middle[3:5, 3:5] = 1
    found = overlap(np.repeat(middle[None] > 0, 6, 0), np.repeat(middle[None], 6, 0), np.arange(6), draws=200)
    assert found["p_moved"] < 0.02
    assert found["p_other"] == 1


def test_the_null_of_moved_maps_keeps_the_size_and_its_chance_is_known():
    """Single cells: a moved map hits the marked one of 64 in 1/64 of the draws."""
    random = np.random.default_rng(1)
    heat = random.random((8, 8))
    assert all(quiz.strongest(quiz.moved(heat, random), n, random).sum() == n for n in (1, 5, 63))
    marks = np.zeros((1, 8, 8), bool)
    marks[0, 2, 5] = True
    found = overlap(marks, heat[None], np.array(["a"]), draws=4000)
    assert found["iou_moved"] == pytest.approx(1 / 64, abs=0.006)


def test_ties_of_a_map_favour_no_place():
    chosen = sum(quiz.strongest(np.zeros((8, 8)), 8, np.random.default_rng(seed)).astype(int)
                 for seed in range(800))
    assert scipy.stats.chisquare(chosen.ravel()).pvalue > 1e-4


def test_intersection_over_union():
    """Five marked cells, of which the map's five strongest share two: 2 of 8."""
    marks, heat = np.zeros((1, 8, 8), bool), np.zeros((1, 8, 8))
    marks[0, 0, :5], heat[0, 0, 3:8] = True, 1
    assert overlap(marks, heat, np.array(["a"]), draws=1)["iou"] == 2 / 8


def test_answers_survive_the_file(tmp_path):
    marks = np.eye(8, dtype=bool)
    rows = [answer_row("me", 'a "b", c', 1, True, 0, None, marks, np.arange(1024.0).reshape(32, 32)),
            answer_row("me", "b", 0, False, 0, 1)]
    write_csv(tmp_path / "a.csv", rows)
    found = read_answers([tmp_path / "a.csv", tmp_path / "a.csv"])
    assert found.picture.tolist() == ['a "b", c', "b"] * 2
    assert found.machine.tolist() == [-1, 1] * 2
    assert found.right.tolist() == [False, True] * 2
    assert (found.marks[0] == marks).all()
    assert found.map[0, 0, 0] == pytest.approx(np.arange(1024.0).reshape(32, 32)[:4, :4].mean(), rel=1e-2)
    assert np.isnan(found.map[1]).all()


def test_the_quiz_of_a_notebook_keeps_each_answer(tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    pictures = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32)).astype(np.uint8)
    replies = iter(["f", "what?", "r", "q"])
    path = quiz.ask(tmp_path / "mine.csv", "me", pictures, list("abcdef"), np.array([0, 0, 0, 1, 1, 1]),
                    [1] * 6, np.ones((6, 32, 32)), n=4, reply=lambda text: next(replies))
    rows = read_csv(path)
    assert [row["answer"] for row in rows] == ["1", "0"]
    assert {row["person"] for row in rows} == {"me"}


def test_command_line(tmp_path, capsys):
    quiz.main(["--smoke"])
    assert "z = -2.36, p = 0.018" in capsys.readouterr().out
    assert [path.name for path in folder("results").glob("quiz-*")] == ["quiz-published-smoke.csv"]
    write_csv(tmp_path / "a.csv", [answer_row("me", name, 1, name > "b", 1, 0) for name in "abcd"])
    quiz.main([str(tmp_path / "a.csv")])
    printed = capsys.readouterr().out
    assert "4 answers of 1 people" in printed
    assert "about this person" in printed
    with pytest.raises(TellError, match="none.csv"):
        quiz.main([str(tmp_path / "none.csv")])
    (tmp_path / "bad.csv").write_text("person,picture,label,explained,answer,machine\nme,a,2,0,1,0\n")
    assert_one_line(run_tell("quiz.py", tmp_path / "bad.csv"), "bad.csv, row 2")


@pytest.mark.parametrize("content", ["pictures,\u00e9".encode("utf-16"), None])
def test_answers_that_are_no_csv_are_one_line(tmp_path, content):
    path = tmp_path / "answers.csv"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(TellError, match="answers.csv: no CSV file in UTF-8"):
        quiz.main([str(path)])
