"""People against machines: a quiz of real and fake pictures, and what its answers show.

    python code/quiz.py ANSWERS.csv MORE.csv    accuracy with and without the explanation, with intervals
    python code/quiz.py                         the published counts, and how far their test can be trusted

An answer is a row: person, picture, label, explained, answer, machine (fake = 1; the machine's verdict may be
empty: "cannot tell"), and if given marks and map: what the person marked and what the machine's map says,
towards FAKE positive, on CELLS x CELLS cells, row by row. Answers stay in the file that the user names.

People answer again and again, and so are pictures answered; such answers are no independent draws. A test
that takes them for such asks about these very people and pictures, not about others: a few hard pictures
in one condition look like an effect of the explanation. Without a file, the share of such false alarms is
simulated, for lists of pictures fixed per condition and for those dealt anew to each person (as here), and
written to paper/results/quiz-published.csv.
"""
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import expit
from scipy.stats import norm, t

from files import Parser, TellError, command_line, folder, read_csv, shown, user_path, write_csv
from scoring import ratio, wilson

CELLS = 8  # along each edge of a picture, as explain.GRID
COLUMNS = ("person", "picture", "label", "explained", "answer", "machine", "marks", "map")
DRAWS = 1000  # of each bootstrap
NULL_DRAWS = 500
PUBLISHED = (88, 165, 109, 165)  # right and all answers without, right and all with explanations
# 165 answers a condition could be those of 33 people to 5 pictures; the publication does not say.
PEOPLE, PICTURES, STUDIES = 33, 5, 1000
PEOPLE_SD, PICTURE_SD = 0.5, 1.0  # logits, of the simulated people and pictures


class Answers(NamedTuple):
    """One entry an answer, all (n,): names as str; label, explained and answer as int 0 or 1.

    machine: int, 1 FAKE, 0 REAL, -1 cannot tell. marks bool (n, CELLS, CELLS), map float likewise; nan
    where there is none.
    """
    person: np.ndarray
    picture: np.ndarray
    label: np.ndarray
    explained: np.ndarray
    answer: np.ndarray
    machine: np.ndarray
    marks: np.ndarray
    map: np.ndarray

    @property
    def right(self) -> np.ndarray:
        return self.answer == self.label


# --- the quiz ----------------------------------------------------------------------------------

def questions(labels: np.ndarray, n: int, seed: int) -> list[tuple[int, bool]]:
    """n of the pictures with these labels (m,), in random order: (index, with the explanation or not).

    Half are fake, half of either kind explained, up to one picture; n at most twice the rarer label.
    Another seed for each person deals pictures and explanations anew, so that no picture is always explained.
    """
    random = np.random.default_rng(seed)
    members = [random.permutation(np.flatnonzero(np.asarray(labels) == label)) for label in (0, 1)]
    fakes = n // 2 + (n % 2 and int(random.integers(2)))
    if n < 1 or fakes > len(members[1]) or n - fakes > len(members[0]):
        raise TellError(f"a quiz of {n} needs {-(-n // 2)} pictures of either kind; there are "
                        f"{len(members[0])} real and {len(members[1])} fake ones")
    first = int(random.integers(2))
    asked = [(int(i), bool((place + first) % 2))
             for kind, k in zip(members, (n - fakes, fakes), strict=True) for place, i in enumerate(kind[:k])]
    return [asked[i] for i in random.permutation(n)]


def answer_row(person: str, picture: str, label: int, explained: bool, answer: int, machine: int | None,
               marks: np.ndarray | None = None, heat: np.ndarray | None = None) -> dict:
    """One answer as a row of the file; marks bool (CELLS, CELLS), heat signed, (h, w) of CELLS or more."""
    flags = "" if marks is None or not marks.any() else "".join("01"[int(cell)] for cell in marks.flat)
    cells = "" if heat is None else " ".join(f"{cell:.3g}" for cell in coarse(heat).flat)
    return dict(zip(COLUMNS, (person, picture, label, int(explained), answer,
                              "" if machine is None else machine, flags, cells), strict=True))


def coarse(heat: np.ndarray) -> np.ndarray:
    """A map (h, w) as the means of its CELLS x CELLS cells."""
    rows = np.array_split(np.asarray(heat, np.float64), CELLS)
    return np.array([[cell.mean() for cell in np.array_split(row, CELLS, axis=1)] for row in rows])


def ask(file: Path | str, person: str, pictures: np.ndarray, names: list[str], labels: np.ndarray,
        machine: list[int | None], maps: np.ndarray, n: int = 12, seed: int = 0, reply=input) -> Path:
    """The quiz in a notebook: shows n pictures, asks of each "real or fake?", keeps each answer in `file`.

    pictures uint8 (m, 3, h, w), maps (m, h, w) signed as explain.METHODS give them, machine: verdicts (1, 0
    or None). `reply` is asked for "r" or "f"; "q" stops. An existing file is continued. Returns its path.
    """
    import matplotlib.pyplot as plt

    from explain import plot_maps
    path = user_path(str(file))
    rows = read_csv(path) if path.exists() else []
    for i, explained in questions(labels, n, seed):
        here = slice(i, i + 1)
        plot_maps(pictures[here], [""], {"explanation": maps[here]} if explained else
                  {"no explanation": np.zeros_like(maps[here])})
        plt.show()
        said = ""
        while said not in ("r", "f", "q"):
            said = reply("real or fake? (r, f, q to stop) ").strip().lower()[:1]
        if said == "q":
            break
        rows.append(answer_row(person, names[i], int(labels[i]), explained, int(said == "f"), machine[i],
                               heat=maps[i]))
        write_csv(path, rows)
    return path


def read_answers(paths: list[Path]) -> Answers:
    """The answers of several files as one; TellError as of answers_of."""
    found = [answers_of(read_csv(path), shown(path)) for path in paths]
    return Answers(*map(np.concatenate, zip(*found, strict=True)))


def answers_of(rows: list[dict[str, str]], source: str) -> Answers:
    """Rows as answer_row makes them, every value as text; TellError names source and row of what is none."""
    entries = []
    for number, row in enumerate(rows, 2):
        try:
            entries.append(parsed(row))
        except (KeyError, ValueError, AttributeError, TypeError) as error:
            raise TellError(f"{source}, row {number}: not an answer of the quiz ({error!s:.60}); "
                            f"wanted: {', '.join(COLUMNS)}") from error
    if not entries:
        raise TellError(f"{source}: no answers")
    return Answers(*map(np.array, zip(*entries, strict=True)))


def parsed(row: dict[str, str]) -> tuple:
    """A row of a file as the entries of Answers; ValueError or KeyError for anything else."""
    label, explained, answer = (["0", "1"].index(row[name]) for name in ("label", "explained", "answer"))
    machine = ["", "0", "1"].index(row["machine"]) - 1
    size, marks, heat = CELLS * CELLS, row.get("marks") or "", (row.get("map") or "").split()
    if len(marks) not in (0, size) or set(marks) - {"0", "1"} or len(heat) not in (0, size):
        raise ValueError(f"marks and map need {size} cells")
    cells = np.array(heat, float) if heat else np.full(size, np.nan)
    return (row["person"], row["picture"], label, explained, answer, machine,
            np.array([cell == "1" for cell in marks or "0" * size]).reshape(CELLS, CELLS),
            cells.reshape(CELLS, CELLS))


# --- accuracy ----------------------------------------------------------------------------------

def two_proportions(right: int, n: int, right2: int, n2: int) -> tuple[float, float]:
    """(z, two-sided p) of the difference of two proportions, pooled, for INDEPENDENT answers."""
    pooled = (right + right2) / (n + n2)
    error = np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / n2))
    z = ratio(right / n - right2 / n2, error)
    return z, float(2 * norm.sf(abs(z)))


def shares(right: np.ndarray, explained: np.ndarray, groups: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Accuracy without and with the explanation, and their difference, for answers drawn by group.

    right, explained, groups (numbered from 0) (n,); counts (draws, groups), how often each is drawn.
    float64 (draws, 3); nan where a draw has no answer in a condition.
    """
    cell, size = 2 * groups + explained, 2 * counts.shape[1]
    hits = counts @ np.bincount(cell, right, size).reshape(-1, 2)
    n = counts @ np.bincount(cell, minlength=size).reshape(-1, 2)
    with np.errstate(invalid="ignore"):
        found = hits / n
    return np.column_stack((found, found[:, 1] - found[:, 0]))


def variance(right: np.ndarray, explained: np.ndarray, groups: np.ndarray, random) -> np.ndarray:
    """Bootstrap variance of `shares` where whole groups are drawn: float64 (3,); nan for one group."""
    n = groups.max() + 1
    if n < 2:
        return np.full(3, np.nan)
    counts = random.multinomial(n, np.full(n, 1 / n), DRAWS)
    found = np.ma.masked_invalid(shares(right, explained, groups, counts))
    return found.var(axis=0, ddof=1).filled(np.nan) * n / (n - 1)


def clustered(answers: Answers, seed: int = 0) -> dict:
    """Accuracy without and with the explanation and their difference, with 95 % intervals, fractions.

    Variance of people plus that of pictures minus that of single answers, each by bootstrap (A. C. Cameron,
    J. B. Gelbach, D. L. Miller, JBES 29, 2011, for regression), at least each of the first two. Accuracies:
    Wilson's interval at the number of independent answers that has this variance (_counts_as); difference:
    Student's t, one degree of freedom less than there are people or pictures, whichever are fewer. With
    one person the intervals are about that person, with one picture about that picture.
    """
    random, right = np.random.default_rng(seed), answers.right
    people, pictures = (np.unique(names, return_inverse=True)[1]
                        for names in (answers.person, answers.picture))
    sizes = [int(groups.max()) + 1 for groups in (people, pictures)]
    by_person, by_picture, single = (variance(right, answers.explained, groups, random)
                                     for groups in (people, pictures, np.arange(len(right))))
    both = np.fmax(np.fmax(by_person, by_picture), by_person + by_picture - single)
    estimates = shares(right, answers.explained, people, np.ones((1, sizes[0])))[0]
    row = {"answers": len(right), "people": sizes[0], "pictures": sizes[1]}
    for name, value, spread, condition in zip(("without", "with"), estimates, both, (0, 1), strict=False):
        row |= proportion(name, value, spread, int((answers.explained == condition).sum()))
    freedom = min((size - 1 for size in sizes if size > 1), default=0)
    error = float(np.sqrt(both[2]))
    half = float(t.ppf(0.975, freedom)) * error if freedom else float("nan")
    return row | {"difference": float(estimates[2]), "difference_low": float(estimates[2] - half),
                  "difference_high": float(estimates[2] + half),
                  "p": float(2 * t.sf(abs(ratio(estimates[2], error)), freedom)) if freedom else float("nan")}


def proportion(name: str, value: float, spread: float, n: int) -> dict:
    """{name, name_low, name_high, name_n, name_counts_as} of an accuracy with its variance and n."""
    if not n:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), float("nan")) | {
            f"{name}_n": 0, f"{name}_counts_as": 0.0}
    alone = value * (1 - value) / n
    counts_as = min(n, n * alone / spread) if spread > alone > 0 else n
    low, high = wilson(value * counts_as, counts_as)
    return {name: float(value), f"{name}_low": low, f"{name}_high": high, f"{name}_n": n,
            f"{name}_counts_as": float(counts_as)}


def analyse(answers: Answers, seed: int = 0) -> dict:
    """clustered(), the z and p of independent answers, the machine on the same pictures, and overlap().

    machine: share of pictures that it called right, of those that it called at all. right_with, wrong_with,
    ...: people's accuracy where the machine was right or wrong, without and with its explanation: who
    follows a wrong map loses there.
    """
    right, explained = answers.right, answers.explained.astype(bool)
    counts = [(int(right[chosen].sum()), int(chosen.sum())) for chosen in (~explained, explained)]
    z, p = two_proportions(*counts[0], *counts[1]) if counts[0][1] and counts[1][1] else (float("nan"),) * 2
    called = answers.machine >= 0
    _, first = np.unique(answers.picture[called], return_index=True)
    correct = answers.machine == answers.label
    hits, n = int(correct[called][first].sum()), len(first)
    row = clustered(answers, seed) | {"z_if_independent": z, "p_if_independent": p} | proportion(
        "machine", ratio(hits, n), 0.0, n)
    for name, chosen in (("right", called & correct), ("wrong", called & ~correct)):
        for end, condition in (("without", ~explained), ("with", explained)):
            mine = chosen & condition
            row[f"{name}_{end}"] = ratio(int(right[mine].sum()), int(mine.sum()))
    marked = answers.marks.any(axis=(1, 2)) & np.isfinite(answers.map).all(axis=(1, 2)) & called
    if marked.any():
        sign = np.where(answers.machine == 1, 1, -1)[marked, None, None]
        row |= overlap(answers.marks[marked], sign * answers.map[marked], answers.picture[marked], seed)
    return row


# --- where people and machines look ------------------------------------------------------------

def strongest(heat: np.ndarray, n: int, random: np.random.Generator) -> np.ndarray:
    """The n highest cells of a map (h, w), ties in random order: bool (h, w)."""
    order = random.permutation(heat.size)
    chosen = order[np.argsort(-heat.flat[order], kind="stable")[:n]]
    return np.isin(np.arange(heat.size), chosen).reshape(heat.shape)


def moved(heat: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A square map turned, mirrored and shifted round at random: the same values in the same clumps."""
    heat = np.rot90(heat, random.integers(4))
    heat = heat.T if random.integers(2) else heat
    return np.roll(heat, random.integers(heat.shape[0], size=2), axis=(0, 1))


def overlap(marks: np.ndarray, maps: np.ndarray, pictures: np.ndarray, seed: int = 0,
            draws: int = NULL_DRAWS) -> dict:
    """How far people's marks and the machine's maps name the same places, against two null models.

    marks bool (n, h, h), maps (n, h, h), higher where the machine sees more; pictures (n,). The map is cut
    so that as many cells stay as the person marked, in the null models too. "moved": each picture's own
    map, turned and shifted; "other": another picture's map, which keeps habits such as looking at the
    middle. One move a picture and draw, for all its answers. iou: mean; p: share of draws with as high a
    mean.
    """
    random, sizes = np.random.default_rng(seed), marks.sum(axis=(1, 2))
    names, first, place = np.unique(pictures, return_index=True, return_inverse=True)
    own = maps[first]

    def mean_iou(heats: np.ndarray) -> float:
        cut = np.array([strongest(heats[i], size, random) for i, size in zip(place, sizes, strict=True)])
        return float(((marks & cut).sum(axis=(1, 2)) / (marks | cut).sum(axis=(1, 2))).mean())

    observed = mean_iou(own)
    row = {"marked": len(marks), "marked_cells": float(sizes.mean()), "iou": observed}
    nulls = {"moved": lambda: np.array([moved(heat, random) for heat in own])}
    if len(names) > 2:
        nulls["other"] = lambda: own[derangement(len(own), random)]
    for name, draw in nulls.items():
        chance = np.array([mean_iou(draw()) for _ in range(draws)])
        row |= {f"iou_{name}": float(chance.mean()),
                f"p_{name}": float((1 + (chance >= observed).sum()) / (draws + 1))}
    return row


def derangement(n: int, random: np.random.Generator) -> np.ndarray:
    """A random permutation of n >= 2 that leaves nothing in its place."""
    while True:
        order = random.permutation(n)
        if not (order == np.arange(n)).any():
            return order


# --- what the test of independent answers is worth ---------------------------------------------

def simulated(dealt: bool, random: np.random.Generator) -> Answers:
    """A study of PEOPLE x 2 PICTURES answers in which the explanation does nothing.

    People and pictures differ in the logit of a right answer. dealt: each person gets half of the pictures
    explained at random; else the same half is explained to everybody.
    """
    people, pictures = np.divmod(np.arange(PEOPLE * 2 * PICTURES), 2 * PICTURES)
    orders = np.argsort(random.random((PEOPLE, 2 * PICTURES))) if dealt else np.tile(
        np.arange(2 * PICTURES), (PEOPLE, 1))
    logit = 0.4 + (random.normal(0, PEOPLE_SD, PEOPLE)[people]
                   + random.normal(0, PICTURE_SD, 2 * PICTURES)[pictures])
    n, right = len(people), (random.random(len(people)) < expit(logit)).astype(int)
    empty = np.zeros((n, CELLS, CELLS))
    return Answers(people, pictures, np.ones(n, int), (orders < PICTURES).astype(int).ravel(), right,
                   np.full(n, -1), empty.astype(bool), empty)


def false_alarms(dealt: bool, studies: int = STUDIES, seed: int = 0) -> dict:
    """Of so many simulated studies without an effect, the share with p < .05, by either test."""
    random, found = np.random.default_rng(seed), {"independent": 0, "clustered": 0}
    for number in range(studies):
        answers = simulated(dealt, random)
        right, explained = answers.right, answers.explained == 1
        found["independent"] += two_proportions(right[~explained].sum(), (~explained).sum(),
                                                right[explained].sum(), explained.sum())[1] < 0.05
        found["clustered"] += clustered(answers, number)["p"] < 0.05
    row = {"pictures_in_conditions": "dealt to each person" if dealt else "the same for all",
           "studies": studies, "people": PEOPLE, "pictures": 2 * PICTURES,
           "people_sd": PEOPLE_SD, "picture_sd": PICTURE_SD}
    for name, hits in found.items():
        low, high = wilson(int(hits), studies)
        row |= {name: float(hits / studies), f"{name}_low": low, f"{name}_high": high}
    return row


# --- command line ------------------------------------------------------------------------------

def published(studies: int, mark: str) -> dict:
    """Print and write the published test and its false alarms."""
    z, p = two_proportions(*PUBLISHED)
    right, n, right2, n2 = PUBLISHED
    print(f"published: right without explanations {right}/{n} = {right / n:.1%}, with {right2}/{n2} = "
          f"{right2 / n2:.1%}; z = {z:.2f}, p = {p:.3f}\n"
          f"This takes {n + n2} answers for independent; the same people and pictures answer repeatedly.\n"
          f"How often p < .05 comes out where explanations do nothing ({studies} simulated studies, "
          f"{PEOPLE} people, {2 * PICTURES} pictures):")
    rows = [false_alarms(dealt, studies) for dealt in (False, True)]
    for row in rows:
        print(f"  pictures of a condition {row['pictures_in_conditions']:<21} as if independent "
              f"{row['independent']:6.1%}   clustered {row['clustered']:6.1%}")
    path = folder("results") / f"quiz-published{mark}.csv"
    write_csv(path, [{"z": z, "p": p, **row} for row in rows])
    print(f"rows: {shown(path)}")
    return {"z": z, "p": p, "false_alarms": rows}


def report(row: dict) -> None:
    print(f"{row['answers']:,} answers of {row['people']:,} people to {row['pictures']:,} pictures")
    for name in ("without", "with", "machine"):
        what = "machine, once a picture" if name == "machine" else f"people {name} explanation"
        print(f"{what:<28} {row[name]:6.1%} right  [{row[f'{name}_low']:.1%}, {row[f'{name}_high']:.1%}]  "
              f"n = {row[f'{name}_n']}, counts as {row[f'{name}_counts_as']:.0f} independent answers")
    print(f"difference                   {row['difference']:+6.1%}        [{row['difference_low']:+.1%}, "
          f"{row['difference_high']:+.1%}]  p = {row['p']:.3f}; as if independent: z = "
          f"{row['z_if_independent']:.2f}, p = {row['p_if_independent']:.3f}")
    if row["people"] == 1:
        print("one person: intervals are about this person on other pictures, not about other people")
    for name in ("right", "wrong"):
        print(f"where the machine was {name}:  {row[f'{name}_without']:6.1%} without, "
              f"{row[f'{name}_with']:6.1%} with")
    if "iou" in row:
        nulls = [f"{row[f'iou_{name}']:.3f} {text} (p = {row[f'p_{name}']:.3f})" for name, text in
                 (("moved", "for maps moved about"), ("other", "for maps of other pictures"))
                 if f"iou_{name}" in row]
        print(f"marks and maps overlap (IoU, n = {row['marked']}): {row['iou']:.3f}; {', '.join(nulls)}")


def main(argv: list[str] | None = None) -> dict:
    flags = Parser(description=__doc__)
    flags.add_argument("answers", nargs="*", metavar="ANSWERS.csv", help="files of answers, taken together")
    flags.add_argument("--smoke", action="store_true", help="20 simulated studies: does it run?")
    args = flags.parse_args(argv)
    if not args.answers:
        return published(*(20, "-smoke") if args.smoke else (STUDIES, ""))
    row = analyse(read_answers([user_path(name) for name in args.answers]))
    report(row)
    return row


if __name__ == "__main__":
    command_line(main)
