"""Draws docs/monitor.svg: what `lbswitch monitor` shows on a terminal, taken from a real nginx under load.

.venv/bin/python scripts/picture.py        # needs nginx; takes about 20 s
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.agent import Agent  # noqa: E402 - the repository is no package
from tests.support.app import App  # noqa: E402
from tests.support.load import Load  # noqa: E402
from tests.support.ports import free_port  # noqa: E402
from tests.support.wait import wait_until  # noqa: E402

OUT = ROOT / "docs" / "monitor.svg"
COLUMNS, LINES = 108, 24
LOOK_S, WATCH_S = 12.0, 20
CRITERIA = {
    "error_ratio": {"threshold": 0.05, "window": "10s"},
    "response_time": {"threshold": 500, "window": "30s", "quantile": 0.95},
    "health_check": {"threshold": 1, "window": "10s"},
}


def main() -> None:
    """Watch a switch, and keep the last picture."""
    with App("blue") as blue, App("green") as green:
        port = free_port()
        service = {
            "bind": f"127.0.0.1:{port}",
            "blue": {"servers": [blue.address]},
            "green": {"servers": [green.address]},
            "health": {"interval": "500ms"},
            "criteria": CRITERIA,
        }
        with Agent(None, {"balancer": {"kind": "nginx"}, "services": {"shop": service}}) as agent:
            wait_until(lambda: all(agent.status("shop")[each]["healthy"] for each in ("blue", "green")), "healthy")
            load = Load("127.0.0.1", port, rate=120, duration_s=60).start()
            wait_until(lambda: load.report().sent > 100, "requests were sent")
            agent.lbswitch("green", "--steps", "30,100", "--every", f"{WATCH_S}s")
            frame = watched(agent)
            load.stop()
    draw(frame)
    print(f"{OUT.relative_to(ROOT)} is written")


def watched(agent: Agent) -> str:
    """What the terminal shows after a while, with its colors."""
    terminal, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    argv = [*agent.argv, "monitor", "--duration", "300"]
    environment = {**agent.env, "TERM": "xterm-256color"}
    with subprocess.Popen(argv, stdin=inside, stdout=inside, stderr=inside, env=environment) as process:
        os.close(inside)
        end, shown = time.monotonic() + LOOK_S, b""
        while time.monotonic() < end:
            shown += os.read(terminal, 65536)
        process.terminate()
    os.close(terminal)
    return shown.decode(errors="ignore").split("\x1b[H")[-2]


def draw(frame: str) -> None:
    """Write the SVG, without the fonts that it would load from elsewhere."""
    text = re.sub(r"\x1b\[(K|J|\?7[lh])", "", frame).replace("\r", "").rstrip()
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(text), no_wrap=True)
    svg = console.export_svg(title="lbswitch monitor --duration 300", unique_id="lbswitch")
    OUT.write_text(re.sub(r"@font-face \{[^}]*\}\s*", "", svg))


if __name__ == "__main__":
    main()
