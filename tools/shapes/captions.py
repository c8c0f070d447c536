"""Captions of scenes: a small grammar with synonyms, optional parts and several word orders."""

import random

import world

COLOUR_WORDS = {"purple": ("purple", "purple", "violet"), "cyan": ("cyan", "cyan", "turquoise"),
                "pink": ("pink", "pink", "rose")}
SHAPE_WORDS = {"circle": ("circle", "circle", "disc", "ball"), "square": ("square", "square", "box"),
               "triangle": ("triangle",), "star": ("star",)}
SIZE_WORDS = {"small": ("small", "small", "little", "tiny"), "large": ("large", "large", "big", "huge")}
GROUND_WORDS = {"black": ("black",), "grey": ("grey", "grey", "gray"), "white": ("white",)}
VERBS = (("moving", "moves"), ("moving", "moves"), ("going", "goes"), ("sliding", "slides"),
         ("drifting", "drifts"), ("travelling", "travels"), ("flying", "flies"))
STRAIGHT = {
    "left": ("left", "left", "to the left", "leftwards", "from right to left"),
    "right": ("right", "right", "to the right", "rightwards", "from left to right"),
    "up": ("up", "up", "upwards", "to the top"),
    "down": ("down", "down", "downwards", "to the bottom"),
}
STILL = (("standing still", "stands still"), ("staying still", "stays still"), ("not moving", "does not move"),
         ("at rest", "rests"), ("holding still", "holds still"))


def _way(rng, motion):
    if motion in STRAIGHT:
        return rng.choice(STRAIGHT[motion])
    up, left = motion.split("-")
    corner = {"up": "top", "down": "bottom"}[up]
    return rng.choice((motion, f"{up} and {left}", f"{up} and to the {left}", f"diagonally {up} and {left}",
                       f"to the {corner} {left}", f"{up} {left}"))


def _motion(rng, motion):
    """(participle, third person) of the same wording."""
    if motion == "still":
        return rng.choice(STILL)
    way = _way(rng, motion)
    return tuple(f"{verb} {way}" for verb in rng.choice(VERBS))


def _article(words):
    return ("an " if words[0] in "aeiou" else "a ") + words


def caption(rng, scene):
    """A caption of the scene. The colour, shape and motion are always named; size and background may be left out."""
    colour = rng.choice(COLOUR_WORDS.get(scene.colour, (scene.colour,)))
    shape = rng.choice(SHAPE_WORDS[scene.shape])
    size = rng.choice(SIZE_WORDS[scene.size]) + " " if rng.random() < 0.6 else ""
    ground = rng.choice(GROUND_WORDS[scene.background]) if rng.random() < 0.6 else None
    doing, does = _motion(rng, scene.motion)
    thing = _article(f"{size}{colour} {shape}")
    text = rng.choice((f"{thing} {doing}", f"{thing} {doing}", f"{thing} {does}", f"{thing} that {does}",
                       f"{thing}, {doing}", f"a video of {thing} {doing}"))
    if ground:
        where = rng.choice((f"on a {ground} background", f"on {ground}", f"against a {ground} background"))
        text = rng.choice((f"{text} {where}", f"{text} {where}", f"{text}, {where}", f"{where}, {text}",
                           f"{where}: {text}"))
    if rng.random() < 0.2:
        text = text[0].upper() + text[1:]
    return text + ("." if rng.random() < 0.15 else "")


def says(text, name):
    """True if a caption names this attribute of its scene; the empty one names none."""
    optional = {"size": SIZE_WORDS, "background": GROUND_WORDS}.get(name)
    if not optional:
        return bool(text)
    words = set(text.lower().replace(",", " ").replace(":", " ").rstrip(".").split())
    return any(word in words for group in optional.values() for word in group)


def held_out_prompts(count, seed=2026):
    """[(prompt, scene)], combinations that training never shows, each about equally often. Same list every time."""
    rng = random.Random(seed)
    combinations = world.combinations(True)
    rng.shuffle(combinations)
    out = []
    for i in range(count):
        scene = world.draw_scene(rng, combinations[i % len(combinations)])
        out.append((caption(rng, scene), scene))
    return out
