"""The pairwise protocol: two long-lived programs do the same work in turns, and what is quoted is the
median of the per-pair ratios, so that whatever else the machine does hits both sides alike.
"""

import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import tether  # noqa: E402, F401

ROOT = pathlib.Path(__file__).resolve().parents[2]
INTERESTING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")


class Worker:
    """A program that answers a JSON line on stdout for each JSON line on stdin; what it says on stderr
    goes to out/bench-NAME.log.
    """

    def __init__(self, name, command, threads):
        self.name = name
        environment = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
        log = ROOT / "out" / f"bench-{name}.log"
        log.parent.mkdir(exist_ok=True)
        with open(log, "w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=errors, text=True, env=environment, cwd=ROOT)

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


def alternate(ours, peer, pairs, warm_ups=1):
    """Seconds of (ours, peer) for each pair; the side that starts changes from pair to pair."""
    for _ in range(warm_ups):
        ours()
        peer()
    samples = []
    for index in range(pairs):
        if index % 2 == 0:
            mine = ours()
            theirs = peer()
        else:
            theirs = peer()
            mine = ours()
        samples.append((mine, theirs))
    return samples


def summary(samples):
    """Median of the per-pair ratios peer / ours (above 1: we are faster), with their range."""
    ratios = [theirs / mine for mine, theirs in samples]
    return {
        "ratio": round(statistics.median(ratios), 4),
        "min": round(min(ratios), 4),
        "max": round(max(ratios), 4),
        "ours": statistics.median(mine for mine, _ in samples),
        "peer": statistics.median(theirs for _, theirs in samples),
        "pairs": len(samples),
    }


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


def surroundings(threads, command):
    model, flags = cpu()
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"],
                            capture_output=True, text=True, check=False).stdout.strip()
    return {
        "machine": f"{model}, {os.cpu_count()} cores",
        "cpu_flags": " ".join(flags),
        "threads": threads,
        "load": round(os.getloadavg()[0], 2),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%MZ"),
        "commit": commit,
        "command": command,
    }
