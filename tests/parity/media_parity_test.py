"""What we write, others read: Pillow for .gif and .png, numpy for .npy."""

import io
import math
import os
import pathlib
import subprocess
import sys
import unittest

import numpy
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import tether  # noqa: E402, F401

DRIVER = os.environ["DENOISED_DRIVER"]


def encode(form, array, fps=16):
    frames, height, width, _ = array.shape
    return subprocess.run([DRIVER, form, str(frames), str(height), str(width), str(fps)],
                          input=array.tobytes(), stdout=subprocess.PIPE, check=True).stdout


def noise(*shape, levels=256, seed=0):
    rng = numpy.random.default_rng(seed)
    return (rng.integers(0, levels, shape) * (255 // max(levels - 1, 1))).astype(numpy.uint8)


def smooth(frames, height, width):
    f, y, x = numpy.meshgrid(numpy.arange(frames), numpy.arange(height), numpy.arange(width),
                             indexing="ij")
    waves = [numpy.sin(x / 9 + f / 3), numpy.cos(y / 7), numpy.sin((x + y + f) / 11)]
    return numpy.stack([(wave * 110 + 128) for wave in waves], -1).astype(numpy.uint8)


def psnr(a, b):
    error = numpy.mean((a.astype(float) - b.astype(float)) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def gif_frames(data):
    image = Image.open(io.BytesIO(data))
    frames, durations = [], []
    for index in range(image.n_frames):
        image.seek(index)
        frames.append(numpy.array(image.convert("RGB")))
        durations.append(image.info["duration"])
    return numpy.stack(frames), durations, image.info.get("loop")


class MediaParity(unittest.TestCase):
    def test_png_is_exact(self):
        for shape in ((1, 1, 1, 3), (1, 7, 5, 3), (1, 64, 96, 3), (1, 300, 301, 3)):
            for array in (noise(*shape), noise(*shape, levels=2), smooth(*shape[:3])):
                image = Image.open(io.BytesIO(encode("png", array)))
                image.load()
                self.assertEqual(image.mode, "RGB")
                numpy.testing.assert_array_equal(numpy.array(image), array[0])

    def test_png_sheet_holds_the_frames_in_reading_order(self):
        for frames, columns in ((2, 2), (4, 2), (5, 3), (9, 3), (10, 4)):
            array = noise(frames, 6, 8, 3, seed=frames)
            sheet = numpy.array(Image.open(io.BytesIO(encode("png", array))))
            rows = -(-frames // columns)
            self.assertEqual(sheet.shape, (rows * 6, columns * 8, 3))
            for i in range(rows * columns):
                y, x = i // columns * 6, i % columns * 8
                wanted = array[i] if i < frames else numpy.zeros((6, 8, 3), numpy.uint8)
                numpy.testing.assert_array_equal(sheet[y:y + 6, x:x + 8], wanted)

    def test_gif_with_few_colours_is_exact(self):
        for shape in ((1, 1, 1, 3), (3, 5, 7, 3), (2, 64, 64, 3), (2, 200, 300, 3)):
            array = noise(*shape, levels=4, seed=shape[1])
            frames, _, loop = gif_frames(encode("gif", array))
            numpy.testing.assert_array_equal(frames, array)
            self.assertEqual(loop, 0)

    def test_gif_codes_of_every_width(self):
        """Long noise fills the code table many times; long runs reach its widths one by one."""
        for levels in (1, 2, 6):
            for pixels in (1, 2, 3, 5, 8, 4000, 60000):
                array = noise(1, 1, pixels, 3, levels=levels, seed=pixels)
                frames, _, _ = gif_frames(encode("gif", array))
                numpy.testing.assert_array_equal(frames, array)

    def test_gif_of_many_colours_is_close(self):
        array = smooth(4, 90, 120)
        frames, _, _ = gif_frames(encode("gif", array))
        self.assertEqual(frames.shape, array.shape)
        self.assertGreater(psnr(frames, array), 27)
        # Error diffusion: blocks keep their mean much better than pixels do.
        blocks = lambda a: a[:, :88].reshape(4, 22, 4, 30, 4, 3).mean((2, 4))
        self.assertGreater(psnr(blocks(frames), blocks(array)), 36)

    def test_gif_durations_add_up(self):
        for fps in (1, 8, 15, 16, 24, 30):
            array = numpy.stack([numpy.full((4, 4, 3), i, numpy.uint8) for i in range(24)])
            frames, durations, _ = gif_frames(encode("gif", array, fps))
            self.assertEqual(len(frames), 24)
            self.assertAlmostEqual(sum(durations), 24000 / fps, delta=10)
            self.assertLessEqual(max(durations) - min(durations), 10)

    def test_npy(self):
        array = numpy.random.default_rng(1).random((3, 4, 5, 3), numpy.float32)
        read = numpy.load(io.BytesIO(encode("npy", array)))
        self.assertEqual(read.dtype, numpy.float32)
        numpy.testing.assert_array_equal(read, array)
        written = io.BytesIO()
        numpy.lib.format.write_array(written, array, version=(1, 0))
        self.assertEqual(written.getvalue(), encode("npy", array))


if __name__ == "__main__":
    unittest.main()
