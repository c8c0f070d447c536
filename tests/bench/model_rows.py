"""Rows about models in one process: A1 A3 (transformer), A7 (decoder), A10 (a whole job), A12 (start).

Peer: diffusers, eager (peer/wan_peer.py). Ours: model_bench. Same weight files, same inputs, same
thread count; folders of random weights are made once and kept in the shared cache.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy

from pairs import ROOT, Worker, alternate, summary

ROWS = ("A1", "A3", "A7", "A10", "A12")
CACHE = pathlib.Path(os.environ.get("DENOISED_CACHE", pathlib.Path.home() / ".cache/denoised"))
MODELS = CACHE / "bench-models-2"  # the number changes with tools/random_model.py

# Latents of a forward: frames, height, width. Patches are 1 x 2 x 2.
LATENTS = {"tiny": (2, 12, 16), "mid": (1, 60, 104)}
TEXT = {"tiny": (64, 256), "mid": (512, 1024)}  # tokens, width


def model_folder(preset, dtype, vae="small"):
    """A repository of one model; made under another name, so that half a one is never taken."""
    repository = MODELS / f"{preset}-{dtype}-{vae}"
    if not repository.exists():
        partial = repository.with_suffix(".partial")
        subprocess.run([sys.executable, str(ROOT / "tools/random_model.py"), "--preset", preset, "--dtype",
                        dtype, "--vae", vae, str(partial / "model")], check=True, stdout=sys.stderr)
        partial.rename(repository)
    return repository


class Inputs:
    """Seeded normal numbers as files of raw float32."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.random = numpy.random.default_rng(7)

    def normal(self, name, shape):
        path = self.folder / f"{name}.bin"
        self.random.standard_normal(shape, dtype=numpy.float32).tofile(path)
        return {"file": str(path), "shape": list(shape)}

    def out(self, name):
        return str(self.folder / f"{name}.out")


def relative_error(ours, peer):
    mine, theirs = (numpy.fromfile(path, dtype=numpy.float32).astype(numpy.float64) for path in (ours, peer))
    if mine.shape != theirs.shape:
        raise RuntimeError(f"outputs differ in size: {mine.size} and {theirs.size}")
    return float(numpy.linalg.norm(mine - theirs) / numpy.linalg.norm(theirs))


def level_error(ours, peer):
    """Largest difference of two videos in 0..1, in levels of 8 bits."""
    mine, theirs = (numpy.fromfile(path, dtype=numpy.float32) for path in (ours, peer))
    if mine.shape != theirs.shape:
        raise RuntimeError(f"videos differ in size: {mine.size} and {theirs.size}")
    return float(abs(mine - theirs).max() * 255)


def pairwise(options, workers, inputs, request, pairs=None):
    """Samples of one request that both workers understand."""
    def run(index, side):
        return workers[index].ask(**request, out=inputs.out(side))["seconds"]
    return summary(alternate(lambda: run(0, "ours"), lambda: run(1, "peer"), pairs or options.pairs))


def against_float32(inputs):
    """Errors of both bfloat16 outputs to the peer's float32 one. Ours may be a tenth larger than the
    peer's own, or 1e-2, where that is more.
    """
    ours, peer = (relative_error(inputs.out(side), inputs.out("float32")) for side in ("ours", "peer"))
    return {"error": ours, "peer_error": peer, "error_limit": max(1e-2, 1.1 * peer)}


def forward_row(options, workers, inputs, row, preset, repeat, pass_mark, aim):
    folder = str(model_folder(preset, "bfloat16") / "model" / "transformer")
    for worker in workers:
        worker.ask(do="load_transformer", folder=folder, dtype="bfloat16")
    request = {"do": "transformer_forward", "timestep": 500, "repeat": repeat,
               "latents": inputs.normal("latents", (1, 16, *LATENTS[preset])),
               "context": inputs.normal("context", (1, *TEXT[preset]))}
    result = pairwise(options, workers, inputs, request)
    workers[1].ask(do="load_transformer", folder=folder, dtype="float32")
    workers[1].ask(**{**request, "repeat": 1}, out=inputs.out("float32"))
    return {"row": row, "name": f"DiT forward, {preset}, bf16, text embedding included", **result,
            "unit": "s", **against_float32(inputs), "pass_mark": pass_mark, "aim": aim}


def decode_rows(options, workers, inputs):
    folder = str(model_folder("tiny", "float32", "full") / "model" / "vae")
    ours, peer = workers
    ours.ask(do="load_vae", folder=folder, dtype="bfloat16")
    for frames in (2, 5):
        request = {"do": "vae_decode", "repeat": 1,
                   "latents": inputs.normal("latents", (1, 16, frames, 15, 26))}
        peer.ask(do="load_vae", folder=folder, dtype="float32", channels_last=True)
        peer.ask(**request, out=inputs.out("float32"))
        for channels_last in (False, True):
            peer.ask(do="load_vae", folder=folder, dtype="bfloat16", channels_last=channels_last)
            result = pairwise(options, workers, inputs, request)
            kind = "channels-last weights" if channels_last else "as shipped"
            yield {"row": "A7", "name": f"VAE decode, latent {frames}x15x26, bf16, peer {kind}", **result,
                   "unit": "s", **against_float32(inputs),
                   "pass_mark": None if channels_last else 1.0, "aim": None if channels_last else 2.2}


def job_row(options, workers, inputs):
    repository = str(model_folder("tiny", "float32"))
    workers[0].ask(do="load_pipeline", repository=repository, dtype="float32")
    workers[1].ask(do="load_pipeline", repository=repository, model="model", dtype="float32")
    request = {"do": "job", "prompt": "a red circle moving left", "seed": 7, "steps": 20, "guidance": 5.0,
               "height": 96, "width": 128, "frames": 5}
    result = pairwise(options, workers, inputs, request)
    return {"row": "A10", "name": "text to video, tiny, float32, 20 steps with guidance", **result, "unit": "s",
            "error": level_error(inputs.out("ours"), inputs.out("peer")), "error_limit": 1,
            "pass_mark": 1.0, "aim": 3.0}


def start_row(options):
    """From exec to ready to serve, weights in the page cache on both sides."""
    repository = model_folder("mid", "bfloat16")

    def ours():
        start = time.perf_counter()
        with subprocess.Popen(
                [str(ROOT / "build/bin/denoised"), f"--model_repository={repository}", "--listen=127.0.0.1:0",
                 "--admin_listen=127.0.0.1:0", "--http_listen=127.0.0.1:0", "--dtype=bfloat16"],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            line = process.stdout.readline()
            seconds = time.perf_counter() - start
            process.terminate()
        if not line.startswith("READY"):
            raise RuntimeError(f"denoised did not become ready: {line!r}")
        return seconds

    def peer():
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", "import sys, torch; from diffusers import WanPipeline; "
             "WanPipeline.from_pretrained(sys.argv[1], dtype=torch.bfloat16)",
             str(repository / "model")], check=True, stderr=subprocess.DEVNULL)
        return time.perf_counter() - start

    return {"row": "A12", "name": "start to ready, mid weights", **summary(alternate(ours, peer, options.pairs)),
            "unit": "s", "pass_mark": None, "aim": 12.0}


def in_process_rows(options, rows):
    commands = ([str(ROOT / "build/bin/model_bench")],
                [sys.executable, str(ROOT / "tests/bench/peer/wan_peer.py")])
    with Worker("ours", commands[0], options.threads) as ours, \
            Worker("peer", commands[1], options.threads) as peer, \
            tempfile.TemporaryDirectory() as folder:
        workers, inputs = (ours, peer), Inputs(folder)
        for worker in workers:
            worker.ask(do="threads", count=options.threads)
        if "A1" in rows:
            yield forward_row(options, workers, inputs, "A1", "mid", 1, 1.0, 3.0)
        if "A3" in rows:
            yield forward_row(options, workers, inputs, "A3", "tiny", 20, None, 8.0)
        if "A7" in rows:
            yield from decode_rows(options, workers, inputs)
        if "A10" in rows:
            yield job_row(options, workers, inputs)


def measure(options, rows):
    if set(rows) - {"A12"}:
        yield from in_process_rows(options, rows)
    if "A12" in rows:
        yield start_row(options)
