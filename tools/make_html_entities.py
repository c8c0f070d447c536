#!/usr/bin/env python3
"""Writes runtime/tokenizer/html_entities.inc from Python's html.entities.

Usage: python3 tools/make_html_entities.py > runtime/tokenizer/html_entities.inc
"""

import html
from html.entities import html5


def literal(text):
    """A C++ string literal of the text's UTF-8 bytes, in octal where not plain."""
    out = ""
    for byte in text.encode("utf-8"):
        plain = 0x20 <= byte < 0x7F and chr(byte) not in '"\\?'
        out += chr(byte) if plain else f"\\{byte:03o}"
    return f'"{out}"'


def shouted():
    """Lower-case entities written in capitals, where that is no entity of its own."""
    found = {}
    for name, text in html5.items():
        upper = name.upper()
        if name.endswith(";") and name == name.lower() and html.unescape("&" + upper) == "&" + upper:
            found[upper] = text.upper()
    return found


def table(name, entries):
    print(f"constexpr HtmlEntity {name}[] = {{")
    line = "   "
    for key in sorted(entries):
        item = f" {{{literal(key)}, {literal(entries[key])}}},"
        if len(line) + len(item) > 100:
            print(line)
            line = "   "
        line += item
    print(line)
    print("};")


print("// Written by tools/make_html_entities.py from Python's html.entities. Sorted by name.")
print('#include "runtime/tokenizer/html_entities.h"')
print()
print("namespace denoised {")
print("namespace {")
print()
print("// clang-format off")
table("kEntities", html5)
print()
table("kShouted", shouted())
print("// clang-format on")
print()
print("}  // namespace")
print()
print("std::span<const HtmlEntity> HtmlEntities() { return kEntities; }")
print()
print("std::span<const HtmlEntity> ShoutedHtmlEntities() { return kShouted; }")
print()
print("}  // namespace denoised")
