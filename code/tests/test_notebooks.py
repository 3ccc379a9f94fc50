"""The notebooks: they run, in smoke mode, and they keep the house rules."""
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import CODE

NOTEBOOKS = sorted(CODE.glob("[0-9][0-9]_*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path) -> list[dict]:
    cells = json.loads(path.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]


@each
def test_it_was_run_from_top_to_bottom_without_error(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [out for cell in cells for out in cell["outputs"] if out["output_type"] == "error"]
    assert not [out for cell in cells for out in cell["outputs"] if out.get("name") == "stderr"]


@each
def test_it_is_small_and_holds_no_logic(path):
    assert path.stat().st_size < 2e6
    sources = ["".join(cell["source"]) for cell in code_cells(path)]
    assert max(len(source.splitlines()) for source in sources) <= 25
    assert not [source for source in sources if re.search(r"(?m)^\s*(def|class|while) ", source)]


@each
def test_it_names_no_machine(path):
    assert not re.search(r"(^|[\s\"'`(=])/(root|home|work|tmp)/", path.read_text())


@each
def test_its_outputs_come_from_the_real_data(path):
    text = json.dumps([cell["outputs"] for cell in code_cells(path)])
    assert "BUILT-IN SAMPLE" not in text


@each
def test_every_figure_and_table_is_explained(path):
    cells = json.loads(path.read_text())["cells"]
    prose = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert "**Question.**" in prose
    assert "does not mean" in prose


def test_they_run_in_smoke_mode_without_cifake(tmp_path):
    """On the built-in sample; cells marked NBVAL_CHECK_OUTPUT must print what is committed."""
    for name, source in (("MODELS", "models"), ("RESULTS", "paper/results")):
        shutil.copytree(CODE.parent / source, tmp_path / name.lower())
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rN", "--nbval-lax", "--nbval-current-env",
         "-p", "no:cacheprovider", *NOTEBOOKS],
        cwd=CODE, env=os.environ | {"TELL_SMOKE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    assert re.search(r"\d+ passed", done.stdout)
