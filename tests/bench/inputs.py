"""Folders of random weights, inputs and errors of the rows about models. Folders are made once and kept in
the shared cache; tensors travel as files of raw float32.
"""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy
from safetensors.torch import load_file, save_file

from pairs import OUR_ALLOCATOR, ROOT, Worker, alternate, levels, limits, summary

CACHE = pathlib.Path(os.environ.get("DENOISED_CACHE", pathlib.Path.home() / ".cache/denoised"))
MODELS = CACHE / "bench-models-2"  # the number changes with tools/random_model.py
OURS = [str(ROOT / "build/bin/model_bench")]
PEER = [sys.executable, str(ROOT / "tests/bench/peer/wan_peer.py")]


def model_folder(preset, dtype, vae="small"):
    """A repository of one model; made under another name, so that half a one is never taken."""
    repository = MODELS / f"{preset}-{dtype}-{vae}"
    if not repository.exists():
        partial = repository.with_suffix(".partial")
        subprocess.run([sys.executable, str(ROOT / "tools/random_model.py"), "--preset", preset, "--dtype",
                        dtype, "--vae", vae, str(partial / "model")], check=True, stdout=sys.stderr)
        partial.rename(repository)
    return repository


def deep_transformer(layers):
    """A transformer of mid's width with so many blocks, 93 MB each in bfloat16: mid's own in turns."""
    folder = MODELS / f"mid-bfloat16-{layers}-layers"
    if folder.exists():
        return folder
    mid = model_folder("mid", "bfloat16") / "model/transformer"
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    config = json.loads((mid / "config.json").read_text(encoding="utf-8"))
    own = config["num_layers"]
    (partial / "config.json").write_text(json.dumps({**config, "num_layers": layers}), encoding="utf-8")
    tensors = {name: tensor for file in sorted(mid.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    parts = {"rest": {name: tensor for name, tensor in tensors.items() if not name.startswith("blocks.")}}
    for layer in range(layers):
        source = f"blocks.{layer % own}."
        parts[f"block-{layer:05}"] = {name.replace(source, f"blocks.{layer}.", 1): tensor
                                      for name, tensor in tensors.items() if name.startswith(source)}
    places = {}
    for part, some in parts.items():
        file = f"diffusion_pytorch_model-{part}.safetensors"
        save_file(some, partial / file)
        places.update({name: file for name in some})
    (partial / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")
    partial.rename(folder)
    return folder


class Inputs:
    """Seeded numbers as files of raw float32."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.random = numpy.random.default_rng(7)

    def keep(self, name, array):
        path = self.folder / f"{name}.bin"
        array.astype(numpy.float32).tofile(path)
        return {"file": str(path), "shape": list(array.shape)}

    def normal(self, name, shape):
        return self.keep(name, self.random.standard_normal(shape, dtype=numpy.float32))

    def out(self, name):
        return str(self.folder / f"{name}.out")


@contextlib.contextmanager
def scratch_inputs():
    with tempfile.TemporaryDirectory() as folder:
        yield Inputs(folder)


def our_worker(options, name="ours", command=None):
    return ready(Worker(name, [*(command or OURS), f"--cpu_isa={options.cpu_isa}"], options.threads), options)


@functools.cache
def fastest_level():
    """What --cpu_isa=auto pins here; the highest where only the CUDA build exists, whose rows ask for none."""
    if not os.path.exists(OURS[0]):
        return levels()[-1]
    with Worker("level", [*OURS, "--cpu_isa=auto"], 1) as ours:
        return ours.ask(do="level")["level"]


def peer_worker(options, stock=False):
    """diffusers at our level, with our allocator's settings unless `stock`."""
    name = "stock-peer" if stock else "peer"
    environment = {**limits(options.cpu_isa), **({} if stock else OUR_ALLOCATOR)}
    return ready(Worker(name, PEER, options.threads, environment), options)


def ready(worker, options):
    worker.ask(do="threads", count=options.threads)
    return worker


def errors(ours, peer):
    mine, theirs = (numpy.fromfile(path, dtype=numpy.float32).astype(numpy.float64) for path in (ours, peer))
    if mine.shape != theirs.shape:
        raise RuntimeError(f"outputs differ in size: {mine.size} and {theirs.size}")
    return mine - theirs, theirs


def relative_error(ours, peer):
    difference, theirs = errors(ours, peer)
    return float(numpy.linalg.norm(difference) / numpy.linalg.norm(theirs))


def level_error(ours, peer):
    """Largest difference of two videos in 0..1, in levels of 8 bits."""
    return float(abs(errors(ours, peer)[0]).max() * 255)


def psnr(ours, peer, top):
    return float(10 * numpy.log10(top**2 / numpy.mean(errors(ours, peer)[0]**2)))


def pairwise(options, workers, inputs, request, pairs=None, requests=None, roofline=None):
    """Summary of one request that all workers understand; `requests` adds to it by worker. Outputs are
    inputs.out("ours"), ("peer") and ("stock"). `roofline`: what the request would take at the best rate of a
    product, asked after each pair.
    """
    names = ("ours", "peer", "stock")[:len(workers)]
    rooflines = []

    def side(index):
        more = requests[index] if requests else {}
        return lambda: workers[index].ask(**request, **more, out=inputs.out(names[index]))["seconds"]

    def after():
        if roofline:
            rooflines.append(roofline())
    samples = alternate([side(i) for i in range(len(workers))], pairs or options.pairs, after=after)
    return summary(samples, rooflines)


def dtype_error(inputs, dtype):
    """In float32: our output against the peer's. In bfloat16: both against the peer's float32 one
    (inputs.out("float32")); ours may be a tenth larger than the peer's own, or 1e-2, where that is more.
    """
    if dtype == "float32":
        return {"error": relative_error(inputs.out("ours"), inputs.out("peer")), "error_limit": 1e-4}
    ours, peer = (relative_error(inputs.out(side), inputs.out("float32")) for side in ("ours", "peer"))
    return {"error": ours, "peer_error": peer, "error_limit": max(1e-2, 1.1 * peer)}
