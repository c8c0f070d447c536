"""The pairwise protocol: long-lived programs do the same work in turns, and what is quoted is the median
of the per-pair ratios, so that whatever else the machine does hits all sides alike.
"""

import datetime
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import tether  # noqa: E402, F401

ROOT = pathlib.Path(__file__).resolve().parents[2]
INTERESTING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")

# The instruction sets that --cpu_isa names, in their order: the flag of a machine that has it, and what holds a
# peer of Python to it, as PinCpuIsa (backends/cpu_isa.cc) holds our own processes; marks_test.py compares the two.
LEVELS = {
    "avx2": ("avx2", "avx2", "avx2", "AVX2"),
    "avx512": ("avx512f", "avx512", "avx512_core", "AVX512"),
    "avx512_vnni": ("avx512_vnni", "avx512", "avx512_core_vnni", "AVX512_E1"),
    "avx512_bf16": ("avx512_bf16", "avx512", "avx512_core_bf16", "AVX512_E3"),
    "amx": ("amx_bf16", "avx512", "avx512_core_amx", "AVX512_E4"),
}
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
# What PinCpuIsa takes away, for it would change the arithmetic too.
UNLIMITED = ("MKL_CBWR", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA_HINTS",
             "DNNL_MAX_CPU_ISA")

REST = 0.15

# What KeepFreedMemory (runtime/threads.h) sets in our own process. A peer that gets its memory page by
# page anew loses up to a fifth of a forward to the kernel, which says nothing of its computing.
OUR_ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647", "MALLOC_ARENA_MAX": "1"}


def unpinned():
    """Our environment without what would choose a library's instructions or arithmetic."""
    return {name: value for name, value in os.environ.items() if name not in (*LIMITS, *UNLIMITED)}


def limits(level):
    """Holds LibTorch, oneDNN and MKL of a process to a level."""
    return dict(zip(LIMITS, LEVELS[level][1:]))


class Worker:
    """A program that answers a JSON line on stdout for each JSON line on stdin; what it says on stderr
    goes to out/bench-NAME.log. `environment` is added to ours.
    """

    def __init__(self, name, command, threads, environment=None):
        self.name = name
        settings = dict(unpinned(), OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads),
                        **(environment or {}))
        log = ROOT / "out" / f"bench-{name}.log"
        log.parent.mkdir(exist_ok=True)
        with open(log, "w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=errors, text=True, env=settings, cwd=ROOT)

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended at {request}: status {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {request}: {answer['error']}")
        return answer

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def alternate(sides, pairs, warm_ups=1, after=None):
    """Seconds of every side for each pair: `sides` are ours, the peer and perhaps the stock peer; the side
    that starts changes from pair to pair. Each comes after a rest: OpenMP's helpers of another process spin for
    tens of milliseconds after its work. `after` follows each pair.
    """
    for _ in range(warm_ups):
        for side in sides:
            side()
    samples = []
    for index in range(pairs):
        seconds = [0.0] * len(sides)
        for turn in range(len(sides)):
            side = (index + turn) % len(sides)
            time.sleep(REST)
            seconds[side] = sides[side]()
        samples.append(tuple(seconds))
        if after:
            after()
    return samples


def summary(samples, rooflines=()):
    """Median of the per-pair ratios peer / ours (above 1: we are faster), with their range; the stock
    peer's as `stock_ratio`. `rooflines`: what the work would take at the rate that this machine's best GEMM had
    when each pair was timed: the ratio that this would give, and our share of it.
    """
    ratios = [sample[1] / sample[0] for sample in samples]
    row = {
        "ratio": round(statistics.median(ratios), 4),
        "min": round(min(ratios), 4),
        "max": round(max(ratios), 4),
        "ours": statistics.median(sample[0] for sample in samples),
        "peer": statistics.median(sample[1] for sample in samples),
        "pairs": len(samples),
    }
    if len(samples[0]) > 2:
        row["stock_ratio"] = round(statistics.median(sample[2] / sample[0] for sample in samples), 4)
        row["stock_peer"] = statistics.median(sample[2] for sample in samples)
    if rooflines:
        both = list(zip(samples, rooflines, strict=True))
        row["roofline"] = statistics.median(rooflines)
        row["roofline_ratio"] = round(statistics.median(sample[1] / seconds for sample, seconds in both), 4)
        row["roofline_share"] = round(statistics.median(seconds / sample[0] for sample, seconds in both), 4)
    return row


@functools.cache
def cpu():
    model, flags = platform.processor() or "unknown", []
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() == "flags":
                flags = [flag for flag in INTERESTING_FLAGS if flag in value.split()]
    except OSError:
        pass
    return model, flags


def levels():
    """Those that this machine has, the lowest first."""
    return [level for level, (flag, *_) in LEVELS.items() if flag in cpu()[1]]


@functools.cache
def versions():
    found = {}
    for name in ("torch", "diffusers", "transformers", "safetensors"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


@functools.cache
def commit():
    return subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"],
                          capture_output=True, text=True, check=False).stdout.strip()


def surroundings(threads, command):
    model, flags = cpu()
    return {
        "machine": f"{model}, {os.cpu_count()} cores",
        "cpu_flags": " ".join(flags),
        "threads": threads,
        "peer_threads": threads,
        "load": round(os.getloadavg()[0], 2),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%MZ"),
        "commit": commit(),
        "versions": versions(),
        "command": command,
    }
