"""Milliseconds of calls, and calls in turns."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence


def timed_ms(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000


def in_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each, one of each per round; the first round warms up and does not count."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            taken = timed_ms(call)
            if turn:
                samples[name].append(taken)
    return samples


def command(argv: Sequence[str], env: Mapping[str, str], timeout_s: float = 30) -> Callable[[], None]:
    """A call that runs a command. It raises: RuntimeError when the command fails."""

    def run() -> None:
        done = subprocess.run(argv, capture_output=True, env=env, timeout=timeout_s, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{argv[-2:]} ended with {done.returncode}: {done.stderr.decode()[-500:]}")

    return run
