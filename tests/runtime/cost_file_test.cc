// What is learnt of units' times is kept while a server lives, and nothing about that is an error.
#include "runtime/engine/cost_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <thread>

#include "tests/runtime/store_harness.h"
#include "tests/temporary_folder.h"

namespace denoised {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using testing::HasSubstr;
using testing::IsEmpty;

const CostFile::Pace kNever = {hours(24), hours(24)};

UnitKey KeyNamed(const std::string& group) { return {"wan", "step", group, "FLASH_ATTN", 1e9, 10}; }

class KeptTimes : public testing::Test {
 protected:
  std::filesystem::path path() const { return folder_.path() / "unit_times.json"; }
  // Whether the file is whole and tells of this one.
  bool Tells(const std::string& group) const {
    const std::string text = FileBytes(path());
    return !CostModel().Load(text) && text.find('"' + group + '"') != std::string::npos;
  }
  // What a server learns from the file that begins now, alone.
  size_t Loaded() {
    CostModel next;
    const CostFile file(folder_.path(), &next, &log_.logger, kNever);
    return next.size();
  }

  const TemporaryFolder folder_;
  QuietLogger log_;
  CostModel costs_;
};

TEST_F(KeptTimes, TheFirstOfAKindAreKeptWhenTheirJobHasEnded) {
  CostFile file(folder_.path(), &costs_, &log_.logger, kNever);
  costs_.Observe(KeyNamed("one"), 1, 2.5);
  EXPECT_FALSE(Tells("one"));
  file.JobEnded();
  EXPECT_TRUE(Eventually([&] { return Tells("one"); }));
  costs_.Observe(KeyNamed("two"), 1, 2.5);
  file.JobEnded();
  EXPECT_TRUE(Eventually([&] { return Tells("two"); }));
}

TEST_F(KeptTimes, ThoseOfALongJobAreKeptBeforeItsEnd) {
  CostFile file(folder_.path(), &costs_, &log_.logger, {milliseconds(1), hours(24)});
  costs_.Observe(KeyNamed("one"), 1, 2.5);
  EXPECT_TRUE(Eventually([&] { return Tells("one"); }));
}

TEST_F(KeptTimes, MoreOfWhatIsKnownWaitsUntilTheFileHasRested) {
  costs_.Observe(KeyNamed("one"), 1, 2.5);
  CostFile file(folder_.path(), &costs_, &log_.logger, {milliseconds(1), hours(24)});
  costs_.Observe(KeyNamed("one"), 1, 2.5);
  file.JobEnded();
  std::this_thread::sleep_for(milliseconds(20));  // it would have been time
  EXPECT_FALSE(std::filesystem::exists(path()));
  file.Save();
  EXPECT_TRUE(Tells("one"));
}

TEST_F(KeptTimes, ARestedFileTakesMoreOfWhatIsKnown) {
  costs_.Observe(KeyNamed("one"), 1, 2.5);
  CostFile file(folder_.path(), &costs_, &log_.logger, {milliseconds(1), milliseconds(1)});
  costs_.Observe(KeyNamed("one"), 1, 2.5);
  EXPECT_TRUE(Eventually([&] { return Tells("one"); }));
}

TEST_F(KeptTimes, WhatIsNoFileOfOursStopsNothing) {
  costs_.Observe(KeyNamed("one"), 1, 2.5);
  CostFile(folder_.path(), &costs_, &log_.logger, kNever).Save();
  EXPECT_EQ(Loaded(), 1u);
  const std::string whole = FileBytes(path());
  for (const std::string& text : {whole.substr(0, whole.size() / 2), std::string(),
                                  std::string("\0\xff\x80", 3), std::string("{}")}) {
    WriteBytes(path(), text);
    EXPECT_EQ(Loaded(), 0u) << text;
  }
  EXPECT_THAT(log_.Text(), HasSubstr("unit_times_ignored"));
  std::filesystem::remove(path());
  std::filesystem::create_directory(path());
  EXPECT_EQ(Loaded(), 0u);
}

// A disk that takes nothing, as far as this file is concerned.
TEST_F(KeptTimes, WhatCannotBeKeptIsSaidOnceAndTriedAgain) {
  std::filesystem::create_directories(path() / "in the way");
  CostFile file(folder_.path(), &costs_, &log_.logger, kNever);
  costs_.Observe(KeyNamed("one"), 1, 2.5);
  for (int i = 0; i < 3; ++i) file.Save();
  const std::string text = log_.Text();
  const size_t first = text.find("unit_times_not_kept");
  EXPECT_NE(first, std::string::npos);
  EXPECT_EQ(text.find("unit_times_not_kept", first + 1), std::string::npos) << text;
  std::filesystem::remove_all(path());
  file.Save();
  EXPECT_TRUE(Tells("one"));
}

TEST_F(KeptTimes, TheNextServerRemovesWhatAKilledOneWasWriting) {
  WriteBytes(folder_.path() / "unit_times.json.part.77", "{");
  const CostFile file(folder_.path(), &costs_, &log_.logger, kNever);
  EXPECT_THAT(FilesIn(folder_.path()), IsEmpty());
}

TEST_F(KeptTimes, WithoutAFolderNothingIsKept) {
  CostFile file("", &costs_, &log_.logger, kNever);
  costs_.Observe(KeyNamed("one"), 1, 2.5);
  file.JobEnded();
  file.Save();
  EXPECT_THAT(log_.Text(), IsEmpty());
}

}  // namespace
}  // namespace denoised
