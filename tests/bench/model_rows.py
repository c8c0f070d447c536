"""Rows about what is around the networks: A9 (text encoder), A10 and A10f (a whole job), A12 (start), A13
(loading), E15 and E15m (loading over the size of a model).
"""

import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from inputs import (deep_transformer, dtype_error, level_error, model_folder, our_worker, pairwise, peer_worker,
                    scratch_inputs)
from pairs import OUR_ALLOCATOR, ROOT, alternate, limits, summary, unpinned

ROWS = ("A9", "A10", "A10f", "A12", "A13", "E15", "E15m")
PROMPT_TOKENS, PADDED_TOKENS = 40, 512


@contextlib.contextmanager
def three(options):
    with our_worker(options) as ours, peer_worker(options) as peer, peer_worker(options, stock=True) as stock, \
            scratch_inputs() as inputs:
        yield (ours, peer, stock), inputs


def text_row(options):
    """Width 1024, 8 blocks. Ours encodes the prompt's tokens, the peer the padded ones, as its pipeline does."""
    folder = str(model_folder("mid", "bfloat16") / "model" / "text_encoder")
    vocabulary = json.loads(pathlib.Path(folder, "config.json").read_text(encoding="utf-8"))["vocab_size"]
    with three(options) as (workers, inputs):
        dtype = workers[0].ask(do="auto_dtype")["dtype"]
        request = {"do": "encode_text", "repeat": 1,
                   "ids": inputs.keep("ids", inputs.random.integers(2, vocabulary, (1, PROMPT_TOKENS)))}
        padded = {"padded": PADDED_TOKENS}
        if dtype != "float32":
            workers[1].ask(do="load_text_encoder", folder=folder, dtype="float32")
            workers[1].ask(**request, **padded, out=inputs.out("float32"))
        for worker in workers:
            worker.ask(do="load_text_encoder", folder=folder, dtype=dtype)
        result = pairwise(options, workers, inputs, request, requests=({}, padded, padded))
        return {"row": "A9", "name": f"text encoder, {PROMPT_TOKENS} tokens, {dtype}, peer pads to {PADDED_TOKENS}",
                **result, "unit": "s", "dtype": dtype, **dtype_error(inputs, dtype)}


JOB = {"do": "job", "prompt": "a red circle moving left", "seed": 7, "steps": 20, "guidance": 5.0, "height": 96,
       "width": 128, "frames": 5}


def job_row(options, row, dtype=None):
    """In auto's dtype where none is named. In float32 frames agree to a level of 8 bits; in bfloat16 each side is as
    far from float32 as its rounding takes it.
    """
    repository = str(model_folder("tiny", "float32"))
    with three(options) as (workers, inputs):
        dtype = dtype or workers[0].ask(do="auto_dtype")["dtype"]

        def load(worker, dtype):
            more = {} if worker is workers[0] else {"model": "model"}
            worker.ask(do="load_pipeline", repository=repository, dtype=dtype, **more)

        if dtype != "float32":
            load(workers[1], "float32")
            workers[1].ask(**JOB, out=inputs.out("float32"))
        for worker in workers:
            load(worker, dtype)
        result = pairwise(options, workers, inputs, JOB)
        if dtype == "float32":
            error = {"error": level_error(inputs.out("ours"), inputs.out("peer")), "error_limit": 1}
        else:
            error = dtype_error(inputs, dtype)
        return {"row": row, "name": f"text to video, tiny, {dtype}, 20 steps with guidance", **result, "unit": "s",
                "dtype": dtype, **error}


def float_job_row(options):
    return job_row(options, "A10f", "float32")


def start_row(options):
    """From exec to ready to serve, weights in the page cache on both sides."""
    repository = model_folder("mid", "bfloat16")

    def ours():
        start = time.perf_counter()
        with subprocess.Popen(
                [str(ROOT / "build/bin/denoised"), f"--model_repository={repository}", "--listen=127.0.0.1:0",
                 "--admin_listen=127.0.0.1:0", "--http_listen=127.0.0.1:0", "--state_dir=none",
                 f"--cpu_isa={options.cpu_isa}"],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            line = process.stdout.readline()
            seconds = time.perf_counter() - start
            process.terminate()
        if not line.startswith("READY"):
            raise RuntimeError(f"denoised did not become ready: {line!r}")
        return seconds

    def peer(environment):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", "import sys, torch; from diffusers import WanPipeline; "
             "WanPipeline.from_pretrained(sys.argv[1], dtype=torch.bfloat16)",
             str(repository / "model")], check=True, stderr=subprocess.DEVNULL, env=environment)
        return time.perf_counter() - start

    stock = {**unpinned(), **limits(options.cpu_isa)}
    sides = [ours, lambda: peer({**stock, **OUR_ALLOCATOR}), lambda: peer(stock)]
    return {"row": "A12", "name": "start to ready, mid weights", **summary(alternate(sides, options.pairs)),
            "unit": "s"}


def load_row(options):
    """Ours ends with weights packed for the kernels, in the dtype that they will be multiplied in; the peer
    with plain tensors as they lie in the file. Both begin with fresh memory, as at a start. The digests of ours are
    known, as to a server that was here before; `first` is what they take in addition, seconds, when they are not, and
    `floor` what it takes to bring the files' bytes to fresh memory and nothing else.
    """
    folder = model_folder("mid", "bfloat16") / "model" / "transformer"
    files = [str(file) for file in sorted(folder.glob("*.safetensors"))]
    with three(options) as (workers, _), tempfile.TemporaryDirectory() as state:
        request = {"do": "load_transformer", "folder": str(folder),
                   "dtype": workers[0].ask(do="auto_dtype")["dtype"]}

        def theirs(worker):
            return lambda: worker.ask(do="load_file", files=files)["seconds"]

        workers[0].ask(**request)
        hashed = statistics.median(workers[0].ask(**request)["seconds"] for _ in range(3))
        request["digests"] = f"{state}/digests"
        workers[0].ask(**request)
        if not os.path.exists(request["digests"]):
            raise RuntimeError("the files are too new for their digests to be remembered")
        sides = [lambda: workers[0].ask(**request)["seconds"], theirs(workers[1]), theirs(workers[2])]
        result = summary(alternate(sides, options.pairs))
        floor = [workers[0].ask(do="read_files", files=files)["seconds"] for _ in range(options.pairs)]
        size = sum(os.path.getsize(file) for file in files)
        dtype = request["dtype"]
        return {"row": "A13", "name": f"loading bfloat16 weights, packed for {dtype}, against load_file and clone",
                **result, "unit": "s", "dtype": dtype, "first": hashed - result["ours"],
                "floor": statistics.median(floor),
                "ours_gb_s": size / result["ours"] / 1e9, "peer_gb_s": size / result["peer"] / 1e9}


def size_rows(options, rows):
    """One block and 43 of mid's width, 0.1 and 4 GB, in bfloat16, packed for the kernels; files in the page cache,
    their digests known. A process for each size, for their peaks; times in turns. Memory is the process' own, without
    the file's pages.
    """
    folders = {layers: deep_transformer(layers) for layers in (1, 43)}
    sizes = {layers: sum(file.stat().st_size for file in folder.glob("*.safetensors"))
             for layers, folder in folders.items()}
    answers = {layers: [] for layers in folders}
    with (our_worker(options) as small, our_worker(options, "large") as large,
          tempfile.TemporaryDirectory() as state):
        for pair in range(options.pairs + 1):  # the first one brings the files to memory, and shows the peak
            for layers, worker in ((1, small), (43, large)):
                told = worker.ask(do="load_transformer", folder=str(folders[layers]), dtype="bfloat16",
                                  digests=f"{state}/{layers}")
                answers[layers].append(told)
    seconds = {layers: statistics.median(told["seconds"] for told in some[1:]) * 1e9 / sizes[layers]
               for layers, some in answers.items()}
    over = {layers: (some[0]["peak_bytes"] - sizes[layers]) / 2**20 for layers, some in answers.items()}
    names = {layers: f"{sizes[layers] / 1e9:.1f} GB" for layers in sizes}
    if "E15" in rows:
        yield {"row": "E15", "name": f"loading a GB of {names[43]} over one of {names[1]}, less 1",
               "value": seconds[43] / seconds[1] - 1, "seconds_a_gb": {names[n]: s for n, s in seconds.items()}}
    if "E15m" in rows:
        yield {"row": "E15m", "name": f"peak memory of loading {names[43]} over the file, MiB", "value": over[43],
               "over_mib": {names[n]: mib for n, mib in over.items()}}


def measure(options, rows):
    if "A10" in rows:
        yield job_row(options, "A10")
    for row, function in (("A9", text_row), ("A10f", float_job_row), ("A12", start_row), ("A13", load_row)):
        if row in rows:
            yield function(options)
    if {"E15", "E15m"} & set(rows):
        yield from size_rows(options, rows)
