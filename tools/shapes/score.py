"""Says what a clip shows: colour, shape, motion, size and background. Array arithmetic only, nothing learned.

- background: the median colour of the frames' border; ink: the mean of the pixels that differ most from it;
- coverage: how far each pixel lies from background to ink, 0 .. 1; fewer than 8 covered pixels are "nothing";
- colour: the palette entry nearest to the ink;
- shape: rays from the centroid give a radius for each angle; the nearest of four ideal outlines, or "unclear" if
  none is near; the frames vote;
- motion: a line through the centroids of all frames; under 5 pixels in all is "still", else the nearest of the
  eight directions.

As a command: `score FOLDER` reads NNN.npy (float32 [F, H, W, 3] in [0, 1]) for prompt NNN of the held-out list,
or of FOLDER/scenes.json, a list of {"colour", "shape", "motion"}.
"""

import argparse
import collections
import glob
import json
import os
import sys

import numpy as np

import world

RAYS = 72
NOTHING = 8.0          # pixels
STILL = 5.0            # pixels over the whole clip
UNCLEAR = 0.13         # root mean square distance of outlines whose mean radius is 1
PARTS = ("colour", "motion", "shape")
DIRECTIONS = {name: np.array(d) / np.hypot(*d) for name, d in world.MOTIONS.items() if name != "still"}


def _outlines():
    """Ideal radius for each ray, of mean 1. Angle 0 points right, a quarter turn points down."""
    angle = np.arange(RAYS) * 2 * np.pi / RAYS

    def polygon(corners):
        best = np.zeros(RAYS)
        for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0)):
            # The ray t (cos, sin) meets the edge a + s (b - a).
            c, s = np.cos(angle), np.sin(angle)
            det = c * (ay - by) - s * (ax - bx)
            det = np.where(np.abs(det) < 1e-12, 1e-12, det)
            t = (ax * (ay - by) - ay * (ax - bx)) / det
            along = (c * ay - s * ax) / det
            best = np.where((t > 0) & (along >= -1e-9) & (along <= 1 + 1e-9), np.maximum(best, t), best)
        return best / best.mean()

    def ring(count, start, radii):
        turns = start + np.arange(count) * 2 * np.pi / count
        return np.stack([np.cos(turns), np.sin(turns)], 1) * np.resize(radii, count)[:, None]

    up = -np.pi / 2
    return {"circle": np.ones(RAYS), "square": polygon(ring(4, np.pi / 4, [1.0])),
            "triangle": polygon(ring(3, up, [1.0])), "star": polygon(ring(10, up, [1.0, world.STAR_INNER]))}


OUTLINES = _outlines()


def _nearest(value, table):
    return min(table, key=lambda name: float(np.sum((np.asarray(table[name]) - value) ** 2)))


def _coverage(frames):
    """(coverage [F, H, W], ink, background); coverage is None when no pixel stands out."""
    border = np.concatenate([frames[:, 0], frames[:, -1], frames[:, :, 0], frames[:, :, -1]], axis=1)
    ground = np.median(border.reshape(-1, 3), axis=0)
    away = frames - ground
    distance = np.sqrt((away ** 2).sum(-1))
    top = np.sort(distance.reshape(-1))[-int(NOTHING * len(frames)):].mean()
    if top < 0.15:
        return None, ground, ground
    ink = frames[distance > 0.7 * top].mean(axis=0)
    direction = ink - ground
    return np.clip(away @ direction / (direction @ direction), 0, 1), ink, ground


def _centroid(cover):
    y, x = np.mgrid[:cover.shape[0], :cover.shape[1]] + 0.5
    solid = np.where(cover > 0.25, cover, 0)
    area = solid.sum()
    return area, np.array([(solid * x).sum(), (solid * y).sum()]) / max(area, 1e-9)


def _outline(cover, centre, area):
    """Radius along each ray: the integral of the coverage, read between pixels."""
    angle = np.arange(RAYS) * 2 * np.pi / RAYS
    reach = np.arange(0.25, 2.2 * np.sqrt(area / np.pi) + 3, 0.5)
    x = centre[0] + np.cos(angle)[:, None] * reach - 0.5
    y = centre[1] + np.sin(angle)[:, None] * reach - 0.5
    padded = np.pad(cover, 1)
    x, y = np.clip(x + 1, 0, padded.shape[1] - 1.001), np.clip(y + 1, 0, padded.shape[0] - 1.001)
    i, j = np.floor(x).astype(int), np.floor(y).astype(int)
    u, v = x - i, y - j
    value = (padded[j, i] * (1 - u) * (1 - v) + padded[j, i + 1] * u * (1 - v)
             + padded[j + 1, i] * (1 - u) * v + padded[j + 1, i + 1] * u * v)
    return value.sum(1) * 0.5


def shape_of(cover, centre, area):
    outline = _outline(cover, centre, area)
    outline = outline / max(outline.mean(), 1e-9)
    name = _nearest(outline, OUTLINES)
    return name if np.sqrt(np.mean((outline - OUTLINES[name]) ** 2)) < UNCLEAR else "unclear"


def motion_of(centres):
    """`centres`: [F, 2] pixels, x and y."""
    t = np.arange(len(centres)) - (len(centres) - 1) / 2
    travel = (t @ centres) / (t @ t) * (len(centres) - 1)
    if np.hypot(*travel) < STILL:
        return "still"
    return max(DIRECTIONS, key=lambda name: float(DIRECTIONS[name] @ travel))


def judge(frames):
    """What the clip [F, H, W, 3] in [0, 1] shows: a name or "nothing" / "unclear" for each property."""
    frames = np.asarray(frames, dtype=np.float64)
    cover, ink, ground = _coverage(frames)
    seen = {"background": _nearest(ground, world.BACKGROUNDS)}
    found = [_centroid(c) for c in cover] if cover is not None else []
    if not found or sum(area >= NOTHING for area, _ in found) < 0.8 * len(frames):
        return seen | {"colour": "nothing", "shape": "nothing", "motion": "nothing", "size": "nothing"}
    rows = [i for i, (area, _) in enumerate(found) if area >= NOTHING]
    votes = collections.Counter(shape_of(cover[i], found[i][1], found[i][0]) for i in rows)
    area = np.median([found[i][0] for i in rows])
    middle = np.sqrt(np.prod([np.pi * r * r for r in world.SIZES.values()]))
    return seen | {"colour": _nearest(ink, world.COLOURS), "shape": votes.most_common(1)[0][0],
                   "motion": motion_of(np.array([found[i][1] for i in rows])),
                   "size": "small" if area < middle else "large"}


def compare(seen, scene):
    """Which parts are as the scene says; `all` is colour, motion and shape together."""
    right = {part: seen[part] == getattr(scene, part) for part in PARTS}
    return right | {"all": all(right.values())}


def rates(results):
    """Per cent right for each part."""
    return {part: 100.0 * sum(r[part] for r in results) / len(results) for part in (*PARTS, "all")}


def summary(results):
    return ", ".join(f"{part} {rate:.1f} %" for part, rate in rates(results).items()) + f" of {len(results)}"


def _expected(folder, count):
    path = os.path.join(folder, "scenes.json")
    if not os.path.exists(path):
        import captions
        return [s for _, s in captions.held_out_prompts(count)]
    with open(path) as f:
        return [world.Scene(s["colour"], s["shape"], s["motion"], "small", "black") for s in json.load(f)]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder")
    p.add_argument("--count", type=int, default=300, help="length of the held-out list")
    p.add_argument("--wrong", action="store_true", help="also list what was judged otherwise")
    args = p.parse_args()
    scenes = _expected(args.folder, args.count)
    results = []
    for path in sorted(glob.glob(os.path.join(args.folder, "[0-9]*.npy"))):
        number = int(os.path.basename(path)[:-4])
        seen = judge(np.load(path))
        results.append(compare(seen, scenes[number]))
        if args.wrong and not results[-1]["all"]:
            print(number, scenes[number], seen)
    if not results:
        raise SystemExit(f"no NNN.npy in {args.folder}")
    print(summary(results))


if __name__ == "__main__":
    sys.exit(main())
