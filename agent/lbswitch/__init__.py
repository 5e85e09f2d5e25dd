"""lbswitch owns which of two pools of servers, blue or green, a service's traffic goes to."""

__version__ = "0.1.0"
