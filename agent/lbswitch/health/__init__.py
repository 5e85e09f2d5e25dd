"""Checks of every server of both colors, all the time, in the agent's event loop."""
