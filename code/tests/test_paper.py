"""The report and the slides: rebuilt from results/ they say what the committed PDFs say."""
import re

import numpy as np
import pytest
from conftest import CODE
from pypdf import PdfReader

import compare
import paper
from files import read_csv

ROOT = CODE.parent
RESULTS = ROOT / "paper/results"
# The recipe, the tests' level, the earlier claim, Stable Diffusion's version, published accuracies.
STATED = {"0.001", "0.9", "0.05", "0.36", "1.4", "92.98", "97.74"}


def text_of(path) -> str:
    pages = [page.extract_text() for page in PdfReader(path).pages]
    return re.sub(r"\s+", " ", " ".join(pages))


def forms(value: float) -> set[str]:
    """The ways in which a measured number may be printed."""
    return {f"{abs(value) * 100:.2f}", f"{value:g}", *(f"{value:.{digits}f}" for digits in (1, 2, 3, 4))}


def numbers_of_tables() -> set[str]:
    found = set()
    for path in RESULTS.glob("*.csv"):
        if not path.name.startswith("scores-"):
            for cell in (cell for row in read_csv(path) for cell in row.values()):
                if re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", cell or ""):
                    found |= forms(float(cell)) | {cell}
    return found


def derived_numbers() -> set[str]:
    """Means and deviations over seeds, and the paired difference."""
    found = set()
    for model in ("base_model", "attn_model"):
        values = [float(read_csv(RESULTS / f"metrics-{model}-s{seed}-cifake-test.csv")[0]["accuracy"])
                  for seed in range(10)]
        found |= forms(np.mean(values)) | forms(np.std(values, ddof=1))
        values = [float(row["accuracy_without"]) for row in read_csv(RESULTS / "without-twins.csv")
                  if row["model"].startswith(f"{model}-s")]
        found |= forms(np.mean(values)) | forms(np.std(values, ddof=1))
    rows = read_csv(RESULTS / "compare-base_model-attn_model-cifake.csv")
    result = compare.paired([float(row["difference"]) for row in rows])
    for key in ("mean", "low", "high"):
        found |= forms(result[key])
    sizes = read_csv(RESULTS / "difficulty-pictures.csv")
    for n in {row["pictures"] for row in sizes}:
        mine = [float(row["val_accuracy_at_threshold"]) for row in sizes if row["pictures"] == n]
        found |= forms(np.mean(mine))
    return found | effects()


def effects() -> set[str]:
    """Of the ablation: mean and range over seeds of what one change makes."""
    rows, found = read_csv(RESULTS / "ablation.csv"), set()
    base = {row["seed"]: float(row["val_accuracy"]) for row in rows if row["variant"] == "base"}
    for variant in {row["variant"] for row in rows}:
        changes = [float(row["val_accuracy"]) - base[row["seed"]] for row in rows
                   if row["variant"] == variant]
        for value in (np.mean(changes), min(changes), max(changes)):
            found |= forms(value)
    return found


@pytest.mark.parametrize("name", paper.DOCUMENTS)
def test_every_number_stands_in_a_table_and_the_pdf_is_not_stale(name, tmp_path):
    built = text_of(paper.build(name, tmp_path / f"{name}.pdf"))
    assert text_of(ROOT / f"paper/{name}.pdf") == built
    body = built.split("References")[0] if name == "report" else built
    known = numbers_of_tables() | derived_numbers() | STATED
    unknown = [number for number in re.findall(r"\d+\.\d+", body) if number not in known]
    assert not unknown


def test_every_reference_but_the_technical_report_has_a_doi():
    entries = (ROOT / "paper/references.bib").read_text().strip().split("\n@")
    assert [entry.split("{")[1].split(",")[0] for entry in entries if "doi =" not in entry] == ["cifar"]
