"""Trains the DiT by flow matching on encoded clips, with the text encoder of train_text.py as it is.

x = (1 - sigma) z + sigma e, target e - z, most sigmas near 1 (noise_levels says why). Muon trains the matrices of
the blocks, AdamW the rest. DIR/dit.pt holds everything needed to go on: the same command continues an interrupted
schedule, --continue-minutes begins another at a lower rate.
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
import train_vae
import world
from muon import Muon
from sheet import write_sheet

MUON_SCALE = 5.0   # of Muon's rate over AdamW's; 190 steps with 6 do as much as 270 with 2.5 and 370 with 1


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--dir", required=True)
    p.add_argument("--minutes", type=float, default=60, help="of the first schedule")
    p.add_argument("--continue-minutes", type=float, default=0, help="of a new schedule, from where the last is")
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--lr", type=float, default=1.2e-3)
    p.add_argument("--sample-minutes", type=float, default=8)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return p.parse_args()


class Data:
    """All encoded clips so far; grows while `latents.py` still writes. `stats` are those of the first load."""

    def __init__(self, folder, device):
        self.folder, self.device, self.shards, self.scenes, self.latents = folder, device, 0, [], None
        self.refresh()

    def refresh(self):
        new, scenes, self.shards = latents.load_shards(self.folder, self.shards)
        if new:
            self.latents = torch.cat(([self.latents] if self.latents is not None else []) + new)
            self.scenes += scenes
            self.shares = [world.share_of(s) for s in self.scenes]

    def stats(self):
        """Per-channel (mean, std), rounded to what the autoencoder's config will say."""
        stats = self.latents.mean((0, 2, 3, 4)), self.latents.std((0, 2, 3, 4))
        return tuple(torch.tensor([round(float(v), 5) for v in s]) for s in stats)

    def batch(self, rng, count, stats):
        picks = rng.choices(range(len(self.scenes)), self.shares, k=count)
        texts = ["" if rng.random() < 0.1 else captions.caption(rng, self.scenes[i]) for i in picks]
        mean, std = (s.view(1, -1, 1, 1, 1) for s in stats)
        weight = 1 + 2 * world.nearness([self.scenes[i] for i in picks], 4)
        return ((self.latents[picks] - mean) / std).to(self.device), weight.to(self.device), texts


def rate_of(done, steps):
    """Share of the peak rate: warm-up, flat, then down to a twentieth over the last half of the schedule."""
    return min(1.0, (steps + 1) / 60) * (1.0 if done < 0.5 else 1.0 - 0.95 * (min(done, 1.0) - 0.5) / 0.5)


def noise_levels(count, early, device):
    """sigma in (0, 1): half of them above 0.9 in the first half of the first schedule, a third from then on.

    A clip is ten thousand numbers that mostly agree on few things, so its background, colour and path show through
    the noise already at sigma 0.95, and there the caption has nothing left to say. It is learned above that. The
    outline of the shape is learned below, and last.
    """
    u = torch.rand(count, device=device)
    shift = torch.where(torch.rand(count, device=device) < (0.6 if early else 0.3), 16.0, 3.0)
    return shift * u / (1 + (shift - 1) * u)


def optimizers(dit, lr):
    matrices = [p for name, p in dit.named_parameters() if p.dim() == 2 and name.startswith("blocks.")]
    ids = {id(p) for p in matrices}
    rest = [p for p in dit.parameters() if id(p) not in ids]
    return (Muon(matrices, lr, weight_decay=0.01),
            torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.99), weight_decay=0.01))


class Trainer:
    def __init__(self, args):
        self.args, self.data = args, Data(args.dir, args.device)
        self.tokenizer = AutoTokenizer.from_pretrained(os.path.join(args.dir, "tokenizer"))
        self.text_encoder = model.load_text_encoder(args.dir, self.tokenizer).to(args.device)
        torch.manual_seed(3)
        self.dit = model.new_dit()
        model.favour_text(self.dit, self.tokenizer, self.text_encoder, [t for t, _ in captions.held_out_prompts(32)])
        self.dit.to(args.device)
        self.ema = copy.deepcopy(self.dit).requires_grad_(False)
        self.optimizers = optimizers(self.dit, args.lr)
        self.state = {"step": 0, "seconds": 0.0, "from": 0.0, "until": args.minutes * 60, "first_step": 0,
                      "stats": self.data.stats()}
        self.path = os.path.join(args.dir, "dit.pt")
        if os.path.exists(self.path):
            self.load()
        self.cross = model.prepare_for_training(self.dit)
        self.rng = random.Random(77 + self.state["step"])
        torch.manual_seed(77 + self.state["step"])

    def load(self):
        saved = torch.load(self.path, map_location=self.args.device)
        self.dit.load_state_dict(saved["dit"])
        self.ema.load_state_dict(saved["ema"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"]):
            optimizer.load_state_dict(state)
        self.state = saved["state"]
        if self.args.continue_minutes:
            self.state.update({"from": self.state["seconds"], "first_step": self.state["step"],
                               "until": self.state["seconds"] + self.args.continue_minutes * 60})

    def store(self):
        train_vae.save(self.path, {"dit": self.dit.state_dict(), "ema": self.ema.state_dict(),
                                   "optimizers": [o.state_dict() for o in self.optimizers], "state": self.state})

    def loss(self, early, z, weight, texts):
        sigma = noise_levels(len(z), early, z.device).view(-1, 1, 1, 1, 1)
        noise = torch.randn_like(z)
        hidden, self.cross.bias = model.embed(self.tokenizer, self.text_encoder, texts, z.device)
        guess = self.dit((1 - sigma) * z + sigma * noise, sigma.flatten() * 1000, hidden, return_dict=False)[0]
        return (weight * (guess.float() - (noise - z)).square()).mean() / weight.mean()

    def step(self):
        state, args = self.state, self.args
        start = time.time()
        done = (state["seconds"] - state["from"]) / (state["until"] - state["from"])
        peak = args.lr * (0.4 if state["first_step"] else 1.0)
        rate = peak * rate_of(done, state["step"] - state["first_step"])
        for optimizer, scale in zip(self.optimizers, (MUON_SCALE, 1.0)):
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = scale * rate
        with torch.autocast(args.device, torch.bfloat16):
            loss = self.loss(done < 0.5 and state["first_step"] == 0, *self.data.batch(self.rng, args.batch, state["stats"]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.dit.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        state["step"] += 1
        with torch.no_grad():
            decay = min(0.998, (1 + state["step"]) / (10 + state["step"]))
            for a, p in zip(self.ema.parameters(), self.dit.parameters()):
                a.lerp_(p, 1 - decay)
        state["seconds"] += time.time() - start
        return loss.item()

    @torch.no_grad()
    def sample(self):
        """Draws 16 held-out prompts, writes DIR/sample-STEP.png, returns the judge's line."""
        vae = latents.load_vae(self.args.dir, self.args.device)   # its decoder may have gone on
        pipe = model.pipeline(self.tokenizer, self.text_encoder, self.ema, vae, self.state["stats"])
        pipe.set_progress_bar_config(disable=True)
        prompts = captions.held_out_prompts(16)
        frames = pipe([p for p, _ in prompts], height=world.SIZE, width=world.SIZE, num_frames=world.FRAMES,
                      num_inference_steps=20, guidance_scale=model.GUIDANCE, output_type="np",
                      generator=torch.Generator().manual_seed(1)).frames
        rows = [[frames[i + j][f] for j in (0, 1, 2, 3) for f in (0, 8, 16)] for i in range(0, 16, 4)]
        write_sheet(os.path.join(self.args.dir, f"sample-{self.state['step']:05d}.png"), rows)
        return score.summary([score.compare(score.judge(f), s) for f, (_, s) in zip(frames, prompts)])

    def run(self):
        state, losses = self.state, []
        logged = sampled = time.time()
        while state["seconds"] < state["until"]:
            losses.append(self.step())
            if time.time() - logged > 60:
                self.store()
                self.data.refresh()
                mean = sum(losses) / len(losses)
                print(f"{state['seconds']:6.0f} s step {state['step']} loss {mean:.4f} clips {len(self.data.scenes)} "
                      f"rate {self.optimizers[1].param_groups[0]['lr']:.1e}", flush=True)
                if math.isnan(mean):
                    raise RuntimeError("the loss is not a number")
                logged, losses = time.time(), []
            if time.time() - sampled > self.args.sample_minutes * 60:
                print("        held-out:", self.sample(), flush=True)
                sampled = time.time()
        self.store()
        print("done; held-out:", self.sample(), flush=True)


def main():
    args = parse()
    torch.set_num_threads(args.threads)
    trainer = Trainer(args)
    print(f"DiT {model.count(trainer.dit) / 1e6:.2f} M, text encoder {model.count(trainer.text_encoder) / 1e6:.2f} M; "
          f"from step {trainer.state['step']}", flush=True)
    trainer.run()


if __name__ == "__main__":
    sys.exit(main())
