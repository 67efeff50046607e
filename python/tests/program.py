"""The program of the wheel, beside the Python that runs the tests."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig

FOLDER = sysconfig.get_path("scripts")


def path() -> str:
    found = shutil.which("pipeline", path=str(FOLDER))
    assert found, f"there is no `pipeline` in {FOLDER}: install the wheel into an environment"
    return found


def pipeline(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [path(), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, **options)  # type: ignore[call-overload]
