"""Writes the trained averages as an ordinary diffusers folder, with its defaults and checksums."""

import argparse
import json
import os
import sys

import torch
from transformers import AutoTokenizer

import latents
import model
import world

DEFAULTS = {
    "description": "Moving shapes, 64x64, 17 frames: eight colours, four shapes, nine motions. Trained by tools/shapes.",
    "defaults": {"height": world.SIZE, "width": world.SIZE, "num_frames": world.FRAMES, "fps": world.FPS,
                 "num_inference_steps": 20, "guidance_scale": model.GUIDANCE, "max_sequence_length": model.CONTEXT,
                 "prompt": "a red circle moving left"},
}


def load_pipeline(folder):
    """The WanPipeline of the averages in a run folder."""
    saved = torch.load(os.path.join(folder, "dit.pt"), map_location="cpu")
    tokenizer = AutoTokenizer.from_pretrained(os.path.join(folder, "tokenizer"))
    dit = model.new_dit()
    dit.load_state_dict(saved["ema"])
    return model.pipeline(tokenizer, model.load_text_encoder(folder, tokenizer), dit.eval(), latents.load_vae(folder),
                          saved["state"]["stats"])


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--dir", required=True)
    p.add_argument("--out", required=True)
    args = p.parse_args()
    load_pipeline(args.dir).save_pretrained(args.out)
    with open(os.path.join(args.out, "denoised.json"), "w") as f:
        json.dump(DEFAULTS, f, indent=2)
        f.write("\n")
    size = sum(os.path.getsize(os.path.join(w, n)) for w, _, names in os.walk(args.out) for n in names)
    print(f"{args.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(main())
