"""Draws the held-out prompts with a finished model folder and scores them.

evaluate.py draw --backend diffusers|denoised --model DIR --out DIR   writes NNN.npy, prints the scores
evaluate.py compare A B                                               scores of both, and how far frames differ
evaluate.py attention --out DIR NAME...      a table: each attention backend against REFERENCE, drawn by `denoised`
evaluate.py linear --out DIR NAME...         the same of linear numerics (packed, int8) against exact

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


def draw_denoised(args, todo, *more):
    """`more`: other flags of denoisectl generate."""
    name = os.path.basename(os.path.normpath(args.model))
    for i, prompt in todo:
        command = [args.denoisectl, "generate", prompt, "-o", path_of(args.out, i), f"--server={args.server}",
                   f"--model={name}", f"--seed={FIRST_SEED + i}", f"--steps={args.steps}",
                   f"--guidance={args.guidance}", "--json", *more]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


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


def psnr(a, b):
    """Decibels over all clips of two folders that are in both; infinite where they are equal."""
    names = sorted(set(os.listdir(a)) & set(os.listdir(b)))
    errors = [np.square(np.load(os.path.join(a, n)) - np.load(os.path.join(b, n))).mean()
              for n in names if n.endswith(".npy")]
    return float("inf") if max(errors) == 0 else -10 * np.log10(np.mean(errors))


def table(args):
    """A line a name: mean-square distance to `args.true` over all frames, and what the judge sees."""
    prompts = captions.held_out_prompts(300)[:args.count]
    print(f"| {args.flags[0].strip('-')} | PSNR, dB | colour | motion | shape | all |\n| --- | --- | --- | --- | --- | --- |")
    top = args.out
    for name in [args.true, *args.names]:
        args.out = os.path.join(top, name)
        os.makedirs(args.out, exist_ok=True)
        todo = [(i, p) for i, (p, _) in enumerate(prompts) if not os.path.exists(path_of(args.out, i))]
        draw_denoised(args, todo, f"{args.flags[0]}={name}", *args.flags[1:])
        rates = score.rates(results_of(args.out, prompts))
        cells = [f"{psnr(os.path.join(top, args.true), args.out):.1f}"] + [f"{r:.1f}" for r in rates.values()]
        print(f"| `{name}` | {' | '.join(cells)} |", flush=True)


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
    drawing = argparse.ArgumentParser(add_help=False)
    drawing.add_argument("--model", default=os.path.join(os.path.dirname(__file__), "../../model_repository/shapes"))
    drawing.add_argument("--out", required=True)
    drawing.add_argument("--count", type=int, default=300, help="the first so many of the 300")
    drawing.add_argument("--steps", type=int, default=20)
    drawing.add_argument("--guidance", type=float, default=1.5)
    drawing.add_argument("--server", default="127.0.0.1:50051")
    drawing.add_argument("--denoisectl", default=os.path.join(os.path.dirname(__file__), "../../build/bin/denoisectl"))
    d = sub.add_parser("draw", parents=[drawing])
    d.add_argument("--backend", choices=("diffusers", "denoised"), default="diffusers")
    d.add_argument("--batch", type=int, default=10)
    d.add_argument("--threads", type=int, default=2)
    d.set_defaults(call=draw)
    for kind, true, flags in (("attention", "REFERENCE", ("--backend", "--strict")), ("linear", "exact", ("--linear",))):
        a = sub.add_parser(kind, parents=[drawing])
        a.add_argument("names", nargs="+")
        a.set_defaults(call=table, true=true, flags=flags)
    c = sub.add_parser("compare")
    c.add_argument("a")
    c.add_argument("b")
    c.set_defaults(call=compare)
    args = p.parse_args()
    args.call(args)


if __name__ == "__main__":
    sys.exit(main())
