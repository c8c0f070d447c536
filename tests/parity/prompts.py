"""Prompts for the parity tests: a fixed list over many scripts, and a seeded fuzz over code points."""

import random

FIXED = [
    "",
    " ",
    "\t\n",
    "a cat walks over the green grass",
    "A cat, a dog; and 3 birds! (slow motion) 4K -- \"cinematic\"",
    "  leading and trailing   blanks  ",
    "tabs\tand\nnew lines\r\nand\u00a0hard\u2003blanks\u3000here",
    "zero\u200bwidth\u200djoin\ufeffmark \u2060word",
    "Ein großer Bär läuft über die Straße, während es regnet.",
    "L'été à la mer, un garçon déjà fatigué; « bonjour » œuvre",
    "кот идёт по зелёной траве под дождём",
    "γάτα περπατά στο πράσινο γρασίδι",
    "猫が緑の草の上を歩く。カメラはゆっくり動く",
    "一只猫走过绿色的草地，阳光明媚",
    "고양이가 푸른 풀밭을 걷는다",
    "قطة تمشي على العشب الأخضر",
    "חתול הולך על הדשא הירוק",
    "बिल्ली हरी घास पर चलती है",
    "แมวเดินบนหญ้าสีเขียว",
    "com um coração são às três",
    "猫 hello 😀 world 👩‍👩‍👧‍👦 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🇩🇪 ❤️",
    "😀",
    "😀😀😀 😀",
    "Ｆｕｌｌ－ｗｉｄｔｈ　ｆｏｒｍｓ １２３ ｶﾀｶﾅ ﾊﾟ ｶﾞ",
    "ﬁne ﬂuﬃest ﬀ ﬅ ǆ ĳ ½ ² ™ № ℃ … ㍻ ㌔ ﷺ",
    "e\u0301 a\u030a o\u0308 n\u0303 ｓ\u0324 コ\u3099 が か\u3099",
    "Zalgo t\u0301\u0302\u0303\u0304e\u0305\u0306\u0307xt",
    "</s>",
    "a</s>b",
    "before </s> after",
    "<pad>",
    "<unk> unknown <unk>",
    "<extra_id_0>",
    "x<extra_id_1>y <extra_id_9> <extra_id_99>",
    "< / s > <extra_id_> <extra_id_0",
    "▁ under▁score ▁▁ two ▁",
    "_plain_ under_score",
    "a" * 300,
    "猫" * 200,
    "word " * 120,
    "ab\u0000cd",
    "\u0001\u0008control\u001f\u007f\u0085\u009f",
    "soft\u00adhyphen \u2028line\u2029paragraph",
    "0 1 22 333 4444 1,000.50 1e-5 #hash @at $5 50% a&b a+b=c <b>bold</b>",
    "CamelCase UPPER lower MiXeD",
    "https://example.org/path?x=1&y=2",
    "\U0001d518\U0001d52b\U0001d526 𝒥𝑜𝒽𝓃 Ⅳ ⑩ ㊙",
    "ﾃﾞ ﾎﾟ ｰ ￦ ￥ ｟ ｠",
    "אֲנִי הַיּוֹם שָׁלוֹם",
    "การ์ตูน กำ ลํา",
    "क्षत्रिय ज्ञान श्री",
    "Tiếng Việt có dấu: ấ ầ ẩ ẫ ậ",
    "İstanbul ıspanak ß ẞ",
]

# Ranges from which the fuzz draws, so that scripts, marks, forms and controls meet in one string.
RANGES = [
    (0x20, 0x7E), (0x20, 0x7E), (0x00, 0x1F), (0x7F, 0xFF), (0x100, 0x24F), (0x250, 0x36F),
    (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F),
    (0xE00, 0xE7F), (0x1100, 0x11FF), (0x1E00, 0x1EFF), (0x2000, 0x206F), (0x2070, 0x209F),
    (0x20A0, 0x20FF), (0x2100, 0x218F), (0x2190, 0x21FF), (0x2460, 0x24FF), (0x2500, 0x25FF),
    (0x2600, 0x27BF), (0x3000, 0x303F), (0x3040, 0x30FF), (0x3130, 0x318F), (0x3200, 0x33FF),
    (0x4E00, 0x4E7F), (0xAC00, 0xAC7F), (0xFB00, 0xFB4F), (0xFE00, 0xFE0F), (0xFE20, 0xFE2F),
    (0xFF00, 0xFFEF), (0x1F1E6, 0x1F1FF), (0x1F300, 0x1F64F), (0x1D400, 0x1D4FF),
]
SNIPPETS = ["</s>", "<pad>", "<unk>", "<extra_id_0>", "▁", "  ", " ", "cat", "the", "猫", "\r\n"]


def fuzz(count, seed=20261122):
    rng = random.Random(seed)
    prompts = []
    for _ in range(count):
        ranges = rng.sample(RANGES, rng.randint(1, 5))
        parts = []
        for _ in range(rng.randint(1, 24)):
            if rng.random() < 0.15:
                parts.append(rng.choice(SNIPPETS))
            else:
                parts.append(chr(rng.randint(*rng.choice(ranges))))
        prompts.append("".join(parts))
    return prompts
