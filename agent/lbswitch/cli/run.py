"""The program `lbswitch`: the command line, without what Python does at both ends of a run that nobody needs here.

Looking for garbage among modules that have only just been loaded, and taking them apart again one by one, were 11 of
the 66 ms that a switch took from a shell.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from typing import NoReturn


def run() -> NoReturn:
    """Run the command of `sys.argv` and exit with its code."""
    gc.disable()
    from lbswitch.cli.main import main

    gc.freeze()
    gc.enable()
    _leave(main())


def _leave(code: int) -> NoReturn:
    """Exit at once, when nothing is left that has to be waited for and all that was said has been written."""
    if threading.active_count() == 1:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):
            sys.exit(code)  # Python says what is wrong with the stream, and its own code
        os._exit(code)
    sys.exit(code)
