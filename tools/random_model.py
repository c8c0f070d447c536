"""Writes a Wan text-to-video folder with random weights, as WanPipeline.save_pretrained lays it out.

    random_model.py --preset tiny|small|mid|long [--dtype float32|bfloat16] [--vae small|full] DIR

What such a model draws is noise; what it costs is real. The demo falls back on it, and the benches
measure with it. The same preset and seed give the same weights.
"""

import argparse
import dataclasses
import io
import json
import pathlib

import sentencepiece
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel


@dataclasses.dataclass(frozen=True)
class Preset:
    """Widths of the transformer, and the latent grid it is measured on."""

    width: int
    layers: int
    ffn: int
    latent: tuple[int, int, int]  # frames, height, width; patches are 1 x 2 x 2
    text_width: int
    text_layers: int
    text_tokens: int
    head: int = 128

    @property
    def tokens(self):
        frames, height, width = self.latent
        return frames * height * width // 4


PRESETS = {
    "tiny": Preset(256, 2, 512, (2, 12, 16), 256, 2, 64),
    "small": Preset(512, 4, 2048, (3, 32, 52), 512, 2, 512),
    "mid": Preset(1536, 6, 8960, (1, 60, 104), 1024, 8, 512),
    "long": Preset(512, 2, 2048, (4, 60, 104), 512, 2, 512),
}

# What `denoised` takes where a request is silent; diffusers passes over the file.
DEFAULTS = {"height": 96, "width": 128, "num_frames": 17, "fps": 8, "num_inference_steps": 12}

WORDS = """a an the red green blue yellow white black orange purple circle square triangle star dog cat
river mountain city street moving left right up down slowly quickly on over under with and of in at
dark bright background sky sea light rain snow train car walks runs flies turns camera close wide
shot video of film photo running jumping small large""".split()


def transformer(preset):
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=preset.width // preset.head,
        attention_head_dim=preset.head, in_channels=16, out_channels=16,
        text_dim=preset.text_width, freq_dim=256, ffn_dim=preset.ffn, num_layers=preset.layers,
        cross_attn_norm=True, qk_norm="rms_norm_across_heads", eps=1e-6, rope_max_seq_len=1024)


def vae(size):
    if size == "full":
        return AutoencoderKLWan()
    return AutoencoderKLWan(base_dim=16, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=1)


def text_encoder(preset, vocabulary):
    return UMT5EncoderModel(UMT5Config(
        vocab_size=vocabulary, d_model=preset.text_width, d_kv=64, d_ff=preset.text_width * 5 // 2,
        num_layers=preset.text_layers, num_heads=preset.text_width // 64,
        feed_forward_proj="gated-gelu"))


def tokenizer(folder):
    model = io.BytesIO()
    sentences = (" ".join(WORDS[i % len(WORDS):] + WORDS[:i % len(WORDS)]) for i in range(200))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences, model_writer=model, model_type="unigram", vocab_size=120,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    return T5Tokenizer.from_pretrained(folder, extra_ids=0)


def cast(module, dtype):
    return module if dtype == torch.float32 else module.to(dtype)


def write(preset, folder, dtype, vae_size="small", seed=0):
    torch.manual_seed(seed)
    folder = pathlib.Path(folder)
    pieces = tokenizer(folder / "tokenizer")
    pipeline = WanPipeline(
        tokenizer=pieces, text_encoder=cast(text_encoder(preset, len(pieces)), dtype),
        vae=vae(vae_size), transformer=cast(transformer(preset), dtype),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0))
    pipeline.save_pretrained(folder, safe_serialization=True)
    (folder / "denoised.json").write_text(json.dumps(
        {"description": "random weights: draws noise", "defaults": DEFAULTS}, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--vae", choices=("small", "full"), default="small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("folder")
    options = parser.parse_args()
    write(PRESETS[options.preset], options.folder, getattr(torch, options.dtype), options.vae, options.seed)
    print(f"wrote {options.folder}")


if __name__ == "__main__":
    main()
