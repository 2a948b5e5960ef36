"""Calls every public callable from one kind of place, and prints the outcome of each call.

    python places.py PLACE FOLDER

Each call prints a line ``NAME ok`` or ``NAME <exception>``. If a call hangs, the process ends with its stacks.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SECONDS = 120
FILLING = 256

# These wait for an operation that completes in a step, on the thread that would have to call step.
UNSTEPPED = frozenset({"StoreReport.__repr__", "LoadReport.__repr__", "Event.__repr__"})


# Expected exceptions; filled early, because imports fail during interpreter shutdown.
RAISED: list[type[BaseException]] = []


def attempt(name: str, call: Callable[[], Any], raised: list[type[BaseException]] = RAISED) -> None:
    """Runs one call and prints its outcome."""
    try:
        call()
    except tuple(raised) as error:
        outcome = type(error).__name__
    except BaseException as error:  # any other exception fails the test
        outcome = f"WRONG {type(error).__name__}: {error}"
    else:
        outcome = "ok"
    # A single write, so that lines of several threads do not mix.
    os.write(1, f"{name} {outcome}\n".encode())


def open_world(folder: Path) -> Any:
    """The objects under test, with a layout for stores that take a while."""
    import numpy as np

    import kvtile
    from calls import World, calls

    RAISED.append(kvtile.KvtileError)
    world = World(folder)
    large = world.shape.with_num_blocks(FILLING)
    tensor = np.zeros(FILLING * large.block_bytes // 4, "float32")
    world.large = kvtile.Layout("BLKNHC", shape=large, tensors=tensor)
    world.cache = world.open(workers=1, host_bytes=64 << 20)
    world.cache.store(world.keys, [0, 1, 2, 3]).wait()
    world.calls = lambda: calls(world)
    return world


def each(world: Any, left_out: frozenset[str] = frozenset()) -> Iterator[tuple[str, Callable[[], Any]]]:
    """All public callables with their arguments, by name."""
    for name, make in world.calls().items():
        if name not in left_out:

            def call(make: Callable[[], Any] = make) -> None:
                function, arguments = make()
                function(**arguments)

            yield name, call


class Deleted:
    """Calls a function when it is deleted."""

    def __init__(self, name: str, call: Callable[[], Any]) -> None:
        self.name, self.call = name, call

    def __del__(self) -> None:
        attempt(self.name, self.call)


@contextlib.contextmanager
def busy(world: Any) -> Iterator[Callable[[Callable[[Any], None]], threading.Event]]:
    """Blocks the cache's only worker, so that later stores complete after this block, on the worker."""
    held, go = threading.Event(), threading.Event()
    here = threading.get_ident()

    def hold(_: Any) -> None:
        # If the store has completed already, this runs on the main thread, which must not wait.
        if threading.get_ident() != here:
            held.set()
            go.wait(SECONDS)

    while not held.is_set():
        world.cache.clear()
        world.cache.store(world.keys, [0, 1, 2, 3]).wait()
        # Large enough that the callback is registered before the completion.
        keys = [os.urandom(16) for _ in range(FILLING)]
        world.cache.store(keys, range(FILLING), layout=world.large).add_done_callback(hold)
        held.wait(0.5)
    done = []

    def later(callback: Callable[[Any], None]) -> threading.Event:
        over = threading.Event()

        def call(completion: Any) -> None:
            assert threading.get_ident() != here
            try:
                callback(completion)
            finally:
                over.set()

        # A store of present blocks completes at once, on this thread.
        world.cache.store([os.urandom(16)], [0]).add_done_callback(call)
        done.append(over)
        return over

    yield later
    go.set()
    for over in done:
        assert over.wait(SECONDS)


def on_worker(world: Any, call: Callable[[], Any]) -> None:
    """Runs the call in a callback, on the cache's worker."""
    with busy(world) as later:
        later(lambda _: call())


def callbacks(world: Any) -> None:
    for name, call in each(world):
        on_worker(world, lambda name=name, call=call: attempt(name, call))


def callbacks_of_steps(world: Any) -> None:
    world.cache = world.open(workers=0)
    world.cache.store(world.keys, [0, 1, 2, 3])
    for name, call in each(world, UNSTEPPED):
        world.cache.store(world.keys, [0]).add_done_callback(lambda _, name=name, call=call: attempt(name, call))
        while world.cache.step():
            pass


def callbacks_of_copies(world: Any) -> None:
    import numpy as np

    import kvtile

    large = world.shape.with_num_blocks(512)
    source, destination = (
        kvtile.Layout(word, shape=large, tensors=np.zeros(512 * large.block_bytes // 4, "float32"))
        for word in ("BLKNHC", "BHLKNC")
    )
    for name, call in each(world):
        over = threading.Event()

        def callback(_: Any, name: str = name, call: Callable[[], Any] = call, over: threading.Event = over) -> None:
            attempt(name, call)
            over.set()

        kvtile.copy_blocks_async(source, destination, range(512)).add_done_callback(callback)
        assert over.wait(SECONDS), name


def deletions(world: Any) -> None:
    for name, call in each(world):
        Deleted(name, call)
        cycle: list[Any] = [Deleted(name, call)]
        cycle.append(cycle)
        del cycle
        gc.collect()


def deletions_on_workers(world: Any) -> None:
    for name, call in each(world):
        holder = [Deleted(name, call)]
        on_worker(world, holder.clear)


def threads(world: Any) -> None:
    """Every callable from four threads concurrently."""

    def work() -> None:
        for name, call in each(world):
            attempt(name, call)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def at_exit(world: Any) -> None:
    # Registered after kvtile's own handler, so it runs before it.
    atexit.register(lambda: [attempt(name, call) for name, call in each(world)])


KEPT: list[Any] = []


def deletions_at_exit(world: Any) -> None:
    KEPT.extend(Deleted(name, call) for name, call in each(world))


def threads_at_exit(world: Any) -> None:
    """Threads that still make calls when the interpreter shuts down."""

    def work(name: str, call: Callable[[], Any]) -> None:
        attempt(name, call)
        while True:
            with contextlib.suppress(Exception):
                call()

    for name, call in each(world):
        threading.Thread(target=work, args=(name, call), daemon=True).start()
    threading.Event().wait(1)


PLACES = {
    function.__name__: function
    for function in (
        callbacks,
        callbacks_of_steps,
        callbacks_of_copies,
        deletions,
        deletions_on_workers,
        threads,
        at_exit,
        deletions_at_exit,
        threads_at_exit,
    )
}


def after_exit(folder: Path) -> None:
    """Makes all calls after kvtile has closed its caches."""
    world: list[Any] = []
    # Registered before kvtile's own handler, so it runs after it.
    atexit.register(lambda: [attempt(name, call) for name, call in each(world[0])])
    world.append(open_world(folder))


def main() -> None:
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    place, folder = sys.argv[1:]
    if place == "after_exit":
        after_exit(Path(folder))
        return
    world = open_world(Path(folder))
    PLACES[place](world)
    if "exit" not in place:
        world.close()
    print("the end", flush=True)


if __name__ == "__main__":
    main()
