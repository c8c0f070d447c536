"""Rows of the engine with a real model: B6 and B6u, what it costs to let somebody pass; B11, decoding beside
denoising; E13 and E13m, cost and memory over steps.
"""

import statistics

from inputs import model_folder
from pairs import ROOT, Worker

ROWS = ("B6", "B6u", "B11", "E13", "E13m")
SMALL = dict(height=256, width=416, frames=9)  # 1,248 tokens
SHORT = dict(height=128, width=208, frames=9)  # 312 tokens


def serving(options, preset):
    """An engine with the preset in the dtype of a server here."""
    worker = Worker("serving", [str(ROOT / "build/bin/serving_bench"), f"--cpu_isa={options.cpu_isa}"],
                    options.threads)
    worker.ask(do="load", repository=str(model_folder(preset, "bfloat16")), dtype="auto", threads=options.threads)
    return worker


def gaps_of(forwards):
    return [later["end"] - later["seconds"] - sooner["end"] for sooner, later in zip(forwards, forwards[1:])]


def preemption_rows(options, rows):
    """A job whose device a session's step of nearly its size takes after every fourth step, and gives back. Both have
    begun, so nothing is made or ended. Of each time that it does: what stands between the job's forward, the session's
    and the job's next, less what stands between two forwards of the job and between two of the session where neither
    passes (B6u), and how much longer the job's next one takes. That the session's client is answered counts as well.
    """
    session = dict(every=4, height=256, width=400, frames=9, steps=50)
    with serving(options, "small") as worker:
        worker.ask(do="run", jobs=[dict(steps=4, **SMALL)])
        told = [worker.ask(do="run", jobs=[dict(steps=50, **SMALL)], session=session) for _ in range(options.pairs)]
    alone, between, plain, after, own = [], [], [], [], []
    for forwards in (one["forwards"] for one in told):
        size = max(forward["tokens"] for forward in forwards)
        gaps = gaps_of(forwards)
        ours = [forward["tokens"] == size for forward in forwards]
        for i in range(2, len(forwards)):
            if ours[i - 2] and not ours[i - 1] and ours[i]:
                between.append(gaps[i - 2] + gaps[i - 1])
                after.append(forwards[i]["seconds"])
            elif ours[i - 1] and ours[i]:
                alone.append(gaps[i - 1])
                plain.append(forwards[i]["seconds"])
    for one in told:
        own += gaps_of(one["session_forwards"])
    if len(between) < 5:
        raise RuntimeError(f"B6: {len(between)} steps of a session came between the job's")
    step = statistics.median(plain) + statistics.median(alone)
    switch = statistics.median(between) - statistics.median(alone) - statistics.median(own)
    slower = statistics.median(after) - statistics.median(plain)
    shared = {"switches": len(between), "step_seconds": step, "switch_seconds": switch, "next_step_slower": slower,
              "between": {"both": statistics.median(between), "job": statistics.median(alone),
                          "session": statistics.median(own)}}
    if "B6" in rows:
        yield {"row": "B6", "name": "a step let pass and gone on from, small: share of a step",
               "value": (switch + slower) / step, **shared}
    if "B6u" in rows:
        yield {"row": "B6u", "name": "the same without what its next step takes longer, us", "value": switch * 1e6,
               **shared}


def overlap_row(options):
    """One job that only denoises and one that hardly does but decodes: alone each, and both at once. With every thread
    of the machine in either there is nothing to hide behind; where stages have devices of their own there is.
    """
    denoises, decodes = dict(steps=8, **SMALL), dict(steps=1, decode=True, height=256, width=256, frames=9)
    hidden, seconds = [], []
    with serving(options, "small") as worker:
        def run(*jobs):
            return worker.ask(do="run", jobs=jobs)["seconds"]

        run(denoises, decodes)
        for _ in range(options.pairs):
            seconds.append((run(denoises), run(decodes), run(denoises, decodes)))
    for one, other, both in seconds:
        hidden.append((one + other - both) / min(one, other))
    denoise, decode, both = (statistics.median(some) for some in zip(*seconds))
    return {"row": "B11", "name": "share of the shorter stage that two jobs at once hide, small",
            "value": statistics.median(hidden), "min": min(hidden), "max": max(hidden), "denoise_seconds": denoise,
            "decode_seconds": decode, "both_seconds": both}


def steps_rows(options, rows):
    """Jobs of 4 steps and of 100 in turns, nearly as many steps of each; a step is from end to end of forwards.
    Half of the short ones come before the long one and half after it, so that a machine that gets slower or faster
    meanwhile does so for both, and each turn is a ratio of its own.
    """
    few, many = 4, 100
    half = many // few // 2
    ratios, paces, allocated = [], {few: [], many: []}, {few: [], many: []}
    with serving(options, "small") as worker:
        def run(steps):
            told = worker.ask(do="run", jobs=[dict(steps=steps, **SHORT)])
            ends = [forward["end"] for forward in told["forwards"]]
            allocated[steps].append(told["allocated_bytes"])
            return [later - sooner for sooner, later in zip(ends, ends[1:])]

        run(few)
        run(many)
        for _ in range(2 * options.pairs):
            pace = {few: [], many: []}
            for steps in [few] * half + [many] + [few] * half:
                pace[steps] += run(steps)
            for steps, some in pace.items():
                paces[steps].append(statistics.median(some))
            ratios.append(paces[many][-1] / paces[few][-1])
    if "E13" in rows:
        yield {"row": "E13", "name": f"a step of {many} against one of {few}, small: difference, share",
               "value": abs(statistics.median(ratios) - 1), "differences": [ratio - 1 for ratio in ratios],
               "step_seconds": {steps: statistics.median(some) for steps, some in paces.items()}}
    if "E13m" in rows:
        most = {steps: statistics.median(some) for steps, some in allocated.items()}
        yield {"row": "E13m", "name": f"allocated at a forward's end, {many} steps over {few}, small, MiB",
               "value": (most[many] - most[few]) / 2**20, "bytes": most}


def measure(options, rows):
    if {"B6", "B6u"} & set(rows):
        yield from preemption_rows(options, rows)
    if "B11" in rows:
        yield overlap_row(options)
    if {"E13", "E13m"} & set(rows):
        yield from steps_rows(options, rows)
