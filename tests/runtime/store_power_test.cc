// Cuts of the power at any moment: what was acknowledged is there although all that was not synced
// by then is forgotten, or half of it is, in torn pieces. That the disk of this test bites is shown
// by the same store with SQLite's weaker ways to sync.
//
// Of the ledger. Results and checkpoints are synced by ourselves, file and folder, before their
// rows are: tests/system/test_power.py looks at the real server's calls.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>

#include "runtime/caught.h"
#include "tests/runtime/power_cut_disk.h"
#include "tests/runtime/store_client.h"
#include "tests/runtime/store_harness.h"

namespace denoised {
namespace {

using testing::IsEmpty;

// How many machines lose their power: 300, or as many as POWER_CUTS says.
int Cuts() { return Asked("POWER_CUTS", 300); }

// One machine after the other, on one folder.
class PoweredStore {
 public:
  explicit PoweredStore(std::string synchronous) : synchronous_(std::move(synchronous)) {
    options_.state_dir = folder_.path();
    options_.max_finished = 1 << 20;
  }

  // A server that works until the power is cut, or has done so many verbs; whether it was.
  bool Live(const PowerCutDisk::Cut& cut, int verbs) {
    QuietLogger logger;
    PowerCutDisk disk(folder_.path(), cut, synchronous_);
    const auto error = Caught([&] {
      const auto store = OpenJobStore(options_, &logger.logger);
      StoreClient(store.get(), log_.get(), cut.seed).Work(verbs);
    });
    if (error && !disk.dark()) violations_.push_back(error->what());
    return disk.dark();
  }
  // With power: what is not as it was told, and what went wrong before a cut.
  std::vector<std::string> Violations() {
    const auto found = StoreChecker(options_, log_.get()).Violations();
    violations_.insert(violations_.end(), found.begin(), found.end());
    return violations_;
  }
  bool HasHotJournal() const {
    std::error_code error;
    const auto size = std::filesystem::file_size(folder_.path() / "jobs.sqlite-journal", error);
    return !error && size > 0;
  }
  int jobs() const { return log_->jobs; }

 private:
  const TemporaryFolder folder_;
  const std::string synchronous_;
  StoreOptions options_;
  std::vector<std::string> violations_;
  const std::unique_ptr<ToldLog> log_ = std::make_unique<ToldLog>();
};

// What came of many cuts, up to the first that lost something.
struct Outcome {
  int cuts = 0, in_recoveries = 0, hot_journals = 0, jobs = 0;
  std::vector<std::string> violations;
};

constexpr int kCutsOfAFolder = 12, kVerbs = 30;

Outcome CutAgainAndAgain(int most, bool loses_all, const std::string& synchronous) {
  std::mt19937 random(loses_all ? 1 : 2);
  Outcome outcome;
  std::unique_ptr<PoweredStore> store;
  const auto cut = [&](int within) {
    const PowerCutDisk::Cut one = {1 + static_cast<int64_t>(random() % within), loses_all,
                                   static_cast<uint32_t>(random())};
    return store->Live(one, kVerbs);
  };
  for (int round = 0; round < most && outcome.violations.empty(); ++round) {
    if (round % kCutsOfAFolder == 0) {
      if (store) outcome.jobs += store->jobs();
      store = std::make_unique<PoweredStore>(synchronous);
    }
    outcome.cuts += cut(300) ? 1 : 0;
    outcome.hot_journals += store->HasHotJournal() ? 1 : 0;
    if (round % 2 == 0) outcome.in_recoveries += cut(12) ? 1 : 0;
    outcome.violations = store->Violations();
    if (!outcome.violations.empty())
      outcome.violations.push_back("in round " + std::to_string(round));
  }
  if (store) outcome.jobs += store->jobs();
  return outcome;
}

class StoreWithoutPower : public testing::TestWithParam<bool> {};

TEST_P(StoreWithoutPower, LosesNothingThatWasAcknowledged) {
  const Outcome outcome = CutAgainAndAgain(Cuts(), GetParam(), "");
  EXPECT_THAT(outcome.violations, IsEmpty());
  EXPECT_GT(outcome.cuts, Cuts() / 2);
  EXPECT_GT(outcome.in_recoveries, Cuts() / 4);
  EXPECT_GT(outcome.hot_journals, Cuts() / 20) << "transactions were rolled back";
  EXPECT_GT(outcome.jobs, Cuts());
}

TEST_P(StoreWithoutPower, LosesAcknowledgedJobsWhereTheDiskIsNotAskedToKeepThem) {
  for (const char* synchronous : {"OFF", "NORMAL"}) {
    EXPECT_FALSE(CutAgainAndAgain(100, GetParam(), synchronous).violations.empty()) << synchronous;
  }
}

INSTANTIATE_TEST_SUITE_P(Ways, StoreWithoutPower, testing::Bool(), [](const auto& way) {
  return way.param ? "ThatForgetsAll" : "ThatForgetsSome";
});

}  // namespace
}  // namespace denoised
