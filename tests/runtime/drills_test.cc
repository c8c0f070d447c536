#include "runtime/attention/drills.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backends/stop_point.h"
#include "tests/runtime/fake_engine.h"

namespace denoised {
namespace {

using std::chrono::milliseconds;

class DrillsTest : public testing::Test {
 protected:
  void Begin(Fault fault, milliseconds ttl = std::chrono::minutes(1)) {
    drills_.Begin({AttnBackend::kReference, fault, ttl});
  }
  std::string BeginError(milliseconds ttl) {
    try {
      Begin(Fault::kNan, ttl);
      return "";
    } catch (const Error& error) {
      return error.field();
    }
  }

  ManualClock clock_;
  Drills drills_{clock_.function()};
};

TEST_F(DrillsTest, ADrillIsOfOneBackendUntilItsEnd) {
  EXPECT_FALSE(drills_.Of(AttnBackend::kReference));
  Begin(Fault::kNan);
  EXPECT_EQ(drills_.Of(AttnBackend::kReference), Fault::kNan);
  EXPECT_TRUE(drills_.GivesNan(AttnBackend::kReference));
  EXPECT_FALSE(drills_.GivesNan(AttnBackend::kSageAttn));
  clock_.Advance(milliseconds(59'999));
  EXPECT_TRUE(drills_.GivesNan(AttnBackend::kReference));
  clock_.Advance(milliseconds(1));
  EXPECT_FALSE(drills_.Of(AttnBackend::kReference));
}

TEST_F(DrillsTest, ANewerOneTakesItsPlace) {
  Begin(Fault::kNan);
  Begin(Fault::kThrow);
  EXPECT_FALSE(drills_.GivesNan(AttnBackend::kReference));
  EXPECT_THROW(drills_.Before(AttnBackend::kReference), Error);
  EXPECT_NO_THROW(drills_.Before(AttnBackend::kSageAttn));
}

TEST_F(DrillsTest, NoneLastsLongerThanTenMinutes) {
  EXPECT_EQ(BeginError(milliseconds(0)), "ttl");
  EXPECT_EQ(BeginError(milliseconds(-1)), "ttl");
  EXPECT_EQ(BeginError(std::chrono::minutes(10) + milliseconds(1)), "ttl");
  EXPECT_FALSE(drills_.Of(AttnBackend::kReference));
  EXPECT_EQ(BeginError(std::chrono::minutes(10)), "");
}

TEST_F(DrillsTest, AStallLastsUntilAStopPoint) {
  Begin(Fault::kStall);
  int asked = 0;
  const ScopedStopCheck stop([&]() -> std::optional<Error> {
    if (++asked < 4) return std::nullopt;
    return Error(StatusCode::kCancelled, "enough", "", "CANCELLED");
  });
  try {
    drills_.Before(AttnBackend::kReference);
    ADD_FAILURE() << "it went on";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kCancelled);
  }
}

TEST_F(DrillsTest, AStallLastsUntilItsEnd) {
  Begin(Fault::kStall);
  const ScopedStopCheck look([&]() -> std::optional<Error> {
    clock_.Advance(milliseconds(30'000));
    return std::nullopt;
  });
  drills_.Before(AttnBackend::kReference);
  EXPECT_FALSE(drills_.Of(AttnBackend::kReference));
}

TEST(Faults, HaveNames) {
  for (Fault fault : {Fault::kThrow, Fault::kStall, Fault::kNan}) {
    EXPECT_EQ(FaultFromName(FaultName(fault)), fault);
  }
  EXPECT_FALSE(FaultFromName("explode"));
}

}  // namespace
}  // namespace denoised
