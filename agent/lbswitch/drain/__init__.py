"""What is left behind: connections to a color that lost its traffic, and workers from before reloads.

    following      one service's drain, and the words about it
    watch          counts, closes what the policy says, and tells
    old_workers    counts workers from before reloads, and ends the oldest beyond the limit

Nothing here is on the way of a switch: it begins when the operation has been answered.
"""

from __future__ import annotations

from lbswitch.drain.old_workers import OldWorkers
from lbswitch.drain.watch import DrainWatch

__all__ = ["DrainWatch", "OldWorkers"]
