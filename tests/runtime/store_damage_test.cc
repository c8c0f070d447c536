// Files that are not what was written: read as far as they can be, set aside, never a crash.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <array>
#include <random>
#include <set>

#include "tests/runtime/store_harness.h"

namespace denoised {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;

class DamagedStore : public testing::Test {
 protected:
  DamagedStore() { options_.state_dir = folder_.path(); }

  JobStore& Reopen() {
    store_.reset();
    store_ = OpenJobStore(options_, &logger_.logger);
    return *store_;
  }
  void Fill(int jobs) {
    Reopen();
    for (int i = 0; i < jobs; ++i) {
      store_->Add(NewJob("job" + std::to_string(i)), NewRequest("prompt " + std::to_string(i)));
    }
    store_.reset();
  }
  // On the closed file.
  void Sql(const std::string& statement) {
    sqlite3* database = nullptr;
    ASSERT_EQ(sqlite3_open(file().c_str(), &database), SQLITE_OK);
    char* why = nullptr;
    EXPECT_EQ(sqlite3_exec(database, statement.c_str(), nullptr, nullptr, &why), SQLITE_OK) << why;
    sqlite3_close(database);
  }
  std::string WhyRefused() {
    try {
      OpenJobStore(options_, &logger_.logger);
      return "";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), StatusCode::kFailedPrecondition);
      return error.what();
    }
  }
  std::filesystem::path file() const { return folder_.path() / "jobs.sqlite"; }

  QuietLogger logger_;
  TemporaryFolder folder_;
  StoreOptions options_;
  std::unique_ptr<JobStore> store_;
};

TEST_F(DamagedStore, ARowThatCannotBeReadIsPutAsideAndItsNeighboursAreNot) {
  Fill(5);
  Sql("UPDATE jobs SET row = replace(row, 'red', 'bed') WHERE id = 'job1';"
      "UPDATE requests SET request = '{}' WHERE number = 4");
  const auto jobs = Reopen().Recover();
  std::vector<std::string> ids;
  for (const AcceptedJob& job : jobs) ids.push_back(job.snapshot.id);
  EXPECT_THAT(ids, ElementsAre("job0", "job2", "job4"));
  EXPECT_FALSE(store_->Get("job1"));
  const std::string log = logger_.Text();
  EXPECT_THAT(log, HasSubstr("job1"));
  EXPECT_THAT(log, HasSubstr("job3"));
  store_->Add(NewJob("new"), NewRequest());
  EXPECT_THAT(Reopen().Recover(), SizeIs(4));
  EXPECT_EQ(logger_.Text().size(), log.size()) << "said once";
}

TEST_F(DamagedStore, ANewerVersionIsRefusedByName) {
  Fill(1);
  Sql("PRAGMA user_version = 3");
  const std::string why = WhyRefused();
  EXPECT_THAT(why, HasSubstr("jobs.sqlite"));
  EXPECT_THAT(why, HasSubstr("newer version"));
  Sql("PRAGMA user_version = 2");
  EXPECT_THAT(Reopen().Recover(), SizeIs(1)) << "and left as it was";
}

TEST_F(DamagedStore, AnotherProgramsFileIsRefusedAndLeft) {
  Sql("CREATE TABLE theirs (a)");
  const std::string bytes = FileBytes(file());
  EXPECT_THAT(WhyRefused(), HasSubstr("not a ledger"));
  EXPECT_EQ(FileBytes(file()), bytes);
  WriteBytes(file(), std::string(5000, 'x'));
  EXPECT_THAT(WhyRefused(), HasSubstr("jobs.sqlite"));
  EXPECT_EQ(FileBytes(file()), std::string(5000, 'x'));
}

// Damages a page that holds jobs, not the first.
void DamagePage(const std::filesystem::path& file) {
  std::string bytes = FileBytes(file);
  const size_t at = bytes.find("prompt 30");
  ASSERT_NE(at, std::string::npos);
  bytes.replace(at / 4096 * 4096, 64, std::string(64, '\xff'));
  WriteBytes(file, bytes);
}

TEST_F(DamagedStore, WhatWasPutAsideStaysWhenTheFileIsSalvaged) {
  Fill(40);
  Sql("UPDATE jobs SET row = replace(row, 'red', 'bed') WHERE id = 'job1'");
  Reopen();
  store_.reset();
  DamagePage(file());
  WriteBytes(folder_.path() / "artifacts" / "job1.mp4", "bytes");
  Reopen();
  EXPECT_THAT(logger_.Text(), HasSubstr("ledger.salvaged"));
  EXPECT_EQ(FileBytes(folder_.path() / "artifacts" / "job1.mp4"), "bytes")
      << "for people to look at";
}

TEST_F(DamagedStore, ASalvageLeavesAtNoMomentNoLedger) {
  Fill(40);
  DamagePage(file());
  const int watch = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
  inotify_add_watch(watch, folder_.path().c_str(), IN_MOVED_FROM | IN_DELETE | IN_MOVED_TO);
  Reopen();
  alignas(inotify_event) std::array<char, 16384> buffer;
  const ssize_t size = read(watch, buffer.data(), buffer.size());
  close(watch);
  int came = 0;
  for (ssize_t at = 0; at < size;) {
    const auto* event = reinterpret_cast<const inotify_event*>(buffer.data() + at);
    at += static_cast<ssize_t>(sizeof(inotify_event) + event->len);
    if (event->len == 0 || std::string(event->name) != "jobs.sqlite") continue;
    EXPECT_TRUE(event->mask & IN_MOVED_TO) << "it went away";
    ++came;
  }
  EXPECT_EQ(came, 1);
  EXPECT_TRUE(std::filesystem::exists(folder_.path() / "jobs.sqlite.damaged.1"));
}

// Random bytes of the file are changed: the server starts with what is whole, or says what is
// wrong; what it shows is what was stored; nothing that was there is destroyed.
TEST_F(DamagedStore, AnyDamageToTheFileIsSurvived) {
  constexpr int kJobs = 40;
  Fill(kJobs);
  const std::string whole = FileBytes(file());
  std::mt19937 random(11);
  int started = 0, salvaged = 0;
  for (int round = 0; round < 60; ++round) {
    std::string damaged = whole;
    const int edits = 1 + static_cast<int>(random() % 4);
    for (int i = 0; i < edits; ++i) {
      const size_t at = random() % damaged.size();
      const size_t length = random() % 2 == 0 ? 1 : 200;
      for (size_t k = at; k < std::min(at + length, damaged.size()); ++k) {
        damaged[k] = static_cast<char>(random());
      }
    }
    for (const auto& entry : std::filesystem::directory_iterator(folder_.path())) {
      if (entry.is_regular_file()) std::filesystem::remove(entry.path());
    }
    WriteBytes(file(), damaged);
    try {
      const auto jobs = Reopen().Recover();
      ++started;
      for (const AcceptedJob& job : jobs) {
        EXPECT_EQ(job.request.prompt, "prompt " + job.snapshot.id.substr(3));
      }
      const auto aside = folder_.path() / "jobs.sqlite.damaged.1";
      if (std::filesystem::exists(aside)) {
        ++salvaged;
        EXPECT_EQ(FileBytes(aside).size(), damaged.size());
      } else {
        EXPECT_GE(static_cast<int>(jobs.size()), kJobs - 2 * edits) << "neighbours stay";
      }
      store_->Add(NewJob("new"), NewRequest());
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), StatusCode::kFailedPrecondition) << error.what();
      EXPECT_THAT(error.what(), HasSubstr("jobs.sqlite"));
      EXPECT_EQ(FileBytes(file()), damaged) << "for people to look at";
    }
  }
  EXPECT_GT(started, 30);
  EXPECT_GT(salvaged, 5);
}

}  // namespace
}  // namespace denoised
