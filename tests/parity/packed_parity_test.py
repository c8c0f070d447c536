"""Packed numerics, the default: close to diffusers and transformers, and every row of a forward with
its own bits, whatever shares the call and on however many threads.

Bit-equality with the references is what exact numerics promise (models_parity_test).
"""

import subprocess
import sys
import unittest

import models_parity_test
from models_parity_test import AutoencoderKLWan, DTYPES, Driver, Parity, UMT5Config, UMT5EncoderModel
from models_parity_test import WanTransformer3DModel, realign, shake, torch

# FLASH_ATTN, since the bits of TORCH_SDPA may depend on who shares a call.
BACKEND = dict(backend="FLASH_ATTN")


SKIPPED = 77  # as ctest knows it


def distance(a, b):
    """Relative to the size of b."""
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


class PackedTransformer(Parity):
    NUMERICS = "packed"
    # heads, head size, ffn, tokens: widths of 40 to 1,536, none a multiple of what the kernels like.
    MODELS = [(2, 20, 104, (3, 4, 14)), (3, 64, 520, (2, 12, 20)), (12, 128, 2050, (1, 6, 10))]
    # Latents of 1 to 1,560 tokens.
    LENGTHS = [(1, 2, 2), (1, 2, 4), (1, 6, 10), (5, 24, 52)]

    def make(self, heads, head_size, ffn):
        torch.manual_seed(heads)
        model = WanTransformer3DModel(
            num_attention_heads=heads, attention_head_dim=head_size, num_layers=2, ffn_dim=ffn,
            text_dim=24, freq_dim=32, in_channels=6, out_channels=6)
        path = self.path(f"{heads}x{head_size}")
        shake(model, 7).save_pretrained(path)
        return path

    def inputs(self, rows, shape, dtype):
        generator = torch.Generator().manual_seed(rows)
        return dict(
            latents=torch.randn(rows, 6, *shape, generator=generator),
            embeds=torch.randn(rows, 19, 24, generator=generator).to(DTYPES[dtype]),
            timestep=torch.linspace(3.25, 998.5, rows),
        )

    def ours(self, inputs, rows=None, **how):
        chosen = {k: v if rows is None else v[rows] for k, v in inputs.items()}
        return self.driver.run("m", {**chosen, "encode": torch.zeros(1)}, **BACKEND, **how)["out"]

    def test_it_is_as_close_to_float64_as_diffusers_is(self):
        for heads, head_size, ffn, shape in self.MODELS:
            path = self.make(heads, head_size, ffn)
            exact = WanTransformer3DModel.from_pretrained(path).double().eval()
            for dtype, limit in (("float32", 1e-5), ("bfloat16", 0.05)):
                with self.subTest(heads=heads, dtype=dtype), torch.inference_mode():
                    inputs = self.inputs(2, shape, dtype)
                    theirs = realign(
                        WanTransformer3DModel.from_pretrained(path, torch_dtype=DTYPES[dtype]))
                    forward = lambda model, kind: model(
                        inputs["latents"].to(kind), inputs["timestep"], inputs["embeds"].to(kind),
                        return_dict=False)[0]
                    wanted = forward(exact, torch.float64)
                    self.load("dit", path, dtype, linear="packed")
                    got, peer = self.ours(inputs), forward(theirs, DTYPES[dtype])
                    self.assertLess(distance(got, wanted), limit)
                    self.assertLess(distance(got, wanted), 1.5 * distance(peer, wanted) + 1e-6)

    def test_a_row_has_its_bits_alone_in_any_company_and_on_any_threads(self):
        for heads, head_size, ffn, shape in self.MODELS:
            path = self.make(heads, head_size, ffn)
            for dtype in DTYPES:
                with self.subTest(heads=heads, dtype=dtype):
                    self.load("dit", path, dtype, linear=self.NUMERICS)
                    inputs = self.inputs(8, shape, dtype)
                    whole = self.ours(inputs)
                    for rows in (slice(0, 1), slice(7, 8), slice(3, 5), slice(0, 7)):
                        self.assertTrue(torch.equal(self.ours(inputs, rows), whole[rows]), rows)
                    self.driver.ask(threads=1)
                    self.assertTrue(torch.equal(self.ours(inputs), whole), "one thread")
                    self.assertTrue(torch.equal(self.ours(inputs, slice(2, 3)), whole[2:3]))
                    self.driver.ask(threads=torch.get_num_threads())


    def test_a_row_has_its_bits_alone_at_any_length(self):
        path = self.make(3, 64, 520)
        for dtype in DTYPES:
            self.load("dit", path, dtype, linear=self.NUMERICS)
            for shape in self.LENGTHS:
                with self.subTest(dtype=dtype, shape=shape):
                    inputs = self.inputs(3, shape, dtype)
                    whole = self.ours(inputs)
                    self.assertTrue(torch.equal(self.ours(inputs, slice(1, 2)), whole[1:2]))
                    self.driver.ask(threads=1)
                    self.assertTrue(torch.equal(self.ours(inputs, slice(1, 3)), whole[1:3]), "one thread")
                    self.driver.ask(threads=torch.get_num_threads())


class PackedTextEncoder(Parity):
    def setUp(self):
        torch.manual_seed(1)
        config = UMT5Config(
            vocab_size=200, d_model=72, d_kv=24, d_ff=136, num_layers=3, num_heads=3,
            feed_forward_proj="gated-gelu")
        self.model = shake(UMT5EncoderModel(config), 3)
        self.folder_of_model = self.path("umt5")
        self.model.save_pretrained(self.folder_of_model)

    def ours(self, ids, mask):
        return self.driver.run("m", {"ids": ids, "mask": mask}, **BACKEND)["out"]

    def test_embeddings_are_close_and_a_prompt_has_its_bits_in_any_company(self):
        generator = torch.Generator().manual_seed(2)
        lengths = [1, 7, 40, 33, 64]
        ids = torch.randint(2, 200, (len(lengths), 64), generator=generator)
        mask = (torch.arange(64) < torch.tensor(lengths)[:, None]).long()
        for dtype, limit in (("float32", 1e-5), ("bfloat16", 0.05)):
            with self.subTest(dtype=dtype), torch.inference_mode():
                self.load("umt5", self.folder_of_model, dtype, linear="packed")
                got = self.ours(ids, mask)
                wanted = self.model.double().eval()(ids, mask).last_hidden_state
                self.assertLess(distance(got * mask[..., None], wanted * mask[..., None]), limit)
                for row in range(len(lengths)):
                    alone = self.ours(ids[row : row + 1], mask[row : row + 1])
                    self.assertTrue(torch.equal(alone[0], got[row]), lengths[row])


class PackedDecoder(Parity):
    SHAPES = models_parity_test.VaeParity.SHAPES  # Wan 2.1 and 2.2
    make = models_parity_test.VaeParity.make
    LATENTS = [(1, 3, 5), (2, 4, 4), (5, 7, 3), (3, 13, 9)]

    def latents(self, name, shape):
        generator = torch.Generator().manual_seed(4)
        return torch.randn(1, self.SHAPES[name]["z_dim"], *shape, generator=generator)

    def theirs(self, name, latents, dtype):
        model = realign(AutoencoderKLWan.from_pretrained(self.make(name), torch_dtype=dtype))
        view = (1, -1, 1, 1, 1)
        mean = torch.tensor(model.config.latents_mean).view(view)
        std = 1.0 / torch.tensor(model.config.latents_std).view(view)
        with torch.inference_mode():
            x = latents.to(dtype) / std.to(dtype) + mean.to(dtype)
            return model.decode(x, return_dict=False)[0].double()

    def ours(self, latents, bands=1):
        return self.driver.run("m", dict(latents=latents, bands=torch.tensor([bands])), **BACKEND)["out"]

    def cases(self):
        for name in self.SHAPES:
            for shape in self.LATENTS:
                yield name, shape, self.latents(name, shape)

    def test_float32_frames_are_as_close_to_float64_as_those_of_diffusers(self):
        for name, _, latents in self.cases():
            self.load("vae", self.make(name), linear="packed")
            truth, theirs = (self.theirs(name, latents, t) for t in (torch.float64, torch.float32))
            self.assertLess(truth.abs().mean().item(), 0.99, "the frames are all clamped")
            ours = self.ours(latents)
            self.assertEqual(ours.shape, truth.shape)
            self.assertLess(distance(ours, truth), 2 * distance(theirs, truth) + 1e-7)
            self.assertLess(((ours - theirs) * 127.5).abs().max().item(), 0.01)

    def test_bfloat16_frames_are_as_close_to_float64_as_those_of_diffusers(self):
        for name, _, latents in self.cases():
            self.load("vae", self.make(name), "bfloat16", linear="packed")
            truth, theirs = (self.theirs(name, latents, t) for t in (torch.float64, torch.bfloat16))
            self.assertLess(distance(self.ours(latents), truth), 1.02 * distance(theirs, truth))

    def test_neither_bands_nor_threads_nor_chunks_change_a_bit(self):
        for dtype in DTYPES:
            for name, shape, latents in self.cases():
                self.load("vae", self.make(name), dtype, linear="packed")
                whole = self.ours(latents)
                for bands in (2, 3, shape[1]):
                    self.assertTrue(torch.equal(self.ours(latents, bands), whole), bands)
                self.driver.ask(threads=1)
                self.assertTrue(torch.equal(self.ours(latents, 2), whole))
                self.driver.ask(threads=torch.get_num_threads())

    def test_a_decode_may_ask_for_the_numerics_that_the_weights_are_not_kept_in(self):
        for dtype in DTYPES:
            for name, _, latents in self.cases():
                frames = {}
                for kept in ("packed", "exact"):
                    self.load("vae", self.make(name), dtype, linear=kept)
                    for linear in ("packed", "exact"):
                        frames[kept, linear] = self.driver.run(
                            "m", dict(latents=latents), linear=linear, **BACKEND)["out"]
                for linear in ("packed", "exact"):
                    self.assertTrue(torch.equal(frames["packed", linear], frames["exact", linear]), linear)
                self.assertFalse(torch.equal(frames["packed", "packed"], frames["packed", "exact"]))

    def test_a_video_is_the_beginning_of_a_longer_one(self):
        # Chunks are as long as the video lets them be: 1, 2, 5 and 16 latent frames.
        for dtype in DTYPES:
            for name in self.SHAPES:
                with self.subTest(dtype=dtype, name=name):
                    self.load("vae", self.make(name), dtype, linear="packed")
                    latents = self.latents(name, (19, 3, 4))
                    whole = self.ours(latents)
                    for frames in (1, 2, 3, 6):
                        part = self.ours(latents[:, :, :frames])
                        self.assertTrue(torch.equal(part, whole[:, :, : part.shape[2]]), frames)


if __name__ == "__main__":
    if subprocess.run(Driver.command(), input="", text=True).returncode == SKIPPED:
        print("skipped: this machine lacks the level")
        sys.exit(SKIPPED)
    unittest.main()
