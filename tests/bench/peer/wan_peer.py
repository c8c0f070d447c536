"""The peer: diffusers, eager, in inference mode. One JSON line in, one out; see model_bench.cc, which
speaks the same language.

Tensors travel as files of raw float32: {"file": path, "shape": [..]}.
"""

import contextlib
import ctypes
import json
import sys
import time

import numpy
import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file
from transformers import UMT5EncoderModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def read(tensor, dtype):
    array = numpy.fromfile(tensor["file"], dtype=numpy.float32).reshape(tensor["shape"])
    return torch.from_numpy(array).to(dtype)


def write(tensor, path):
    tensor.detach().to(torch.float32).contiguous().numpy().tofile(path)


def timed(work, repeat):
    start = time.perf_counter()
    for _ in range(repeat):
        result = work()
    return result, (time.perf_counter() - start) / repeat


class PeakMemory:
    """How far resident memory rises above where it stood, by the kernel's own mark; as tests/peak_memory.h."""

    def __init__(self):
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
        self.start = self.field("VmRSS:")

    def bytes(self):
        return self.field("VmHWM:") - self.start

    @staticmethod
    def field(name):
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


class Peer:
    def __init__(self):
        self.transformer = self.text_encoder = self.vae = self.pipeline = None

    def threads(self, count):
        torch.set_num_threads(count)
        return {}

    def load_transformer(self, folder, dtype, compile=False):
        self.transformer = None
        start = time.perf_counter()
        self.transformer = WanTransformer3DModel.from_pretrained(folder, dtype=DTYPES[dtype]).eval()
        seconds = time.perf_counter() - start
        if compile:
            self.transformer = torch.compile(self.transformer)
        return {"seconds": seconds}

    def load_file(self, files):
        """What every Python stack does with a checkpoint: the tensors, in memory of their own, which is the system's
        again before, as at a start.
        """
        ctypes.CDLL(None).malloc_trim(0)
        start = time.perf_counter()
        tensors = [{name: x.clone() for name, x in load_file(file).items()} for file in files]
        return {"seconds": time.perf_counter() - start, "tensors": sum(map(len, tensors))}

    def transformer_forward(self, latents, context, timestep, out, repeat):
        dtype = self.transformer.dtype
        latents, context = read(latents, dtype), read(context, dtype)
        time_input = torch.tensor([timestep])
        result, seconds = timed(
            lambda: self.transformer(latents, time_input, context, return_dict=False)[0], repeat)
        write(result, out)
        return {"seconds": seconds, "shape": list(result.shape)}

    def load_text_encoder(self, folder, dtype):
        self.text_encoder = UMT5EncoderModel.from_pretrained(folder, dtype=DTYPES[dtype]).eval()
        return {}

    def encode_text(self, ids, out, repeat, padded):
        """As WanPipeline does: `padded` tokens with a mask, and the real ones' rows are kept."""
        real = read(ids, torch.float32).long()
        length = real.shape[1]
        padding = torch.zeros((1, padded - length), dtype=torch.long)
        mask = torch.cat([torch.ones_like(real), padding], 1)
        tokens = torch.cat([real, padding], 1)
        result, seconds = timed(
            lambda: self.text_encoder(tokens, mask).last_hidden_state[:, :length], repeat)
        write(result, out)
        return {"seconds": seconds, "shape": list(result.shape)}

    def load_vae(self, folder, dtype, channels_last):
        self.vae = AutoencoderKLWan.from_pretrained(folder, dtype=DTYPES[dtype]).eval()
        if channels_last:
            for module in self.vae.modules():
                if isinstance(module, torch.nn.Conv3d):
                    module.to(memory_format=torch.channels_last_3d)
        return {}

    def vae_decode(self, latents, repeat, out=None):
        latents = read(latents, self.vae.dtype)
        peak = PeakMemory()
        result, seconds = timed(lambda: self.vae.decode(latents, return_dict=False)[0], repeat)
        peak_bytes = peak.bytes()
        if out:
            write(result, out)
        return {"seconds": seconds, "peak_bytes": peak_bytes}

    def load_pipeline(self, repository, model, dtype):
        self.pipeline = WanPipeline.from_pretrained(f"{repository}/{model}", dtype=DTYPES[dtype])
        # The server keeps the decoder in float32, as every published example of the family does.
        self.pipeline.vae.to(torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)
        return {}

    def job(self, prompt, seed, steps, guidance, height, width, frames, out):
        start = time.perf_counter()
        video = self.pipeline(
            prompt, height=height, width=width, num_frames=frames, num_inference_steps=steps,
            guidance_scale=guidance, generator=torch.Generator().manual_seed(seed),
            output_type="np").frames[0]
        seconds = time.perf_counter() - start
        video.astype(numpy.float32).tofile(out)
        return {"seconds": seconds, "shape": list(video.shape)}


def main():
    peer = Peer()
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr), torch.inference_mode():
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = getattr(peer, request.pop("do"))(**request)
            except Exception as error:  # the driver decides what a failure means
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
