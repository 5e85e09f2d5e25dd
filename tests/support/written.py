"""What a balancer writes while no agent looks after it.

    .venv/bin/python -m tests.support.written [--requests 1000000] [nginx|haproxy ...]

sends so many requests to a balancer whose agent was killed 31 s ago, the second half of them to a color whose servers
are dead, and prints how much every file below its state directory has grown. Needs wrk, and nginx for the applications.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.agent import Agent, short_directory
from tests.support.ports import free_port
from tests.support.wait import wait_until

_LONGEST_S = 120.0
_LEASE_S = 31.0  # so long nginx goes on logging for an agent that may be back soon
_ORIGIN = """
worker_processes 1; daemon off; pid nginx.pid; error_log error.log emerg;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  server {{ listen 127.0.0.1:{blue}; return 200 "blue\\n"; }}
  server {{ listen 127.0.0.1:{green}; return 200 "green\\n"; }}
}}
"""


def sizes(directory: Path) -> dict[str, int]:
    """Bytes of every regular file below a directory, by its path from there; one that goes meanwhile is left out."""
    found = {}
    for path in directory.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and not path.is_symlink():
                found[str(path.relative_to(directory))] = path.stat().st_size
    return found


def growth(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Bytes by which files have grown or shrunk, new ones included; what stayed as it was is left out."""
    names = before.keys() | after.keys()
    changed = {name: after.get(name, 0) - before.get(name, 0) for name in names}
    return {name: count for name, count in sorted(changed.items()) if count}


@contextlib.contextmanager
def origin() -> Iterator[tuple[str, str, subprocess.Popen[bytes]]]:
    """Two fast applications, as addresses, and the process that is both."""
    blue, green = free_port(), free_port()
    with short_directory() as directory:
        (directory / "nginx.conf").write_text(_ORIGIN.format(blue=blue, green=green))
        argv = ["nginx", "-p", str(directory), "-c", str(directory / "nginx.conf"), "-e", str(directory / "early.log")]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            yield f"127.0.0.1:{blue}", f"127.0.0.1:{green}", process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=20)


def _send(port: int, count: int, connections: int) -> tuple[int, int]:
    """So many requests with wrk, or those of two minutes; gives how many were answered, and how many not with 2xx."""
    answered = failed = 0
    ends_at = time.monotonic() + _LONGEST_S
    while answered < count and time.monotonic() < ends_at:
        argv = ["wrk", "-t2", f"-c{connections}", "-d5s", "--timeout", "20s", f"http://127.0.0.1:{port}/"]
        said = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout
        answered += int(re.search(r"(\d+) requests in", said)[1])  # type: ignore[index]
        other = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
        failed += int(other[1]) if other else 0
    return answered, failed


def measure(kind: str, count: int) -> None:
    """Print what `kind` writes for `count` requests, half of them to dead servers."""
    port = free_port()
    with origin() as (blue, green, process):
        service: dict[str, Any] = {"bind": f"127.0.0.1:{port}", "blue": {"servers": [blue]}}
        service["green"] = {"servers": [green]}
        with Agent(None, {"balancer": {"kind": kind}, "services": {"shop": service}}) as agent:
            wait_until(lambda: agent.status("shop")["green"]["state"] == "healthy", "health is known")
            assert agent.lbswitch("green").code == 0
            agent.kill()
            time.sleep(_LEASE_S)
            before = sizes(agent.state_dir)
            good = _send(port, count // 2, 64)
            between = sizes(agent.state_dir)
            process.terminate()
            process.wait(timeout=20)
            bad = _send(port, count - count // 2, 1000)  # HAProxy tries a dead server three times, a second apart
            after = sizes(agent.state_dir)
    print(f"{kind}: {good[0]:,} requests to a living color ({good[1]:,} failed)")
    _tell(growth(before, between), good[0])
    print(f"{kind}: {bad[0]:,} requests to a dead color ({bad[1]:,} failed)")
    _tell(growth(between, after), bad[0])
    print(f"  all files below the state directory: {sum(before.values()):,} -> {sum(after.values()):,} bytes")


def _tell(grown: dict[str, int], requests: int) -> None:
    for name, count in grown.items():
        print(f"  {name}: {count:+,} bytes, {count * 1_000_000 / requests:,.0f} per million requests")
    if not grown:
        print("  no file has grown: 0 bytes per million requests")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("kinds", nargs="*", default=["nginx", "haproxy"])
    options = parser.parse_args()
    for kind in options.kinds:
        measure(kind, options.requests)


if __name__ == "__main__":
    main()
