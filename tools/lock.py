"""Write requirements.lock: every package that `.[dev]` needs, pinned by version and hash.

    python3.11 tools/lock.py             keeps the pins that still fit pyproject.toml
    python3.11 tools/lock.py --upgrade   takes the newest versions that fit

pip resolves for the interpreter and the platform that run this script, and takes wheels only.
"""

import argparse
import json
import platform
import re
import subprocess
import tempfile
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"

HEADER = """\
# Every package that `.[dev]` needs, for {interpreter} on {system}.
# Made from pyproject.toml by tools/lock.py (`make lock`); not to be edited by hand.
#
# pip install --require-hashes -r requirements.lock
# pip install --no-deps --no-build-isolation -e .
"""


def resolve(pins: list[str]) -> list[dict[str, Any]]:
    """What pip would install into an empty environment under these pins, as in its installation report."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        constraints = Path(folder) / "pins.txt"  # without hashes, which pip would ask of the project itself too
        constraints.write_text("\n".join(pins))
        pip = [f"{folder}/bin/python", "-m", "pip", "install", "--dry-run", "--ignore-installed"]
        pip += ["--quiet", "--report=-", "--only-binary=:all:", f"--constraint={constraints}", ".[dev]"]
        report = json.loads(subprocess.run(pip, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    return [item for item in report["install"] if "archive_info" in item["download_info"]]


def pin(item: dict[str, Any]) -> str:
    """The lock's entry for one package of the report."""
    name = item["metadata"]["name"].lower().replace("_", "-")
    digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
    return f"{name}=={item['metadata']['version']} \\\n    --hash=sha256:{digest}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write requirements.lock.")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that fit")
    keep = LOCK.exists() and not parser.parse_args().upgrade

    kept = re.findall(r"^\S+==\S+", LOCK.read_text(), re.M) if keep else []
    pins = sorted(map(pin, resolve(kept)), key=lambda entry: entry.partition("==")[0])
    major, minor, _ = platform.python_version_tuple()
    interpreter = f"{platform.python_implementation()} {major}.{minor}"
    header = HEADER.format(interpreter=interpreter, system=f"{platform.system()} {platform.machine()}")
    LOCK.write_text(header + "\n" + "".join(pins))
    print(f"{LOCK.name}: {len(pins)} packages")


if __name__ == "__main__":
    main()
