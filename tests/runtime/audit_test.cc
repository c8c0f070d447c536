// The audit: what a change leaves behind, and who hears of it.
#include "runtime/audit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "tests/runtime/store_harness.h"

namespace denoised {
namespace {

using testing::IsEmpty;
using testing::SizeIs;

class AuditTest : public testing::Test {
 protected:
  AuditEntry Written(AuditEntry entry) {
    audit_.Write(std::move(entry));
    return audit_.ReadAfter(0, 1000).back();
  }

  QuietLogger logger_;
  const std::unique_ptr<JobStore> store_ = MakeMemoryJobStore(1, 1);
  Audit audit_{&store_->control(), &logger_.logger};
};

TEST_F(AuditTest, AChangeIsOneEntryAndOneLine) {
  const auto before = std::chrono::system_clock::now();
  const auto end = before + std::chrono::hours(1);
  const AuditEntry entry = Written({.who = "ipv4:127.0.0.1:9",
                                    .what = "force",
                                    .subject = "force-1",
                                    .old_value = "",
                                    .new_value = "REFERENCE, server",
                                    .reason = "a \"reason\"",
                                    .ends_at = end});
  EXPECT_EQ(entry.number, 1u);
  EXPECT_GE(entry.time, before);
  EXPECT_LE(entry.time, std::chrono::system_clock::now());
  EXPECT_EQ(entry.subject, "force-1");
  const std::string log = logger_.Text();
  const auto line = nlohmann::json::parse(log);  // one object, or it throws
  EXPECT_EQ(line.at("event"), "audit");
  EXPECT_EQ(line.at("who"), "ipv4:127.0.0.1:9");
  EXPECT_EQ(line.at("what"), "force");
  EXPECT_EQ(line.at("new"), "REFERENCE, server");
  EXPECT_EQ(line.at("reason"), "a \"reason\"");
  EXPECT_LE(std::stol(line.at("ends_in_ms").get<std::string>()), 3600 * 1000);
}

TEST_F(AuditTest, LongTextsAreCutBetweenTwoCharacters) {
  std::string text;
  for (int i = 0; i < 2000; ++i) text += "\xe2\x82\xac";  // of three bytes
  const std::string kept = Written({.new_value = text}).new_value;
  EXPECT_EQ(kept, text.substr(0, 1023) + "...");
  EXPECT_EQ(Written({.new_value = text.substr(0, 1023)}).new_value, text.substr(0, 1023));
}

TEST_F(AuditTest, WatchersAreWokenByEachWriteUntilTheyLeave) {
  auto woken = std::make_shared<int>(0);
  auto watch = audit_.Watch([this, woken] {
    ++*woken;
    EXPECT_THAT(audit_.ReadAfter(0, 10), SizeIs(*woken)) << "it is there to be read";
  });
  audit_.Write({.what = "drain"});
  audit_.Write({.what = "drain"});
  EXPECT_EQ(*woken, 2);
  watch.reset();
  audit_.Write({.what = "drain"});
  EXPECT_EQ(*woken, 2);
}

TEST_F(AuditTest, AReaderGoesOnBehindAnyNumber) {
  for (int i = 1; i <= 5; ++i) audit_.Write({.subject = std::to_string(i)});
  const auto page = audit_.ReadAfter(2, 2);
  ASSERT_THAT(page, SizeIs(2));
  EXPECT_EQ(page[0].subject, "3");
  EXPECT_EQ(page[1].number, 4u);
  EXPECT_THAT(audit_.ReadAfter(5, 2), IsEmpty());
}

}  // namespace
}  // namespace denoised
