#include "runtime/loaders/visible_text.h"

#include <gtest/gtest.h>

namespace denoised {
namespace {

TEST(VisibleText, OrdinaryTextOfEveryScriptStaysAsItIs) {
  for (const char* text : {"", "a red circle", "caf\u00e9 \u8d64\u3044\u5186 \u0634\u0645\u0633",
                           "\U0001f469\u200d\U0001f680", "C:\\path \"quoted\"", "\u00a0"}) {
    EXPECT_EQ(VisibleText(text), text);
  }
}

TEST(VisibleText, ControlsAreWrittenOut) {
  EXPECT_EQ(VisibleText("a\nb\rc\td"), "a\\nb\\rc\\td");
  EXPECT_EQ(VisibleText("\x1b[31mred\x07\x7f"), "\\x1b[31mred\\x07\\x7f");
  EXPECT_EQ(VisibleText(std::string("nul\0", 4)), "nul\\x00");
  EXPECT_EQ(VisibleText("\u009b31m\u0085"), "\\x9b31m\\x85");
}

TEST(VisibleText, WhatReordersOrHidesTextIsWrittenOut) {
  EXPECT_EQ(VisibleText("\u202eevil\u202c"), "\\u202eevil\\u202c");
  EXPECT_EQ(VisibleText("\u2066a\u2067b\u2068c\u2069"), "\\u2066a\\u2067b\\u2068c\\u2069");
  EXPECT_EQ(VisibleText("\u200e\u200f\u061c\ufeff\u2028\u2029"),
            "\\u200e\\u200f\\u061c\\ufeff\\u2028\\u2029");
  EXPECT_EQ(VisibleText("\U000e0041"), "\\U000e0041");
}

TEST(VisibleText, BytesThatAreNoUtf8AreWrittenOut) {
  EXPECT_EQ(VisibleText("caf\xe9!"), "caf\\xe9!");
  EXPECT_EQ(VisibleText("\xc0\xaf"), "\\xc0\\xaf");           // overlong
  EXPECT_EQ(VisibleText("\xed\xa0\x80"), "\\xed\\xa0\\x80");  // a surrogate
  EXPECT_EQ(VisibleText("cut \xe2\x82"), "cut \\xe2\\x82");
  EXPECT_EQ(VisibleText("\x9b"
                        "31m"),
            "\\x9b31m");  // a bare C1 byte
}

}  // namespace
}  // namespace denoised
