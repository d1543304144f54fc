"""Used by setup.py only; not installed."""
