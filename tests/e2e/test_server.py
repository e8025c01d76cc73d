"""A run that a real MLflow server records."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.shell import Shell, mlflow_history, mlflow_runs, summary
from tests.e2e.test_tracking_server import free_port, server
from tests.results import rows


def test_a_server_records_the_run(shell: Shell, digits_cache: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    config = shell.config(name="served", tracking={"uri": url})
    with server(shell.folder, port):
        done = shell.run("train", config)
        assert (done.code, done.err) == (0, "")
        [run] = mlflow_runs(url)
        assert (run.info.status, run.info.run_name) == ("FINISHED", "served")
        folder = shell.storage / "digits" / "served"
        history = mlflow_history(url, run.info.run_id, "top1")
        assert history == {int(row["epoch"]): float(row["top1"]) for row in rows(folder)}
    assert summary(folder)["mlflow"] == {"tracking_uri": url, "experiment": "digits", "run_id": run.info.run_id}
    assert done.out.strip().splitlines()[-1].startswith(url)
    assert run.info.run_id in done.out
    assert [path.name for path in shell.storage.iterdir()] == ["digits"]  # no local store
