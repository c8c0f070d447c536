// Shadow comparisons and budgets over invented backends and real tensors.
#include "runtime/attention/shadows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "backends/stop_point.h"
#include "runtime/attention/attention_layer.h"
#include "runtime/attention/attention_planner.h"
#include "runtime/attention/shadow_calls.h"
#include "runtime/caught.h"
#include "tests/backends/fake_backends.h"
#include "tests/runtime/leases.h"

namespace denoised {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

// Gives the query times a factor.
class ScalingBackend : public FakeBackend {
 public:
  ScalingBackend(AttnBackend id, double factor) : FakeBackend(id), factor_(factor) {}
  at::Tensor Forward(const AttentionInputs& inputs, const AttentionMetadata*) const override {
    ++calls;
    if (throws) throw std::runtime_error(what);
    while (stands_still) StopPoint();
    return inputs.query * factor_;
  }
  mutable int calls = 0;
  bool throws = false, stands_still = false;
  std::string what = "it broke";

 private:
  const double factor_;
};

class SampleObserver : public Observer {
 public:
  void OnShadow(AttnBackend baseline, AttnBackend candidate, AttentionRole role,
                std::string_view band, double l2) override {
    samples.push_back(std::string(AttnBackendName(candidate)) + " against " +
                      std::string(AttnBackendName(baseline)) + ", " +
                      std::string(AttentionRoleName(role)) + ", " + std::string(band));
    errors.push_back(l2);
  }
  void OnShadowSeconds(double more) override { seconds += more; }
  std::vector<std::string> samples;
  std::vector<double> errors;
  double seconds = 0;
};

class ShadowsTest : public testing::Test {
 protected:
  static constexpr int kLayers = 4;
  static constexpr int64_t kMostBytes = 1 << 20;

  ShadowsTest() {
    setting_.registry = &registry_;
    setting_.policy = &policy_;
    setting_.model = "m";
    setting_.layers = {kLayers, kLayers, 1, 1};
    setting_.guard->set_shadows(&shadows_);
    Earn();
  }

  static AttentionSpec SelfSpec() {
    AttentionSpec spec;
    spec.role = AttentionRole::kSelf;
    spec.dtype = DType::kFloat32;
    spec.head_size = 128;
    spec.num_heads = 2;
    spec.q_len = spec.kv_len = 5;
    spec.supported = {AttnBackend::kReference, AttnBackend::kSageAttn,
                      AttnBackend::kSlidingTileAttn};
    return spec;
  }
  AttentionPlanner Make() { return AttentionPlanner(setting_, {{}, "t", "job"}, &observer_); }
  // A step whose layers run on `q`; what they gave.
  std::vector<at::Tensor> Step(AttentionPlanner& planner, int64_t step = 0, double sigma = 0.5) {
    return Forward(planner, planner.Prepare({SelfSpec()}, step, 10, sigma), AttentionRole::kSelf);
  }
  std::vector<at::Tensor> Forward(AttentionPlanner& planner, const AttentionPlan& plan,
                                  AttentionRole role) {
    ForwardContext context;
    context.attn_metadata = &plan;
    const ScopedForwardContext scope(context);
    std::vector<at::Tensor> out;
    for (int layer = 0; layer < kLayers; ++layer) {
      out.push_back(AttentionLayer(role, layer).Forward(q_, q_, q_));
    }
    planner.BookForward();
    return out;
  }
  int RunAll() {
    int ran = 0;
    while (shadows_.RunOne(/*idle=*/true)) ++ran;
    return ran;
  }
  // As much time as is ever kept: a second.
  void Earn() {
    for (int i = 0; i < 100; ++i) shadows_.UnitRan(1);
  }

  const ScalingBackend usual_{AttnBackend::kReference, 1}, fast_{AttnBackend::kSageAttn, 1.5};
  ScalingBackend broken_{AttnBackend::kSlidingTileAttn, 1};
  const BackendRegistry registry_{{{AttnBackend::kReference, &usual_, "", true},
                                   {AttnBackend::kSageAttn, &fast_, "", false},
                                   {AttnBackend::kSlidingTileAttn, &broken_, "", false}}};
  std::chrono::steady_clock::time_point now_ =
      std::chrono::steady_clock::time_point(std::chrono::hours(1000));
  const std::function<std::chrono::steady_clock::time_point()> clock_ = [this] { return now_; };
  SelectionPolicy policy_{std::nullopt, clock_};
  SampleObserver observer_;
  Shadows shadows_{0.02, kMostBytes, clock_, &observer_};
  PlannerSetting setting_;
  const at::Tensor q_ = at::rand({1, 5, 2, 128}) + 0.1;
};

TEST(ErrorBetween, IsWhatTheBudgetsTextSays) {
  const at::Tensor a = at::tensor({3.0, 4.0, 0.0}), b = at::tensor({0.0, 4.0, 3.0});
  const CallError error = ErrorBetween(a, b);
  EXPECT_DOUBLE_EQ(error.relative_l2, std::sqrt(18.0) / 5);
  EXPECT_DOUBLE_EQ(error.max_abs, 3);
  EXPECT_DOUBLE_EQ(error.cosine_distance, 1 - 16.0 / 25);
  EXPECT_EQ(ErrorBetween(b, b).relative_l2, 0);
  EXPECT_EQ(ErrorBetween(b, b).cosine_distance, 0);
  EXPECT_TRUE(std::isinf(ErrorBetween(a * NAN, b).relative_l2));
  EXPECT_TRUE(std::isinf(ErrorBetween(a, b * 0).relative_l2));
}

TEST(ErrorBetween, OfLongOutputsIsThatOfAllTheirNumbers) {
  at::manual_seed(3);
  const at::Tensor a = at::randn({3, 700, 4, 64}, at::kFloat).to(at::kBFloat16);
  const at::Tensor b = (a.to(at::kFloat) + 0.1 * at::randn({3, 700, 4, 64})).to(at::kBFloat16);
  const at::Tensor x = a.to(at::kDouble).flatten(), y = b.to(at::kDouble).flatten();
  const CallError error = ErrorBetween(a, b);
  EXPECT_NEAR(error.relative_l2, ((x - y).norm() / y.norm()).item<double>(), 1e-12);
  EXPECT_EQ(error.max_abs, (x - y).abs().max().item<double>());
  EXPECT_NEAR(error.cosine_distance, 1 - (x.dot(y) / (x.norm() * y.norm())).item<double>(), 1e-12);
}

TEST(RowsOf, TakesTheRowsOfEveryTensorThatHasThem) {
  const at::Tensor q = at::rand({5, 3, 2, 4});
  AttentionInputs inputs{q, q + 1, q + 2, q + 3, at::rand({5, 1, 3, 3})};
  const AttentionInputs part = RowsOf(inputs, 1, 2);
  EXPECT_TRUE(part.query.equal(q.narrow(0, 1, 2)));
  EXPECT_TRUE(part.value.equal(q.narrow(0, 1, 2) + 2));
  EXPECT_TRUE(part.gate.equal(q.narrow(0, 1, 2) + 3));
  EXPECT_TRUE(part.mask.equal(inputs.mask.narrow(0, 1, 2)));
  inputs.mask = at::rand({1, 1, 3, 3});
  EXPECT_EQ(RowsOf(inputs, 1, 2).mask.size(0), 1) << "one for all rows";
  EXPECT_EQ(RowsOf(inputs, 0, -1).query.size(0), 5);
}

TEST_F(ShadowsTest, TheCandidateRunsLaterAndChangesNothing) {
  AttentionPlanner planner = Make();
  shadows_.Start({.candidate = AttnBackend::kSageAttn});
  for (const at::Tensor& out : Step(planner)) EXPECT_TRUE(out.equal(q_));
  EXPECT_EQ(fast_.calls, 0) << "not inside of the step";
  EXPECT_EQ(RunAll(), kLayers);
  planner.Complete();
  EXPECT_EQ(planner.Entries().at(0).calls, uint64_t{kLayers}) << "no receipt has it";
  ASSERT_THAT(observer_.samples, SizeIs(kLayers));
  EXPECT_EQ(observer_.samples[0], "SAGE_ATTN against REFERENCE, self, 0.4-0.6");
  EXPECT_NEAR(observer_.errors[0], 0.5, 1e-6);
  const ShadowInfo info = shadows_.List().at(0);
  ASSERT_THAT(info.statistics, SizeIs(1));
  EXPECT_EQ(info.statistics[0].samples, kLayers);
  EXPECT_EQ(info.statistics[0].sigma_band, "0.4-0.6");
  EXPECT_NEAR(info.statistics[0].relative_l2_p99, 0.5, 1e-6);
  EXPECT_NEAR(info.statistics[0].max_abs, 0.5 * q_.max().item<double>(), 1e-6);
  EXPECT_GT(observer_.seconds, 0);
}

TEST_F(ShadowsTest, WhatWasClonedIsNotWhatIsWrittenLater) {
  AttentionPlanner planner = Make();
  shadows_.Start({.candidate = AttnBackend::kSageAttn});
  for (at::Tensor& out : Step(planner)) out.zero_();
  RunAll();
  EXPECT_NEAR(observer_.errors.at(0), 0.5, 1e-6);
}

TEST(ShadowCall, WhatIsKeptHasItsOwnTensorsTheMaskToo) {
  ShadowCall call;
  const auto tensors = [&call] {
    const AttentionInputs& in = call.inputs;
    return std::vector<at::Tensor>{in.query, in.key, in.value, in.gate, in.mask, call.out};
  };
  AttentionInputs& in = call.inputs;
  for (at::Tensor* x : {&in.query, &in.key, &in.value, &in.gate, &in.mask, &call.out}) {
    *x = at::ones({1, 2, 3, 4});
  }
  EXPECT_EQ(call.Bytes(), 6 * 24 * 4);
  std::vector<at::Tensor> written = tensors();
  call.Keep();
  for (at::Tensor& x : written) x.zero_();
  for (const at::Tensor& x : tensors()) EXPECT_TRUE(x.equal(at::ones({1, 2, 3, 4})));
}

TEST_F(ShadowsTest, ABaselineByNameRunsToo) {
  AttentionPlanner planner = Make();
  shadows_.Start({.candidate = AttnBackend::kReference, .baseline = AttnBackend::kSageAttn});
  Step(planner);
  RunAll();
  EXPECT_EQ(observer_.samples.at(0), "REFERENCE against SAGE_ATTN, self, 0.4-0.6");
  EXPECT_NEAR(observer_.errors.at(0), 1 / 3.0, 1e-6);
}

TEST_F(ShadowsTest, ScopesHold) {
  AttentionPlanner planner = Make();
  const auto sampled = [&](LeaseScope scope, int64_t step = 3, double sigma = 0.5) {
    const auto info = shadows_.Start({.candidate = AttnBackend::kSageAttn, .scope = scope});
    Step(planner, step, sigma);
    const int ran = RunAll();
    shadows_.Stop(info.id);
    return ran;
  };
  EXPECT_EQ(sampled({}), kLayers);
  EXPECT_EQ(sampled({.model = "other"}), 0);
  EXPECT_EQ(sampled({.job = "job", .tenant = "t", .model = "m"}), kLayers);
  EXPECT_EQ(sampled({.where = {.layers = Interval{1, 2}}}), 2);
  EXPECT_EQ(sampled({.where = {.role = AttentionRole::kCross}}), 0);
  EXPECT_EQ(sampled({.where = {.steps = Interval{0, 2}}}), 0);
  EXPECT_EQ(sampled({.where = {.steps = Interval{3, 9}}}), kLayers);
  EXPECT_EQ(sampled({.where = {.sigma = SigmaRange{0.6, 1}}}), 0);
}

TEST_F(ShadowsTest, AShareIsAPartOfTheCalls) {
  AttentionPlanner planner = Make();
  shadows_.Start({.candidate = AttnBackend::kSageAttn, .share = 0.25});
  int ran = 0;
  for (int step = 0; step < 500; ++step) {
    Step(planner);
    shadows_.UnitRan(1);
    ran += RunAll();
  }
  EXPECT_NEAR(ran, 500, 90) << "of 2000, 4.6 standard deviations";
}

TEST_F(ShadowsTest, FewCallsAreKept) {
  AttentionPlanner planner = Make();
  shadows_.Start({.candidate = AttnBackend::kSageAttn});
  for (int step = 0; step < 50; ++step) Step(planner);
  EXPECT_EQ(RunAll(), static_cast<int>(Shadows::kMostKept));
}

TEST_F(ShadowsTest, TheirBytesAreBounded) {
  const auto one = static_cast<int64_t>(4 * q_.nbytes());
  Shadows small(0.02, 2 * one + one / 2, clock_, &observer_);
  for (int i = 0; i < 100; ++i) small.UnitRan(1);
  setting_.guard->set_shadows(&small);
  AttentionPlanner planner = Make();
  small.Start({.candidate = AttnBackend::kSageAttn});
  Step(planner);
  int ran = 0;
  while (small.RunOne(/*idle=*/true)) ++ran;
  EXPECT_EQ(ran, 2);
  EXPECT_EQ(small.most_bytes(), 2 * one + one / 2);
}

TEST_F(ShadowsTest, ACallThatIsTooLargeToBeKeptIsComparedAtOnce) {
  Shadows small(0.02, static_cast<int64_t>(2 * q_.nbytes()), clock_, &observer_);
  for (int i = 0; i < 100; ++i) small.UnitRan(1);
  setting_.guard->set_shadows(&small);
  AttentionPlanner planner = Make();
  small.Start({.candidate = AttnBackend::kSageAttn});
  for (const at::Tensor& out : Step(planner)) EXPECT_TRUE(out.equal(q_));
  EXPECT_FALSE(small.pending());
  EXPECT_EQ(fast_.calls, kLayers);
  EXPECT_THAT(observer_.samples, SizeIs(kLayers));
}

TEST_F(ShadowsTest, NothingIsKeptThatNobodyPaysFor) {
  Shadows poor(0.02, kMostBytes, clock_, &observer_);
  setting_.guard->set_shadows(&poor);
  AttentionPlanner planner = Make();
  poor.Start({.candidate = AttnBackend::kSageAttn});
  Step(planner);
  EXPECT_FALSE(poor.pending()) << "not even a copy";
}

TEST_F(ShadowsTest, BetweenTwoUnitsOnlyWhatIsPaidForRuns) {
  AttentionPlanner planner = Make();
  shadows_.Start({.candidate = AttnBackend::kSageAttn});
  Step(planner);
  ASSERT_TRUE(shadows_.pending());
  shadows_.HeldUp(2, /*inside_unit=*/false);
  EXPECT_FALSE(shadows_.RunOne(/*idle=*/false)) << "there are debts";
  EXPECT_EQ(fast_.calls, 0);
  for (int i = 0; i < 200; ++i) shadows_.UnitRan(1);
  while (shadows_.RunOne(/*idle=*/false)) continue;
  EXPECT_EQ(fast_.calls, kLayers);
}

TEST_F(ShadowsTest, OneThatTakesTooLongIsCutOffAndWaitsForAQuietTime) {
  AttentionPlanner planner = Make();
  broken_.stands_still = true;
  shadows_.Start({.candidate = AttnBackend::kSlidingTileAttn});
  Step(planner, 0);
  shadows_.HeldUp(0.9, /*inside_unit=*/false);  // a tenth of a second is left
  EXPECT_FALSE(shadows_.RunOne(/*idle=*/false));
  EXPECT_EQ(broken_.calls, 1);
  EXPECT_TRUE(shadows_.any()) << "that is no failure";
  Earn();
  broken_.stands_still = false;
  EXPECT_EQ(RunAll(), kLayers) << "and none is lost";
}

TEST_F(ShadowsTest, InQuietTimeOneEndsWhereSomebodyComesAndBeginsAgainLater) {
  AttentionPlanner planner = Make();
  broken_.stands_still = true;
  shadows_.Start({.candidate = AttnBackend::kSlidingTileAttn});
  Step(planner);
  {
    int asked = 0;
    const ScopedStopCheck stop([&]() -> std::optional<Error> {
      if (++asked < 100) return std::nullopt;
      return Error(StatusCode::kUnavailable, "somebody came");
    });
    EXPECT_FALSE(shadows_.RunOne(/*idle=*/true));
  }
  EXPECT_THAT(observer_.samples, IsEmpty());
  broken_.stands_still = false;
  EXPECT_EQ(RunAll(), kLayers);
}

TEST_F(ShadowsTest, NothingIsLeftOfOneThatHasEnded) {
  AttentionPlanner planner = Make();
  const std::string stopped = shadows_.Start({.candidate = AttnBackend::kSageAttn}).id;
  Step(planner);
  EXPECT_TRUE(shadows_.pending());
  EXPECT_EQ(shadows_.Stop(stopped)->end, "stopped");
  EXPECT_FALSE(shadows_.pending());
  shadows_.Start({.candidate = AttnBackend::kSageAttn, .ttl = std::chrono::seconds(1)});
  Step(planner);
  EXPECT_TRUE(shadows_.pending());
  now_ += std::chrono::seconds(1);
  EXPECT_FALSE(shadows_.RunOne(/*idle=*/false));
  EXPECT_FALSE(shadows_.pending());
  shadows_.Start({.candidate = AttnBackend::kSageAttn});
  Step(planner);
  shadows_.StopAll("the server is draining");
  EXPECT_FALSE(shadows_.pending());
  EXPECT_EQ(shadows_.List().at(0).end, "the server is draining");
  EXPECT_EQ(fast_.calls, 0);
}

TEST_F(ShadowsTest, WhatRunsIsNotComparedWithItself) {
  AttentionPlanner planner = Make();
  shadows_.Start({.candidate = AttnBackend::kReference});
  Step(planner);
  EXPECT_FALSE(shadows_.pending());
}

TEST_F(ShadowsTest, OneEndsWithItsTimeAndStaysListed) {
  AttentionPlanner planner = Make();
  shadows_.Start({.candidate = AttnBackend::kSageAttn, .ttl = std::chrono::seconds(5)});
  EXPECT_EQ(shadows_.List().at(0).remaining, std::chrono::seconds(5));
  EXPECT_TRUE(shadows_.any());
  now_ += std::chrono::seconds(5);
  EXPECT_FALSE(shadows_.any());
  Step(planner);
  EXPECT_EQ(RunAll(), 0);
  EXPECT_EQ(shadows_.List().at(0).remaining, std::chrono::seconds(0));
  EXPECT_EQ(shadows_.List().at(0).end, "its time was over");
  EXPECT_FALSE(shadows_.Stop(shadows_.List().at(0).id));
}

TEST_F(ShadowsTest, ACandidateThatThrowsIsGivenUp) {
  AttentionPlanner planner = Make();
  broken_.throws = true;
  shadows_.Start({.candidate = AttnBackend::kSlidingTileAttn});
  Step(planner);
  RunAll();
  EXPECT_FALSE(shadows_.any());
  EXPECT_THAT(observer_.samples, IsEmpty());
  EXPECT_FALSE(setting_.guard->TakeFailure()) << "the work has nothing to do with it";
  ASSERT_THAT(shadows_.TakeGivenUp(), SizeIs(1));
  EXPECT_THAT(shadows_.List().at(0).end, AllOf(HasSubstr("3 times"), HasSubstr("it broke")));
}

TEST_F(ShadowsTest, ACandidateThatLosesTheDeviceIsNoSecretOfTheShadow) {
  AttentionPlanner planner = Make();
  broken_.throws = true;
  broken_.what = "CUDA error: an illegal memory access was encountered";
  shadows_.Start({.candidate = AttnBackend::kSlidingTileAttn});
  Step(planner);
  const auto error = Caught([&] { RunAll(); });
  ASSERT_TRUE(error);
  EXPECT_TRUE(IsDeviceLost(*error));
}

TEST_F(ShadowsTest, BadRequestsAreNamed) {
  const auto field = [&](ShadowRequest request) {
    try {
      shadows_.Start(std::move(request));
      return std::string();
    } catch (const Error& error) {
      return error.field();
    }
  };
  EXPECT_EQ(field({.share = 0}), "share_percent");
  EXPECT_EQ(field({.share = 1.1}), "share_percent");
  EXPECT_EQ(field({.share = NAN}), "share_percent");
  EXPECT_EQ(field({.ttl = std::chrono::milliseconds(0)}), "ttl");
  EXPECT_EQ(field({.ttl = std::chrono::hours(25)}), "ttl");
  for (size_t i = 0; i < Shadows::kMostShadows; ++i) shadows_.Start({});
  EXPECT_THROW(shadows_.Start({}), Error);
}

// ---- budgets -----------------------------------------------------------------------------------

class BudgetTest : public ShadowsTest {
 protected:
  std::string Force(double limit, int64_t samples = 3, LeaseScope scope = {}) {
    LeaseRequest request{AttnBackend::kSageAttn};
    request.scope = std::move(scope);
    request.budget = Budget{ErrorMetric::kRelativeL2, Statistic::kP99, limit, samples};
    return policy_.Force(std::move(request)).id;
  }
  static std::string Broken(const AttentionPlanner& planner) {
    try {
      planner.RequireBudgets();
      return "";
    } catch (const Error& error) {
      EXPECT_EQ(error.reason(), "BUDGET");
      return error.field();
    }
  }
};

TEST_F(BudgetTest, TheStepThatBreaksItIsFoundOut) {
  const std::string id = Force(0.4);
  AttentionPlanner planner = Make();
  Step(planner);
  EXPECT_EQ(Broken(planner), id);
  EXPECT_EQ(usual_.calls, kLayers) << "compared at once";
  EXPECT_EQ(observer_.samples.at(0), "SAGE_ATTN against REFERENCE, self, 0.4-0.6");
  planner.Avoid(id);
  Step(planner);
  EXPECT_EQ(Broken(planner), "") << "the step without it";
}

TEST_F(BudgetTest, TimeBetweenUnitsIsKeptForIt) {
  Force(0.6);
  shadows_.Start({.candidate = AttnBackend::kSlidingTileAttn});
  AttentionPlanner planner = Make();
  Step(planner);
  shadows_.UnitRan(1);
  ASSERT_TRUE(shadows_.pending());
  EXPECT_FALSE(shadows_.RunOne(/*idle=*/false));
  shadows_.HeldUp(2, /*inside_unit=*/false);
  Step(planner);  // nothing is compared, and the next second is for it again
  shadows_.UnitRan(200);
  EXPECT_FALSE(shadows_.RunOne(/*idle=*/false));
  EXPECT_EQ(RunAll(), kLayers);
}

TEST_F(BudgetTest, OneThatHoldsIsLeftAlone) {
  Force(0.6);
  AttentionPlanner planner = Make();
  Step(planner);
  EXPECT_EQ(Broken(planner), "");
}

TEST_F(BudgetTest, ItIsJudgedAcrossStepsAndJobs) {
  LeaseRequest request{AttnBackend::kSageAttn};  // the fifth sample that is too far off breaks it
  request.budget = Budget{ErrorMetric::kRelativeL2, Statistic::kP50, 0.4, 2 * kLayers};
  const std::string id = policy_.Force(request).id;
  AttentionPlanner first = Make(), second = Make();
  Step(first);
  EXPECT_EQ(Broken(first), "");
  shadows_.UnitRan(1);
  Step(second);
  EXPECT_EQ(Broken(second), id);
}

TEST_F(BudgetTest, TheReferenceIsWhatRunsWithoutTheLease) {
  AddForce(policy_, AttnBackend::kSageAttn);
  Force(0.4);
  AttentionPlanner planner = Make();
  Step(planner);
  EXPECT_THAT(observer_.samples, IsEmpty()) << "the same would run without it";
}

TEST_F(BudgetTest, OfALeaseOfSomeLayersOnlyThoseAreCompared) {
  Force(0.4, 2, {.where = {.layers = Interval{2, 3}}});
  AttentionPlanner planner = Make();
  Step(planner);
  EXPECT_THAT(observer_.samples, SizeIs(2));
  EXPECT_EQ(usual_.calls, 4) << "two layers of its own, two compared";
}

TEST_F(BudgetTest, TheReferenceIsWhatRunsWithoutAnyLeaseThatHasABudget) {
  Force(0.4);
  Force(0.3);
  AttentionPlanner planner = Make();
  Step(planner);
  EXPECT_THAT(observer_.samples, testing::Contains("SAGE_ATTN against REFERENCE, self, 0.4-0.6"));
}

TEST_F(BudgetTest, PromptsAreJudgedTooAndChunksOfFramesAreNot) {
  const std::string id = Force(0.4, 1);
  AttentionPlanner planner = Make();
  const auto forward = [&](AttentionRole role) {
    AttentionSpec spec = SelfSpec();
    spec.role = role;
    Forward(planner, planner.Prepare({spec}, 0, 1), role);
  };
  forward(AttentionRole::kVae);
  EXPECT_THAT(observer_.samples, IsEmpty());
  forward(AttentionRole::kTextEncoder);
  EXPECT_EQ(observer_.samples.at(0), "SAGE_ATTN against REFERENCE, text_encoder, none");
  EXPECT_EQ(Broken(planner), id);
}

TEST_F(BudgetTest, AReferenceThatTakesTooLongIsCutOffAndTheStepGoesOn) {
  Force(0.4, 1);
  AddForce(policy_, AttnBackend::kSlidingTileAttn);  // what runs without it
  const std::string id = Force(0.4, 1);
  broken_.stands_still = true;
  AttentionPlanner planner = Make();
  shadows_.HeldUp(0.995, /*inside_unit=*/false);
  EXPECT_THAT(Step(planner), SizeIs(kLayers));
  EXPECT_GT(broken_.calls, 0);
  EXPECT_EQ(Broken(planner), "");
  EXPECT_FALSE(shadows_.Judged(id));
}

TEST_F(BudgetTest, WhatIsFoundCanBeAskedFor) {
  const std::string id = Force(0.6, kLayers);
  AttentionPlanner planner = Make();
  EXPECT_FALSE(shadows_.Judged(id));
  Step(planner);
  ASSERT_TRUE(shadows_.Judged(id));
  EXPECT_EQ(shadows_.Judged(id)->first, kLayers);
  EXPECT_NEAR(shadows_.Judged(id)->second, 0.5, 1e-6);
}

TEST_F(BudgetTest, WithoutTimeNothingIsCompared) {
  Shadows poor(0.02, kMostBytes, clock_, &observer_);
  setting_.guard->set_shadows(&poor);
  Force(0.4);
  AttentionPlanner planner = Make();
  Step(planner);
  EXPECT_THAT(observer_.samples, IsEmpty());
}

TEST_F(BudgetTest, SamplesOfEndedLeasesAreForgotten) {
  const std::string id = Force(0.4);
  AttentionPlanner planner = Make();
  Step(planner);
  EXPECT_TRUE(shadows_.WhyBroken(id));
  shadows_.Forget(*policy_.leases(), policy_.version());
  EXPECT_TRUE(shadows_.WhyBroken(id));
  policy_.Release(id);
  shadows_.Forget(*policy_.leases(), policy_.version());
  EXPECT_FALSE(shadows_.WhyBroken(id));
}

}  // namespace
}  // namespace denoised
