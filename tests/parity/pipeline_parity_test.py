"""A whole text-to-video run: `denoisectl run` and diffusers' WanPipeline, from the same seed.

Latents agree to 1e-5 relative in float32 and frames to one level of 255. Models are small, random and
made here; the client runs in a process of its own, as a user starts it. Both sides run the same
CPU instructions (level.py): bfloat16 has other bits on other levels.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

from level import LEVEL  # before torch

import numpy as np
import torch
from diffusers import (AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline,
                       WanTransformer3DModel)
from safetensors.torch import load_file
from transformers import UMT5Config, UMT5EncoderModel

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import random_model  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import tether  # noqa: E402, F401

CLIENT = os.environ["DENOISED_CLIENT"]
SKIPPED = 77


def transformer(heads, head_dim, layers, channels):
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=heads, attention_head_dim=head_dim, in_channels=channels,
        out_channels=channels, text_dim=32, freq_dim=64, ffn_dim=96, num_layers=layers, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", eps=1e-6, rope_max_seq_len=64)


def spread(module, seed):
    """Random weights that make attention and modulation matter; fresh modules start near zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 0.3 if parameter.ndim < 2 else 1.2 / parameter[0].numel() ** 0.5
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return module


def unipc():
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def build(folder, network, vae, scheduler, **options):
    pieces = random_model.tokenizer(folder / "tokenizer")
    text = UMT5EncoderModel(UMT5Config(vocab_size=len(pieces), d_model=32, d_kv=8, d_ff=48, num_layers=2,
                                       num_heads=4, feed_forward_proj="gated-gelu"))
    pipeline = WanPipeline(tokenizer=pieces, text_encoder=spread(text, 1), vae=vae, transformer=spread(network, 2),
                           scheduler=scheduler)
    pipeline.save_pretrained(folder, safe_serialization=True, **options)


def vae(channels=4, dims=(1, 2, 2), temporal=(True, True)):
    return AutoencoderKLWan(base_dim=8, z_dim=channels, dim_mult=list(dims), num_res_blocks=1,
                            temperal_downsample=list(temporal), latents_mean=[0.1 * i for i in range(channels)],
                            latents_std=[1.0 + 0.2 * i for i in range(channels)],
                            scale_factor_temporal=2 ** sum(temporal), scale_factor_spatial=2 ** (len(dims) - 1))


def aligned(pipeline):
    """Silent, and with weights in memory of their own. Those that diffusers keeps in float32 stay where the file has
    them, and how MKL adds depends on where a row begins: a bit of a time embedding, now and then, and all bfloat16
    after it.
    """
    for module in (pipeline.transformer, pipeline.text_encoder, pipeline.vae):
        for parameter in module.parameters():
            parameter.data = parameter.data.clone()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class PipelineParity(unittest.TestCase):
    linear = "exact"

    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = pathlib.Path(scratch.name)

    def ours(self, model, prompt, dtype, ending, **options):
        out = self.folder / f"ours.{ending}"
        flags = [f"--{name}={value}" for name, value in options.items()]
        command = [CLIENT, "run", prompt, "-o", str(out), f"--model_repository={model}", f"--dtype={dtype}",
                   "--device=cpu", "--backend=TORCH_SDPA", "--strict", f"--cpu_isa={LEVEL}", f"--linear={self.linear}", *flags]
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr + done.stdout)
        return out

    def compare(self, model, prompt, dtype=torch.float32, negative="", variant=None, ask=True, **options):
        decoder = AutoencoderKLWan.from_pretrained(  # never rounded
            model / "vae", torch_dtype=torch.float32, variant=variant)
        pipeline = aligned(WanPipeline.from_pretrained(model, vae=decoder, torch_dtype=dtype, variant=variant))

        def theirs(kind):
            with torch.no_grad():
                return pipeline(prompt=prompt, negative_prompt=negative, height=options["height"],
                                width=options["width"], num_frames=options["frames"],
                                num_inference_steps=options["steps"], guidance_scale=options["guidance"],
                                generator=torch.Generator("cpu").manual_seed(options["seed"]),
                                output_type=kind).frames
        name = {torch.float32: "float32", torch.bfloat16: "bfloat16"}[dtype]
        flags = dict(options, negative=negative) | ({"variant": variant} if variant and ask else {})
        latents = load_file(self.ours(model, prompt, name, "safetensors", **flags))["latents"]
        wanted = theirs("latent").float()
        self.assertEqual(latents.shape, wanted.shape)
        error = ((latents - wanted).norm() / wanted.norm()).item()
        frames = np.load(self.ours(model, prompt, name, "npy", **flags))
        expected = theirs("np")[0]
        self.assertEqual(frames.shape, expected.shape)
        levels = np.abs(np.rint(frames * 255) - np.rint(expected * 255)).max()
        print(f"  {name}: latents relative {error:.2e}, frames {levels:.0f} levels", flush=True)
        self.assertLessEqual(error, 1e-5)
        self.assertLessEqual(levels, 1)

    def test_guidance_and_negative_prompt_with_unipc(self):
        build(self.folder / "m", transformer(2, 24, 2, 4), vae(), unipc())
        self.compare(self.folder / "m", "a red   circle “moving” left", negative="blue square", seed=3, steps=5,
                     guidance=5.0, frames=9, height=48, width=80)

    def test_packed_numerics_stay_close_over_many_steps(self):
        self.linear = "packed"
        build(self.folder / "m", transformer(2, 24, 3, 4), vae(), unipc())
        self.compare(self.folder / "m", "a red circle moving left", negative="blue square", seed=11, steps=20,
                     guidance=5.0, frames=9, height=64, width=80)
        build(self.folder / "n", transformer(4, 32, 2, 4), vae(), FlowMatchEulerDiscreteScheduler(shift=3.0))
        self.compare(self.folder / "n", "a green star", seed=12, steps=20, guidance=4.0, frames=5, height=48,
                     width=48)

    def test_no_guidance_with_flow_match_euler(self):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
        build(self.folder / "m", transformer(3, 16, 1, 6), vae(6, (1, 1, 2, 2), (False, True, True)), scheduler)
        self.compare(self.folder / "m", "", seed=1234567890123, steps=4, guidance=1.0, frames=5, height=48, width=16)

    def test_sharded_weights_and_a_shift_of_its_own(self):
        build(self.folder / "m", transformer(2, 40, 3, 4), vae(), unipc(), max_shard_size="100KB")
        self.assertTrue(list((self.folder / "m" / "transformer").glob("*.index.json")))
        self.compare(self.folder / "m", "ｆｕｌｌ ﬁ &amp; 猫 </s> <pad> 🚗", seed=0, steps=3, guidance=3.0, frames=1,
                     height=16, width=112)

    def test_the_scheduler_class_of_the_index_reads_the_configuration_of_another(self):
        build(self.folder / "m", transformer(2, 24, 2, 4), vae(), unipc())
        index = self.folder / "m" / "model_index.json"
        index.write_text(index.read_text().replace("UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"))
        self.compare(self.folder / "m", "a red circle", seed=5, steps=4, guidance=3.0, frames=5, height=32, width=32)

    def test_the_index_wins_over_a_stale_single_file(self):
        model = self.folder / "m"
        build(model, transformer(2, 24, 2, 4), vae(), unipc(), max_shard_size="60KB")
        torch.manual_seed(8)
        stale = transformer(2, 24, 2, 4)
        stale.save_pretrained(self.folder / "stale")
        name = "diffusion_pytorch_model.safetensors"
        (self.folder / "stale" / name).rename(model / "transformer" / name)
        self.assertTrue(list((model / "transformer").glob("*.index.json")))
        self.compare(model, "a red circle", seed=5, steps=3, guidance=3.0, frames=5, height=32, width=32)

    def test_a_sharded_variant_beside_plain_files(self):
        model = self.folder / "m"
        build(model, transformer(2, 24, 2, 4), vae(), unipc())
        other = self.folder / "other"
        build(other, spread(transformer(2, 24, 2, 4), 9), vae(), unipc(), max_shard_size="60KB", variant="fp16")
        for path in (other / "transformer").iterdir():
            if ".fp16" in path.name:
                path.rename(model / "transformer" / path.name)
        names = {path.name for path in (model / "transformer").iterdir()}
        self.assertIn("diffusion_pytorch_model.safetensors.index.fp16.json", names)
        self.assertIn("diffusion_pytorch_model.safetensors", names)
        # The text encoder and the decoder have no such files: diffusers takes the plain ones.
        pieces = dict(seed=6, steps=3, guidance=3.0, frames=5, height=32, width=32)
        self.compare(model, "a red circle", variant=None, **pieces)
        self.compare_mixed(model, pieces)

    def compare_mixed(self, model, pieces):
        network = WanTransformer3DModel.from_pretrained(model / "transformer", variant="fp16")
        pipeline = aligned(WanPipeline.from_pretrained(model, transformer=network))
        with torch.no_grad():
            wanted = pipeline(prompt="a red circle", negative_prompt="", height=32, width=32, num_frames=5,
                              num_inference_steps=3, guidance_scale=3.0, output_type="latent",
                              generator=torch.Generator("cpu").manual_seed(6)).frames
        ours = load_file(self.ours(model, "a red circle", "float32", "safetensors", variant="fp16", **pieces))["latents"]
        self.assertLessEqual(((ours - wanted).norm() / wanted.norm()).item(), 1e-5)

    def test_a_variant_of_every_component_is_taken_where_it_is_all_there_is(self):
        model = self.folder / "m"
        build(model, transformer(2, 24, 2, 4), vae(), unipc(), max_shard_size="60KB", variant="fp16")
        names = {path.name for path in model.rglob("*.json")}
        self.assertIn("model.safetensors.index.fp16.json", names)
        self.assertIn("diffusion_pytorch_model.safetensors.index.fp16.json", names)
        self.compare(model, "a red circle", variant="fp16", seed=6, steps=3, guidance=3.0, frames=5, height=32,
                     width=32, ask=False)

    def test_bfloat16(self):
        torch.manual_seed(3)  # of 60, one of the two whose bits show where the weights lie
        build(self.folder / "m", transformer(2, 32, 2, 4), vae(), unipc())
        self.compare(self.folder / "m", "a green star", dtype=torch.bfloat16, seed=7, steps=4, guidance=4.0, frames=5,
                     height=32, width=32)


def why_not():
    """What the client says where the machine lacks the level, before it looks at anything else."""
    command = [CLIENT, "attend", "--backend=REFERENCE", "--in=/nowhere", "--out=/nowhere", f"--cpu_isa={LEVEL}"]
    complaint = subprocess.run(command, capture_output=True, text=True).stderr
    return complaint if "this machine has at most" in complaint else ""


if __name__ == "__main__":
    if why_not():
        print("skipped:", why_not())
        sys.exit(SKIPPED)
    unittest.main()
