from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from orchestrator.data import locks
from orchestrator.data.locks import Lease, exclusive, free, held
from tests.holder import holder, kill


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "key.lock"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.01)


def is_free(path: Path) -> bool:
    with free(path) as nobody:
        return nobody


def test_a_lease_is_shared_and_keeps_the_file_from_being_given_away(path: Path) -> None:
    first, second = Lease(path), Lease(path)
    assert not is_free(path)
    first.release()
    assert not is_free(path), "one is left"
    second.release()
    second.release()
    assert is_free(path)


def test_free_removes_the_file_and_lets_nobody_in(path: Path) -> None:
    path.touch()
    with free(path) as nobody:
        assert nobody
        assert held(path)
        assert not is_free(path), "another one that looks must not take it away"
    assert not path.exists()


def test_a_lease_taken_while_the_file_goes_away_is_one_on_the_next_file(path: Path) -> None:
    """It waits on a file that is removed under it: the lock of that one would protect nothing."""
    leases: list[Lease] = []
    with free(path) as nobody:
        assert nobody
        waiting = threading.Thread(target=lambda: leases.append(Lease(path)))
        waiting.start()
        time.sleep(0.05)
        assert not leases
    waiting.join(10)
    assert len(leases) == 1
    assert held(path)
    assert not is_free(path)
    leases[0].release()
    assert is_free(path)


def test_held_tells_without_leaving_a_trace(path: Path) -> None:
    assert not held(path)
    assert not path.exists()
    path.touch()
    assert not held(path)
    assert path.exists()
    lease = Lease(path)
    assert held(path)
    lease.release()
    with exclusive(path):
        assert held(path)
    assert not held(path)


def test_exclusive_waits_for_its_turn_and_tells_that_it_waits(path: Path) -> None:
    waits: list[bool] = []
    with holder(path, "alone") as other:

        def while_waiting() -> None:
            waits.append(held(path))
            if len(waits) == 3:
                kill(other)

        with exclusive(path, while_waiting):
            assert len(waits) >= 3
            assert all(waits[:3])
            assert not is_free(path)
    assert is_free(path)


def test_waiting_can_be_given_up(path: Path) -> None:
    def give_up() -> None:
        raise KeyboardInterrupt

    lease = Lease(path)
    with pytest.raises(KeyboardInterrupt), exclusive(path, give_up):
        pytest.fail("it was taken")
    lease.release()
    assert is_free(path), "nothing of the one that gave up is left"


@pytest.mark.parametrize("kind", ["shared", "alone"])
def test_a_killed_process_gives_its_locks_back(path: Path, kind: str) -> None:
    with holder(path, kind) as process:
        assert held(path)
        assert not is_free(path)
        kill(process)
        assert not held(path)
        assert is_free(path)


def test_a_lease_in_a_folder_that_cannot_be_written_is_an_oserror(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        Lease(tmp_path / "file" / "key.use")
