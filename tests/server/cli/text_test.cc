// Text of others in columns, and how far a job is.
#include "server/cli/text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "denoised/v1/generation.pb.h"
#include "server/cli/connection.h"
#include "server/cli/output.h"
#include "server/cli/progress.h"
#include "server/flags.h"

namespace denoised::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(DisplayWidth, IsOfColumnsNotOfBytes) {
  EXPECT_EQ(DisplayWidth(""), 0u);
  EXPECT_EQ(DisplayWidth("abc"), 3u);
  EXPECT_EQ(DisplayWidth("caf\u00e9"), 4u);
  EXPECT_EQ(DisplayWidth("e\u0301"), 1u);       // combining
  EXPECT_EQ(DisplayWidth("\u8d64\u3044"), 4u);  // wide
  EXPECT_EQ(DisplayWidth("\U0001f680"), 2u);
}

TEST(OneLine, IsCutAtWholeCharactersAndColumns) {
  EXPECT_EQ(OneLine("short", 50), "short");
  EXPECT_EQ(OneLine("0123456789", 10), "0123456789");
  EXPECT_EQ(OneLine("0123456789a", 10), "0123456...");
  EXPECT_EQ(OneLine("\u8d64\u3044\u5186\u8d64\u3044\u5186", 10), "\u8d64\u3044\u5186...");
  EXPECT_EQ(OneLine("abcdef", 2), "..");
  EXPECT_EQ(OneLine("a\nb", 10), "a\\nb");
  EXPECT_EQ(OneLine("\x1b[31mred", 8), "\\x1b[...");
}

TEST(TableLines, LineUpWhateverTheCellsHold) {
  EXPECT_THAT(
      TableLines({{"ID", "PROMPT", "STATE"},
                  {"1", "\u8d64\u3044", "RUNNING"},
                  {"22", "a\x1b", "X"},
                  {"3", "b", ""}}),
      ElementsAre("ID  PROMPT  STATE", "1   \u8d64\u3044    RUNNING", "22  a\\x1b   X", "3   b"));
}

TEST(NotUtf8, IsSaidWithTheByteAndItsPlace) {
  EXPECT_EQ(WhatIsNotUtf8("caf\u00e9"), "");
  EXPECT_EQ(WhatIsNotUtf8("caf\xe9 noir"), "byte 0xe9 at offset 3");
}

TEST(NotUtf8, IsRefusedInEveryTextOfARequest) {
  const auto refusal = [](const v1::GenerationRequest& request) -> std::string {
    try {
      RequireUtf8(request);
    } catch (const UsageError& error) {
      return error.what();
    }
    return "";
  };
  v1::GenerationRequest request;
  request.set_prompt("caf\u00e9");
  EXPECT_EQ(refusal(request), "");
  request.mutable_attention()->set_backend("\xff");
  EXPECT_EQ(refusal(request), "the attention.backend is not UTF-8 text: byte 0xff at offset 0");
  request.set_prompt("caf\xe9");
  EXPECT_EQ(refusal(request), "the prompt is not UTF-8 text: byte 0xe9 at offset 3");
  request = {};
  (*request.mutable_attention()->mutable_parameters()->mutable_fields())["k"].set_string_value(
      "\xc3");
  EXPECT_THAT(refusal(request), HasSubstr("attention.parameters"));
}

v1::Job Running(int64_t step, int64_t steps) {
  v1::Job job;
  job.set_state(v1::RUNNING);
  job.set_stage("denoise");
  job.set_step(step);
  job.set_num_steps(steps);
  return job;
}

TEST(ProgressLine, HasABarWhereThereIsRoom) {
  EXPECT_EQ(ProgressLine(Running(10, 20), true, 80),
            "[###############---------------] denoise 10/20 steps");
  EXPECT_EQ(ProgressLine(Running(10, 20), true, 32), "[#####-----] denoise 10/20 steps");
  EXPECT_EQ(ProgressLine(Running(10, 20), true, 20), "denoise 10/20 steps");
  EXPECT_EQ(ProgressLine(Running(10, 20), false, 80), "denoise 10/20 steps");
}

TEST(ProgressLine, NeverIsWiderThanTheTerminal) {
  v1::Job job = Running(999, 1000);
  job.mutable_eta()->set_seconds(1000000);
  job.set_stage("\x1b]0;title\x07");
  for (size_t columns = 1; columns < 100; ++columns) {
    const std::string line = ProgressLine(job, true, columns);
    EXPECT_LE(DisplayWidth(line), columns) << line;
    EXPECT_EQ(line.find('\x1b'), std::string::npos);
  }
}

TEST(ProgressLine, StepsBeyondTheLastDoNotBreakTheBar) {
  EXPECT_THAT(ProgressLine(Running(30, 20), true, 80), HasSubstr("[" + std::string(30, '#') + "]"));
  EXPECT_THAT(ProgressLine(Running(-1, 0), true, 80), HasSubstr("[" + std::string(30, '-') + "]"));
}

TEST(WhoChose, KnowsEverySourceOfTheProto) {
  EXPECT_EQ(WhoChose("force", "ab"), "forced by lease ab");
  EXPECT_EQ(WhoChose("request", ""), "asked for by the request");
  EXPECT_EQ(WhoChose("automatic", ""), "chosen automatically");
}

}  // namespace
}  // namespace denoised::cli
