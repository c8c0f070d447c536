"""Rows about what a server costs as it is asked for more: E6, memory of jobs that wait; E7 and E7m, streams that are
open and hear of nothing: what a submit takes beside them, and their memory.
"""

import re
import statistics

from inputs import model_folder
from pairs import Worker
from server_rows import RPC_BENCH, address, denoised

ROWS = ("E6", "E7", "E7m")
STREAMS, STREAMS_EACH = 4096, 64  # in all, and on one connection


def resident_kib(ready):
    """Of the server's process."""
    with open(f"/proc/{ready.pid}/status", encoding="utf-8") as status:
        return int(re.search(r"VmRSS:\s+(\d+) kB", status.read())[1])


def waiting_row(options):
    """One long job has the only place to run, so that the others wait; their prompts are no cost of the queue's, and
    neither is what the long one takes in its first steps.
    """
    first, count, prompt = 1000, 5000, 200
    job = dict(height=32, width=32, frames=1, steps=20)
    with denoised(options, model_folder("tiny", "float32"), "--threads=1", "--max_queued_jobs=100000",
                  "--max_running_jobs=1") as ready, Worker("rpc_bench", [RPC_BENCH, "client"], 1) as client:
        target = address(ready)
        client.ask(do="begin", target=target, height=256, width=416, frames=33, steps=1000, steps_done=8)
        kib = []
        for jobs in (first, count):
            client.ask(do="fill", target=target, count=jobs, prompt_bytes=prompt, clients=64, **job)
            kib.append(resident_kib(ready))
    return {"row": "E6", "name": f"memory of a job that waits, KiB, over its prompt: job {first} to {first + count}",
            "value": (kib[1] - kib[0]) / count - prompt / 1024, "resident_kib": kib, "prompt_bytes": prompt}


def streams_rows(options, rows):
    """All watch a job that is put aside. Submits are timed as in C1: of the smallest job, to an idle server; with one
    stream and with all in turns. Nothing is kept on disk, whose patience varies more than that.
    """
    counts, p99, kib = (1, STREAMS), {1: [], STREAMS: []}, {}
    with denoised(options, model_folder("tiny", "float32"), f"--threads={options.threads}", durable=False) as ready, \
            Worker("rpc_bench", [RPC_BENCH, "client"], 1) as client, \
            Worker("rpc_streams", [RPC_BENCH, "client"], 1) as watchers:
        target = address(ready)
        job = client.ask(do="hold", target=target, height=96, width=128, frames=5, steps=1000)["job_id"]
        client.ask(do="submit", target=target, calls=200)
        for pair in range(options.pairs):
            for streams in counts[::-1] if pair % 2 else counts:
                watchers.ask(do="open", target=target, job_id=job, streams=streams, streams_each=STREAMS_EACH)
                kib.setdefault(streams, resident_kib(ready))
                p99[streams].append(client.ask(do="submit", target=target, calls=300)["p99"])
    ratios = sorted(many / one for one, many in zip(p99[1], p99[STREAMS]))
    if "E7" in rows:
        yield {"row": "E7", "name": f"p99 of a submit beside {STREAMS:,} idle streams over that beside one",
               "value": statistics.median(ratios), "min": ratios[0], "max": ratios[-1],
               "p99": {streams: statistics.median(some) for streams, some in p99.items()}}
    if "E7m" in rows:
        yield {"row": "E7m", "name": f"memory of an idle stream, KiB, {STREAMS:,} on {STREAMS // STREAMS_EACH} "
               "connections", "value": (kib[STREAMS] - kib[1]) / (STREAMS - 1), "resident_kib": kib}


def measure(options, rows):
    if "E6" in rows:
        yield waiting_row(options)
    if {"E7", "E7m"} & set(rows):
        yield from streams_rows(options, rows)
