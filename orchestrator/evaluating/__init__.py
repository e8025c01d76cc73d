"""`orchestrator val`: the parts of it."""
