"""Prompt cleaning equals diffusers' prompt_clean for Wan, with ftfy installed."""

import json
import os
import pathlib
import random
import subprocess
import sys
import unittest
from html.entities import html5

import ftfy  # noqa: F401  diffusers skips its fixes where the package is missing
from diffusers.pipelines.wan.pipeline_wan import prompt_clean

import prompts

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import tether  # noqa: E402, F401

DRIVER = os.environ["DENOISED_DRIVER"]
LOST_BLANK = ("Â", "Ã")  # bytes C2 and C3, which stand before A0 in UTF-8


def ours(texts):
    lines = "".join(json.dumps(text) + "\n" for text in texts)
    out = subprocess.run([DRIVER, "--clean"], input=lines.encode(), stdout=subprocess.PIPE,
                         check=True).stdout.decode()
    return [json.loads(line) for line in out.split("\n") if line]


class CleanParity(unittest.TestCase):
    def compare(self, texts):
        came = ours(texts)
        self.assertEqual(len(came), len(texts))
        differ = [(t, prompt_clean(t), c) for t, c in zip(texts, came) if prompt_clean(t) != c]
        for text, wanted, mine in differ[:8]:
            print(f"\n{text!r}\n  wanted {wanted!r}\n  came   {mine!r}")
        self.assertEqual(len(differ), 0, f"{len(differ)} of {len(texts)} differ")

    def test_fixed_prompts(self):
        self.compare(prompts.FIXED)

    def test_every_character_alone_and_in_a_word(self):
        points = [c for c in range(0x20, 0x3100) if not 0x80 <= c < 0xA0]
        points += list(range(0xFB00, 0xFFFE)) + list(range(0x1D400, 0x1D800, 7))
        points = [c for c in points if not 0xD800 <= c < 0xE000]
        self.compare(["cat " + chr(c) + " dog" for c in points if chr(c) not in LOST_BLANK])

    def test_known_difference_mojibake_that_lost_its_no_break_space(self):
        """ftfy reads "Ã " as "à"; prompt_clean.h says that we leave it."""
        texts = ["cat " + letter + " dog" for letter in LOST_BLANK]
        self.assertEqual(ours(texts), texts)
        self.assertNotEqual([prompt_clean(text) for text in texts], texts)

    def test_every_control(self):
        self.compare([f"a{chr(c)}b {chr(c)} {chr(c)}" for c in range(0x00, 0x20)])

    def test_entities(self):
        names = [name for name in sorted(html5) if html5[name].upper() not in LOST_BLANK]
        self.compare([f"x &{name} y&{name}z &{name.upper()} 1&amp;{name}" for name in names])

    def test_numeric_references(self):
        rng = random.Random(5)
        numbers = list(range(0, 300)) + [rng.randrange(0x110000) for _ in range(300)]
        numbers += [0xD800, 0xDFFF, 0xFDD0, 0xFFFE, 0xFFFF, 0x1FFFF, 0x10FFFF, 0x110000, 10**30]
        self.compare([f"a&#{n};b &#{n} &#x{n:x}; &#X{n:X}z &#{n};;" for n in numbers])

    def test_broken_references(self):
        self.compare(["&", "&&", "&;", "&#", "&#;", "&#x", "&#x;", "&#xg;", "a&b", "a & b",
                      "this&not that", "&ampx", "&ampamp;", "&amp;amp;amp;lt;", "&notit;",
                      "&" + "a" * 40 + ";", "&" + "é" * 5 + ";", "&lt;b&gt; < &lt;", "&Ntilde;",
                      "<b>&amp;</b>\n&amp;amp;", "a&amp;b\n<i>\n&lt;", "&nbsp;x&nbsp;",
                      "&quot;&apos;&#39;", "&#38;amp;lt;", "&amp;" * 20, "&amp;amp;" * 5])

    def test_quotes_ligatures_widths_breaks_and_escapes(self):
        self.compare([
            "“smart” ‘quotes’ „low‟ ‚single‛ it’s ʼn", "ﬁne ﬂuﬃest ŉ Ĳssel ǅungla",
            "Ｆｕｌｌ　ｗｉｄｔｈ！ ｶﾞｷﾞ ﾊﾟ ￥ ￦ ﾡ",
            "one\r\ntwo\rthree\u2028four\u2029five\x0csix", "\x1b[36;44mcolour\x1b[0m \x1b[ \x1b[1",
            "\ufeffmark\u206a\ufff9\ufffc end", "e\u0301 \u1112\u1161\u11ab \u212b",
            "  lots \t of\n\n blanks \u3000 \u00a0 \u2003 here  ", "\u200bzero\u200d \u2060",
            "\x1c\x1d\x1e\x1f", "a\x00b"])

    def test_common_mojibake(self):
        texts = ["schön", "naïve café", "“smart” – dash…", "日本語の猫", "кот идёт", "Größe ✔",
                 "😀 emoji", "γάτα", "ça va où"]
        damaged = [text.encode().decode("latin-1") for text in texts]
        damaged += [text.encode().decode("latin-1").encode().decode("latin-1") for text in texts]
        damaged += [text.encode().decode("cp1252") for text in ("schön", "naïve café", "✔ ok")]
        self.compare(damaged)

    def test_honest_accents_stay(self):
        self.compare(["Àéîõü ÄÖÜ ß", "« Liberté, égalité »", "Ça va à Évry", "São João ñandú",
                      "Ærø Øl å Å", "½ ± × ÷ § ¶ © ® ¿¡", "Ð Þ ð þ"])

    def test_fuzz(self):
        texts = [text for text in prompts.fuzz(3000, seed=7)
                 if not any(0x80 <= ord(c) <= 0xFF for c in text)]
        self.assertGreater(len(texts), 1500)
        self.compare(texts)


if __name__ == "__main__":
    unittest.main()
