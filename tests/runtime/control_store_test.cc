// Leases, audit and documents across restarts, whatever clocks, disks and files do meanwhile.
#include "runtime/control_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>

#include <atomic>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "runtime/loaders/sha256.h"
#include "runtime/store/hooks.h"
#include "runtime/store/lease_row.h"
#include "tests/runtime/store_harness.h"

namespace denoised {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

// Clocks that a test sets, and a disk that takes nothing at edges that contain `failing`.
class Machine : public StoreHooks {
 public:
  void At(std::string_view edge) override {
    if (at_edge) at_edge(edge);
    const std::lock_guard lock(mutex_);
    if (failing_.empty() || edge.find(failing_) == std::string_view::npos) return;
    ++failures;
    throw Error(StatusCode::kResourceExhausted, "No space left on device", "", "DISK");
  }
  ClockReading Clocks(const ClockReading&) override { return now; }

  void Fail(const std::string& part) {
    const std::lock_guard lock(mutex_);
    failing_ = part;
  }
  void Pass(milliseconds time) {
    now.since_boot += time;
    now.wall += time;
    now.steady += time;
  }
  // Another process of the same boot, or of another one: its steady clock is its own.
  void Restart() { now.steady = std::chrono::steady_clock::time_point(hours(1)); }
  void Reboot() {
    Restart();
    now.boot_id = "another boot";
    now.since_boot = seconds(5);
  }

  ClockReading now = {"a boot", hours(100),
                      std::chrono::system_clock::time_point(hours(24 * 365 * 50)),
                      std::chrono::steady_clock::time_point(hours(7))};
  std::function<void(std::string_view)> at_edge;
  std::atomic<int> failures{0};

 private:
  std::mutex mutex_;
  std::string failing_;
};

class KeptControl : public testing::Test {
 protected:
  KeptControl() {
    options_.state_dir = folder_.path();
    options_.hooks = &machine_;
    Reopen();
  }

  ControlStore& Reopen() {
    store_.reset();
    store_ = OpenJobStore(options_, &logger_.logger);
    return store_->control();
  }
  ControlStore& control() { return store_->control(); }

  Lease NewLease(uint64_t sequence, std::optional<milliseconds> ttl = std::nullopt) {
    Lease lease;
    lease.id = "force-" + std::to_string(sequence);
    lease.sequence = sequence;
    lease.created_at = machine_.now.wall;
    if (ttl) lease.ends_at = machine_.now.steady + *ttl;
    return lease;
  }
  // A change of a lease with its entry.
  void Change(const Lease& lease, uint64_t generation, bool live = true) {
    AuditEntry entry;
    entry.time = machine_.now.wall;
    entry.what = live ? "force" : "release";
    entry.subject = lease.id;
    control().AppendAudit({{entry, LeaseChange{lease, live, generation}}});
  }
  // Appends an entry of this subject.
  uint64_t Note(const std::string& subject) {
    AuditEntry entry;
    entry.time = machine_.now.wall;
    entry.subject = subject;
    return control().AppendAudit({{entry}});
  }
  std::vector<std::string> Subjects(uint64_t after = 0, size_t limit = 100000) {
    std::vector<std::string> subjects;
    for (const AuditEntry& entry : control().ReadAudit(after, limit)) {
      subjects.push_back(entry.subject);
    }
    return subjects;
  }
  std::vector<std::string> LiveIds() {
    std::vector<std::string> ids;
    for (const Lease& lease : control().LoadLeases().live) ids.push_back(lease.id);
    return ids;
  }
  // What is left of the only lease.
  milliseconds Left() {
    const KeptLeases kept = control().LoadLeases();
    EXPECT_THAT(kept.live, SizeIs(1));
    return std::chrono::duration_cast<milliseconds>(*kept.live.at(0).ends_at - machine_.now.steady);
  }
  // On the closed file.
  void Sql(const std::string& statement) {
    store_.reset();
    sqlite3* database = nullptr;
    ASSERT_EQ(sqlite3_open(file().c_str(), &database), SQLITE_OK);
    char* why = nullptr;
    EXPECT_EQ(sqlite3_exec(database, statement.c_str(), nullptr, nullptr, &why), SQLITE_OK) << why;
    sqlite3_close(database);
  }
  std::filesystem::path file() const { return folder_.path() / "jobs.sqlite"; }

  Machine machine_;
  QuietLogger logger_;
  TemporaryFolder folder_;
  StoreOptions options_;
  std::unique_ptr<JobStore> store_;
};

// All of a lease but its end.
std::string TextOf(const Lease& lease) { return stored::WriteLease(lease).dump(); }

Lease RandomLease(std::mt19937& random) {
  const auto coin = [&] { return random() % 2 == 0; };
  Lease lease;
  lease.sequence = 1 + random() % 1000000;
  lease.id = "force-" + std::to_string(lease.sequence);
  lease.backend = static_cast<AttnBackend>(random() % kNumAttnBackends);
  if (coin()) lease.parameters = R"({"window":3,"text":"\u00e9\n"})";
  LeaseScope& scope = lease.scope;
  if (coin()) scope.job = "job \"1\"";
  if (coin()) scope.tenant = "\xc3\xa9";
  if (coin()) scope.model = "shapes";
  if (coin()) scope.share = static_cast<double>(1 + random() % 1000) / 1001;
  if (coin()) scope.where.role = coin() ? AttentionRole::kSelf : AttentionRole::kCross;
  if (coin()) scope.where.layers = Interval{static_cast<int64_t>(random() % 5), 7};
  if (coin()) scope.where.steps = Interval{0, static_cast<int64_t>(random() % 50)};
  if (coin()) scope.where.sigma = SigmaRange{0.1 / 3, 0.1 / 3 + (random() % 100) / 99.0};
  if (coin()) lease.mode = SelectionMode::kStrict;
  if (coin()) {
    lease.budget = Budget{static_cast<ErrorMetric>(random() % 3),
                          static_cast<Statistic>(random() % 5), 0.02 / 3, 321};
  }
  lease.reason = coin() ? "" : "why\t\"not\"";
  lease.holder = "ipv4:127.0.0.1:5";
  lease.created_at = std::chrono::system_clock::time_point(std::chrono::microseconds(random()));
  return lease;
}

TEST(LeaseRow, EveryLeaseIsReadBackAsItWas) {
  std::mt19937 random(7);
  const ClockReading now = ReadClocks();
  for (int i = 0; i < 500; ++i) {
    Lease lease = RandomLease(random);
    if (i % 2 == 0) lease.ends_at = now.steady + seconds(i + 1);
    const LeaseRow read = ReadLeaseRow(WriteLeaseRow(lease, now), now);
    EXPECT_EQ(TextOf(read.lease), TextOf(lease));
    EXPECT_EQ(read.lease.scope, lease.scope);
    EXPECT_EQ(read.lease.budget, lease.budget);
    EXPECT_EQ(read.lease.mode, lease.mode);
    EXPECT_EQ(read.lease.created_at, lease.created_at);
    EXPECT_EQ(read.lease.ends_at, lease.ends_at);
    EXPECT_FALSE(read.over);
  }
}

TEST(LeaseRow, WhatNobodyWroteIsDataLoss) {
  const ClockReading now = ReadClocks();
  Lease lease;
  const std::string whole = WriteLeaseRow(lease, now);
  for (const std::string& text :
       {std::string(), std::string("[]"), whole.substr(0, whole.size() / 2),
        std::string(R"({"id":"x"})")}) {
    try {
      ReadLeaseRow(text, now);
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), StatusCode::kDataLoss);
    }
  }
}

TEST_F(KeptControl, LeasesAndTheirGenerationAreThereAfterARestart) {
  Change(NewLease(1), 1);
  Change(NewLease(2), 2);
  Lease renewed = NewLease(1, seconds(60));
  renewed.reason = "renewed";
  Change(renewed, 3);
  Change(NewLease(3), 4);
  Change(NewLease(2), 5, /*live=*/false);
  const KeptLeases kept = Reopen().LoadLeases();
  EXPECT_EQ(kept.generation, 5u);
  EXPECT_THAT(kept.over, IsEmpty());
  ASSERT_THAT(kept.live, SizeIs(2));
  EXPECT_EQ(TextOf(kept.live[0]), TextOf(renewed));
  EXPECT_EQ(kept.live[0].ends_at, renewed.ends_at);
  EXPECT_EQ(kept.live[1].id, "force-3");
  EXPECT_FALSE(kept.live[1].ends_at) << "it has no end";
}

TEST_F(KeptControl, OfAHeldLeaseOnlyTheGenerationIsKept) {
  Lease held = NewLease(1);
  held.held = true;
  Change(held, 1);
  const KeptLeases kept = Reopen().LoadLeases();
  EXPECT_THAT(kept.live, IsEmpty());
  EXPECT_EQ(kept.generation, 1u);
}

TEST_F(KeptControl, InOneBootWhatIsLeftGoesOnWhateverTheTimeOfDayDoes) {
  for (const auto jump : {hours(0), hours(24 * 10), hours(-24 * 10)}) {
    Change(NewLease(1, seconds(60)), 1);
    machine_.Pass(seconds(25));
    machine_.now.wall += jump;
    machine_.Restart();
    Reopen();
    EXPECT_EQ(Left(), seconds(35)) << jump.count() << " h";
  }
}

TEST_F(KeptControl, AfterAnotherBootTheTimeOfDayCountsAndNeverLeavesMoreThanThereWas) {
  struct Case {
    seconds passed;
    std::optional<seconds> left;
  };
  for (const Case& one : {Case{seconds(25), seconds(35)}, Case{seconds(59), seconds(1)},
                          Case{seconds(60), std::nullopt}, Case{hours(24 * 400), std::nullopt},
                          Case{seconds(-1), seconds(60)}, Case{hours(-24), seconds(60)}}) {
    const Machine before;
    machine_.now = before.now;
    Change(NewLease(1, seconds(60)), 1);
    machine_.now.wall += one.passed;
    machine_.Reboot();
    const KeptLeases kept = Reopen().LoadLeases();
    EXPECT_EQ(kept.live.size(), one.left ? 1u : 0u) << one.passed.count();
    EXPECT_EQ(kept.over.size(), one.left ? 0u : 1u) << one.passed.count();
    if (one.left) {
      EXPECT_EQ(Left(), *one.left) << one.passed.count();
    }
  }
}

TEST_F(KeptControl, ASystemThatDoesNotNameItsBootIsTakenForAnotherOne) {
  machine_.now.boot_id = "";
  Change(NewLease(1, seconds(60)), 1);
  machine_.now.wall += seconds(50);
  machine_.Restart();
  Reopen();
  EXPECT_EQ(Left(), seconds(10));
}

TEST_F(KeptControl, ALeaseWhoseTimePassedMeanwhileIsSaidToBeOverUntilItsEndIsKept) {
  Change(NewLease(1, seconds(60)), 1);
  Change(NewLease(2, seconds(90)), 2);
  machine_.Pass(seconds(60));
  for (int i = 0; i < 2; ++i) {
    const KeptLeases kept = Reopen().LoadLeases();
    ASSERT_THAT(kept.over, SizeIs(1));
    EXPECT_EQ(kept.over[0].id, "force-1");
    EXPECT_FALSE(kept.over[0].ends_at);
    EXPECT_THAT(LiveIds(), ElementsAre("force-2"));
  }
  Change(NewLease(1), 3, /*live=*/false);
  EXPECT_THAT(Reopen().LoadLeases().over, IsEmpty());
}

TEST_F(KeptControl, EntriesAreNumberedInTheirOrderOverRestarts) {
  EXPECT_EQ(Note("a"), 1u);
  EXPECT_EQ(Note("b"), 2u);
  Reopen();
  EXPECT_EQ(Note("c"), 3u);
  Reopen();
  EXPECT_THAT(Subjects(), ElementsAre("a", "b", "c"));
  EXPECT_THAT(Subjects(1), ElementsAre("b", "c"));
  EXPECT_THAT(Subjects(0, 2), ElementsAre("a", "b"));
  EXPECT_THAT(Subjects(3), IsEmpty());
  EXPECT_THAT(Subjects(UINT64_MAX), IsEmpty());
}

TEST_F(KeptControl, AnEntryIsReadBackAsItWas) {
  AuditEntry entry;
  entry.time = machine_.now.wall;
  entry.who = "ipv6:[::1]:5";
  entry.what = "renew";
  entry.subject = "force-1";
  entry.old_value = "no end";
  entry.new_value = "60.0 s left";
  entry.reason = "a \"reason\"\n\xc3\xa9";
  entry.ends_at = machine_.now.wall + seconds(60);
  entry.number = control().AppendAudit({{entry}});
  EXPECT_THAT(Reopen().ReadAudit(0, 10), ElementsAre(entry));
}

TEST_F(KeptControl, TheNewestEntriesAreKeptAndTheirNumbersGoOn) {
  constexpr uint64_t kAll = ControlStore::kMaxAudit + 50;
  std::vector<AuditRecord> records(kAll);
  for (uint64_t i = 0; i < kAll; ++i) records[i].entry.subject = std::to_string(i + 1);
  EXPECT_EQ(control().AppendAudit(records), kAll);
  for (int i = 0; i < 2; ++i) {
    const auto entries = control().ReadAudit(0, 2 * kAll);
    ASSERT_EQ(entries.size(), ControlStore::kMaxAudit);
    EXPECT_EQ(entries.front().number, 51u);
    EXPECT_EQ(entries.back().number, kAll);
    EXPECT_EQ(entries.back().subject, std::to_string(kAll));
    Reopen();
  }
  EXPECT_EQ(Note("next"), kAll + 1);
}

TEST_F(KeptControl, WritersAtOneTimeGetNumbersOfTheirOwn) {
  std::vector<std::thread> writers;
  std::mutex mutex;
  std::set<uint64_t> numbers;
  for (int i = 0; i < 8; ++i) {
    writers.emplace_back([&, i] {
      for (int k = 0; k < 20; ++k) {
        const uint64_t number = Note(std::to_string(i) + "." + std::to_string(k));
        const std::lock_guard lock(mutex);
        numbers.insert(number);
      }
    });
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_THAT(numbers, SizeIs(160));
  const std::vector<std::string> before = Subjects();
  EXPECT_THAT(before, SizeIs(160));
  Reopen();
  EXPECT_EQ(Subjects(), before);
}

TEST_F(KeptControl, DocumentsAreTheLastThatWereKept) {
  EXPECT_FALSE(control().Find("measurements"));
  control().Keep("measurements", "{}");
  control().Keep("other", "");
  control().Keep("measurements", std::string(300000, 'x'));
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(control().Find("measurements"), std::string(300000, 'x'));
    EXPECT_EQ(control().Find("other"), "");
    EXPECT_FALSE(control().Find("measure"));
    Reopen();
  }
}

// ---- the disk

TEST_F(KeptControl, NobodySeesAnEntryBeforeItWasTriedOnDisk) {
  std::vector<std::string> seen = {"nothing was looked at"};
  machine_.at_edge = [&](std::string_view edge) {
    if (edge == "control.before_commit") seen = Subjects();
  };
  Note("a");
  EXPECT_THAT(seen, IsEmpty());
  EXPECT_THAT(Subjects(), ElementsAre("a"));
  store_.reset();
  machine_.at_edge = nullptr;
}

TEST_F(KeptControl, AChangeTakesEffectOnAFullDiskAndIsKeptAsSoonAsThereIsRoom) {
  Change(NewLease(1), 1);
  machine_.Fail("commit");
  Change(NewLease(2, seconds(60)), 2);
  Change(NewLease(3), 3);
  Change(NewLease(3), 4, /*live=*/false);
  Change(NewLease(1), 5, /*live=*/false);
  control().Keep("measurements", "new");
  EXPECT_THAT(Subjects(), SizeIs(5));
  EXPECT_THAT(LiveIds(), ElementsAre("force-2"));
  EXPECT_THAT(store_->WhyNotReady().value_or(""), HasSubstr("No space left"));
  const std::string log = logger_.Text();
  EXPECT_EQ(log.find("ledger.not_written"), log.rfind("ledger.not_written")) << "said once";
  machine_.Fail("");
  while (store_->WhyNotReady()) std::this_thread::yield();
  const KeptLeases kept = Reopen().LoadLeases();
  EXPECT_THAT(LiveIds(), ElementsAre("force-2"));
  EXPECT_EQ(kept.generation, 5u);
  EXPECT_THAT(Subjects(), SizeIs(5));
  EXPECT_EQ(control().Find("measurements"), "new");
}

TEST_F(KeptControl, AFullDiskHoldsOneWriteHoweverManyChangesThereAre) {
  std::atomic<bool> has_room = false;
  std::atomic<int> commits = 0;
  machine_.at_edge = [&](std::string_view edge) {
    if (has_room && edge == "control.after_commit") ++commits;
  };
  machine_.Fail("control");
  for (int i = 0; i < 50; ++i) Note(std::to_string(i));
  // Each retry after a round tries what is held once; were it one for each change, it would be 50.
  machine_.Fail("commit");
  const int before = machine_.failures;
  while (machine_.failures < before + 2) std::this_thread::yield();
  has_room = true;
  machine_.Fail("");
  while (store_->WhyNotReady()) std::this_thread::yield();
  store_.reset();
  machine_.at_edge = nullptr;
  EXPECT_LE(commits, 1);
  Reopen();
  EXPECT_THAT(Subjects(), SizeIs(50));
}

TEST_F(KeptControl, ALeaseAndItsEntryAreKeptTogetherOrNotAtAll) {
  Change(NewLease(1), 1);
  machine_.Fail("control.before_commit");
  Change(NewLease(2), 2);
  store_.reset();  // dies before the disk took it
  machine_.Fail("");
  Reopen();
  EXPECT_THAT(LiveIds(), ElementsAre("force-1"));
  EXPECT_THAT(Subjects(), ElementsAre("force-1"));
  EXPECT_EQ(control().LoadLeases().generation, 1u);
}

// ---- damage

TEST_F(KeptControl, RowsThatCannotBeReadArePutAsideAndTheirNeighboursAreNot) {
  for (uint64_t i = 1; i <= 3; ++i) Change(NewLease(i), i);
  control().Keep("a", "text of a");
  control().Keep("b", "text of b");
  Sql("UPDATE leases SET row = replace(row, 'force-2', 'force-9') WHERE number = 2;"
      "UPDATE audit SET number = 1000000 WHERE number = 3;"
      "UPDATE documents SET row = 'text of c' WHERE id = 'a'");
  Reopen();
  EXPECT_THAT(LiveIds(), ElementsAre("force-1", "force-3"));
  EXPECT_THAT(Subjects(), ElementsAre("force-1", "force-2"));
  EXPECT_FALSE(control().Find("a"));
  EXPECT_EQ(control().Find("b"), "text of b");
  EXPECT_EQ(control().LoadLeases().generation, 3u);
  const std::string log = logger_.Text();
  for (const char* table : {"leases", "audit", "documents"}) {
    EXPECT_THAT(log, HasSubstr(std::string(R"("table":")") + table));
  }
  EXPECT_EQ(Note("new"), 4u) << "a number that was given is not given again";
  EXPECT_EQ(Note("newer"), 5u);
  Reopen();
  EXPECT_THAT(Subjects(), ElementsAre("force-1", "force-2", "new", "newer"));
  EXPECT_EQ(logger_.Text().size(), log.size()) << "said once";
  EXPECT_GT(Note("newest"), 5u);
}

TEST_F(KeptControl, AnyDamageToTheFileIsSurvivedAndNothingIsShownThatWasNotStored) {
  constexpr uint64_t kLeases = 60;
  for (uint64_t i = 1; i <= kLeases; ++i) Change(NewLease(i), i);
  control().Keep("measurements", std::string(20000, 'm'));
  store_.reset();
  const std::string whole = FileBytes(file());
  std::mt19937 random(5);
  size_t kept = 0;
  for (int round = 0; round < 40; ++round) {
    std::string damaged = whole;
    const size_t at = random() % damaged.size(), length = random() % 2 == 0 ? 1 : 200;
    for (size_t k = at; k < std::min(at + length, damaged.size()); ++k) {
      damaged[k] = static_cast<char>(random());
    }
    for (const auto& entry : std::filesystem::directory_iterator(folder_.path())) {
      if (entry.is_regular_file()) std::filesystem::remove(entry.path());
    }
    WriteBytes(file(), damaged);
    try {
      for (const Lease& lease : Reopen().LoadLeases().live) {
        EXPECT_EQ(TextOf(lease), TextOf(NewLease(lease.sequence)));
      }
      for (const AuditEntry& entry : control().ReadAudit(0, 1000)) {
        EXPECT_EQ(entry.subject, "force-" + std::to_string(entry.number));
      }
      EXPECT_EQ(control().Find("measurements").value_or(std::string(20000, 'm')),
                std::string(20000, 'm'));
      kept += LiveIds().size();
      Note("goes on");
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), StatusCode::kFailedPrecondition) << error.what();
    }
    store_.reset();
  }
  EXPECT_GT(kept, 20 * kLeases);
}

// ---- versions

// What the first version of the ledger wrote: its schema, and a job that waits.
constexpr const char* kVersionOne = R"sql(
CREATE TABLE jobs (number INTEGER PRIMARY KEY, id TEXT NOT NULL, row TEXT NOT NULL,
                   digest TEXT NOT NULL);
CREATE TABLE requests (number INTEGER PRIMARY KEY, request TEXT NOT NULL, latents BLOB NOT NULL,
                       digest TEXT NOT NULL);
CREATE TABLE quarantine (number INTEGER, id TEXT, row TEXT, request TEXT, latents BLOB, why TEXT);
CREATE TABLE marks (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
PRAGMA application_id = 1684960100; PRAGMA user_version = 1;
)sql";
constexpr const char* kVersionOneJob =
    R"({"crashes":0,"job":{"artifacts":[],"attempt":0,"created_at":1795681162662427,)"
    R"("id":"waits","num_steps":0,"parameters":{"flow_shift":0.0,"fps":0,)"
    R"("guidance_scale":0.0,"height":0,"linear":"exact","max_sequence_length":0,"model":"",)"
    R"("negative_prompt":"","num_frames":0,"num_inference_steps":0,"scheduler":"","seed":0,)"
    R"("width":0},"priority":"NORMAL","prompt":"a red circle","queue_position":0,)"
    R"("receipt":{"device":"","dtype":"","entries":[],"fingerprint":"","kernels":"",)"
    R"("linear":"","model_digest":"","notes":[],"torch_version":"","version":"",)"
    R"("weights_digest":""},"sequence":1,"stage":"none","stage_seconds":[],)"
    R"("state":"QUEUED","step":0,"tenant":""},"key":"","request_digest":""})";
constexpr const char* kVersionOneRequest =
    R"({"attention":{"parameters":"","strict":false},"best_effort_deadline":false,)"
    R"("formats":["mp4"],"model":"","priority":"NORMAL","prompt":"a red circle",)"
    R"("tenant":""})";

std::string Inserted(const std::string& table, const std::string& values) {
  return "INSERT INTO " + table + " VALUES (" + values + ");";
}

class VersionOneLedger : public KeptControl {
 protected:
  VersionOneLedger() {
    store_.reset();
    std::filesystem::remove(file());
    const std::string job = kVersionOneJob, request = kVersionOneRequest;
    Sql(std::string(kVersionOne) +
        Inserted("jobs", "1, 'waits', '" + job + "', '" + Sha256Hex(job) + "'") +
        Inserted("requests", "1, '" + request + "', x'', '" + Sha256Hex(request) + "'") +
        Inserted("quarantine", "9, 'aside', '{}', NULL, NULL, 'it was damaged'"));
    std::filesystem::create_directories(folder_.path() / "artifacts");
    WriteBytes(folder_.path() / "artifacts" / "aside.mp4", "a result");
  }
  int64_t Version() {
    std::string bytes = FileBytes(file()).substr(60, 4);  // sqlite.org/fileformat.html, 1.3
    return static_cast<unsigned char>(bytes[3]);
  }
};

TEST_F(VersionOneLedger, IsTakenOnWithItsJobs) {
  EXPECT_EQ(Version(), 1);
  Reopen();
  const auto jobs = store_->Recover();
  ASSERT_THAT(jobs, SizeIs(1));
  EXPECT_EQ(jobs[0].request.prompt, "a red circle");
  EXPECT_TRUE(std::filesystem::exists(folder_.path() / "artifacts" / "aside.mp4"))
      << "what was put aside keeps its results";
  EXPECT_THAT(LiveIds(), IsEmpty());
  EXPECT_EQ(control().LoadLeases().generation, 0u);
  Change(NewLease(1), 1);
  Reopen();
  EXPECT_THAT(LiveIds(), ElementsAre("force-1"));
  EXPECT_THAT(store_->Recover(), SizeIs(1));
  store_.reset();
  EXPECT_EQ(Version(), 2);
}

TEST_F(VersionOneLedger, IsSalvagedIntoThePresentOneWhereItIsDamaged) {
  std::string bytes = FileBytes(file());
  // The page of `requests`' table of its own: found by its content.
  const size_t at = bytes.find(R"("best_effort_deadline")");
  ASSERT_NE(at, std::string::npos);
  const size_t page = at / 4096 * 4096;
  std::fill_n(bytes.begin() + static_cast<int64_t>(page), 64, '\xff');
  WriteBytes(file(), bytes);
  Reopen();
  EXPECT_THAT(logger_.Text(), HasSubstr("ledger.salvaged"));
  Change(NewLease(1), 1);
  Reopen();
  EXPECT_THAT(LiveIds(), ElementsAre("force-1"));
}

// ---- in memory

TEST(ControlInMemory, IsTheSameButEndsWithTheProcess) {
  const auto store = MakeMemoryJobStore(1, 1);
  ControlStore& control = store->control();
  Lease lease;
  lease.id = "force-1";
  lease.sequence = 1;
  EXPECT_EQ(control.AppendAudit({{AuditEntry(), LeaseChange{lease, true, 4}}, {AuditEntry()}}), 2u);
  EXPECT_THAT(control.ReadAudit(0, 10), SizeIs(2));
  EXPECT_THAT(control.LoadLeases().live, SizeIs(1));
  EXPECT_EQ(control.LoadLeases().generation, 4u);
  control.Keep("a", "b");
  EXPECT_EQ(control.Find("a"), "b");
}

}  // namespace
}  // namespace denoised
