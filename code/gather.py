"""What an input means, file by file: a picture, a folder, a list of paths and URLs, a URL; and its bytes.

Nothing is held but the names of one folder at a time. Each failure has a reason of one line: reason().
"""
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from urllib import request
from urllib.parse import quote

import cache
import sources
from decode import DecodeError
from files import user_path

MAX_BYTES = 200_000_000  # of a file
MAX_DOWNLOAD = 50_000_000
TIMEOUT, PATIENCE = 10, 60  # seconds: without a byte, and for the whole of a URL
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(name: str) -> bool:
    return bool(SCHEME.match(name))


def root_of(source: str) -> Path:
    """The folder that the names of a source are relative to; TellError where there is no such source."""
    if is_url(source):
        return Path()
    path = sources.require_readable(user_path(source))
    return path if path.is_dir() else path.parent


def names_of(source: str, own: tuple[str, ...] = ()) -> Iterator[str]:
    """The files below a folder, the lines of a .txt, or the one name itself.

    A folder's are relative to it and sorted; left out are those in `own`, absolute paths ending in "/", and
    names that start with a dot.
    """
    if is_url(source):
        return iter((source,))
    path = user_path(source)
    if path.is_dir():
        return below(os.fspath(path), own)
    return lines_of(path) if path.suffix.lower() == ".txt" else iter((path.name,))


def below(root: str, own: tuple[str, ...]) -> Iterator[str]:
    for parts, entries in sources.walk(root):
        for entry in entries:
            name = "/".join((*parts, entry.name))
            if "/." not in f"/{name}" and not f"{entry.path}/".startswith(own):
                yield name


def lines_of(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        yield from (line.strip() for line in file if line.strip())


def read(root: str, name: str) -> bytes:
    """The bytes of a file below root, or at a URL; DecodeError, OSError, ValueError or HTTPException."""
    if is_url(name):
        return fetch(name)
    path = os.path.join(root, name)
    size = os.stat(path).st_size
    if size > MAX_BYTES:
        raise DecodeError(f"{size / 1e6:,.0f} MB; the limit is {MAX_BYTES / 1e6:.0f} MB")
    return cache.read(path)


def opener() -> request.OpenerDirector:
    """Opens http and https and nothing else, redirections included."""
    found = request.OpenerDirector()
    for handler in (request.ProxyHandler, request.UnknownHandler, request.HTTPHandler, request.HTTPSHandler,
                    request.HTTPDefaultErrorHandler, request.HTTPRedirectHandler, request.HTTPErrorProcessor):
        found.add_handler(handler())
    return found


def fetch(url: str) -> bytes:
    """The bytes at a URL; DecodeError or OSError where it is slow, large, cut short or not there."""
    asked = request.Request(quote(url, safe="%/:=&?~#+!$,;'@()*[]"), headers={"User-Agent": "tell"})
    blocks, size, end = [], 0, time.monotonic() + PATIENCE
    with opener().open(asked, timeout=TIMEOUT) as answer:
        expected = int(answer.headers.get("Content-Length") or 0)
        while max(size, expected) <= MAX_DOWNLOAD and (block := answer.read1(1 << 16)):
            blocks.append(block)
            size += len(block)
            if time.monotonic() > end:
                raise DecodeError(f"not there within {PATIENCE} s")
    if max(size, expected) > MAX_DOWNLOAD:
        raise DecodeError(f"more than {MAX_DOWNLOAD / 1e6:.0f} MB")
    if size < expected:
        raise DecodeError(f"cut short: {size:,} of {expected:,} bytes came")
    return b"".join(blocks)


def reason(error: Exception) -> str:
    """Why a file cannot be read, in one line."""
    if isinstance(error, DecodeError):
        return str(error)
    said = getattr(error, "strerror", None) or str(getattr(error, "reason", "") or error)
    return f"cannot be read: {' '.join(said.split()) or type(error).__name__}"[:200]
