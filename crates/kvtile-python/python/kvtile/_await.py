"""Awaiting completions: an asyncio future that the completion's callback resolves."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

from kvtile._errors import RequestError
from kvtile._kvtile import Completion


def iterate(completion: Completion[Any]) -> Generator[Any, None, Any]:
    """The iterator of ``await completion``, on the running loop."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise RequestError("await a completion in an asyncio coroutine; elsewhere call wait()") from None
    future: asyncio.Future[Any] = loop.create_future()

    def settle() -> None:
        if future.done():
            return
        try:
            future.set_result(completion.wait(0))
        except Exception as error:
            future.set_exception(error)

    def ended(_: Completion[Any]) -> None:
        # A closed loop runs no coroutine that could wait.
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle)

    completion.add_done_callback(ended)
    return future.__await__()
