# SPDX-License-Identifier: Apache-2.0
"""
The command `pai-painter`, outside of the package: `--help` and usage errors come before torch and transformers are
imported, which takes seconds.
"""

import importlib.util
import os
import sys

# Threads of OpenMP (torch's on the CPU) spin while they wait for each other, which on a busy machine takes time from
# those that they wait for. So they spin less than by default, but no less than an idle machine needs to lose nothing
# (benchmarks/busy.py), unless the user has said how they wait.
_WAITING = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
SPINS = "10000"


def main() -> None:
    """Runs the command. The package's own `__init__` waits until one of its commands has work to do."""
    if not _WAITING & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS
    try:
        spec = importlib.util.find_spec("pai_painter")
        if spec is None:
            raise ModuleNotFoundError("No module named 'pai_painter'", name="pai_painter")
        sys.modules.setdefault("pai_painter", importlib.util.module_from_spec(spec))  # not executed
        from pai_painter.cli import main as run

        run()
    except KeyboardInterrupt:  # before a command has begun, which says what is complete
        sys.exit(130)


if __name__ == "__main__":
    main()
