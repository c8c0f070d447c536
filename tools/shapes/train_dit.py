"""Trains the DiT and its text encoder together by flow matching on encoded clips (models in model.py).

x = (1 - sigma) z + sigma e, target e - z, most sigmas near 1 (noise_levels says why). Matrices of the blocks go to Muon, the rest to AdamW. DIR/dit.pt holds everything needed to go on:
the same command continues an interrupted schedule, --continue-minutes begins another.
"""

import argparse
import copy
import math
import os
import random
import sys
import time

import torch
from transformers import AutoTokenizer

import captions
import latents
import model
import score
import tokenizer as tokenizer_module
import train_vae
import world
from muon import Muon
from sheet import write_sheet


NEAR = 6.0         # extra weight of latents about the shape, a tenth of all, where all but the background is said
MUON_SCALE = 2.5   # of Muon's rate over AdamW's


def parse():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--dir", required=True)
    p.add_argument("--minutes", type=float, default=55, help="of the first schedule")
    p.add_argument("--continue-minutes", type=float, default=0, help="of a new schedule, from where the last is")
    p.add_argument("--batch", type=int, default=10)
    p.add_argument("--lr", type=float, default=1.2e-3)
    p.add_argument("--sample-minutes", type=float, default=6)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return p.parse_args()


class Data:
    """All encoded clips so far; grows while `latents.py` still writes."""

    def __init__(self, folder, device):
        self.folder, self.device, self.shards, self.scenes, self.latents = folder, device, 0, [], None

    def refresh(self):
        new, scenes, self.shards = latents.load_shards(self.folder, self.shards)
        if new:
            self.latents = torch.cat(([self.latents] if self.latents is not None else []) + new)
            self.scenes += scenes

    def batch(self, rng, count, stats):
        picks = [rng.randrange(len(self.scenes)) for _ in range(count)]
        texts = ["" if rng.random() < 0.1 else captions.caption(rng, self.scenes[i]) for i in picks]
        mean, std = (s.view(1, -1, 1, 1, 1) for s in stats)
        weight = 1 + NEAR * world.neighbourhood([self.scenes[i] for i in picks], 4).float()
        return ((self.latents[picks] - mean) / std).to(self.device), weight.to(self.device), texts


def optimizers(dit, text_encoder, lr):
    matrices = [p for n, p in dit.named_parameters() if p.dim() == 2 and n.startswith("blocks.")]
    ids = {id(p) for p in matrices}
    rest = [p for m in (dit, text_encoder) for p in m.parameters() if id(p) not in ids]
    muon = Muon(matrices, lr, weight_decay=0.01)
    adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    return muon, adam


def rate_of(done, steps):
    """Share of the peak rate: warm-up, flat, then down to a twentieth over the last half of the schedule."""
    return min(1.0, (steps + 1) / 60) * (1.0 if done < 0.5 else 1.0 - 0.95 * (min(done, 1.0) - 0.5) / 0.5)


def noise_levels(count, device):
    """sigma in (0, 1), half of them above 0.9.

    A clip is ten thousand numbers that mostly agree on few things, so its background, colour and path show through
    the noise already at sigma 0.95, and there the caption has nothing left to say. It is learned above that.
    """
    u = torch.rand(count, device=device)
    shift = torch.where(torch.rand(count, device=device) < 0.6, 16.0, 3.0)
    return shift * u / (1 + (shift - 1) * u)


def loss_of(dit, cross, text_encoder, tokenizer, z, weight, texts):
    sigma = noise_levels(len(z), z.device).view(-1, 1, 1, 1, 1)
    noise = torch.randn_like(z)
    hidden, cross.bias = model.embed(tokenizer, text_encoder, texts, z.device)
    guess = dit((1 - sigma) * z + sigma * noise, sigma.flatten() * 1000, hidden, return_dict=False)[0]
    return (weight * (guess.float() - (noise - z)).square()).mean() / weight.mean()


@torch.no_grad()
def average(ema, models, decay):
    for name, m in models.items():
        for a, p in zip(ema[name].parameters(), m.parameters()):
            a.lerp_(p, 1 - decay)


@torch.no_grad()
def sample(args, ema, tokenizer, vae, stats, step):
    """Draws 16 held-out prompts, writes DIR/sample-STEP.png, returns the judge's line."""
    pipe = model.pipeline(tokenizer, ema["text"], ema["dit"], vae, stats)
    pipe.set_progress_bar_config(disable=True)
    prompts = captions.held_out_prompts(16)
    frames = pipe([p for p, _ in prompts], height=world.SIZE, width=world.SIZE, num_frames=world.FRAMES,
                  num_inference_steps=20, guidance_scale=3.0, output_type="np",
                  generator=torch.Generator().manual_seed(1)).frames
    rows = [[frames[i + j][f] for j in (0, 1, 2, 3) for f in (0, 8, 16)] for i in range(0, 16, 4)]
    write_sheet(os.path.join(args.dir, f"sample-{step:05d}.png"), rows)
    return score.summary([score.compare(score.judge(f), s) for f, (_, s) in zip(frames, prompts)])


@torch.no_grad()
def text_sample(tokenizer, text_encoder, scenes):
    """Embeddings and mask of one caption each."""
    rng = random.Random(0)
    ids = tokenizer([captions.caption(rng, s) for s in scenes], padding=True, return_tensors="pt")
    hidden = text_encoder(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).last_hidden_state
    return hidden, ids["attention_mask"]


def new_state(args, data):
    folder = os.path.join(args.dir, "tokenizer")
    os.makedirs(folder, exist_ok=True)
    tokenizer = tokenizer_module.build(folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    models = {"dit": model.new_dit(), "text": model.new_text_encoder(len(tokenizer))}
    model.favour_text(models["dit"], *text_sample(tokenizer, models["text"], data.scenes[:32]))
    stats = (data.latents.mean((0, 2, 3, 4)), data.latents.std((0, 2, 3, 4)))
    stats = tuple(torch.tensor([round(float(v), 5) for v in s]) for s in stats)
    return models, stats


def load(args, data):
    """(models, averages, optimizers, state without the tensors)."""
    path = os.path.join(args.dir, "dit.pt")
    models, stats = new_state(args, data)
    state = {"step": 0, "seconds": 0.0, "from": 0.0, "until": args.minutes * 60, "first_step": 0, "stats": stats}
    for m in models.values():
        m.to(args.device)
    ema = {k: copy.deepcopy(m).requires_grad_(False) for k, m in models.items()}
    opts = optimizers(models["dit"], models["text"], args.lr)
    if os.path.exists(path):
        saved = torch.load(path, map_location=args.device)
        for k in models:
            models[k].load_state_dict(saved["models"][k])
            ema[k].load_state_dict(saved["ema"][k])
        for o, s in zip(opts, saved["optimizers"]):
            o.load_state_dict(s)
        state = saved["state"]
        if args.continue_minutes:
            state.update({"from": state["seconds"], "until": state["seconds"] + args.continue_minutes * 60,
                          "first_step": state["step"]})
    return models, ema, opts, state


def store(args, models, ema, opts, state):
    train_vae.save(os.path.join(args.dir, "dit.pt"), {
        "models": {k: m.state_dict() for k, m in models.items()},
        "ema": {k: m.state_dict() for k, m in ema.items()},
        "optimizers": [o.state_dict() for o in opts], "state": state})


def step_once(args, models, cross, ema, opts, state, z, weight, texts, tokenizer):
    done = (state["seconds"] - state["from"]) / (state["until"] - state["from"])
    for o, scale in zip(opts, (MUON_SCALE, 1.0)):
        for group in o.param_groups:
            group["lr"] = scale * args.lr * rate_of(done, state["step"] - state["first_step"])
    with torch.autocast(args.device, torch.bfloat16):
        loss = loss_of(models["dit"], cross, models["text"], tokenizer, z, weight, texts)
    for o in opts:
        o.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for m in models.values() for p in m.parameters()], 1.0)
    for o in opts:
        o.step()
    state["step"] += 1
    average(ema, models, min(0.998, (1 + state["step"]) / (10 + state["step"])))
    return loss.item()


def main():
    args = parse()
    torch.set_num_threads(args.threads)
    data = Data(args.dir, args.device)
    data.refresh()
    models, ema, opts, state = load(args, data)
    tokenizer = AutoTokenizer.from_pretrained(os.path.join(args.dir, "tokenizer"))
    vae = latents.load_vae(args.dir, args.device)
    print(f"DiT {model.count(models['dit']) / 1e6:.2f} M, text encoder {model.count(models['text']) / 1e6:.2f} M, "
          f"autoencoder {model.count(vae) / 1e6:.2f} M; from step {state['step']}", flush=True)
    cross = model.prepare_for_training(models["dit"])
    rng = random.Random(77 + state["step"])
    torch.manual_seed(77 + state["step"])
    logged = sampled = time.time()
    losses = []
    while state["seconds"] < state["until"]:
        start = time.time()
        z, weight, texts = data.batch(rng, args.batch, state["stats"])
        losses.append(step_once(args, models, cross, ema, opts, state, z, weight, texts, tokenizer))
        state["seconds"] += time.time() - start
        if time.time() - logged > 60:
            store(args, models, ema, opts, state)
            data.refresh()
            mean = sum(losses) / len(losses)
            print(f"{state['seconds']:6.0f} s step {state['step']} loss {mean:.4f} clips {len(data.scenes)} "
                  f"rate {opts[0].param_groups[0]['lr']:.1e}", flush=True)
            if math.isnan(mean):
                raise RuntimeError("the loss is not a number")
            logged, losses = time.time(), []
        if time.time() - sampled > args.sample_minutes * 60:
            print("        held-out:", sample(args, ema, tokenizer, vae, state["stats"], state["step"]), flush=True)
            sampled = time.time()
    store(args, models, ema, opts, state)
    print("done; held-out:", sample(args, ema, tokenizer, vae, state["stats"], state["step"]), flush=True)


if __name__ == "__main__":
    sys.exit(main())
