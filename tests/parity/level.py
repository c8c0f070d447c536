"""Which CPU instructions both sides of a parity test run: DENOISED_CPU_ISA names the level, else it is the highest that
the machine has, which LibTorch takes by itself. Imported before torch, whose libraries read their limits when they are
loaded.
"""

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "bench"))
from pairs import levels, limits  # noqa: E402


LEVEL = os.environ.get("DENOISED_CPU_ISA") or levels()[-1]
os.environ.update(limits(LEVEL))
