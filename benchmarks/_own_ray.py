"""A Ray for one measurement, started and ended by it."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator import launch

CPUS = 2


@contextmanager
def own_ray(object_store_bytes: int = launch.OBJECT_STORE_BYTES) -> Iterator[None]:
    """Ray on this machine, quiet, whatever cluster the environment names."""
    for name, value in launch.QUIET.items():
        os.environ.setdefault(name, value)
    import ray
    import ray.data

    # its last processes may still write their logs when it has ended
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        ray.init(
            "local",
            num_cpus=CPUS,
            object_store_memory=object_store_bytes,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
        )
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        try:
            yield
        finally:
            ray.shutdown()
