"""The world that the `shapes` model knows: one flat shape that moves over a flat background.

A `Scene` names what a clip shows; `render` draws any number of scenes at once, anti-aliased, from signed
distances. Everything is float32 RGB in [0, 1], frames first: [B, F, H, W, 3].
"""

import dataclasses
import hashlib
import itertools
import math

import torch

SIZE = 64          # pixels, square frames
FRAMES = 17        # 4k + 1, as the Wan autoencoder wants
FPS = 8

COLOURS = {
    "red": (0.88, 0.08, 0.10),
    "green": (0.10, 0.68, 0.18),
    "blue": (0.10, 0.22, 0.92),
    "yellow": (0.95, 0.88, 0.08),
    "orange": (0.98, 0.50, 0.04),
    "purple": (0.52, 0.08, 0.72),
    "pink": (0.98, 0.50, 0.76),
    "cyan": (0.10, 0.84, 0.90),
}
BACKGROUNDS = {"black": (0.04, 0.04, 0.04), "grey": (0.50, 0.50, 0.50), "white": (0.96, 0.96, 0.96)}
SHAPES = ("circle", "square", "triangle", "star")
SIZES = {"small": 8.0, "large": 13.0}   # radius of the circle, pixels; the others have the same area
DIAGONAL = 16.0                         # travel of a diagonal move, pixels on each axis
STRAIGHT = 22.0                         # travel of a horizontal or vertical move, pixels
MOTIONS = {                             # x to the right, y down, pixels from first to last frame
    "left": (-STRAIGHT, 0.0),
    "right": (STRAIGHT, 0.0),
    "up": (0.0, -STRAIGHT),
    "down": (0.0, STRAIGHT),
    "up-left": (-DIAGONAL, -DIAGONAL),
    "up-right": (DIAGONAL, -DIAGONAL),
    "down-left": (-DIAGONAL, DIAGONAL),
    "down-right": (DIAGONAL, DIAGONAL),
    "still": (0.0, 0.0),
}
JITTER = 1.5        # the middle of the path lies within this of the frame's middle, pixels on each axis
STAR_INNER = 0.45   # inner over outer radius of the star
REACH = {"circle": 1.0, "square": 0.886, "triangle": 1.555, "star": 1.541}   # extent over SIZES' radius, for equal areas


@dataclasses.dataclass(frozen=True)
class Scene:
    """What one clip shows. `centre` is the middle of the path, pixels from the frame's middle."""
    colour: str
    shape: str
    motion: str
    size: str
    background: str
    centre: tuple = (0.0, 0.0)


def held_out(colour, shape, motion):
    """True for the about 15 % of (colour, shape, motion) that training never shows."""
    key = f"shapes-1/{colour}/{shape}/{motion}".encode()
    return hashlib.sha256(key).digest()[0] < 39   # 39 / 256 = 15.2 %


def combinations(want_held_out):
    """All (colour, shape, motion) on one side of the split, in a fixed order."""
    everything = itertools.product(COLOURS, SHAPES, MOTIONS)
    return [c for c in everything if held_out(*c) == want_held_out]


def room(shape, size, motion):
    """How far the path's middle may be from the frame's middle so that nothing is cut off: (x, y)."""
    reach = SIZES[size] * REACH[shape] + 0.5
    return tuple(max(0.0, min(JITTER, SIZE / 2 - reach - abs(d) / 2)) for d in MOTIONS[motion])


def draw_scene(rng, combination, size=None, background=None):
    """A scene with this (colour, shape, motion); what is not given is drawn from `rng` (random.Random)."""
    colour, shape, motion = combination
    size = size or rng.choice(list(SIZES))
    background = background or rng.choice(list(BACKGROUNDS))
    centre = tuple(rng.uniform(-r, r) for r in room(shape, size, motion))
    return Scene(colour, shape, motion, size, background, centre)


def share_of(scene):
    """How much more often training shows a scene than the easiest: small stars, and green on grey, are learned last."""
    share = 2.5 if scene.shape == "star" else 1.0
    share *= 1.6 if scene.size == "small" else 1.0
    return share * (2.5 if (scene.colour, scene.background) == ("green", "grey") else 1.0)


def _distance(shape, x, y, r):
    """Signed distance (pixels, negative inside) of points x, y from a shape about the origin."""
    if shape == "circle":
        return torch.hypot(x, y) - r
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - r * REACH["square"]
    if shape == "triangle":   # three half planes at the inner radius, point up
        half = 0.5 * REACH["triangle"] * r
        slope = math.sqrt(3) / 2
        return torch.maximum(y, slope * x.abs() - 0.5 * y) - half
    return _star_distance(x, y, REACH["star"] * r)


def _star_distance(x, y, outer):
    """Folds the plane into one tenth of the star, where its edge is one straight line."""
    sector = 2 * math.pi / 5
    angle = torch.atan2(x, -y)                       # 0 points up
    angle = (torch.remainder(angle + sector / 2, sector) - sector / 2).abs()
    radius = torch.hypot(x, y)
    px, py = radius * torch.cos(angle), radius * torch.sin(angle)
    tip_x, tip_y = outer, torch.zeros_like(outer)
    notch_x = STAR_INNER * outer * math.cos(sector / 2)
    notch_y = STAR_INNER * outer * math.sin(sector / 2)
    ex, ey = notch_x - tip_x, notch_y - tip_y
    return ((px - tip_x) * -ey + (py - tip_y) * ex) / torch.hypot(ex, ey) * -1.0


def render(scenes, frames=FRAMES, first=0, size=SIZE):
    """Frames first .. first + frames - 1 of the scenes: float32 [B, F, H, W, 3] in [0, 1]."""
    t = (torch.arange(first, first + frames, dtype=torch.float32) / (FRAMES - 1) - 0.5)
    axis = torch.arange(size, dtype=torch.float32) + 0.5 - size / 2
    out = torch.empty(len(scenes), frames, size, size, 3)
    for shape in SHAPES:
        rows = [i for i, s in enumerate(scenes) if s.shape == shape]
        if not rows:
            continue
        picked = [scenes[i] for i in rows]
        def column(values):
            return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1)
        cx = column([s.centre[0] for s in picked]) + column([MOTIONS[s.motion][0] for s in picked]) * t.view(1, -1, 1, 1)
        cy = column([s.centre[1] for s in picked]) + column([MOTIONS[s.motion][1] for s in picked]) * t.view(1, -1, 1, 1)
        r = column([SIZES[s.size] for s in picked])
        x, y = axis.view(1, 1, 1, -1) - cx, axis.view(1, 1, -1, 1) - cy
        cover = (0.5 - _distance(shape, *torch.broadcast_tensors(x, y), r)).clamp(0, 1).unsqueeze(-1)
        ink = torch.tensor([COLOURS[s.colour] for s in picked]).view(-1, 1, 1, 1, 3)
        ground = torch.tensor([BACKGROUNDS[s.background] for s in picked]).view(-1, 1, 1, 1, 3)
        out[rows] = ground + cover * (ink - ground)
    return out


def nearness(scenes, cell):
    """How near each cell of the latent grid is to where the scene's motion leads, 1 on the path and 0 far from it.

    Only what every caption says goes into it: a weight that knew more would teach the model what it cannot know.
    float32 [B, 1, F', SIZE / cell, SIZE / cell].
    """
    count = (FRAMES - 1) // 4 + 1
    t = torch.tensor([0.0] + [4 * k - 1.5 for k in range(1, count)]) / (FRAMES - 1) - 0.5
    axis = (torch.arange(SIZE // cell) + 0.5) * cell - SIZE / 2
    path = torch.tensor([MOTIONS[s.motion] for s in scenes]).unsqueeze(1) * t.view(1, -1, 1)   # [B, F', 2]
    x = axis.view(1, 1, 1, -1) - path[:, :, 0, None, None]
    y = axis.view(1, 1, -1, 1) - path[:, :, 1, None, None]
    return torch.exp(-(x.square() + y.square()) / 14.0 ** 2).unsqueeze(1)
