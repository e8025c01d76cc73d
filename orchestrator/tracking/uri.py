"""Which MLflow store a run goes to, and how its page is opened. Imports no MLflow."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from orchestrator.config import redact


def default_tracking_uri(storage: str) -> tuple[str, str | None]:
    """The SQLite store used when no server is named, and a sentence for the user where it is not in `storage`.

    A database cannot live on an object store, so runs that go there are tracked in the user's state folder.
    """
    local = storage.removeprefix("file://")
    if "://" not in local:
        return f"sqlite:///{Path(local).expanduser().absolute() / 'mlflow.db'}", None
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    store = state.absolute() / "orchestrator" / "mlflow.db"
    note = (
        f"MLflow records in {store} on this machine, because an object store cannot hold its database; "
        "set tracking.uri (or MLFLOW_TRACKING_URI) to a server to share it."
    )
    return f"sqlite:///{store}", note


def resolve_tracking_uri(configured: str | None, storage: str) -> tuple[str, str | None]:
    """`tracking.uri`, else MLFLOW_TRACKING_URI, else the default; a relative SQLite path is made absolute."""
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return default_tracking_uri(storage)
    path = sqlite_path(uri)
    return (f"sqlite:///{path.absolute()}" if path else uri), None


def open_command(tracking_uri: str, experiment_id: str | None = None, run_id: str | None = None) -> str:
    """How to see a run: its address on a server, else the shell command that serves the store's page."""
    shown = redact(tracking_uri)
    if shown.startswith(("http://", "https://")):
        page = f"/#/experiments/{experiment_id}/runs/{run_id}" if experiment_id and run_id else ""
        return shown.rstrip("/") + page
    beside = Path(sys.executable).parent / "mlflow"
    program = [str(beside)] if beside.exists() else [sys.executable, "-m", "mlflow"]
    if shutil.which("mlflow") == str(beside):
        program = ["mlflow"]
    # One worker and no job runner: a quarter of the memory, and the page needs neither.
    environment = "MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"
    return f"{environment} {shlex.join([*program, 'ui', '--workers', '1', '--backend-store-uri', shown])}"


def sqlite_path(uri: str) -> Path | None:
    """The file of an SQLite store, None for any other."""
    scheme, separator, path = uri.partition(":///")
    return Path(path.partition("?")[0]) if separator and scheme.startswith("sqlite") and path else None
