"""What the web page says: numbers about a picture and a network in, HTML and small pictures out.

Nothing here knows of a server or writes a file: pictures travel as data: addresses inside the HTML.
"""
import io
from base64 import b64encode
from html import escape

import numpy as np
from PIL import Image
from torch import nn

import checkpoints
from degrade import DEGRADATIONS
from explain import METHODS
from figures import FAKE, REAL
from infer import judge
from lime_shap import SMALL
from overlays import legible
from tiles import LIMIT, own_way, see, size_of, view_logits

NAMES = {"grad-cam": "Grad-CAM", "hirescam": "HiResCAM", "lime": "LIME", "shap": "SHAP"}  # in METHODS
# Tiles that a network of more than SMALL weights explains at most, so that a map takes it seconds.
EXPLAINED, ELSE = {"grad-cam": 32, "hirescam": 16, "integrated gradients": 16}, 6
EDGE = 640  # pixels, at most, of pictures and maps as shown
KINDS = {"JPEG": "saved as JPEG, quality", "smaller": "made smaller and brought back, factor"}
COLOURS = {"FAKE": FAKE, "REAL": REAL, "cannot tell": "#777777"}
HEADLINES = {"FAKE": "Looks generated", "REAL": "Looks real", "cannot tell": "Cannot tell"}


# --- pictures and maps -------------------------------------------------------------------------

def data_address(picture: Image.Image, kind: str) -> str:
    """A picture as a data: address; kind as Pillow names it, "PNG" or "JPEG"."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return address(buffer.getvalue(), f"image/{kind.lower()}")


def address(file: bytes, kind: str) -> str:
    return f"data:{kind};base64,{b64encode(file).decode()}"


def shown_picture(pixels: np.ndarray) -> str:
    """uint8 (h, w, 3) -> data: address, at most EDGE pixels long; small ones without loss."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((EDGE, EDGE))
    return data_address(picture, "JPEG" if max(picture.size) > 128 else "PNG")


def explained(network: nn.Module, views: np.ndarray, method: str) -> np.ndarray:
    """Which of a picture's views, uint8 (k, s, s, 3), get a map: int (at most k,), in order.

    Where a large network would take too long for all, those that vote most strongly.
    """
    few = sum(weights.numel() for weights in network.parameters()) > SMALL
    most = EXPLAINED.get(method, ELSE) if few else LIMIT
    if len(views) <= most:
        return np.arange(len(views))
    return np.sort(np.argsort(-abs(view_logits(network, views)), kind="stable")[:most])


def heat_map(network: nn.Module, pixels: np.ndarray, method: str) -> tuple[np.ndarray, str]:
    """What speaks for FAKE (positive) and for REAL, by explain.METHODS[method], and of what: "" for all.

    pixels uint8 (h, w, 3) -> float32 of its shape, or smaller, at most EDGE long; nan where the network did
    not look, or where `explained` leaves out.
    """
    seen = see(pixels, size_of(network), own_way(network))
    scale = min(1, EDGE / max(pixels.shape))
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    canvas = np.full((height, width), np.nan, np.float32)
    chosen = explained(network, seen.pixels, method)
    maps = legible(METHODS[method](network, np.ascontiguousarray(seen.pixels[chosen].transpose(0, 3, 1, 2))))
    for part, box in zip(maps, seen.boxes[chosen], strict=True):
        top, left, bottom, right = np.rint(np.array([*box[:2], *(box[:2] + box[2:])]) * scale).astype(int)
        bottom, right = max(bottom, top + 1), max(right, left + 1)
        resized = Image.fromarray(part).resize((right - left, bottom - top), Image.Resampling.BILINEAR)
        canvas[top:bottom, left:right] = np.asarray(resized)[:height - top, :width - left]
    whole = len(chosen) == len(seen.pixels)
    return canvas, "" if whole else f"the {len(chosen)} of {len(seen.pixels)} tiles that vote most strongly"


def coloured(heat: np.ndarray) -> Image.Image:
    """A signed map (h, w) as RGBA: its colour says towards what, its opacity how strongly.

    Full from the 98th percentile of absolute values on, else one extreme pixel would hide the rest.
    """
    strength = np.nan_to_num(np.clip(heat / (np.nanquantile(abs(heat), 0.98) or 1), -1, 1))
    colours = np.array([[int(colour[i:i + 2], 16) for i in (1, 3, 5)] for colour in (REAL, FAKE)], np.uint8)
    opacity = np.rint(255 * abs(strength)).astype(np.uint8)
    return Image.fromarray(np.dstack((colours[(strength > 0).astype(int)], opacity)))


def listed(heat: np.ndarray) -> list[list[float | None]]:
    """A map for JSON: at most 64 values along an edge, three digits, None for nan."""
    rows, columns = (np.linspace(0, side - 1, min(side, 64)).round().astype(int) for side in heat.shape)
    return [[None if np.isnan(value) else float(f"{value:.3g}") for value in row]
            for row in heat[np.ix_(rows, columns)]]


def under(network: nn.Module, facts: dict, pixels: np.ndarray) -> list[dict]:
    """Verdicts on the picture saved as JPEG and resized, at each of degrade's strengths."""
    done = [(kind, strength) for kind in KINDS for strength in DEGRADATIONS[kind].strengths]
    rows = [judge(network, facts, [DEGRADATIONS[kind].apply(pixels, strength, np.random.default_rng(0))])[0]
            for kind, strength in done]
    return [{"kind": kind, "strength": strength, "verdict": row["verdict"], "probability": row["probability"]}
            for (kind, strength), row in zip(done, rows, strict=True)]


# --- words -------------------------------------------------------------------------------------

def percent(share: float) -> str:
    """"97 %" without a line break, and "over 99 %" or "under 1 %" where rounding would claim certainty."""
    if share > 0.99:
        return "over 99\u00a0%"
    return "under 1\u00a0%" if share < 0.01 else f"{100 * share:.0f}\u00a0%"


def label(method: str) -> str:
    """The name of a method of explain.METHODS as people write it."""
    for name, written in NAMES.items():
        method = method.replace(name, written)
    return method[0].upper() + method[1:]


def in_words(row: dict, calibrated: bool) -> str:
    """A sentence or two on a row of infer.judge."""
    p, start = row["probability"], ""
    if row["verdict"] == "cannot tell":
        start = "The network cannot decide between real and generated, and says so instead of guessing. "
    if not calibrated:
        return (f"{start}The network's own figure for “generated” is {percent(p)}. It has not been "
                "calibrated: do not read it as a chance.")
    kind, share = ("generated", p) if p >= 0.5 else ("real", 1 - p)
    count = "more than 99" if share > 0.99 else f"about {100 * share:.0f}"
    return (f"{start}Of 100 pictures that the network rates like this one, {count} are {kind}. That holds "
            "for pictures like those that it was checked on, half of them real and half generated.")


def warnings_list(row: dict) -> str:
    """The warnings of a row, but for the one that in_words() says already."""
    items = "".join(f"<li>{escape(text)}</li>" for text in row["warnings"] if text != "not calibrated")
    return f'<ul class="tell-warnings" aria-label="warnings">{items}</ul>' if items else ""


def scale_bar(row: dict) -> str:
    """P(fake) as a mark between REAL and FAKE, and the threshold as a tick."""
    return (f'<div class="tell-scale"><span>real</span><div class="tell-track">'
            f'<i class="tell-tick" style="left:{100 * row["threshold"]:.1f}%" title="threshold"></i>'
            f'<i class="tell-mark" style="left:{100 * row["probability"]:.1f}%;'
            f'background:{COLOURS[row["verdict"]]}"></i></div><span>generated</span></div>')


def verdict_html(row: dict, calibrated: bool, note: str, elsewhere: str) -> str:
    """Verdict and what to think of it; note: of decode(); elsewhere: for pictures of another size only."""
    treated = f"{note}; {row['treatment']}" if note else row["treatment"]
    doubt = "" if row["treatment"] == "whole" else f'<p class="tell-doubt">{escape(elsewhere)}.</p>'
    return (f'<h2 class="tell-verdict" style="--verdict:{COLOURS[row["verdict"]]}" data-verdict="'
            f'{row["verdict"]}">{HEADLINES[row["verdict"]]}</h2>{doubt}'
            f"<p>{in_words(row, calibrated)}</p>{scale_bar(row)}{warnings_list(row)}"
            f'<p class="tell-small">{row["width"]} × {row["height"]} pixels; seen by the network: '
            f"{escape(treated)}. A verdict is a hint, no proof.</p>")


def look_html(pixels: np.ndarray) -> str:
    """The picture, over which the page's script lays the map."""
    pixelated = " tell-pixels" if max(pixels.shape) <= 128 else ""
    return f'<div class="tell-stack{pixelated}"><img src="{shown_picture(pixels)}" alt="your picture"></div>'


def map_html(method: str, note: str) -> str:
    """What stands below a map: how strongly it covers, moved by the page's script, and what it says."""
    only = f" Only {escape(note)} are explained: more would take too long." if note else ""
    return ('<label class="tell-slider">map <input type="range" min="0" max="100" value="60" '
            'aria-label="how strongly the map covers the picture"></label>'
            f'<p class="tell-small"><b class="tell-fake">orange</b> speaks for generated, '
            f'<b class="tell-real">blue</b> for real ({escape(label(method))}).{only} A map shows what moves '
            "the network, not what is wrong with the picture.</p>")


def under_html(rows: list[dict], before: str) -> str:
    """Two tables of verdicts under JPEG and scaling."""
    tables = []
    for kind, what in KINDS.items():
        cells = "".join(
            f'<tr><th scope="row">{row["strength"]:g}</th><td data-verdict="{row["verdict"]}">'
            f'{HEADLINES[row["verdict"]]}</td><td>{percent(row["probability"])}</td></tr>'
            for row in rows if row["kind"] == kind)
        tables.append(f'<table><caption>{what}</caption><tr><th scope="col"></th><th scope="col">verdict</th>'
                      f'<th scope="col">“generated”</th></tr>{cells}</table>')
    changed = sum(row["verdict"] != before for row in rows)
    said = f"{changed} give another verdict" if changed else "none gives another verdict"
    return (f'<h3>If the picture is saved again or resized</h3><p class="tell-small">Of {len(rows)} everyday '
            f'changes {said}.</p><div class="tell-tables">{"".join(tables)}</div>')


# --- the network's card ------------------------------------------------------------------------

def card(name: str, facts: dict, parameters: int, tested: list[dict[str, str]],
         elsewhere: str) -> dict[str, str]:
    """What is known about a network, label -> text; tested: rows of its metrics file, if there is one."""
    rule = facts.get("calibration")
    rows = {"network": f"{name} ({facts['architecture']}, {parameters:,} parameters)",
            "trained on": f"{checkpoints.trained_on(facts)}, seed {facts['seed']}",
            "threshold": f"{facts['threshold']:.4f} ({facts['threshold_source']})",
            "calibration": f"{rule['n']:,} pictures ({rule['source']})" if rule else "none"}
    for row in tested:
        accuracy, low, high, fakes, reals = (f"{100 * float(row[key]):.2f}\u00a0%" for key in (
            "accuracy", "accuracy_low", "accuracy_high", "fake_recall", "real_recall"))
        rows |= {"tested on": f"{row['data']}, {row['split']} half, n = {int(row['n']):,} ({row['date']})",
                 "accuracy": f"{accuracy}, 95 % interval {low} to {high}",
                 "recognises": f"{fakes} of the generated, {reals} of the real pictures"}
    return rows | {"elsewhere": elsewhere,
                   "not for": "proof of anything, and pictures unlike those it was trained on: other "
                              "generators, sizes, edits. There it may be wrong however sure it sounds"}


def card_html(rows: dict[str, str]) -> str:
    cells = "".join(f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>" for label, text in rows.items())
    return f'<dl class="tell-card">{cells}</dl>'


# --- the quiz ----------------------------------------------------------------------------------

def machine_html(name: str, questions: list[dict]) -> str:
    """How often the network is right on the quiz's pictures: "label" and "machine" (None: cannot tell)."""
    said = [one["machine"] for one in questions]
    right, open_ = sum(one["machine"] == one["label"] for one in questions), said.count(None)
    return (f"Of all {len(said)} pictures of the quiz the <code>{escape(name)}</code> network calls {right} "
            f"rightly and {len(said) - right - open_} wrongly; on {open_} it says that it cannot tell.")


def quiz_html(row: dict) -> str:
    """A row of quiz.analyse in words."""
    lines = "".join(
        f'<tr><th scope="row">{what}</th><td>{round(row[name] * row[f"{name}_n"])} of {row[f"{name}_n"]}</td>'
        f'<td>{row[name]:.0%}</td><td>{row[f"{name}_low"]:.0%} to {row[f"{name}_high"]:.0%}</td></tr>'
        for name, what in (("without", "You without the map"), ("with", "You with the map"),
                           ("machine", "The machine, where it gave a verdict")) if row[f"{name}_n"])
    text = ("The interval says how far chance alone may move the figure on other pictures. It is about you "
            "only: one person cannot speak for others.")
    if "iou" in row:
        text += (f" Your marks and the maps overlap by {row['iou']:.2f} (shared over joint area); maps moved "
                 f"about at random by {row['iou_moved']:.2f} (p = {row['p_moved']:.3f}).")
    return (f'<h3>Your result</h3><table><tr><td></td><th scope="col">right</th><th scope="col"></th>'
            f'<th scope="col">95 % interval</th></tr>{lines}</table><p class="tell-small">{text}</p>')
