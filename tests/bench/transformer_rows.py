"""Rows about a transformer's forward: A1 A2 A3 against diffusers, A1i and A3b against ourselves, A11.

Ours runs in the dtype that --dtype=auto takes here, and so does the peer: never in an emulated one.
"""

import statistics

from inputs import (dtype_error, model_folder, our_worker, pairwise, peer_worker, psnr, relative_error,
                    scratch_inputs)
from pairs import ROOT, alternate, summary

ROWS = ("A1", "A2", "A3", "A1i", "A3b", "A11", "B8f", "B9", "B10", "H3")

# Latents of a forward: frames, height, width. Patches are 1 x 2 x 2.
LATENTS = {"tiny": (2, 12, 16), "mid": (1, 60, 104), "shipped": (5, 16, 16)}
CHANNELS = {"tiny": 16, "mid": 16, "shipped": 8}
TEXT = {"tiny": (64, 256), "mid": (512, 1024), "shipped": (16, 128)}  # tokens, width
SIZES = {"mid": {"width": 1536, "layers": 6, "ffn": 8960}, "shipped": {"width": 192, "layers": 6, "ffn": 768}}


def folder_of(preset):
    if preset == "shipped":
        return str(ROOT / "model_repository/shapes/transformer")
    return str(model_folder(preset, "bfloat16") / "model" / "transformer")


def forward_request(inputs, preset, repeat, text=None):
    return {"do": "transformer_forward", "timestep": 500, "repeat": repeat,
            "latents": inputs.normal("latents", (1, CHANNELS[preset], *LATENTS[preset])),
            "context": inputs.normal("context", (1, *(text or TEXT[preset])))}


def roofline_seconds(worker, dtype, preset="mid"):
    """A forward at the best rate of a product at the moment: linear layers, and attention at the same rate."""
    width, layers, ffn = (SIZES[preset][name] for name in ("width", "layers", "ffn"))
    frames, height, tall = LATENTS[preset]
    tokens, text = frames * height * tall // 4, TEXT[preset][0]
    linear = layers * (tokens * (6 * width**2 + 2 * width * ffn) + 2 * text * width**2)
    attention = 2 * layers * width * tokens * (tokens + text)
    rate = max(worker.ask(do="gemm_rate", m=tokens, k=k, n=n, dtype=dtype)["rate"]
               for k, n in ((width, width), (width, ffn), (ffn, width)))
    return (linear + attention) / rate


def load(workers, folder, dtype, **more):
    for worker in workers:
        worker.ask(do="load_transformer", folder=folder, dtype=dtype, **more)


def diffusers_rows(options, rows):
    with our_worker(options) as ours, peer_worker(options) as peer, \
            peer_worker(options, stock=True) as stock, scratch_inputs() as inputs:
        workers = (ours, peer, stock)
        dtype = ours.ask(do="auto_dtype")["dtype"]
        for row, preset, repeat in (("A1", "mid", 1), ("A3", "tiny", 20)):
            if row not in rows:
                continue
            load(workers, folder_of(preset), dtype)
            request = forward_request(inputs, preset, repeat)
            roofline = (lambda: roofline_seconds(ours, dtype)) if row == "A1" else None
            result = pairwise(options, workers, inputs, request, roofline=roofline)
            if dtype != "float32":
                load((peer,), folder_of(preset), "float32")
                peer.ask(**{**request, "repeat": 1}, out=inputs.out("float32"))
            yield {"row": row, "name": f"DiT forward, {preset}, {dtype}, text embedding included", **result,
                   "unit": "s", "dtype": dtype, **dtype_error(inputs, dtype)}


def compiled_row(options):
    """Compiling is not timed, and is reported."""
    with our_worker(options) as ours, peer_worker(options) as peer, scratch_inputs() as inputs:
        dtype = ours.ask(do="auto_dtype")["dtype"]
        request = forward_request(inputs, "mid", 1)
        load((peer,), folder_of("mid"), "float32")
        peer.ask(**request, out=inputs.out("float32"))
        load((ours,), folder_of("mid"), dtype)
        load((peer,), folder_of("mid"), dtype, compile=True)
        compiling = peer.ask(**request, out=inputs.out("peer"))["seconds"]
        result = pairwise(options, (ours, peer), inputs, request, roofline=lambda: roofline_seconds(ours, dtype))
        return {"row": "A2", "name": f"DiT forward, mid, {dtype}, against torch.compile", **result, "unit": "s",
                "dtype": dtype, "compile_seconds": compiling, **dtype_error(inputs, dtype)}


def int8_row(options):
    """Two of ours in turns: int8 against float32, both packed. How a video looks is tools/shapes' business."""
    with our_worker(options, "int8") as ours, our_worker(options, "float32") as peer, scratch_inputs() as inputs:
        try:
            load((ours,), folder_of("mid"), "float32", linear="int8")
        except RuntimeError as error:
            return {"row": "A1i", "skipped": str(error)}
        load((peer,), folder_of("mid"), "float32")
        result = pairwise(options, (ours, peer), inputs, forward_request(inputs, "mid", 1))
        out = inputs.out("ours"), inputs.out("peer")
        # The peak of a velocity's numbers: they have deviation 1 or so, and are taken as 4 of them.
        return {"row": "A1i", "name": "DiT forward, mid, int8 linear layers against own float32", **result,
                "unit": "s", "psnr": psnr(*out, top=8.0), "error": relative_error(*out), "error_limit": 0.1}


def dtype_of(worker):
    """That --dtype=auto takes; a build that cannot be asked took the files', of the shipped model float32."""
    try:
        return worker.ask(do="auto_dtype")["dtype"]
    except RuntimeError:
        return "float32"


def earlier_row(options):
    """The shipped model against another build of ours, --earlier=PATH of its model_bench, each in the dtype that its
    auto takes; both in float32 beside it.
    """
    if not options.earlier:
        return {"row": "A3b", "skipped": "no --earlier=MODEL_BENCH to compare with"}
    folder = folder_of("shipped")
    with our_worker(options) as ours, our_worker(options, "earlier", [options.earlier]) as earlier, \
            peer_worker(options) as peer, scratch_inputs() as inputs:
        dtype, before = dtype_of(ours), dtype_of(earlier)
        request = forward_request(inputs, "shipped", 10)

        def compare(mine, theirs):
            load((ours,), folder, mine)
            load((earlier,), folder, theirs)
            return pairwise(options, (ours, earlier), inputs, request,
                            roofline=lambda: roofline_seconds(ours, mine, "shipped"))

        floats = result = compare("float32", "float32")
        agreed = relative_error(inputs.out("ours"), inputs.out("peer"))
        error = {"error": agreed, "error_limit": 1e-4}
        if (dtype, before) != ("float32", "float32"):
            result = compare(dtype, before)
            for exact, out in (("float32", "float32"), (dtype, "peer")):  # diffusers, and what its own rounding does
                load((peer,), folder, exact)
                peer.ask(**{**request, "repeat": 1}, out=inputs.out(out))
            if agreed <= error["error_limit"]:
                error = dtype_error(inputs, dtype)
        return {"row": "A3b", "name": f"DiT forward, shipped model, {dtype}, against an earlier build in {before}",
                **result, "unit": "s", "dtype": dtype, **error, "float32_error": agreed,
                **{f"float32_{name}": floats[name] for name in ("ratio", "ours", "peer", "roofline_share")}}


def overhead_row(options):
    """Of a job with guidance, from the end of each step to the end of the next: the engine, the plan, both passes and
    the solver; what the engine's thread does not spend in our kernels is none. One operation of LibTorch counts as
    none too, so this is from above.
    """
    _, *latent = LATENTS["mid"]
    height, width = (8 * cells for cells in latent)
    with our_worker(options) as ours, scratch_inputs() as inputs:
        dtype = ours.ask(do="auto_dtype")["dtype"]
        ours.ask(do="load_pipeline", repository=str(model_folder("mid", "bfloat16")), dtype=dtype)
        ends = ours.ask(do="job", prompt="a red circle moving left", seed=7, steps=options.pairs + 2, guidance=5.0,
                        height=height, width=width, frames=1, out=inputs.out("ours"))["step_ends"]
    steps = [(end["clock"] - begin["clock"], end["kernels"] - begin["kernels"])
             for begin, end in zip(ends[1:], ends[2:])]  # the first one warms up
    shares = sorted(1 - kernels / seconds for seconds, kernels in steps)
    return {"row": "A11", "name": f"share of a step of a mid job that is no kernel, {dtype}, at most",
            "value": statistics.median(shares), "min": shares[0], "max": shares[-1], "dtype": dtype,
            "step_seconds": statistics.median(seconds for seconds, _ in steps)}


def forward_rows(options, preset, repeat, forwards, text=None, passes=1):
    """The dtype, and the best seconds of each forward; a forward is a backend a row, "" the automatic one. So many
    passes after each other are a job's.
    """
    with our_worker(options) as ours, scratch_inputs() as inputs:
        dtype = ours.ask(do="auto_dtype")["dtype"]
        load((ours,), folder_of(preset), dtype)
        request = forward_request(inputs, preset, repeat, text)
        return dtype, ours.ask(**{**request, "do": "forward_rows", "forwards": forwards, "passes": passes})


def seconds_of_forward(options, preset, rows, text, passes):
    """The best of many forwards of so many rows, each with a text of so many tokens, without a server."""
    return forward_rows(options, preset, 40, [[""] * rows], (text, TEXT[preset][1]), passes)[1]["seconds"][0]


def shared_forward_row(options, row, preset, counts, repeat):
    """Rows of one forward, each a job's, against forwards of one row: in one run, by the clock, and in
    `cpu_rates` by the processor's time, which says what rows share when the machine has other work.
    """
    dtype, answer = forward_rows(options, preset, repeat, [[""] * count for count in counts])
    rates = {kind: [answer[kind][0] * count / seconds for count, seconds in zip(counts, answer[kind])]
             for kind in ("seconds", "cpu_seconds")}
    return {"row": row, "name": f"rate of a row in a forward of {counts[-1]} against alone, {preset}, {dtype}",
            "value": rates["seconds"][-1], "rows": counts, "rates": rates["seconds"],
            "cpu_rates": rates["cpu_seconds"], "seconds": answer["seconds"], "dtype": dtype}


def mixed_sizes_row(options):
    """Four rows of 384, 192, 96 and 96 tokens: ours each by itself, as sizes that differ share no forward, and the
    peer all of them padded to the largest in one. By tokens that would be twice as many.
    """
    sizes = [(32, 48), (16, 48), (16, 24), (16, 24)]
    with our_worker(options) as ours, scratch_inputs() as inputs:
        dtype = ours.ask(do="auto_dtype")["dtype"]
        load((ours,), folder_of("mid"), dtype)
        common = {**forward_request(inputs, "mid", 1), "do": "forward_rows", "passes": 1}
        latents = [inputs.normal(f"latents{i}", (1, CHANNELS["mid"], 1, *size)) for i, size in enumerate(sizes)]
        padded = {**common, "latents": latents[0], "forwards": [[""] * len(sizes)]}
        requests = [{**common, "latents": one, "forwards": [[""]]} for one in latents]

        def seconds(*wanted):
            return sum(ours.ask(**request)["seconds"][0] for request in wanted)

        result = summary(alternate([lambda: seconds(*requests), lambda: seconds(padded)], options.pairs, warm_ups=0))
        return {"row": "B10", "name": f"rows of three sizes each by itself against all padded, mid, {dtype}", **result,
                "unit": "s", "token_ratio": 2.0, "share_of_token_ratio": result["ratio"] / 2, "dtype": dtype}


def two_backends_row(options, preset, repeat):
    """Forwards of two rows: both on one backend, both on the other, and one on each."""
    backends = ("FLASH_ATTN", "SAGE_ATTN")
    dtype, answer = forward_rows(options, preset, repeat, [[backends[0]] * 2, [backends[1]] * 2, list(backends)])
    over = {kind: answer[kind][2] / ((answer[kind][0] + answer[kind][1]) / 2)
            for kind in ("seconds", "cpu_seconds")}
    return {"row": "H3", "name": f"a step of {' and '.join(backends)} over the mean of its two pure ones, "
            f"{preset}, {dtype}", "value": over["seconds"], "cpu_value": over["cpu_seconds"],
            "seconds": answer["seconds"], "dtype": dtype}


def measure(options, rows):
    for row, preset, counts, repeat in (("B8f", "tiny", [1, 2, 4, 8, 16], 40), ("B9", "mid", [1, 2, 4, 8], 2)):
        if row in rows:
            yield shared_forward_row(options, row, preset, counts, repeat)
    if "B10" in rows:
        yield mixed_sizes_row(options)
    if "H3" in rows:
        yield two_backends_row(options, "tiny", 100)
        yield two_backends_row(options, "mid", 5)
    if {"A1", "A3"} & set(rows):
        yield from diffusers_rows(options, rows)
    for row, function in (("A2", compiled_row), ("A1i", int8_row), ("A3b", earlier_row), ("A11", overhead_row)):
        if row in rows:
            yield function(options)
