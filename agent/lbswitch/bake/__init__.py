"""The watch after a switch: evidence of real traffic in, decisions out.

watch      the loop: reads evidence, decides for every service that bakes, and acts
looking    what is known of a watched service at a moment
checks     failed health checks within a window
story      what happened when, for the record of an incident
"""

from lbswitch.bake.looking import Looking
from lbswitch.bake.watch import Bakes, Canary

__all__ = ["Bakes", "Canary", "Looking"]
