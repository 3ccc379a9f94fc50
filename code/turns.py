"""Whose turn it is with the web page's one network, and the end of work that nobody waits for any more."""
import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable

from files import TellError

MAX_BYTES = 20_000_000  # of a request
WAITING = 16  # requests of a kind at a time; one more is told to come again
JOBS = 4      # slow ones in work at a time, each with a picture in memory


class Gone(Exception):
    """Whoever asked has hung up."""


class Turns:
    """The network is used by one request at a time, in the order of asking; slow ones let verdicts pass.

    A slow one has its turn for a single pass through the network. Of those only the next (`next_slow`) waits
    beside the verdicts, so that no verdict waits for more than one of their passes.
    """

    def __init__(self):
        self.network, self.next_slow = asyncio.Lock(), asyncio.Lock()
        self.jobs, self.waiting = asyncio.Semaphore(JOBS), Counter()

    @contextlib.contextmanager
    def place(self, kind: str):
        """A place among those who wait; TellError where too many do already."""
        if self.waiting[kind] >= WAITING:
            raise TellError("too many pictures at once; try again in a few seconds")
        self.waiting[kind] += 1
        try:
            yield
        finally:
            self.waiting[kind] -= 1

    async def quick(self, request, work: Callable):
        """work(bytes) in a thread, in a single turn; Gone where nobody waits for it any more."""
        data = await body_of(request)
        with self.place("quick"):
            async with self.network:
                await still_there(request)
                return await asyncio.to_thread(work, data)

    async def slow(self, request, work: Callable, *args):
        """work(bytes, *args, pause) in a thread; pause() lets others pass, and raises Gone like quick()."""
        data, loop = await body_of(request), asyncio.get_running_loop()

        def pause():
            asyncio.run_coroutine_threadsafe(self.let_pass(request), loop).result()

        with self.place("slow"):
            async with self.jobs, self.next_slow, self.network:
                await still_there(request)
                return await asyncio.to_thread(work, data, *args, pause)

    async def let_pass(self, request) -> None:
        self.network.release()
        self.next_slow.release()
        await self.next_slow.acquire()
        await self.network.acquire()
        await still_there(request)


async def body_of(request) -> bytes:
    """The bytes of a request; TellError beyond MAX_BYTES, without reading on; Gone where they break off."""
    parts, size, more = [], 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Gone
        parts.append(message.get("body", b""))
        size, more = size + len(parts[-1]), message.get("more_body", False)
        if size > MAX_BYTES:
            raise TellError(f"larger than {MAX_BYTES / 1e6:.0f} MB; make it smaller, or use code/infer.py")
    return b"".join(parts)


async def still_there(request) -> None:
    if await request.is_disconnected():
        raise Gone
