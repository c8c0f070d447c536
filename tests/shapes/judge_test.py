"""The judge of tools/shapes against clips whose content is known, and the world and grammar that it judges."""

import os
import random
import sys
import unittest

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tools/shapes"))
import captions  # noqa: E402
import score  # noqa: E402
import world  # noqa: E402


def render(scenes):
    return world.render(scenes).numpy()


class GroundTruth(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        rng = random.Random(11)
        combinations = world.combinations(True) + world.combinations(False)
        cls.scenes = [world.draw_scene(rng, c) for c in combinations]
        cls.clips = render(cls.scenes)
        cls.seen = [score.judge(c) for c in cls.clips]

    def test_scores_ground_truth_almost_perfectly(self):
        rates = score.rates([score.compare(a, b) for a, b in zip(self.seen, self.scenes)])
        for part, rate in rates.items():
            self.assertGreaterEqual(rate, 99.0, part)

    def test_sees_size_and_background(self):
        for part in ("size", "background"):
            right = sum(a[part] == getattr(b, part) for a, b in zip(self.seen, self.scenes))
            self.assertGreaterEqual(right, 0.99 * len(self.scenes), part)

    def test_is_at_chance_for_shuffled_captions(self):
        rng = random.Random(12)
        results = []
        for _ in range(10):
            order = rng.sample(self.scenes, len(self.scenes))
            results += [score.compare(a, b) for a, b in zip(self.seen, order)]
        rates = score.rates(results)
        for part, names in (("colour", world.COLOURS), ("shape", world.SHAPES), ("motion", world.MOTIONS)):
            self.assertAlmostEqual(rates[part], 100 / len(names), delta=4, msg=part)
        self.assertLess(rates["all"], 3)

    def test_survives_noise_and_eight_bits(self):
        noise = np.random.default_rng(3).normal(0, 0.03, self.clips.shape)
        noisy = np.round((self.clips + noise).clip(0, 1) * 255) / 255
        results = [score.compare(score.judge(c), s) for c, s in zip(noisy, self.scenes)]
        self.assertGreaterEqual(score.rates(results)["all"], 95.0)


class WrongClips(unittest.TestCase):
    def scene(self, **changes):
        return world.Scene(**({"colour": "red", "shape": "square", "motion": "left", "size": "large",
                               "background": "black"} | changes))

    def test_an_empty_clip_shows_nothing(self):
        clip = np.full((17, 64, 64, 3), 0.5)
        self.assertEqual(score.judge(clip)["colour"], "nothing")
        self.assertFalse(score.compare(score.judge(clip), self.scene())["all"])

    def test_a_shape_that_leaves_early_shows_nothing(self):
        clip = render([self.scene()])[0].copy()
        clip[8:] = clip[0, 0, 0]
        self.assertEqual(score.judge(clip)["motion"], "nothing")

    def test_time_reversed_is_the_other_way(self):
        clip = render([self.scene()])[0]
        self.assertEqual(score.judge(clip[::-1])["motion"], "right")

    def test_a_frozen_clip_is_still(self):
        clip = np.repeat(render([self.scene()])[0][:1], 17, axis=0)
        self.assertEqual(score.judge(clip)["motion"], "still")

    def test_an_upside_down_triangle_is_unclear(self):
        clip = render([self.scene(shape="triangle", motion="still")])[0]
        self.assertEqual(score.judge(clip)["shape"], "triangle")
        self.assertNotEqual(score.judge(clip[:, ::-1])["shape"], "triangle")

    def test_noise_is_no_shape(self):
        clip = np.random.default_rng(1).uniform(0, 1, (17, 64, 64, 3))
        self.assertIn(score.judge(clip)["shape"], ("unclear", "nothing"))


class Captions(unittest.TestCase):
    def test_held_out_combinations_are_apart_and_about_15_per_cent(self):
        held, shown = set(world.combinations(True)), set(world.combinations(False))
        self.assertFalse(held & shown)
        self.assertEqual(len(held | shown), 8 * 4 * 9)
        self.assertAlmostEqual(len(held) / 288, 0.15, delta=0.04)

    def test_prompts_are_the_same_every_time_and_held_out(self):
        prompts = captions.held_out_prompts(300)
        self.assertEqual(prompts, captions.held_out_prompts(300))
        self.assertTrue(all(world.held_out(s.colour, s.shape, s.motion) for _, s in prompts))

    def test_every_caption_names_colour_and_shape(self):
        for text, scene in captions.held_out_prompts(300):
            words = text.lower()
            self.assertTrue(any(w in words for w in captions.COLOUR_WORDS.get(scene.colour, (scene.colour,))), text)
            self.assertTrue(any(w in words for w in captions.SHAPE_WORDS[scene.shape]), text)


if __name__ == "__main__":
    unittest.main()
