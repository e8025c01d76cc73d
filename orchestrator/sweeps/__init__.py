"""Sweeps: what is searched and how, what is remembered of it, and what runs the trials (Ray Tune)."""
