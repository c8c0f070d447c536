"""Rows of a CUDA device: every backend (D0), attention against LibTorch's kernels (D1) and our own dense one (D2 to D5).

They need the build of preset "cuda" (`cmake --build --preset cuda --target gpu_bench`) and a device. Where
one is missing this says so on stderr and yields no row: nothing was measured.
"""

import json
import subprocess
import sys

from pairs import ROOT, summary

ROWS = ("D0", "D1", "D2", "D3", "D4", "D5")
PROGRAM = ROOT / "build-cuda/bin/gpu_bench"
NO_DEVICE = 3


def not_measured(rows, reason):
    print(f"{' '.join(rows)}: not measured: {reason}", file=sys.stderr)


def with_summary(row, device):
    samples = row.pop("samples", None)
    if samples:
        row.update(summary([tuple(pair) for pair in samples]))
    return {**row, "device": device}


def measure(options, rows):
    if not PROGRAM.exists():
        not_measured(rows, f"{PROGRAM.relative_to(ROOT)} is not built (preset cuda, target gpu_bench)")
        return
    command = [str(PROGRAM), f"--pairs={options.pairs}", *rows]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        device = None
        for line in process.stdout:
            row = json.loads(line)
            if "row" in row:
                yield with_summary(row, device)
            else:
                device = row["device"]
    if process.returncode == NO_DEVICE:
        not_measured(rows, "no CUDA device here")
    elif process.returncode:
        raise RuntimeError(f"gpu_bench: exit status {process.returncode}")
