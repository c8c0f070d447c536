"""Trains the autoencoder of the `shapes` model: AutoencoderKLWan in the topology of Wan 2.1, very narrow.

Clips are rendered on the fly and are 1, 5, 9 or 17 frames long: one frame meets the first chunk of the causal
network, five meet its cache for the first time, the rest meet it filled. Most are cropped about the middle,
since only the neighbourhood of the shape teaches anything. Resumes from DIR/vae.pt.
"""

import argparse
import math
import os
import random
import sys
import time

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan

import world
from muon import Muon
from sheet import write_sheet

Z = 8
# frames -> (share of the steps, clips a step)
CLIPS = {1: (0.15, 12), 5: (0.35, 4), 9: (0.3, 2), 17: (0.2, 1)}
CLIPS_DECODER = {5: (0.3, 4), 9: (0.4, 2), 17: (0.3, 1)}


def new_vae(base):
    return AutoencoderKLWan(
        base_dim=base, z_dim=Z, dim_mult=[1, 2, 2], num_res_blocks=1, attn_scales=[],
        temperal_downsample=[True, True], is_residual=False, patch_size=None,
        scale_factor_temporal=4, scale_factor_spatial=4,
        latents_mean=[0.0] * Z, latents_std=[1.0] * Z)


def channels_last(vae):
    """Convolutions in this layout take a third less time on a CPU."""
    for p in vae.parameters():
        if p.dim() == 5:
            p.data = p.data.contiguous(memory_format=torch.channels_last_3d)


def encode(vae, x):
    """Moments [B, 2 Z, F', h, w] of clips [B, 3, F, H, W] in [-1, 1], differentiable, chunk by chunk."""
    vae.clear_cache()
    parts = [x[:, :, :1]] + list(x[:, :, 1:].split(4, dim=2)) if x.shape[2] > 1 else [x]
    out = []
    for part in parts:
        vae._enc_conv_idx = [0]
        out.append(vae.encoder(part, feat_cache=vae._enc_feat_map, feat_idx=vae._enc_conv_idx))
    vae.clear_cache()
    return vae.quant_conv(torch.cat(out, 2))


def decode(vae, z):
    """Clips of latents, without the clamp at the end (its gradient is zero where it matters)."""
    vae.clear_cache()
    z, out = vae.post_quant_conv(z), []
    for i in range(z.shape[2]):
        vae._conv_idx = [0]
        out.append(vae.decoder(z[:, :, i:i + 1], feat_cache=vae._feat_map, feat_idx=vae._conv_idx,
                               first_chunk=i == 0))
    vae.clear_cache()
    return torch.cat(out, 2)


def clips(rng, count, frames, crop, combinations):
    """Training clips [B, 3, F, crop, crop] in [-1, 1] and the weight of their pixels [B, 1, F, crop, crop]."""
    scenes = [world.draw_scene(rng, rng.choice(combinations)) for _ in range(4 * count)]
    scenes = rng.choices(scenes, [world.share_of(s) for s in scenes], k=count)
    first = rng.randint(0, world.FRAMES - frames)
    x = world.render(scenes, frames, first).permute(0, 4, 1, 2, 3)
    ground = torch.tensor([world.BACKGROUNDS[s.background] for s in scenes]).view(count, 3, 1, 1, 1)
    shape = ((x - ground).abs().amax(1) > 0.02).float()
    near = F.max_pool2d(shape, 7, 1, 3)
    edge = near + F.max_pool2d(-shape, 7, 1, 3)
    weight = (1 + 3 * near + 3 * edge).unsqueeze(1)
    # Of the four frames of a latent one the first two come out worst.
    weight[:, :, [f for f in range(frames) if f % 4 in (1, 2)]] *= 1.7
    x = x * 2 - 1
    if crop < world.SIZE:
        t = (first + (frames - 1) / 2) / (world.FRAMES - 1) - 0.5
        cut = []
        for i, s in enumerate(scenes):
            spot = [s.centre[a] + world.MOTIONS[s.motion][a] * t + rng.uniform(-6, 6) for a in (0, 1)]
            ox, oy = (int(min(max(32 + v - crop / 2, 0), world.SIZE - crop)) for v in spot)
            cut.append((slice(None), slice(None), slice(oy, oy + crop), slice(ox, ox + crop)))
        x = torch.stack([x[i][c] for i, c in enumerate(cut)])
        weight = torch.stack([weight[i][c] for i, c in enumerate(cut)])
    return x.contiguous(memory_format=torch.channels_last_3d), weight


def new_optimizers(vae, lr):
    """Muon for the kernels between the ends, AdamW for the ends, biases and gains."""
    named = [(n, p) for n, p in vae.named_parameters() if p.requires_grad]
    inner = [p for n, p in named if p.dim() >= 4 and min(p.shape[:2]) > Z and "conv_out" not in n]
    ids = {id(p) for p in inner}
    rest = [p for _, p in named if id(p) not in ids]
    return Muon(inner, lr), torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)


def slope_weight(step):
    """The slope term comes in late: a flat picture is a local minimum of it, and the first steps fall in."""
    return 1.5 * min(1.0, max(0.0, (step - 200) / 600))


def loss_of(y, x, weight, moments, kl_weight, slope_share):
    mean, log_var = moments.float().chunk(2, 1)
    log_var = log_var.clamp(-30, 20)
    error = y - x
    pixel = (weight * (error.abs() + error.square())).mean()
    slope = sum((weight.narrow(d, 1, x.shape[d] - 1) * error.diff(dim=d).abs()).mean()
                for d in (3, 4)) + (error.diff(dim=2).abs().mean() if x.shape[2] > 1 else 0.0)
    flat = F.avg_pool3d(error, (1, 8, 8)).abs().mean()   # colours of areas
    kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).mean()
    return pixel + 3 * flat + slope_share * slope + kl_weight * kl, kl


def psnr_of(y, x):
    """Over the brightness range 0 .. 1, the mean over clips."""
    error = ((y.clamp(-1, 1) - x) / 2).square().flatten(1).mean(1)
    return float((-10 * torch.log10(error)).mean())


@torch.no_grad()
def check(vae, path, device):
    """PSNR of 12 fixed full clips; writes frames 0, 8, 16 of truth and reconstruction to `path`."""
    rng = random.Random(7)
    scenes = [world.draw_scene(rng, rng.choice(world.combinations(True))) for _ in range(12)]
    x = world.render(scenes).permute(0, 4, 1, 2, 3).to(device) * 2 - 1
    y = torch.cat([decode(vae, encode(vae, c)[:, :Z]) for c in x.split(4)])
    rows = []
    for i in range(0, 12, 2):
        both = [(c[i + j].permute(1, 2, 3, 0)[f] / 2 + 0.5).cpu().numpy() for j in (0, 1) for c in (x, y)
                for f in (0, 8, 16)]
        rows.append(both)
    write_sheet(path, rows)
    return psnr_of(y, x)


def save(path, state):
    torch.save(state, path + ".new")
    os.replace(path + ".new", path)


def parse():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--dir", required=True)
    p.add_argument("--minutes", type=float, default=33)
    p.add_argument("--base", type=int, default=16)
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--kl", type=float, default=1e-4)
    p.add_argument("--decoder-only", action="store_true",
                   help="keep the encoder, so that encoded clips and a DiT stay valid; the latents get noise")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return p.parse_args()


class Training:
    """The autoencoder, its optimizers and where they stand; one instance a process."""

    def __init__(self, args):
        self.args, self.path = args, os.path.join(args.dir, "vae.pt")
        self.vae = new_vae(args.base).to(args.device)
        channels_last(self.vae)
        if args.decoder_only:
            for part in (self.vae.encoder, self.vae.quant_conv):
                part.requires_grad_(False)
        self.optimizers = new_optimizers(self.vae, args.lr)
        self.step, self.before = 0, 0.0
        if os.path.exists(self.path):
            self._load()
        self.start, self.first = time.time(), self.step
        self.rng = random.Random(1000 + self.step)
        self.combinations = world.combinations(False)

    def _load(self):
        state = torch.load(self.path, map_location=self.args.device)
        self.vae.load_state_dict(state["vae"])
        self.step, self.before = state["step"], state["seconds"]
        if state.get("decoder_only", False) == self.args.decoder_only:
            for o, saved in zip(self.optimizers, state["optimizers"]):
                o.load_state_dict(saved)

    def store(self):
        save(self.path, {
            "step": self.step, "seconds": self.before + self.spent(), "vae": self.vae.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers], "base": self.args.base,
            "decoder_only": self.args.decoder_only})

    def spent(self):
        return time.time() - self.start

    def set_rate(self):
        """Warm-up, then a cosine over this run; a continued run peaks at a third."""
        done = min(1.0, self.spent() / (self.args.minutes * 60))
        peak = self.args.lr if self.first == 0 else self.args.lr / 3
        rate = peak * min(1, (self.step - self.first + 1) / 40) * (0.04 + 0.48 * (1 + math.cos(done * math.pi)))
        for o in self.optimizers:
            for group in o.param_groups:
                group["lr"] = rate
            o.zero_grad()
        return rate

    def batch(self):
        table = CLIPS_DECODER if self.args.decoder_only else CLIPS
        lengths = list(table)
        frames = self.rng.choices(lengths, [table[n][0] for n in lengths])[0]
        if self.step < 150:   # still pictures first: they are cheap and teach colours
            frames = 1
        whole = 0.4 if self.args.decoder_only else 0.25
        crop = world.SIZE if self.rng.random() < whole else 48
        x, weight = clips(self.rng, table[frames][1], frames, crop, self.combinations)
        return x.to(self.args.device), weight.to(self.args.device)

    def forward(self, x):
        with torch.autocast(self.args.device, torch.bfloat16):
            with torch.set_grad_enabled(not self.args.decoder_only):
                moments = encode(self.vae, x)
            mean, log_var = moments.chunk(2, 1)
            spread = (0.5 * log_var.clamp(-30, 20)).exp()
            if self.args.decoder_only:   # what the DiT draws is a little off
                spread = spread + 0.04 * mean.std((0, 2, 3, 4), keepdim=True)
            return moments, decode(self.vae, mean + torch.randn_like(mean) * spread).float()

    def step_once(self):
        """(loss, PSNR, KL) of one step."""
        x, weight = self.batch()
        moments, y = self.forward(x)
        loss, kl = loss_of(y, x, weight, moments, self.args.kl, slope_weight(self.step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        for o in self.optimizers:
            o.step()
        self.step += 1
        return loss.item(), psnr_of(y.detach(), x), kl.item()

    def check(self):
        return check(self.vae, os.path.join(self.args.dir, "vae.png"), self.args.device)


def main():
    args = parse()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    os.makedirs(args.dir, exist_ok=True)
    t = Training(args)
    print(f"{sum(p.numel() for p in t.vae.parameters()) / 1e6:.2f} M parameters, from step {t.step}", flush=True)
    last, seen = time.time(), []
    while t.spent() < args.minutes * 60:
        rate = t.set_rate()
        seen.append(t.step_once())
        if time.time() - last > 60:
            t.store()
            loss, psnr, kl = (sum(v) / len(v) for v in zip(*seen))
            print(f"{t.spent():6.0f} s step {t.step} loss {loss:.4f} psnr {psnr:.2f} kl {kl:.2f} "
                  f"full clips {t.check():.2f} dB rate {rate:.1e}", flush=True)
            last, seen = time.time(), []
    t.store()
    print(f"done: step {t.step}, {t.check():.2f} dB", flush=True)


if __name__ == "__main__":
    sys.exit(main())
