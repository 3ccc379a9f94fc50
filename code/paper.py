"""Draw the report's figures from results/ and build paper/report.pdf and paper/slides.pdf.

    python code/paper.py
"""
from pathlib import Path

import matplotlib.pyplot as plt
import typst

import figures
from files import HERE, Parser, command_line, folder, shown

PAPER = HERE.parent / "paper"
DOCUMENTS = ("report", "slides")


def draw() -> None:
    """The vector figures that the documents include, the same bytes for the same results."""
    drawn = {"base_model": figures.run_figure("base_model", "cifake", "test"),
             "attention": figures.plot_attention(), "difficulty": figures.plot_difficulty()}
    for name, figure in drawn.items():
        with plt.rc_context({"svg.hashsalt": "tell"}):
            figure.savefig(folder("figures") / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)


def build(name: str, target: Path) -> Path:
    """Compile paper/NAME.typ to a PDF."""
    typst.compile(PAPER / f"{name}.typ", output=target, root=PAPER)
    return target


def main(argv: list[str] | None = None) -> dict:
    Parser(description=__doc__).parse_args(argv)
    draw()
    paths = [build(name, PAPER / f"{name}.pdf") for name in DOCUMENTS]
    for path in paths:
        print(f"built: {shown(path)}")
    return {"paths": paths}


if __name__ == "__main__":
    command_line(main)
