#include "runtime/log.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

namespace denoised {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;
using testing::SizeIs;

class LogTest : public testing::Test {
 protected:
  ~LogTest() override { std::fclose(stream_); }

  std::string Text() {
    EXPECT_TRUE(logger_.Flush(std::chrono::seconds(20)));
    std::fseek(stream_, 0, SEEK_END);
    std::string text(static_cast<size_t>(std::ftell(stream_)), '\0');
    std::rewind(stream_);
    text.resize(std::fread(text.data(), 1, text.size(), stream_));
    return text;
  }

  // Every line, parsed; each must be one JSON object of at most 8 KiB.
  std::vector<json> Lines() {
    std::vector<json> lines;
    const std::string text = Text();
    for (size_t start = 0; start < text.size();) {
      const size_t end = text.find('\n', start);
      EXPECT_NE(end, std::string::npos) << "the last line ends too";
      if (end == std::string::npos) break;
      EXPECT_LE(end + 1 - start, 8192u);
      lines.push_back(json::parse(text.substr(start, end - start)));
      EXPECT_TRUE(lines.back().is_object());
      start = end + 1;
    }
    return lines;
  }

  // What comes back of a value that was logged.
  std::string Logged(const std::string& value) {
    logger_.Info("an_event", {{"value", value}});
    const auto lines = Lines();
    EXPECT_THAT(lines, SizeIs(1));
    return lines.at(0).at("value");
  }

  std::FILE* const stream_ = std::tmpfile();
  Logger logger_{stream_};
};

TEST_F(LogTest, ALineHoldsTimeLevelEventAndFields) {
  logger_.Warning("job_ended", {{"job", "abc"}, {"state", "FAILED"}});
  const auto lines = Lines();
  ASSERT_THAT(lines, SizeIs(1));
  EXPECT_EQ(lines[0]["level"], "warning");
  EXPECT_EQ(lines[0]["event"], "job_ended");
  EXPECT_EQ(lines[0]["job"], "abc");
  EXPECT_EQ(lines[0]["state"], "FAILED");
  EXPECT_THAT(lines[0]["time"].get<std::string>(),
              testing::MatchesRegex("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\\.[0-9]{3}Z"));
}

TEST_F(LogTest, LevelsBelowTheSetOneAreSilent) {
  logger_.Log(LogLevel::kDebug, "unseen");
  logger_.set_level(LogLevel::kError);
  logger_.Warning("unseen");
  logger_.Error("seen");
  logger_.set_level(LogLevel::kDebug);
  logger_.Log(LogLevel::kDebug, "seen");
  EXPECT_THAT(Lines(), SizeIs(2));
}

TEST_F(LogTest, LevelNamesGoBothWays) {
  for (const char* name : {"debug", "info", "warning", "error"}) {
    ASSERT_TRUE(LogLevelFromName(name)) << name;
    EXPECT_EQ(LogLevelName(*LogLevelFromName(name)), name);
  }
  EXPECT_FALSE(LogLevelFromName("INFO"));
  EXPECT_FALSE(LogLevelFromName(""));
}

TEST_F(LogTest, NewlinesForgeNoSecondLine) {
  const std::string forged = "x\r\n{\"level\":\"error\",\"event\":\"forged\"}\n";
  EXPECT_EQ(Logged(forged), forged);
}

TEST_F(LogTest, QuotesAndBackslashesForgeNoSecondField) {
  const std::string forged = R"(","level":"error\)";
  EXPECT_EQ(Logged(forged), forged);
  EXPECT_EQ(Lines()[0]["level"], "info");
}

TEST_F(LogTest, WhatColoursReordersOrHidesTextIsWrittenAsEscapes) {
  const std::vector<std::string> hostile = {
      "\x1b[2J",      std::string(1, '\0'), "\x7f",         "\xc2\x85",     "\xc2\x9b",
      "\xd8\x9c",     "\xe2\x80\x8e",       "\xe2\x80\x8f", "\xe2\x80\xa8", "\xe2\x80\xa9",
      "\xe2\x80\xaa", "\xe2\x80\xae",       "\xe2\x81\xa6", "\xe2\x81\xa9", "\xef\xbb\xbf"};
  for (const std::string& text : hostile) {
    logger_.Info(text, {{text, text}});
  }
  const auto lines = Lines();
  ASSERT_THAT(lines, SizeIs(hostile.size()));
  for (size_t i = 0; i < hostile.size(); ++i) {
    EXPECT_EQ(lines[i]["event"], hostile[i]) << "readers still see what it was";
    EXPECT_EQ(lines[i][hostile[i]], hostile[i]);
  }
  const std::string raw = Text();
  for (const std::string& text : hostile) EXPECT_EQ(raw.find(text), std::string::npos);
}

TEST_F(LogTest, OrdinaryTextOfEveryScriptIsWrittenAsItIs) {
  const std::string text = "Käse 猫 кошка قطة बिल्ली 👨‍👩‍👧";
  EXPECT_EQ(Logged(text), text);
  EXPECT_THAT(Text(), HasSubstr(text));
}

TEST_F(LogTest, InvalidUtf8BecomesReplacementCharacters) {
  const std::vector<std::string> broken = {
      "\xff",             // no lead byte
      "\xc3",             // cut
      "\xc0\xaf",         // overlong
      "\xe0\x80\xaf",     // overlong
      "\xed\xa0\x80",     // surrogate
      "\xf4\x90\x80\x80"  // beyond Unicode
      "\x80",             // stray continuation
  };
  for (const std::string& text : broken) logger_.Info("event", {{"value", "<" + text + ">"}});
  for (const json& line : Lines()) {
    const std::string value = line["value"];
    EXPECT_THAT(value, testing::StartsWith("<\xef\xbf\xbd"));
    EXPECT_THAT(value, testing::EndsWith(">"));
  }
}

TEST_F(LogTest, AMegabyteIsCutAndTheLineStaysWhole) {
  for (const char* piece : {"x", "\n", "\xff", "\"", "猫", "👨"}) {
    std::string value;
    while (value.size() < (1u << 20)) value += piece;
    logger_.Info(value, {{value, value}, {"after", "it"}});
    logger_.Info("event", {{"value", value}, {"after", "it"}});
  }
  const auto lines = Lines();
  ASSERT_THAT(lines, SizeIs(12));
  for (size_t i = 1; i < lines.size(); i += 2) {
    EXPECT_EQ(lines[i]["after"], "it") << "a long value pushes no later field out";
  }
}

TEST_F(LogTest, FieldsThatNoLongerFitAreLeftOut) {
  const std::string value(3000, 'x');
  logger_.Info("event", {{"a", value}, {"b", value}, {"c", value}, {"d", value}, {"e", value}});
  const auto lines = Lines();
  EXPECT_TRUE(lines[0].contains("c"));
  EXPECT_FALSE(lines[0].contains("e"));
}

TEST_F(LogTest, ThreadsDoNotMixTheirLines) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int n = 0; n < 200; ++n) logger_.Info("event", {{"value", std::string(500, 'x')}});
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(Lines(), SizeIs(800));
}

// A pipe whose reader reads nothing until it is asked to.
class StuckPipe {
 public:
  StuckPipe() {
    EXPECT_EQ(pipe(ends_.data()), 0);
    stream_ = fdopen(ends_[1], "w");
  }
  ~StuckPipe() {
    std::fclose(stream_);
    close(ends_[0]);
  }
  std::FILE* stream() const { return stream_; }
  // Reads until the line "an_event" with the value `last` came.
  std::vector<json> ReadUntil(const std::string& last) const {
    std::vector<json> lines;
    std::string text;
    std::array<char, 65536> block;
    while (true) {
      const ssize_t got = read(ends_[0], block.data(), block.size());
      if (got <= 0) return lines;
      text.append(block.data(), static_cast<size_t>(got));
      for (size_t end = 0; (end = text.find('\n')) != std::string::npos; text.erase(0, end + 1)) {
        lines.push_back(json::parse(text.substr(0, end)));
        if (lines.back().value("value", "") == last) return lines;
      }
    }
  }

 private:
  std::array<int, 2> ends_{};
  std::FILE* stream_ = nullptr;
};

TEST(LogWriterTest, AStuckReaderHoldsUpNobodyAndTheLostLinesAreCounted) {
  const StuckPipe pipe;
  Logger logger(pipe.stream());
  constexpr uint64_t kLines = 30000;  // far more than the queue and the pipe hold
  for (uint64_t i = 0; i < kLines; ++i) {
    logger.Info("an_event", {{"value", std::string(100, 'x')}});
  }
  const uint64_t dropped = logger.dropped();
  EXPECT_GT(dropped, 0u);
  std::vector<json> lines;
  std::thread reader([&] { lines = pipe.ReadUntil("the last"); });
  while (!logger.Flush(std::chrono::seconds(1))) {
  }
  logger.Info("an_event", {{"value", "the last"}});
  reader.join();
  uint64_t told = 0, written = 0;
  for (const json& line : lines) {
    if (line["event"] == "log.dropped") told += std::stoull(line["lines"].get<std::string>());
    written += line["event"] == "an_event";
  }
  EXPECT_EQ(told, dropped) << "a line says how many";
  EXPECT_EQ(written + dropped, kLines + 1) << "every line is written or counted";
}

TEST(LogWriterTest, TheEndDoesNotWaitForAStuckReader) {
  static const StuckPipe& pipe = *new StuckPipe;  // left behind, as the threads that write to it
  for (int i = 0; i < 3; ++i) {
    Logger logger(pipe.stream());
    for (int n = 0; n < 2000; ++n) logger.Info("an_event", {{"value", std::string(100, 'x')}});
    EXPECT_FALSE(logger.Flush(std::chrono::milliseconds(1)));
  }
}

TEST(LogWriterTest, ADescriptorThatIsGoneLosesTheLinesAndNothingElse) {
  std::FILE* const stream = std::fopen("/dev/full", "w");
  ASSERT_NE(stream, nullptr);
  Logger logger(stream);
  logger.Info("an_event");
  EXPECT_TRUE(logger.Flush(std::chrono::seconds(20)));
  EXPECT_EQ(logger.dropped(), 1u);
  std::fclose(stream);
}

TEST(LogWriterTest, ANonBlockingDescriptorGetsEveryLine) {
  const StuckPipe pipe;
  fcntl(fileno(pipe.stream()), F_SETFL, O_NONBLOCK);
  Logger logger(pipe.stream());
  for (int n = 0; n < 2000; ++n) logger.Info("an_event", {{"value", std::string(100, 'x')}});
  logger.Info("an_event", {{"value", "the last"}});
  EXPECT_THAT(pipe.ReadUntil("the last"), SizeIs(2001));
}

}  // namespace
}  // namespace denoised
