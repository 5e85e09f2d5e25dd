"""Alerts to people: an outbox that survives crashes, and the ways out of it."""
