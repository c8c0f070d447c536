"""Rows about the server, which keeps its state on disk as it does by default: C1, unary calls on an idle server
against a bare echo of the same messages, which keeps nothing either; C1d, what the promise to keep adds to them;
C10, how many calls a second it answers; A14, a job's steps while the server is asked a thousand other things a
second; A15, what comparisons of backends add to a job's time.
"""

import concurrent.futures
import contextlib
import json
import pathlib
import re
import statistics
import subprocess
import tempfile
import time
import urllib.request

from inputs import model_folder
from pairs import ROOT, Worker, alternate, summary

ROWS = ("C1", "C1d", "C10", "A14", "A15")
RPC_BENCH = str(ROOT / "build/bin/rpc_bench")


class Ready(str):
    """The line that a server prints when it is ready, and its process."""

    def __new__(cls, line, pid):
        ready = super().__new__(cls, line)
        ready.pid = pid
        return ready


@contextlib.contextmanager
def running(command, **options):
    """A server process, as Ready; ended with the block."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options) as process:
        try:
            yield Ready(process.stdout.readline().strip(), process.pid)
        finally:
            process.terminate()
            process.wait(timeout=60)


def file_system(folder):
    return subprocess.run(["stat", "--file-system", "--format=%T", str(folder)],
                          capture_output=True, text=True, check=True).stdout.strip()


@contextlib.contextmanager
def fresh_state():
    """An empty folder on a disk, where a commit costs what it costs a server; in memory it would cost nothing."""
    parent = ROOT / "out"
    parent.mkdir(exist_ok=True)
    if file_system(parent) in ("tmpfs", "ramfs"):
        raise RuntimeError(f"{parent} lies in memory; a server's state has to lie on a disk")
    with tempfile.TemporaryDirectory(prefix="bench-state-", dir=parent) as folder:
        yield pathlib.Path(folder)


@contextlib.contextmanager
def denoised(options, repository, *flags, build="build", durable=True):
    """A server at the run's level; not `durable`: with --state_dir=none, which keeps nothing on disk."""
    with contextlib.ExitStack() as stack:
        state = stack.enter_context(fresh_state()) if durable else "none"
        command = [str(ROOT / build / "bin/denoised"), f"--model_repository={repository}", f"--state_dir={state}",
                   "--listen=127.0.0.1:0", "--admin_listen=127.0.0.1:0", "--http_listen=127.0.0.1:0",
                   f"--cpu_isa={options.cpu_isa}", *flags]
        yield stack.enter_context(running(command, stderr=subprocess.DEVNULL))


def address(ready, door="grpc"):
    words = dict(word.split("=", 1) for word in ready.split() if "=" in word)
    if door not in words:
        raise RuntimeError(f"denoised did not become ready: {ready!r}")
    return words[door]


def call_row(options, row, client, targets, call, calls, **arguments):
    quantiles = {side: [] for side in targets}

    def run(side):
        answer = client.ask(do=call, target=targets[side], calls=calls, **arguments)
        quantiles[side].append(answer["p99"])
        return answer["p50"]

    result = summary(alternate([lambda: run("ours"), lambda: run("peer")], options.pairs))
    kept = ", jobs kept on disk" if row == "C1d" else ""
    return {"row": row, "name": f"{call} of a job on an idle server, p50, against a bare gRPC echo{kept}", **result,
            "unit": "s", "calls": calls, "ours_p99": sorted(quantiles["ours"])[options.pairs // 2],
            "peer_p99": sorted(quantiles["peer"])[options.pairs // 2]}


def metric(http, name, label=""):
    """The sum of a family's samples at /metrics that have this label."""
    with urllib.request.urlopen(f"http://{http}/metrics", timeout=30) as page:
        text = page.read().decode()
    return sum(map(float, re.findall(rf"^{name}(?:{{[^}}]*{label}[^}}]*}})? (\S+)", text, re.MULTILINE)))


class Steps:
    """The mean time of the steps between two looks at /metrics."""

    def __init__(self, http):
        self.http = http

    def look(self):
        return tuple(metric(self.http, f"denoised_step_seconds_{what}") for what in ("count", "sum"))

    def mean(self, seconds):
        begin = self.look()
        for _ in range(seconds):
            time.sleep(1)
            end = self.look()
        if end[0] == begin[0]:
            raise RuntimeError("A14: no step came to its end")
        return (end[1] - begin[1]) / (end[0] - begin[0])


def steps_row(options):
    """Half as many threads as cores compute, so that the server has where to answer. Idle times are taken before and
    after each flood, with a scrape a second as well. What is submitted waits, so that all steps are of one job. Beside
    it (`echo`), in the same run: what the step loses to the same clients where a bare gRPC echo in another process
    answers them.
    """
    threads = max(1, options.threads // 2)
    repository = model_folder("small", "bfloat16")
    flags = (f"--threads={threads}", "--max_queued_jobs=100000", "--max_running_jobs=1")
    with denoised(options, repository, *flags) as ready, \
            Worker("rpc_bench", [RPC_BENCH, "client"], 1) as client, tempfile.NamedTemporaryFile() as job, \
            concurrent.futures.ThreadPoolExecutor() as pool:
        target, steps = address(ready), Steps(address(ready, "http"))
        client.ask(do="sample", target=target, file=job.name)
        client.ask(do="begin", target=target, height=320, width=512, frames=9, steps=1000)
        steps.mean(3)
        idle, slower, told = [steps.mean(5)], {"ours": [], "echo": []}, {"ours": [], "echo": []}
        with running([RPC_BENCH, "echo", job.name]) as echo:
            for _ in range(3):
                for side, asked in {"ours": target, "echo": echo}.items():
                    flood = pool.submit(client.ask, do="flood", target=asked, clients=64, rate=1000, seconds=6.0)
                    loaded = steps.mean(5)
                    told[side].append(flood.result())
                    idle.append(steps.mean(5))
                    slower[side].append(loaded / ((idle[-2] + idle[-1]) / 2) - 1)
        if steps.look()[0] > 1000:
            raise RuntimeError("A14: the job ended before the measurement did")
        rates = {side: min(one["sent"] / one["seconds"] for one in some) for side, some in told.items()}
        return {"row": "A14", "name": "step of a job under 1,000 submits and a scrape a second, less 1, against idle",
                "value": statistics.median(slower["ours"]), "echo": statistics.median(slower["echo"]),
                "step_seconds": statistics.median(idle), "submits_a_second": rates["ours"],
                "echoes_a_second": rates["echo"], "accepted": sum(one["accepted"] for one in told["ours"]),
                "error": int(min(rates.values()) < 900), "error_limit": 0,  # the load was not what the row says
                "server_threads": threads}


def shadow_row(options):
    """Every call of a long job is in a shadow's scope, at the default --shadow_budget; by the server's counters."""
    with denoised(options, ROOT / "model_repository", f"--threads={options.threads}") as ready, \
            Worker("rpc_bench", [RPC_BENCH, "client"], 1) as client:
        shadow = [str(ROOT / "build/bin/denoisectl"), "shadow", f"--admin={address(ready, 'admin')}", "--json"]
        client.ask(do="begin", target=address(ready), height=64, width=64, frames=17, steps=1000)
        subprocess.run([*shadow, "SAGE_ATTN"], check=True, stdout=subprocess.DEVNULL)
        time.sleep(15)
        told, = json.loads(subprocess.run(shadow, check=True, stdout=subprocess.PIPE).stdout)["shadows"]
        samples = sum(int(found["samples"]) for found in told["statistics"])
        return {"row": "A15", "name": "what comparisons of every call with another backend add to a job's time",
                "value": told["added_seconds"] / told["device_seconds"], "samples": samples,
                "device_seconds": told["device_seconds"]}


def call_rows(options, row):
    with denoised(options, model_folder("tiny", "float32"), f"--threads={options.threads}",
                  durable=row == "C1d") as ready, \
            Worker("rpc_bench", [RPC_BENCH, "client"], 1) as client, tempfile.NamedTemporaryFile() as job:
        ours = address(ready)
        sample = client.ask(do="sample", target=ours, file=job.name)
        with running([RPC_BENCH, "echo", job.name]) as echo:
            targets = {"ours": ours, "peer": echo}
            # First: the jobs of the other row would push this one out of the store.
            yield call_row(options, row, client, targets, "get", 2000, job_id=sample["job_id"])
            yield call_row(options, row, client, targets, "submit", 50)


def rate_row(options):
    """128 calls are open at any moment; the echo's rate is what the same client and gRPC allow here."""
    threads = max(1, options.threads // 2)
    request = dict(do="rate", connections=8, streams=16)
    with denoised(options, model_folder("tiny", "float32"), f"--threads={threads}") as ready, \
            Worker("rpc_bench", [RPC_BENCH, "client"], 1) as client, tempfile.NamedTemporaryFile() as job:
        sample = client.ask(do="sample", target=address(ready), file=job.name)
        request["job_id"] = sample["job_id"]
        rates, failed = {"ours": [], "echo": []}, 0
        with running([RPC_BENCH, "echo", job.name]) as echo:
            targets = {"ours": address(ready), "echo": echo}
            for side in targets:
                client.ask(target=targets[side], seconds=0.5, **request)
            for _ in range(options.pairs):
                for side in targets:
                    told = client.ask(target=targets[side], seconds=3.0, **request)
                    rates[side].append(told["answered"] / told["seconds"])
                    failed += told["failed"]
    ours = sorted(rates["ours"])
    return {"row": "C10", "name": "GetJob on 8 connections with 16 calls at once, a second",
            "value": statistics.median(ours), "min": ours[0], "max": ours[-1],
            "echo": statistics.median(rates["echo"]), "server_threads": threads, "error": failed,
            "error_limit": 0}


def measure(options, rows):
    for row in ("C1", "C1d"):
        if row in rows:
            yield from call_rows(options, row)
    if "C10" in rows:
        yield rate_row(options)
    if "A14" in rows:
        yield steps_row(options)
    if "A15" in rows:
        yield shadow_row(options)
