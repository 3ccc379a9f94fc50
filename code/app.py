"""The web page: a picture in, its verdict out, with maps, under JPEG and scaling; many pictures; a quiz.

    python code/app.py                      http://127.0.0.1:7860 with the network that infer.py takes, too
    python code/app.py -mf NAME --port 8000

Gradio draws the page. Pictures do not pass through its events, which keep what users send (in files, in the
memory of sessions): the page's script posts a picture's bytes to a route of this file, which holds them in
memory until it has answered and knows of no other request. The verdict, the map and the table under JPEG and
scaling are requests of their own, so that nobody's verdict waits for a map (Turns). Everything of Gradio's
server that the page does not need is shut (Gate), and nothing outside this computer is asked for anything.
"""
import asyncio
import copy
import io
import json
import os
import re
import socket
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

import checkpoints
import page
import quiz
from classes import pick_device
from decode import DecodeError, decode
from explain import METHODS
from files import Parser, TellError, command_line, folder, read_csv, shown, whole_number
from infer import METHODS as OFFERED
from infer import PREFERRED, judge, preferred
from sources import files_of
from tiles import in_words, own_way, record
from turns import Gone, Turns, body_of

HOSTS = ("127.0.0.1", "localhost")
MAX_PIXELS = 40_000_000  # of a picture
MAX_SIDE = 65_500  # pixels, of a JPEG
FIRST = OFFERED[0]  # the map that is shown unless another is asked for
FILE = r"(/[\w-][\w.-]*)+"  # no part starts with a dot
OPEN = {"GET": rf"/|/tell\.(js|css)|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static){FILE}"
               r"|/gradio_api/(startup-events|heartbeat/\w+)",
        "POST": r"/(examine|map|maps|under|verdict|quiz|answers)"}
OPEN["HEAD"] = OPEN["GET"]
# Gradio writes scripts into the page, and evaluates templates; none may reach another computer.
POLICY = {"default-src": "'none'", "script-src": "'self' 'unsafe-inline' 'unsafe-eval'",
          "style-src": "'self' 'unsafe-inline'", "img-src": "'self' data: blob:", "font-src": "'self' data:",
          "connect-src": "'self' data:", "manifest-src": "'self'", "base-uri": "'self'",
          "form-action": "'none'", "frame-ancestors": "'none'"}
HEADERS = {"content-security-policy": "; ".join(f"{key} {value}" for key, value in POLICY.items()),
           "cache-control": "no-store", "referrer-policy": "no-referrer", "x-content-type-options": "nosniff"}


class Examiner:
    """One network and what the page asks of it.

    What takes long calls `pause` before every pass through the network. It works on a copy of the network:
    methods hook into theirs, and would see the pictures of others who have their turn meanwhile.
    """

    def __init__(self, name: str, device: str):
        self.name = checkpoints.model_name(name)
        self.network, self.facts = checkpoints.load(name, pick_device(device))
        found = [(path, data) for path, data in files_of(library() / "examples.zip", path_of_picture)]
        self.examples = [page.address(data, "image/jpeg") for path, data in found
                         if path.startswith("examples/")]
        self.questions = [self.question(path, data) for path, data in found if path.startswith("quiz/")]
        worth = in_words(record(self.name, own_way(self.network)))
        self.elsewhere = worth[0].upper() + worth[1:]
        weights = sum(value.numel() for value in self.network.parameters())
        self.card = page.card(self.name, self.facts, weights,
                              self.results(f"metrics-{self.name}-cifake-test.csv"), self.elsewhere)

    def question(self, path: str, data: bytes) -> dict:
        """A picture of the quiz, with what the machine says of it."""
        pixels = decode(data)[0]
        said = judge(self.network, self.facts, [pixels])[0]["verdict"]
        return {"path": path, "label": int(path.split("/")[1] == "FAKE"),
                "picture": page.shown_picture(pixels), "machine": {"FAKE": 1, "REAL": 0}.get(said),
                "heat": page.heat_map(self.network, pixels, FIRST)[0]}

    def results(self, pattern: str) -> list[dict[str, str]]:
        """The rows on this network in the files of paper/results that fit, none where there are none."""
        rows = [row for path in sorted(folder("results").glob(pattern)) for row in read_csv(path)]
        return [row for row in rows if row["model"] == self.name]

    def pausing(self, pause: Callable[[], None]) -> nn.Module:
        """A copy of the network that calls pause() before every pass."""
        network = copy.deepcopy(self.network)
        network.register_forward_pre_hook(lambda *_: pause())
        return network

    def verdict(self, data: bytes) -> dict:
        """The row of infer.judge for a picture's bytes."""
        return judge(self.network, self.facts, [opened(data)[0]], files=[data])[0]

    def examine(self, data: bytes) -> dict:
        """{"html": ..., "record": ...} of a picture's bytes: the picture and its verdict."""
        pixels, note = opened(data)
        row = judge(self.network, self.facts, [pixels], files=[data])[0]
        html = {"look": page.look_html(pixels),
                "verdict": page.verdict_html(row, "calibration" in self.facts, note, self.elsewhere)}
        return {"html": html, "record": {"verdict": row, "network": self.card}}

    def map(self, data: bytes, method: str, pause: Callable[[], None]) -> dict:
        """{"map": data: address, "html": ..., "record": ...}: what speaks for what in a picture's bytes."""
        if method not in METHODS:
            raise TellError(f"no map is called {method[:30]!r}; there are {', '.join(METHODS)}")
        heat, note = page.heat_map(self.pausing(pause), opened(data)[0], method)
        return {"map": page.data_address(page.coloured(heat), "PNG"), "html": page.map_html(method, note),
                "record": {"method": method, "of": note or "all that the network looked at",
                           "unit": "towards FAKE positive; null where there is no map",
                           "values": page.listed(heat)}}

    def maps(self, data: bytes, pause: Callable[[], None]) -> dict:
        """{"zip": data: address} of a picture's maps by every method, as PNG."""
        pixels, network, buffer = opened(data)[0], self.pausing(pause), io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for method in METHODS:
                file = io.BytesIO()
                page.coloured(page.heat_map(network, pixels, method)[0]).save(file, "PNG")
                archive.writestr(f"map-{method}.png", file.getvalue())
        return {"zip": page.address(buffer.getvalue(), "application/zip")}

    def under(self, data: bytes, pause: Callable[[], None]) -> dict:
        """{"html": ..., "record": ...}: the verdicts on a picture's bytes under JPEG and scaling."""
        pixels, network = opened(data)[0], self.pausing(pause)
        before = judge(network, self.facts, [pixels])[0]["verdict"]
        rows = page.under(network, self.facts, pixels)
        return {"html": page.under_html(rows, before), "record": rows}

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
        raise TellError(str(error)) from error
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

        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http" and admitted(scope):
            # HEAD is GET without the body, which uvicorn leaves out.
            asked = scope | {"method": "GET"} if scope["method"] == "HEAD" else scope
            await self.app(asked, receive, with_headers)
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
    """What the page's script asks for: a verdict, its map, its table, the quiz; the page's own files."""
    from fastapi import FastAPI, Request
    from fastapi.responses import FileResponse, JSONResponse, Response
    api, turns = FastAPI(openapi_url=None), Turns()

    @api.post("/examine")
    async def examine(request: Request):
        return await turns.quick(request, examiner.examine)

    @api.post("/verdict")
    async def verdict(request: Request):
        return await turns.quick(request, examiner.verdict)

    @api.post("/map")
    async def one_map(request: Request, method: str = FIRST):
        return await turns.slow(request, examiner.map, method)

    @api.post("/maps")
    async def all_maps(request: Request):
        return await turns.slow(request, examiner.maps)

    @api.post("/under")
    async def under(request: Request):
        return await turns.slow(request, examiner.under)

    @api.post("/quiz")
    def questions(n: int):
        return examiner.quiz(n)

    @api.post("/answers")
    async def answers(request: Request):
        return await asyncio.to_thread(answers_from, await body_of(request))

    @api.get("/tell.{kind}")
    def asset(kind: str):
        return FileResponse(library() / f"tell.{kind}")

    @api.exception_handler(TellError)
    async def refused(request, error):
        return JSONResponse({"error": str(error)}, 400)

    @api.exception_handler(Gone)
    async def gone(request, error):
        return Response(status_code=499)  # for the server's log; nobody reads it

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
                gr.Radio([(page.label(method), method) for method in METHODS], value=FIRST, label="Map",
                         elem_id="tell-method", interactive=True)
                html(part["result"])
            with gr.Tab("Batch"):
                html(part["many"])
            with gr.Tab("Quiz"):
                html(part["quiz"].replace("@machine", page.machine_html(examiner.name, examiner.questions)))
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
        import pytorch_grad_cam  # noqa: F401  takes seconds, which nobody's turn should last
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
