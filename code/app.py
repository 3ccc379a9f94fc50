"""The web page: a picture in, its verdict out, with maps, under JPEG and scaling; many pictures; a quiz.

    python code/app.py                      http://127.0.0.1:7860 with the network that infer.py takes, too
    python code/app.py -mf NAME --port 8000

Gradio draws the page. Pictures do not pass through its events, which keep what users send (in files, in the
memory of sessions): the page's script posts a picture's bytes to a route of this file, which holds them in
memory until it has answered and knows of no other request. Everything of Gradio's server that the page does
not need is shut (Gate), and nothing outside this computer is asked for anything.
"""
import contextlib
import json
import os
import re
import socket
import tempfile
import threading
from functools import partial
from pathlib import Path

import numpy as np

import checkpoints
import page
import quiz
from classes import pick_device
from datasets import SMALL
from decode import DecodeError, decode
from files import Parser, TellError, command_line, folder, read_csv, shown, whole_number
from infer import METHODS, PREFERRED, judge, preferred
from sources import files_of
from tiles import own_way

HOSTS = ("127.0.0.1", "localhost")
MAX_BYTES = 20_000_000   # of a request
MAX_PIXELS = 40_000_000  # of a picture
MAX_SIDE = 65_500  # pixels, of a JPEG
WAITING = 16             # requests at a time; one more is told to come again
FILE = r"(/[\w-][\w.-]*)+"  # no part starts with a dot
OPEN = {"GET": rf"/|/tell\.(js|css)|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static){FILE}"
               r"|/gradio_api/(startup-events|heartbeat/\w+)",
        "POST": r"/(examine|verdict|quiz|answers)"}
# Gradio writes scripts into the page, and evaluates templates; none may reach another computer.
POLICY = {"default-src": "'none'", "script-src": "'self' 'unsafe-inline' 'unsafe-eval'",
          "style-src": "'self' 'unsafe-inline'", "img-src": "'self' data: blob:", "font-src": "'self' data:",
          "connect-src": "'self' data:", "manifest-src": "'self'", "base-uri": "'self'",
          "form-action": "'none'", "frame-ancestors": "'none'"}
HEADERS = {"content-security-policy": "; ".join(f"{key} {value}" for key, value in POLICY.items()),
           "cache-control": "no-store", "referrer-policy": "no-referrer", "x-content-type-options": "nosniff"}


class Examiner:
    """One network and what the page asks of it, one picture at a time: Grad-CAM hooks into the network."""

    def __init__(self, name: str, device: str):
        self.name = checkpoints.model_name(name)
        self.network, self.facts = checkpoints.load(name, pick_device(device))
        self.lock, self.places = threading.Lock(), threading.BoundedSemaphore(WAITING)
        found = [(path, data) for path, data in files_of(library() / "examples.zip", path_of_picture)]
        self.examples = [page.address(data, "jpeg") for path, data in found if path.startswith("examples/")]
        self.questions = [self.question(path, data) for path, data in found if path.startswith("quiz/")]
        self.elsewhere = page.elsewhere(self.at_natural_size())
        weights = sum(value.numel() for value in self.network.parameters())
        self.card = page.card(self.name, self.facts, weights,
                              self.results(f"metrics-{self.name}-cifake-test.csv"), self.elsewhere)

    def question(self, path: str, data: bytes) -> dict:
        """A picture of the quiz, with what the machine says of it."""
        pixels = decode(data)[0]
        said = judge(self.network, self.facts, [pixels])[0]["verdict"]
        return {"path": path, "label": int(path.split("/")[1] == "FAKE"),
                "picture": page.shown_picture(pixels), "machine": {"FAKE": 1, "REAL": 0}.get(said),
                "heat": page.heat_map(self.network, pixels, METHODS[0])}

    def at_natural_size(self) -> list[dict[str, str]]:
        """The rows on pictures of natural size, seen as this page shows them to the network."""
        if own_way(self.network) == "tiles":
            return self.results(f"tiles-{self.name}-*.csv") or self.results("agiri-wild.csv")
        return [row for row in self.results(f"metrics-{self.name}-*-test.csv") if row["data"] not in SMALL]

    def results(self, pattern: str) -> list[dict[str, str]]:
        """The rows on this network in the files of paper/results that fit, none where there are none."""
        rows = [row for path in sorted(folder("results").glob(pattern)) for row in read_csv(path)]
        return [row for row in rows if row["model"] == self.name]

    @contextlib.contextmanager
    def turn(self):
        """Wait for the network; TellError where too many wait already."""
        if not self.places.acquire(blocking=False):
            raise TellError("too many pictures at once; try again in a few seconds")
        try:
            with self.lock:
                yield
        finally:
            self.places.release()

    def verdict(self, data: bytes) -> dict:
        """The row of infer.judge for a picture's bytes."""
        with self.turn():
            return judge(self.network, self.facts, [opened(data)[0]], files=[data])[0]

    def examine(self, data: bytes, method: str) -> dict:
        """{"html": ..., "record": ...} of a picture's bytes: everything that the page shows of it."""
        if method not in METHODS:
            raise TellError(f"no map is called {method[:30]!r}; there are {', '.join(METHODS)}")
        with self.turn():
            pixels, note = opened(data)
            row = judge(self.network, self.facts, [pixels], files=[data])[0]
            heat = page.heat_map(self.network, pixels, method)
            changed = page.under(self.network, self.facts, pixels)
        html = {"look": page.look_html(pixels, heat, method),
                "verdict": page.verdict_html(row, "calibration" in self.facts, note, self.elsewhere),
                "under": page.under_html(changed, row["verdict"])}
        return {"html": html, "record": {"verdict": row, "changed": changed, "network": self.card, "map": {
            "method": method, "unit": "towards FAKE positive; null where the network did not look",
            "values": page.listed(heat)}}}

    def quiz(self, n: int) -> list[dict]:
        """n questions: pictures, maps, and the row of each answer, to be completed by the page."""
        labels = np.array([one["label"] for one in self.questions])
        return [posed(self.questions[i], explained)
                for i, explained in quiz.questions(labels, n, int.from_bytes(os.urandom(4)))]


def path_of_picture(parts: tuple[str, ...]) -> str | None:
    return "/".join(parts) if parts[-1].endswith(".jpg") else None


def posed(one: dict, explained: bool) -> dict:
    row = quiz.answer_row("", one["path"], one["label"], explained, "", one["machine"], heat=one["heat"])
    return {"picture": one["picture"], "row": row,
            "map": page.data_address(page.coloured(one["heat"]), "PNG") if explained else None}


def library() -> Path:
    return folder("library") / "page"


def opened(data: bytes) -> tuple[np.ndarray, str]:
    """decode() of what somebody sent; TellError where it is no picture, or too large for a page."""
    try:
        pixels, note = decode(data)
    except DecodeError as error:
        raise TellError(re.sub(r" <_io\.\w+ object[^>]*>", "", str(error))) from error
    if max(pixels.shape) > MAX_SIDE:
        raise TellError(f"{pixels.shape[1]} x {pixels.shape[0]} pixels are too long for this page (limit: "
                        f"{MAX_SIDE:,} a side, JPEG's); code/infer.py takes longer ones")
    if pixels[..., 0].size > MAX_PIXELS:
        raise TellError(f"{pixels.shape[1]} x {pixels.shape[0]} pixels are too many for this page "
                        f"(limit: {MAX_PIXELS / 1e6:.0f} million); code/infer.py takes larger ones")
    return np.array(pixels), note  # Pillow's cannot be written to, which torch warns of


# --- the server --------------------------------------------------------------------------------

class Gate:
    """ASGI middleware: only OPEN addresses, only for this computer's own page, every answer with HEADERS."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def with_headers(message):
            if message["type"] == "http.response.start":
                kept = [pair for pair in message["headers"] if pair[0].decode().lower() not in HEADERS]
                message["headers"] = kept + [(key.encode(), value.encode()) for key, value in HEADERS.items()]
            await send(message)

        if scope["type"] == "lifespan" or (scope["type"] == "http" and admitted(scope)):
            await self.app(scope, receive, with_headers)
        elif scope["type"] == "http":
            await with_headers({"type": "http.response.start", "status": 404, "headers": []})
            await with_headers({"type": "http.response.body", "body": b"not here"})


def admitted(scope: dict) -> bool:
    """Whether a request may pass: its address is open, and no other site is behind it.

    A site that renames itself to 127.0.0.1 (DNS rebinding) shows in Host, one that posts here in Origin.
    """
    given = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
    host = given.get("host", "")
    return (re.fullmatch(OPEN.get(scope["method"], "(?!)"), scope["path"]) is not None
            and host.rsplit(":", 1)[0] in HOSTS and given.get("origin", f"http://{host}") == f"http://{host}")


async def body_of(request) -> bytes:
    """The bytes of a request; TellError beyond MAX_BYTES, without reading on."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BYTES:
            raise TellError(f"larger than {MAX_BYTES / 1e6:.0f} MB; make it smaller, or use code/infer.py")
        parts.append(part)
    return b"".join(parts)


def answers_from(body: bytes) -> dict:
    """The page's answers, a JSON list of rows, analysed."""
    try:
        rows = json.loads(body)
    except ValueError as error:
        raise TellError("the answers are no JSON") from error
    if not isinstance(rows, list) or len(rows) > 100:
        raise TellError("the answers are no list of at most 100 rows")
    return {"html": page.quiz_html(quiz.analyse(quiz.answers_of(rows, "answers")))}


def serve(examiner: Examiner):
    """The ASGI application: Gradio's page, the routes of its script, the gate before both."""
    from gradio import mount_gradio_app
    from gradio.themes import Base
    theme = Base(primary_hue="orange", neutral_hue="gray", font=["system-ui", "sans-serif"],
                 font_mono=["ui-monospace", "monospace"])
    head = '<link rel="stylesheet" href="/tell.css"><script src="/tell.js" defer></script>'
    return Gate(mount_gradio_app(routes(examiner), layout(examiner), "/", theme=theme, head=head,
                                 footer_links=[], run_history=False, show_error=False, ssr_mode=False,
                                 enable_monitoring=False, pwa=False, mcp_server=False))


def routes(examiner: Examiner):
    """What the page's script asks for: a verdict with its maps, one of a batch, the quiz; its own files."""
    from fastapi import FastAPI, Request
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import FileResponse, JSONResponse
    api = FastAPI(openapi_url=None)

    @api.post("/examine")
    async def examine(request: Request, method: str = METHODS[0]):
        return await run_in_threadpool(examiner.examine, await body_of(request), method)

    @api.post("/verdict")
    async def verdict(request: Request):
        return await run_in_threadpool(examiner.verdict, await body_of(request))

    @api.post("/quiz")
    def questions(n: int):
        return examiner.quiz(n)

    @api.post("/answers")
    async def answers(request: Request):
        return await run_in_threadpool(answers_from, await body_of(request))

    @api.get("/tell.{kind}")
    def asset(kind: str):
        return FileResponse(library() / f"tell.{kind}")

    @api.exception_handler(TellError)
    async def refused(request, error):
        return JSONResponse({"error": str(error)}, 400)

    return api


def layout(examiner: Examiner):
    """The page as Gradio Blocks, without a single event on the server."""
    import gradio as gr
    html = partial(gr.HTML, apply_default_css=False)
    template = (library() / "page.html").read_text()
    part = dict(re.findall(r"<!-- (\w+) -->\n(.*?)(?=\n<!-- |\Z)", template, re.S))
    thumbs = "".join(f'<button class="tell-example" title="an example"><img alt="example {i + 1}" src="'
                     f'{one}"></button>' for i, one in enumerate(examiner.examples))
    with gr.Blocks(title="Tell", analytics_enabled=False) as blocks:
        html(part["head"])
        with gr.Tabs():
            with gr.Tab("Picture"):
                html(part["one"].replace("@examples", thumbs))
                gr.Radio(list(METHODS), value=METHODS[0], label="Map", elem_id="tell-method",
                         interactive=True)
                html(part["result"])
            with gr.Tab("Batch"):
                html(part["many"])
            with gr.Tab("Quiz"):
                html(part["quiz"])
            with gr.Tab("Network"):
                html(page.card_html(examiner.card))
        html(part["foot"])
    return blocks


# --- command line ------------------------------------------------------------------------------

def listening(port: int) -> socket.socket:
    """A socket of this computer only; TellError where the port is taken."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((HOSTS[0], port))
        found.listen()  # so that whoever reads the address can go there at once
    except OSError as error:
        raise TellError(f"port {port}: {error.strerror}; name another with --port") from error
    return found


def parser() -> Parser:
    flags = Parser(description=__doc__)
    flags.add_argument("-mf", "--modelfile", dest="mf", metavar="NAME",
                       help=f"checkpoint ({', else '.join(PREFERRED)})")
    flags.add_argument("--port", type=whole_number(0, 65535), default=7860, help="0: any that is free (7860)")
    flags.add_device()
    return flags


def main(argv: list[str] | None = None) -> dict:
    args = parser().parse_args(argv)
    name = args.mf or preferred()
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as temporary, listening(args.port) as door:
        os.environ["GRADIO_TEMP_DIR"] = temporary
        examiner = Examiner(name, args.device)
        app = serve(examiner)
        import uvicorn
        url = f"http://{HOSTS[0]}:{door.getsockname()[1]}"
        print(f"network: {shown(checkpoints.path_of(name))}\npage:    {url}   (Ctrl-C stops it)")
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
        server.run(sockets=[door])
    return {"model": examiner.name, "url": url}


if __name__ == "__main__":
    command_line(main)
