"""Distributed computer-vision training: one YAML file and one command, on a laptop or a cluster.

From Python: ``orchestrator.reading.load_config`` and ``orchestrator.train.train``.
"""
