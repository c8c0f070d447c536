"""Encodes clips for the DiT: shards of normalised-later latents and the scenes that they show.

DIR/latents/NNN.pt = {"latents": bfloat16 [B, 8, 5, 16, 16] (the posterior's mean), "scenes": [Scene]}.
Runs beside the training of the DiT, which takes up new shards as they come.
"""

import argparse
import glob
import os
import random
import sys

import torch

import train_vae
import world

SHARD = 256


def load_vae(folder, device="cpu"):
    state = torch.load(os.path.join(folder, "vae.pt"), map_location=device)
    vae = train_vae.new_vae(state["base"]).to(device)
    vae.load_state_dict(state["vae"])
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def encode_shard(vae, index, device):
    rng = random.Random(9000 + index)
    combinations = world.combinations(False)
    # Whole passes over the combinations, so that every one is there equally often.
    picks = [combinations[(index * SHARD + i) % len(combinations)] for i in range(SHARD)]
    scenes = [world.draw_scene(rng, c) for c in picks]
    out = []
    for i in range(0, SHARD, 8):
        x = world.render(scenes[i:i + 8]).permute(0, 4, 1, 2, 3) * 2 - 1
        x = x.to(device).contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(device, torch.bfloat16):
            out.append(train_vae.encode(vae, x)[:, :train_vae.Z].float().cpu())
    return {"latents": torch.cat(out).bfloat16(), "scenes": scenes}


def load_shards(folder, known=0):
    """Latents and scenes of the shards from number `known` on, and how many shards there are."""
    paths = sorted(glob.glob(os.path.join(folder, "latents", "*.pt")))
    parts = [torch.load(p, weights_only=False) for p in paths[known:]]
    latents = [p["latents"].float() for p in parts]
    return latents, [s for p in parts for s in p["scenes"]], len(paths)


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--dir", required=True)
    p.add_argument("--shards", type=int, default=40)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    vae = load_vae(args.dir, args.device)
    train_vae.channels_last(vae)
    os.makedirs(os.path.join(args.dir, "latents"), exist_ok=True)
    for index in range(args.shards):
        path = os.path.join(args.dir, "latents", f"{index:03d}.pt")
        if not os.path.exists(path):
            train_vae.save(path, encode_shard(vae, index, args.device))
            print("encoded", path, flush=True)


if __name__ == "__main__":
    sys.exit(main())
