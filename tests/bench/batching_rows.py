"""Rows of the whole server under many clients: B8 and B8b, what sharing forwards gives against one job after
the other; B16s, ten times the load that it can bear; B18, a thousand watchers.
"""

import json
import time

from inputs import model_folder
from pairs import Worker, alternate, summary
from server_rows import RPC_BENCH, address, denoised, metric
from transformer_rows import seconds_of_forward

ROWS = ("B8", "B8b", "B16s", "B18")
# 96 tokens, the tiny preset's own size.
SIZE = dict(height=96, width=128, frames=5)
TOKENS = 20  # of a text, about
JOBS = dict(do="jobs", count=8, steps=20, guidance=5.0, latents=True, **SIZE)


def take_turns(options, request, *flags, build="build"):
    """A server that shares forwards and one that does not both live and take turns; what they answer must be the
    same. About computing, so neither keeps anything on disk, which would cost both alike.
    """
    repository = model_folder("tiny", "float32")
    digests = set()
    with denoised(options, repository, *flags, build=build, durable=False) as ours, \
            denoised(options, repository, *flags, "--batching=off", "--policy=fifo", build=build,
                     durable=False) as peer, \
            Worker("rpc_bench", [RPC_BENCH, "client"], 1) as client:
        def run(ready):
            answer = client.ask(target=address(ready), **request)
            digests.add(answer["digest"])
            return answer["seconds"]

        result = summary(alternate([lambda: run(ours), lambda: run(peer)], options.pairs, warm_ups=3))
    return {**result, "unit": "s", "error": len(digests) - 1, "error_limit": 0}


def on_cpu(options, request, row, name, forwards, rows, passes):
    """`bound` is what all the rows take in so many forwards of so many rows each, without a server: the most that
    sharing them can give.
    """
    result = take_turns(options, request, "--device=cpu", f"--threads={options.threads}")
    bound = forwards * seconds_of_forward(options, "tiny", rows, TOKENS, passes)
    result.update(bound=bound, bound_ratio=round(result["peer"] / bound, 4))
    return {"row": row, "name": name, **result}


def jobs_row(options):
    return on_cpu(options, JOBS, "B8", "8 jobs of 20 steps at once, tiny, against --batching=off --policy=fifo",
                  forwards=20, rows=16, passes=2)


def calls_row(options):
    config = json.loads((model_folder("tiny", "float32") / "model/transformer/config.json").read_text())
    request = dict(do="calls", count=8, calls=20, shape=[1, config["in_channels"], 2, 12, 16],
                   text=[1, TOKENS, config["text_dim"]])
    return on_cpu(options, request, "B8b",
                  "8 clients with 20 Denoise calls each, tiny, against --batching=off --policy=fifo",
                  forwards=20, rows=8, passes=1)


def overload_row(options):
    """A minute of the flood, and half a minute with 32 jobs to choose from and nobody else before and after it."""
    threads = max(1, options.threads // 2)
    with denoised(options, model_folder("tiny", "float32"), f"--threads={threads}") as ready, \
            Worker("rpc_bench", [RPC_BENCH, "client"], 1) as client:
        target, http = address(ready), address(ready, "http")

        def rate(**request):
            while metric(http, "denoised_queue_depth") > 0:  # what a flood has left
                time.sleep(0.05)
            begin, start = metric(http, "denoised_jobs_total", 'outcome="SUCCEEDED"'), time.monotonic()
            told = client.ask(target=target, **request)
            done = metric(http, "denoised_jobs_total", 'outcome="SUCCEEDED"') - begin
            return done / (time.monotonic() - start), told

        job = dict(steps=8, **SIZE)
        rate(do="keep", outstanding=32, seconds=5, **job)
        before, _ = rate(do="keep", outstanding=32, seconds=30, **job)
        under, told = rate(do="flood", clients=8, rate=10 * before, seconds=60, **job)
        after, _ = rate(do="keep", outstanding=32, seconds=30, **job)
    offered = told["sent"] / told["seconds"] / before
    return {"row": "B16s", "name": "jobs a second in a minute of ten times the load, share of the uncontended rate",
            "value": under / ((before + after) / 2), "uncontended": [before, after], "offered": offered,
            "error": int(offered < 9), "error_limit": 0, "server_threads": threads,
            "refused_p99": told["refused_p99"]}


def watchers_row(options):
    threads = max(1, options.threads // 2)
    with denoised(options, model_folder("tiny", "float32"), f"--threads={threads}") as ready, \
            Worker("rpc_bench", [RPC_BENCH, "client"], 1) as client:
        told = client.ask(do="watchers", target=address(ready), jobs=10, watchers=1000, connections=10,
                          seconds=60, height=128, width=208, frames=9, steps=40, latents=True)
    return {"row": "B18", "name": "1,000 watchers of 10 jobs on 10 connections: p99 of an event's lag, s",
            "value": max(told["p99"], told["end_p99"]), "p50": told["p50"], "end_p99": told["end_p99"],
            "events_a_second": told["events"] / told["seconds"], "server_threads": threads,
            "error": told["lost_ends"], "error_limit": 0}


def measure(options, rows):
    for row, one in zip(ROWS, (jobs_row, calls_row, overload_row, watchers_row)):
        if row in rows:
            yield one(options)
