"""Row D6: a forward of the Wan 2.1 transformer of 1.3B parameters (random weights) on a CUDA device, bfloat16, 480 x 832
and 81 frames (32,760 tokens), against diffusers on the same device; both in turns.

    gpu_step.py MODELS_MAIN [--layers=30] [--pairs=5] [--backend=FLASH_ATTN]

Prints a JSON line as gpu_bench does. MODELS_MAIN is the driver of the CUDA build (target models_main).
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file

LATENT = (21, 60, 104)


class Ours:
    def __init__(self, program, folder, backend):
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.backend, self.out = backend, folder / "out.safetensors"
        self.input = folder / "in.safetensors"
        self.ask(load="m", kind="dit", dir=str(folder / "model"), dtype="bfloat16", device="cuda")

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if not answer["ok"]:
            sys.exit(f"gpu_step: {answer['error']}")
        return answer

    def seconds(self, tensors=None):
        if tensors:
            save_file(tensors, self.input)
        answer = self.ask(run="m", out=str(self.out), backend=self.backend, **{"in": str(self.input)})
        return answer["seconds"][0]


def main():
    options = argparse.ArgumentParser()
    options.add_argument("program")
    options.add_argument("--layers", type=int, default=30)
    options.add_argument("--pairs", type=int, default=5)
    options.add_argument("--backend", default="FLASH_ATTN")
    options = options.parse_args()
    torch.manual_seed(0)
    with torch.device("cuda"):
        theirs = WanTransformer3DModel(num_layers=options.layers, num_attention_heads=12, ffn_dim=8960)
    theirs = theirs.to(torch.bfloat16).eval()
    latents = torch.randn(1, 16, *LATENT)
    embeds = torch.randn(1, 512, 4096).to(torch.bfloat16)
    timestep = torch.tensor([500])

    def peer():
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.inference_mode():
            out = theirs(latents.cuda().to(torch.bfloat16), timestep.cuda(), embeds.cuda(), return_dict=False)[0].cpu()
        return time.perf_counter() - start, out

    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        theirs.save_pretrained(folder / "model")
        ours = Ours(options.program, folder, options.backend)
        given = {"latents": latents, "embeds": embeds, "timestep": timestep}
        ours.seconds({**given, "encode": torch.zeros(1)})
        ours.seconds(given)
        peer()
        _, wanted = peer()
        samples = []
        for pair in range(options.pairs):
            first = peer()[0] if pair % 2 else None
            mine = ours.seconds()
            samples.append((mine, first if first is not None else peer()[0]))
        got = load_file(ours.out)["out"]
    error = ((got.double() - wanted.double()).norm() / wanted.double().norm()).item()
    parameters = sum(p.numel() for p in theirs.parameters())
    print(json.dumps({
        "row": "D6", "device": torch.cuda.get_device_name(),
        "name": f"a forward of {parameters / 1e9:.2f} B parameters, 32,760 tokens, bf16, {options.backend}, against diffusers",
        "samples": samples, "ratio": statistics.median(theirs / mine for mine, theirs in samples),
        "error": error, "error_limit": 2e-2}))


if __name__ == "__main__":
    main()
