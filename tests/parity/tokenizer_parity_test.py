"""Token ids equal those of transformers, on SentencePiece models that are trained here and now."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

import sentencepiece
import transformers

import prompts

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import tether  # noqa: E402, F401

DRIVER = os.environ["DENOISED_DRIVER"]
EXTRA_IDS = 10


def train(folder, byte_fallback, vocab_size):
    """Writes spiece.model and the configuration that T5 models have, as the first release has them."""
    corpus = os.path.join(folder, "corpus.txt")
    with open(corpus, "w", encoding="utf-8") as file:
        for text in prompts.FIXED * 30:
            text = text.replace("\0", "").replace("\n", " ").strip()
            if 0 < len(text) < 200:
                file.write(text + "\n")
    sentencepiece.SentencePieceTrainer.train(
        input=corpus, model_prefix=os.path.join(folder, "spiece"), vocab_size=vocab_size,
        hard_vocab_limit=False, character_coverage=0.98, byte_fallback=byte_fallback,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
        user_defined_symbols=["[cut]"])
    os.remove(corpus)
    os.remove(os.path.join(folder, "spiece.vocab"))
    with open(os.path.join(folder, "tokenizer_config.json"), "w") as file:
        json.dump({"tokenizer_class": "T5Tokenizer", "extra_ids": EXTRA_IDS}, file)


def ours(folder, class_name, max_length, texts):
    lines = "".join(json.dumps(text) + "\n" for text in texts)
    out = subprocess.run([DRIVER, folder, class_name, str(max_length)], input=lines.encode(),
                         stdout=subprocess.PIPE, check=True).stdout.decode()
    return [json.loads(line) for line in out.splitlines()]


def theirs(folder, class_name, max_length, texts):
    tokenizer = getattr(transformers, class_name).from_pretrained(folder)
    batch = tokenizer(texts, padding="max_length", max_length=max_length, truncation=True,
                      add_special_tokens=True, return_attention_mask=True)
    return [{"ids": ids, "length": sum(mask)}
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"])]


class TokenizerParity(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.root = tempfile.mkdtemp()
        cls.folders = {}
        for byte_fallback in (False, True):
            spiece = os.path.join(cls.root, f"spiece-{byte_fallback}")
            os.makedirs(spiece)
            train(spiece, byte_fallback, 700 + 300 * byte_fallback)
            saved = os.path.join(cls.root, f"json-{byte_fallback}")
            transformers.T5Tokenizer.from_pretrained(spiece).save_pretrained(saved)
            assert not os.path.exists(os.path.join(saved, "spiece.model"))
            cls.folders[byte_fallback] = (spiece, saved)
        cls.texts = prompts.FIXED + ["[cut] to [cut]black"] + prompts.fuzz(1500)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.root)

    def compare(self, folder, class_name, max_length=64, texts=None):
        texts = texts or self.texts
        wanted = theirs(folder, class_name, max_length, texts)
        came = ours(folder, class_name, max_length, texts)
        self.assertEqual(len(wanted), len(came))
        differ = [(text, w, c) for text, w, c in zip(texts, wanted, came) if w != c]
        for text, w, c in differ[:5]:
            print(f"\n{text!r}\n  wanted {w}\n  came   {c}")
        self.assertEqual(len(differ), 0, f"{len(differ)} of {len(texts)} differ")

    def test_tokenizer_json_as_t5(self):
        for byte_fallback in (False, True):
            for class_name in ("T5Tokenizer", "T5TokenizerFast"):
                self.compare(self.folders[byte_fallback][1], class_name)

    def test_spiece_model_alone(self):
        for byte_fallback in (False, True):
            self.compare(self.folders[byte_fallback][0], "T5Tokenizer")

    def test_tokenizer_json_as_it_stands(self):
        for byte_fallback in (False, True):
            self.compare(self.folders[byte_fallback][1], "PreTrainedTokenizerFast")

    def test_truncation_keeps_the_end_token(self):
        texts = [text for text in self.texts if len(text) > 20]
        for max_length in (1, 2, 7, 512):
            self.compare(self.folders[False][1], "T5TokenizerFast", max_length, texts[:200])

    def variant(self, name, change_json=None, change_config=None, byte_fallback=True):
        """A copy of the saved folder with another pipeline, as files of other writers have it."""
        folder = os.path.join(self.root, name)
        shutil.copytree(self.folders[byte_fallback][1], folder)
        for file_name, change in (("tokenizer.json", change_json),
                                  ("tokenizer_config.json", change_config)):
            path = os.path.join(folder, file_name)
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
            if change:
                change(content)
            with open(path, "w", encoding="utf-8") as file:
                json.dump(content, file)
        return folder

    def test_byte_fallback_where_the_file_stands(self):
        def change(tokenizer):
            tokenizer["model"]["byte_fallback"] = True

        folder = self.variant("bytes", change)
        self.compare(folder, "PreTrainedTokenizerFast")
        self.compare(folder, "T5TokenizerFast")

    def test_pipelines_of_older_converters(self):
        def older(tokenizer):
            tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [
                tokenizer["normalizer"],
                {"type": "Strip", "strip_left": False, "strip_right": True},
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}]}
            tokenizer["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁",
                                          "add_prefix_space": True, "prepend_scheme": "always"}

        def nmt(tokenizer):
            tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [
                {"type": "Nmt"}, {"type": "NFKC"},
                {"type": "Replace", "pattern": {"String": "cat"}, "content": "dog"}]}

        def first(tokenizer):
            tokenizer["normalizer"] = None
            tokenizer["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁",
                                          "prepend_scheme": "first", "split": False}

        def never(tokenizer):
            tokenizer["normalizer"] = {"type": "NFC"}
            tokenizer["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁",
                                          "prepend_scheme": "never", "split": True}

        for change in (older, nmt, first, never):
            folder = self.variant(change.__name__, change)
            self.compare(folder, "PreTrainedTokenizerFast")
            self.compare(folder, "T5TokenizerFast")

    def test_added_tokens_with_blanks_and_normalised(self):
        def change(tokenizer):
            base = {"single_word": False, "special": False}
            tokenizer["added_tokens"] += [
                dict(base, id=2000, content="<cut>", lstrip=True, rstrip=True, normalized=False),
                dict(base, id=2001, content="ＷＩＤＥ", lstrip=False, rstrip=False, normalized=True),
                dict(base, id=2002, content="the", lstrip=False, rstrip=False, normalized=False),
                dict(base, id=2003, content="the c", lstrip=False, rstrip=True, normalized=False)]

        folder = self.variant("added", change)
        texts = self.texts + ["a <cut> b", "<cut>\u3000<cut> x", "x \t<cut>", "WIDE ＷＩＤＥ shot",
                              "the cat the dog thec", "over the  c   at"]
        self.compare(folder, "PreTrainedTokenizerFast", texts=texts)
        self.compare(folder, "T5TokenizerFast", texts=texts)

    def test_configuration_adds_special_tokens(self):
        def config(content):
            content["extra_special_tokens"] = ["<one>", "<two>"]
            content["eos_token"] = {"__type": "AddedToken", "content": "</s>", "lstrip": False,
                                    "rstrip": False, "normalized": False, "single_word": False}

        folder = self.variant("config", None, config)
        texts = ["<one> two <two>", "</s><one>", "plain"] + prompts.FIXED
        self.compare(folder, "T5TokenizerFast", texts=texts)
        self.compare(folder, "PreTrainedTokenizerFast", texts=texts)

    def test_end_tokens_by_configuration(self):
        for name, flags in (("eos", {"add_eos_token": True}), ("none", {"add_eos_token": False}),
                            ("both", {"add_eos_token": True, "add_bos_token": True,
                                      "bos_token": "<s>"})):
            folder = self.variant(name, None, lambda content: content.update(flags))
            self.compare(folder, "PreTrainedTokenizerFast", texts=prompts.FIXED)
            self.compare(folder, "T5TokenizerFast", texts=prompts.FIXED)

    def test_no_post_processor(self):
        def change(tokenizer):
            tokenizer["post_processor"] = None

        folder = self.variant("bare", change)
        self.compare(folder, "PreTrainedTokenizerFast", texts=prompts.FIXED)
        self.compare(folder, "T5TokenizerFast", texts=prompts.FIXED)

    def test_added_tokens_of_the_configuration(self):
        def config(content):
            base = {"single_word": False, "lstrip": False, "normalized": False, "special": True}
            content["added_tokens_decoder"] = {
                "0": dict(base, content="<pad>", rstrip=False),
                "1": dict(base, content="</s>", rstrip=True),
                "1200": dict(base, content="<new>", rstrip=False)}

        folder = self.variant("decoder", None, config)
        texts = ["a <new> b</s>  c", "<extra_id_3><new>"] + prompts.FIXED
        self.compare(folder, "T5TokenizerFast", texts=texts)
        self.compare(folder, "PreTrainedTokenizerFast", texts=texts)


if __name__ == "__main__":
    unittest.main()
