"""Rows about the server: C1, unary calls on an idle server against a bare echo of the same messages."""

import contextlib
import subprocess
import tempfile

from model_rows import model_folder
from pairs import ROOT, Worker, alternate, summary

ROWS = ("C1",)
RPC_BENCH = str(ROOT / "build/bin/rpc_bench")


@contextlib.contextmanager
def running(command, **options):
    """A server process and the line it prints when it is ready; ended with the block."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
            process.wait(timeout=60)


def denoised():
    command = [str(ROOT / "build/bin/denoised"), f"--model_repository={model_folder('tiny', 'float32')}",
               "--listen=127.0.0.1:0", "--admin_listen=127.0.0.1:0", "--http_listen=127.0.0.1:0"]
    return running(command, stderr=subprocess.DEVNULL)


def address(ready):
    words = dict(word.split("=", 1) for word in ready.split() if "=" in word)
    if "grpc" not in words:
        raise RuntimeError(f"denoised did not become ready: {ready!r}")
    return words["grpc"]


def call_row(options, client, targets, call, calls, **arguments):
    quantiles = {side: [] for side in targets}

    def run(side):
        answer = client.ask(do=call, target=targets[side], calls=calls, **arguments)
        quantiles[side].append(answer["p99"])
        return answer["p50"]

    result = summary(alternate(lambda: run("ours"), lambda: run("peer"), options.pairs))
    return {"row": "C1", "name": f"{call} of a job on an idle server, p50, against a bare gRPC echo", **result,
            "unit": "s", "calls": calls, "ours_p99": sorted(quantiles["ours"])[options.pairs // 2],
            "peer_p99": sorted(quantiles["peer"])[options.pairs // 2], "pass_mark": round(1 / 1.3, 3),
            "aim": round(1 / 1.1, 3)}


def measure(options, rows):
    del rows
    with denoised() as ready, Worker("rpc_bench", [RPC_BENCH, "client"], 1) as client, \
            tempfile.NamedTemporaryFile() as job:
        ours = address(ready)
        sample = client.ask(do="sample", target=ours, file=job.name)
        with running([RPC_BENCH, "echo", job.name]) as echo:
            targets = {"ours": ours, "peer": echo}
            # First: the jobs of the other row would push this one out of the store.
            yield call_row(options, client, targets, "get", 2000, job_id=sample["job_id"])
            yield call_row(options, client, targets, "submit", 50)
