"""Rows of a CUDA device: every backend (D0), attention against LibTorch's kernels (D1) and our own dense one (D2 to D5),
and what sharing forwards gives there (D7).

They need the build of preset "cuda" (`cmake --build --preset cuda --target gpu_bench denoised`) and a device. Where
one is missing this says so on stderr and yields no row: nothing was measured.
"""

import json
import subprocess
import sys

from batching_rows import JOBS, take_turns
from pairs import ROOT, summary

ROWS = ("D0", "D1", "D2", "D3", "D4", "D5", "D7")
BUILD = "build-cuda"
PROGRAM = ROOT / BUILD / "bin/gpu_bench"
NO_DEVICE = 3


def not_measured(rows, reason):
    print(f"{' '.join(rows)}: not measured: {reason}", file=sys.stderr)


def with_summary(row, device):
    samples = row.pop("samples", None)
    if samples:
        row.update(summary([tuple(pair) for pair in samples]))
    return {**row, "device": device}


def jobs_row(options):
    """B8 on the first device, where numerics are exact: products and attention are a call a row."""
    return {"row": "D7", "name": "8 jobs of 20 steps at once on CUDA, tiny, against --batching=off --policy=fifo",
            **take_turns(options, JOBS, "--device=cuda:0", build=BUILD)}


def device_name():
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def measure(options, rows):
    yield from kernel_rows(options, [row for row in rows if row != "D7"])
    if "D7" not in rows:
        return
    device = device_name()
    if not (ROOT / BUILD / "bin/denoised").exists():
        not_measured(["D7"], f"{BUILD}/bin/denoised is not built (preset cuda)")
    elif device is None:
        not_measured(["D7"], "no CUDA device here")
    else:
        yield {**jobs_row(options), "device": device}


def kernel_rows(options, rows):
    if not rows:
        return
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
