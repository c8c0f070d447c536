"""Draws the held-out prompts with a finished model folder and scores them.

evaluate.py draw --backend diffusers|denoised --model DIR --out DIR   writes NNN.npy, prints the scores
evaluate.py compare A B                                               scores of both, and how far frames differ

Prompt NNN has seed 1000 + NNN. Clips that are there already are not drawn again.
`denoised` is asked through `denoisectl generate`, so a server must be up (--server), with the model's folder in
its repository.
"""

import argparse
import os
import subprocess
import sys

import numpy as np

import captions
import score
import world
from sheet import write_sheet

FIRST_SEED = 1000


def draw_diffusers(args, todo):
    import torch
    from diffusers import WanPipeline
    torch.set_num_threads(args.threads)
    pipe = WanPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    for start in range(0, len(todo), args.batch):
        part = todo[start:start + args.batch]
        generators = [torch.Generator().manual_seed(FIRST_SEED + i) for i, _ in part]
        frames = pipe([p for _, p in part], height=world.SIZE, width=world.SIZE, num_frames=world.FRAMES,
                      num_inference_steps=args.steps, guidance_scale=args.guidance, output_type="np",
                      generator=generators).frames
        for (i, _), clip in zip(part, frames):
            np.save(path_of(args.out, i), clip.astype(np.float32))
        print(f"{start + len(part)} of {len(todo)}", flush=True)


def draw_denoised(args, todo):
    name = os.path.basename(os.path.normpath(args.model))
    for i, prompt in todo:
        path = path_of(args.out, i)
        command = [args.denoisectl, "generate", prompt, "-o", path, f"--server={args.server}", f"--model={name}",
                   f"--seed={FIRST_SEED + i}", f"--steps={args.steps}", f"--guidance={args.guidance}", "--json"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        np.save(path, as_unit(np.load(path)))


def as_unit(clip):
    """Frames in [0, 1], whether they came as bytes or as floats."""
    return clip.astype(np.float32) / 255 if clip.dtype == np.uint8 else clip.astype(np.float32)


def path_of(folder, number):
    return os.path.join(folder, f"{number:03d}.npy")


def results_of(folder, prompts):
    rows = [(i, s) for i, (_, s) in enumerate(prompts) if os.path.exists(path_of(folder, i))]
    return [score.compare(score.judge(np.load(path_of(folder, i))), s) for i, s in rows]


def sheet_of(folder, path, numbers):
    """Rows of four clips, frames 0, 8 and 16 of each."""
    clips = [np.load(path_of(folder, i)) for i in numbers]
    write_sheet(path, [[c[f] for c in clips[i:i + 4] for f in (0, 8, 16)] for i in range(0, len(clips) - 3, 4)])


def draw(args):
    os.makedirs(args.out, exist_ok=True)
    prompts = captions.held_out_prompts(300)[:args.count]
    todo = [(i, p) for i, (p, _) in enumerate(prompts) if not os.path.exists(path_of(args.out, i))]
    (draw_diffusers if args.backend == "diffusers" else draw_denoised)(args, todo)
    print(f"{args.backend}, {args.steps} steps, guidance {args.guidance}: {score.summary(results_of(args.out, prompts))}")
    sheet_of(args.out, os.path.join(args.out, "sheet.png"), range(min(args.count, 32)))


def compare(args):
    prompts = captions.held_out_prompts(300)
    both = [i for i in range(300) if all(os.path.exists(path_of(d, i)) for d in (args.a, args.b))]
    if not both:
        raise SystemExit("the folders have no clip in common")
    levels = [255 * np.abs(np.load(path_of(args.a, i)) - np.load(path_of(args.b, i))).mean() for i in both]
    for folder in (args.a, args.b):
        print(f"{folder}: {score.summary(results_of(folder, prompts))}")
    print(f"{len(both)} clips in both; mean difference {np.mean(levels):.3f} levels of 255, worst clip {max(levels):.3f}")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(required=True)
    d = sub.add_parser("draw")
    d.add_argument("--backend", choices=("diffusers", "denoised"), default="diffusers")
    d.add_argument("--model", default=os.path.join(os.path.dirname(__file__), "../../model_repository/shapes"))
    d.add_argument("--out", required=True)
    d.add_argument("--count", type=int, default=300, help="the first so many of the 300")
    d.add_argument("--steps", type=int, default=20)
    d.add_argument("--guidance", type=float, default=3.0)
    d.add_argument("--batch", type=int, default=10)
    d.add_argument("--threads", type=int, default=2)
    d.add_argument("--server", default="127.0.0.1:50051")
    d.add_argument("--denoisectl", default=os.path.join(os.path.dirname(__file__), "../../build/bin/denoisectl"))
    d.set_defaults(call=draw)
    c = sub.add_parser("compare")
    c.add_argument("a")
    c.add_argument("b")
    c.set_defaults(call=compare)
    args = p.parse_args()
    args.call(args)


if __name__ == "__main__":
    sys.exit(main())
