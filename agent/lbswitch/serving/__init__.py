"""What the balancer serves: intended, on disk and running, and the moves from one to the next.

Three facts are kept equal. *Intended* is an `Intent`; *on disk* are the rendered files and the pointer or maps;
*running* is what the listeners answer. Every change prepares an undo, acts, and then looks.

    looking          what the listeners answer
    moving           other routes, and the way back
    installing       other files: at the start, for edited templates, for servers that are left out
    reconfiguring    another configuration
    repairing        what others changed

Each of these knows those above it.
"""

from __future__ import annotations

from lbswitch.serving.looking import Sight
from lbswitch.serving.moving import Undo
from lbswitch.serving.reconfiguring import Standing
from lbswitch.serving.repairing import Repairing

__all__ = ["Serving", "Sight", "Standing", "Undo"]


class Serving(Repairing):
    """Owns the balancer. All methods block and may be called from several threads."""
