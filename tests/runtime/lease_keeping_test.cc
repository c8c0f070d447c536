// What becomes of leases is kept and told, over restarts.
#include "runtime/engine/lease_keeping.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

#include "runtime/store/hooks.h"
#include "tests/runtime/leases.h"
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

// One server's life after the other, on clocks that a test moves.
class LeaseKeepingTest : public testing::Test, public StoreHooks {
 protected:
  LeaseKeepingTest() { Start(); }
  ~LeaseKeepingTest() override { Kill(); }

  ClockReading Clocks(const ClockReading&) override { return now_; }

  void Start() {
    StoreOptions options;
    options.state_dir = folder_.path();
    options.hooks = this;
    store_ = OpenJobStore(options, &logger_.logger);
    policy_ = std::make_unique<SelectionPolicy>(std::nullopt, [this] { return now_.steady; });
    audit_ = std::make_unique<Audit>(&store_->control(), &logger_.logger);
    keeping_ = std::make_unique<LeaseKeeping>(policy_.get(), store_->control(), audit_.get(),
                                              [this] { return now_.steady; });
  }
  void Kill() {
    keeping_.reset();
    audit_.reset();
    policy_.reset();
    store_.reset();
  }
  void Restart(seconds gap = seconds(0)) {
    Kill();
    Pass(gap);
    now_.steady = std::chrono::steady_clock::time_point(hours(3));
    Start();
  }
  void Pass(milliseconds time) {
    now_.since_boot += time;
    now_.wall += time;
    now_.steady += time;
    if (policy_) policy_->EndDue();
  }

  // "what subject: old -> new (reason) by who" of each entry after `number`.
  std::vector<std::string> Told(uint64_t number = 0) {
    std::vector<std::string> lines;
    for (const AuditEntry& entry : audit_->ReadAfter(number, 1000)) {
      lines.push_back(entry.what + " " + entry.subject + ": " + entry.old_value + " -> " +
                      entry.new_value + " (" + entry.reason + ") by " + entry.who);
    }
    return lines;
  }

  ClockReading now_ = {"a boot", hours(50),
                       std::chrono::system_clock::time_point(hours(24 * 365 * 50)),
                       std::chrono::steady_clock::time_point(hours(7))};
  QuietLogger logger_;
  TemporaryFolder folder_;
  std::unique_ptr<JobStore> store_;
  std::unique_ptr<SelectionPolicy> policy_;
  std::unique_ptr<Audit> audit_;
  std::unique_ptr<LeaseKeeping> keeping_;
};

TEST_F(LeaseKeepingTest, EveryChangeOfALeaseIsOneEntryInOrder) {
  const Lease a =
      AddForce(*policy_, AttnBackend::kReference, seconds(60), "why", "peer-1", R"({"window":3})");
  policy_->Renew(a.id, std::nullopt, "peer-2");
  policy_->Release(a.id, "peer-3");
  const Lease b = AddForce(*policy_, AttnBackend::kTorchSdpa, seconds(5));
  Pass(seconds(5));
  LeaseRequest request{AttnBackend::kReference};
  request.scope.model = "shapes";
  request.mode = SelectionMode::kStrict;
  request.held = true;
  request.holder = "peer-4";
  const Lease c = policy_->Force(request);
  policy_->End(c.id, LeaseEnd::kHolderLeft, "", "peer-4");
  const Lease d = AddForce(*policy_, AttnBackend::kReference);
  policy_->End(d.id, LeaseEnd::kNotFinite, "step 3 came out as NaN");
  EXPECT_THAT(
      Told(),
      ElementsAre(
          "force " + a.id + R"(:  -> REFERENCE, server, with {"window":3} (why) by peer-1)",
          "renew " + a.id + ": 60.0 s left -> no end (why) by peer-2",
          "release " + a.id + R"(: REFERENCE, server, with {"window":3} ->  () by peer-3)",
          "force " + b.id + ":  -> TORCH_SDPA, server () by test",
          "expire " + b.id + ": TORCH_SDPA, server ->  (its time is over) by server",
          "force " + c.id + ":  -> REFERENCE, model=shapes, strict, held () by peer-4",
          "end " + c.id + ": REFERENCE, model=shapes, strict, held ->  (holder_left) by peer-4",
          "force " + d.id + ":  -> REFERENCE, server () by test",
          "end " + d.id +
              ": REFERENCE, server ->  (not_finite: step 3 came out as NaN) by server"));
}

TEST_F(LeaseKeepingTest, AnEntrySaysWhenItsLeaseEnds) {
  AddForce(*policy_, AttnBackend::kReference, seconds(60));
  AddForce(*policy_, AttnBackend::kReference);
  const auto entries = audit_->ReadAfter(0, 10);
  ASSERT_TRUE(entries.at(0).ends_at);
  const auto left = *entries[0].ends_at - entries[0].time;
  EXPECT_LE(left, seconds(60));
  EXPECT_GT(left, seconds(0));
  EXPECT_FALSE(entries.at(1).ends_at);
}

TEST_F(LeaseKeepingTest, LeasesDecideAfterARestartUntilTheirTimeAndTheGenerationGoesOn) {
  const Lease a = AddForce(*policy_, AttnBackend::kReference, seconds(60));
  const Lease b = AddForce(*policy_, AttnBackend::kTorchSdpa);
  policy_->Release(b.id);
  const Lease c = AddForce(*policy_, AttnBackend::kSlidingTileAttn);
  const uint64_t generation = policy_->generation();
  Restart(seconds(40));
  EXPECT_EQ(policy_->generation(), generation);
  ASSERT_THAT(policy_->List(), SizeIs(2));
  EXPECT_EQ(policy_->List()[0].id, c.id);
  EXPECT_EQ(policy_->List()[1].id, a.id);
  EXPECT_EQ(*policy_->Find(a.id)->ends_at - now_.steady, seconds(20));
  EXPECT_EQ(policy_->forced(), AttnBackend::kSlidingTileAttn);
  Pass(milliseconds(19999));
  EXPECT_TRUE(policy_->Find(a.id));
  Pass(milliseconds(1));
  EXPECT_FALSE(policy_->Find(a.id));
  EXPECT_THAT(Told().back(), HasSubstr("expire " + a.id));
  EXPECT_EQ(policy_->generation(), generation + 1);
  Restart();
  EXPECT_THAT(policy_->List(), SizeIs(1));
  EXPECT_EQ(policy_->generation(), generation + 1);
}

TEST_F(LeaseKeepingTest, ARenewedEndIsTheOneThatCountsAfterARestart) {
  const Lease a = AddForce(*policy_, AttnBackend::kReference, seconds(60));
  Pass(seconds(50));
  policy_->Renew(a.id, seconds(600), "peer");
  Restart(seconds(100));
  ASSERT_TRUE(policy_->Find(a.id));
  EXPECT_EQ(*policy_->Find(a.id)->ends_at - now_.steady, seconds(500));
}

TEST_F(LeaseKeepingTest, WhatEndedWhileNoServerRanIsSaidOnceAndMovesTheGeneration) {
  const Lease a = AddForce(*policy_, AttnBackend::kReference, seconds(60));
  const Lease b = AddForce(*policy_, AttnBackend::kTorchSdpa, seconds(30));
  Restart(seconds(60));
  EXPECT_THAT(policy_->List(), IsEmpty());
  EXPECT_EQ(policy_->generation(), 4u);
  const std::string why = " (its time was over while no server ran) by server";
  EXPECT_THAT(Told(2), ElementsAre("expire " + a.id + ": REFERENCE, server -> " + why,
                                   "expire " + b.id + ": TORCH_SDPA, server -> " + why));
  Restart();
  EXPECT_THAT(Told(4), IsEmpty());
  EXPECT_EQ(policy_->generation(), 4u);
}

TEST_F(LeaseKeepingTest, NoIdIsUsedTwiceOverRestarts) {
  const Lease a = AddForce(*policy_, AttnBackend::kReference);
  policy_->Release(a.id);
  Restart();
  EXPECT_NE(AddForce(*policy_, AttnBackend::kReference).id, a.id);
}

TEST_F(LeaseKeepingTest, AHeldLeaseEndsWithItsServer) {
  LeaseRequest request{AttnBackend::kReference};
  request.held = true;
  policy_->Force(request);
  Restart();
  EXPECT_THAT(policy_->List(), IsEmpty());
  EXPECT_EQ(policy_->generation(), 1u);
}

TEST_F(LeaseKeepingTest, AKeptLeaseThatIsReleasedAfterARestartStaysReleased) {
  const Lease a = AddForce(*policy_, AttnBackend::kReference);
  Restart();
  EXPECT_TRUE(policy_->Release(a.id, "peer"));
  Restart();
  EXPECT_THAT(policy_->List(), IsEmpty());
  EXPECT_THAT(Told(), ElementsAre(HasSubstr("force"), HasSubstr("release")));
}

}  // namespace
}  // namespace denoised
