"""Rows about the video decoder: A7 and A7b (time against diffusers), A8 (memory), E4 and E4m (cost over
frames). Float32, which is what the server decodes in on a CPU; our numerics are its default.
"""

import statistics

from inputs import model_folder, our_worker, pairwise, peer_worker, relative_error, scratch_inputs

ROWS = ("A7", "A7b", "A8", "E4", "E4m")
LATENT = (15, 26)


def folder():
    return str(model_folder("tiny", "float32", "full") / "model" / "vae")


def request_of(inputs, frames):
    return {"do": "vae_decode", "repeat": 1, "latents": inputs.normal("latents", (1, 16, frames, *LATENT))}


def decode_rows(options, rows):
    with our_worker(options) as ours, peer_worker(options) as peer, \
            peer_worker(options, stock=True) as stock, scratch_inputs() as inputs:
        ours.ask(do="load_vae", folder=folder(), dtype="float32")
        for row, channels_last in (("A7", True), ("A7b", False)):
            if row not in rows:
                continue
            for worker in (peer, stock):
                worker.ask(do="load_vae", folder=folder(), dtype="float32", channels_last=channels_last)
            for frames in (2, 5):
                result = pairwise(options, (ours, peer, stock), inputs, request_of(inputs, frames))
                kind = "channels-last weights" if channels_last else "as shipped"
                yield {"row": row, "name": f"VAE decode, latent {frames}x15x26, float32, peer {kind}", **result,
                       "unit": "s", "error": relative_error(inputs.out("ours"), inputs.out("peer")),
                       "error_limit": 1e-4}


def memory_row(options):
    """Each side in a process of its own that has loaded the decoder and nothing else, as it is shipped."""
    frames, peaks = 5, []
    with scratch_inputs() as inputs:
        for worker in (our_worker(options), peer_worker(options, stock=True)):
            with worker:
                more = {} if not peaks else {"channels_last": False}
                worker.ask(do="load_vae", folder=folder(), dtype="float32", **more)
                peaks.append(worker.ask(**request_of(inputs, frames))["peak_bytes"])
    return {"row": "A8", "name": f"VAE decode, latent {frames}x15x26, float32: memory over weights, ours / peer",
            "value": peaks[0] / peaks[1], "ours_bytes": peaks[0], "peer_bytes": peaks[1]}


def growth_rows(options, rows):
    """2 latent frames are 5 of the video, 21 are 81. A process for each, for their peaks; times in turns."""
    pixels = {2: 5, 21: 81}
    with our_worker(options) as short, our_worker(options, "long") as long, scratch_inputs() as inputs:
        answers = {2: [], 21: []}
        for worker in (short, long):
            worker.ask(do="load_vae", folder=folder(), dtype="float32")
        for _ in range(max(2, options.pairs // 2)):
            for frames, worker in ((2, short), (21, long)):
                answers[frames].append(worker.ask(**request_of(inputs, frames)))
    seconds = {frames: statistics.median(a["seconds"] for a in some) / pixels[frames]
               for frames, some in answers.items()}
    peaks = {frames: some[0]["peak_bytes"] for frames, some in answers.items()}
    if "E4" in rows:
        yield {"row": "E4", "name": "VAE decode, 15x26 latents, float32: time a frame, 81 over 5 frames, less 1",
               "value": seconds[21] / seconds[2] - 1, "seconds_a_frame": {pixels[f]: seconds[f] for f in seconds}}
    if "E4m" in rows:
        yield {"row": "E4m", "name": "VAE decode, 15x26 latents, float32: memory, 81 over 5 frames, less 1",
               "value": peaks[21] / peaks[2] - 1, "bytes": {pixels[f]: peaks[f] for f in peaks}}


def measure(options, rows):
    if {"A7", "A7b"} & set(rows):
        yield from decode_rows(options, rows)
    if "A8" in rows:
        yield memory_row(options)
    if {"E4", "E4m"} & set(rows):
        yield from growth_rows(options, rows)
