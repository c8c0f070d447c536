// Measuring backends: errors that are known beforehand, limits, and what is not measured.
#include "runtime/pipelines/measure.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <limits>
#include <thread>

#include "backends/dense_backends.h"
#include "backends/stop_point.h"
#include "tests/backends/fake_backends.h"

namespace denoised {
namespace {

using testing::HasSubstr;

constexpr AttnBackend kTried = AttnBackend::kTorchSdpa;

AttentionSpec Spec(int64_t q_len, int64_t kv_len, DType dtype = DType::kFloat32) {
  AttentionSpec spec;
  spec.num_heads = 2;
  spec.head_size = 32;
  spec.dtype = dtype;
  spec.q_len = q_len;
  spec.kv_len = kv_len;
  spec.supported = AllAttnBackends();
  return spec;
}

// What a call of it does is the test's.
class TriedBackend : public FakeBackend {
 public:
  using Work = std::function<at::Tensor(const AttentionInputs&)>;
  explicit TriedBackend(Work work) : FakeBackend(kTried), work_(std::move(work)) {}
  at::Tensor Forward(const AttentionInputs& inputs, const AttentionMetadata*) const override {
    return work_(inputs);
  }

 private:
  const Work work_;
};

// To its end.
Measured Measure(AttnBackend id, MeasuredCall* call, const BackendRegistry& registry,
                 const MeasureLimits& limits = {}) {
  Measuring measuring(id, call, registry, limits);
  for (;;) {
    if (const auto measured = measuring.Advance()) return *measured;
  }
}

Measured MeasureTried(const AttentionSpec& spec, TriedBackend::Work work,
                      const MeasureLimits& limits = {}, int64_t rows = 1) {
  const TriedBackend tried(std::move(work));
  const ReferenceBackend reference;
  const BackendRegistry registry(
      {{kTried, &tried, "", true}, {AttnBackend::kReference, &reference, "", true}});
  MeasuredCall call({spec, rows}, QueryCpu());
  return Measure(kTried, &call, registry, limits);
}

class ErrorsOf : public testing::TestWithParam<std::tuple<bool, bool, int64_t>> {};

TEST_P(ErrorsOf, AResultThatIsFivePercentTooLargeAreFivePercent) {
  AttentionSpec spec = Spec(97, 97);
  spec.causal = std::get<0>(GetParam());
  spec.has_mask = std::get<1>(GetParam());
  const ReferenceBackend reference;
  int64_t calls = 0;
  const Measured measured = MeasureTried(
      spec,
      [&](const AttentionInputs& inputs) {
        ++calls;
        EXPECT_EQ(inputs.causal, spec.causal);
        EXPECT_EQ(inputs.mask.defined(), spec.has_mask);
        EXPECT_EQ(inputs.query.sizes(), at::IntArrayRef({std::get<2>(GetParam()), 97, 2, 32}));
        return reference.Forward(inputs, nullptr) * 1.05;
      },
      {}, std::get<2>(GetParam()));
  ASSERT_TRUE(measured.row) << measured.why_not;
  EXPECT_EQ(measured.row->backend, kTried);
  EXPECT_NEAR(measured.row->relative_l2, 0.05, 1e-5);
  EXPECT_GT(measured.row->seconds, 0);
  EXPECT_GE(calls, 3) << "a warm-up, and samples";
}

INSTANTIATE_TEST_SUITE_P(Masks, ErrorsOf,
                         testing::Combine(testing::Bool(), testing::Bool(), testing::Values(1, 3)));

TEST(Measure, NothingIsAsFarFromTheReferenceAsTheReferenceIsLarge) {
  const Measured measured = MeasureTried(
      Spec(50, 70), [](const AttentionInputs& inputs) { return at::zeros_like(inputs.query); });
  ASSERT_TRUE(measured.row);
  EXPECT_NEAR(measured.row->relative_l2, 1, 1e-9);
}

TEST(Measure, ScoresHaveADeviationOfAboutOne) {
  MeasureTried(Spec(500, 500), [](const AttentionInputs& inputs) {
    const at::Tensor scores = at::einsum("bqhd,bkhd->bhqk", {inputs.query, inputs.key});
    EXPECT_NEAR((scores * inputs.scale).std().item<double>(), 1, 0.1);
    return inputs.query;
  });
}

TEST(Measure, EveryMeasurementHasTheSameNumbers) {
  std::vector<at::Tensor> queries;
  for (int i = 0; i < 2; ++i) {
    MeasureTried(Spec(40, 40, DType::kBFloat16), [&](const AttentionInputs& inputs) {
      queries.push_back(inputs.query.clone());
      return inputs.query;
    });
  }
  for (const at::Tensor& query : queries) EXPECT_TRUE(at::equal(query, queries.front()));
}

TEST(Measure, NumbersThatAreNotFiniteAreNoRow) {
  const Measured measured = MeasureTried(Spec(40, 40), [](const AttentionInputs& inputs) {
    return at::full_like(inputs.query, std::numeric_limits<double>::quiet_NaN());
  });
  EXPECT_FALSE(measured.row);
  EXPECT_THAT(measured.why_not, HasSubstr("not finite"));
}

TEST(Measure, ABackendThatThrowsIsNoRowAndItsWordsAreTheReason) {
  const Measured measured = MeasureTried(Spec(40, 40), [](const AttentionInputs&) -> at::Tensor {
    throw Error(StatusCode::kInternal, "the kernel broke");
  });
  EXPECT_FALSE(measured.row);
  EXPECT_EQ(measured.why_not, "the kernel broke");
}

TEST(Measure, WhatTakesTooLongIsEndedAtAStopPoint) {
  MeasureLimits limits;
  limits.most_seconds = 0.01;
  const Measured measured = MeasureTried(
      Spec(40, 40),
      [](const AttentionInputs&) -> at::Tensor {
        for (;;) StopPoint();
      },
      limits);
  EXPECT_FALSE(measured.row);
  EXPECT_THAT(measured.why_not, HasSubstr("takes longer than"));
}

// So that a job that comes meanwhile waits for one call.
TEST(Measure, ALongCallIsMadeOneAtATime) {
  int64_t calls = 0;
  const TriedBackend tried([&](const AttentionInputs& inputs) {
    ++calls;
    const auto start = std::chrono::steady_clock::now();
    while (std::chrono::steady_clock::now() - start < std::chrono::milliseconds(3)) continue;
    return inputs.query;
  });
  const ReferenceBackend reference;
  const BackendRegistry registry(
      {{kTried, &tried, "", true}, {AttnBackend::kReference, &reference, "", true}});
  MeasuredCall call({Spec(40, 40), 1}, QueryCpu());
  MeasureLimits limits;
  limits.enough_seconds = 3600;
  Measuring measuring(kTried, &call, registry, limits);
  std::optional<Measured> measured;
  for (int64_t advanced = 1; !measured; ++advanced) {
    measured = measuring.Advance();
    EXPECT_EQ(calls, advanced);
  }
  EXPECT_EQ(calls, 6) << "a warm-up and five samples";
  ASSERT_TRUE(measured->row);
  EXPECT_GE(measured->row->seconds, 0.003);
}

TEST(Measure, AMeasurementThatWasStoppedGoesOn) {
  bool stop = true;
  MeasureLimits limits;
  limits.why_stop = [&] {
    return stop ? std::optional(Error(StatusCode::kCancelled, "not now")) : std::nullopt;
  };
  const TriedBackend tried([](const AttentionInputs& inputs) {
    StopPoint();
    return inputs.query;
  });
  const ReferenceBackend reference;
  const BackendRegistry registry(
      {{kTried, &tried, "", true}, {AttnBackend::kReference, &reference, "", true}});
  MeasuredCall call({Spec(40, 40), 1}, QueryCpu());
  Measuring measuring(kTried, &call, registry, limits);
  EXPECT_THROW(measuring.Advance(), Error);
  stop = false;
  std::optional<Measured> measured;
  while (!measured) measured = measuring.Advance();
  EXPECT_TRUE(measured->row) << measured->why_not;
}

TEST(Measure, ItsCallersStopEndsItWithItsOwnError) {
  MeasureLimits limits;
  limits.why_stop = [] { return std::optional(Error(StatusCode::kCancelled, "enough")); };
  try {
    MeasureTried(
        Spec(40, 40),
        [](const AttentionInputs& inputs) {
          StopPoint();
          return inputs.query;
        },
        limits);
    ADD_FAILURE() << "it was measured";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "enough");
  }
}

TEST(Measure, ALayerOfManyHeadsIsMeasuredWithFewerAndIsStillTheSameKey) {
  AttentionSpec spec = Spec(8192, 8192);
  spec.num_heads = 40;
  spec.head_size = 128;
  const MeasuredCall call({spec, 1}, QueryCpu());
  const MeasuredGroup group = call.Group();
  EXPECT_LT(group.num_heads, 40);
  EXPECT_GE(group.num_heads, 1);
  EXPECT_EQ(group.key, KeyOf(spec, 1));
  EXPECT_EQ(group.q_len, 8192);
  EXPECT_EQ(group.error_queries, 64);
}

TEST(Measure, OneHeadThatIsTooLargeIsRefused) {
  AttentionSpec spec = Spec(int64_t{1} << 20, int64_t{1} << 20);
  spec.head_size = 128;
  EXPECT_THROW(MeasuredCall({spec, 1}, QueryCpu()), Error);
}

TEST(Measure, WhatWouldTakeLongerThanACallMayIsRefusedBeforeItIsMade) {
  AttentionSpec spec = Spec(16384, 16384);  // of one head twice 16384 x 16384 x 32
  EXPECT_NO_THROW(MeasuredCall({spec, 1}, QueryCpu()));
  MeasureLimits limits;
  limits.most_seconds = 0.1;
  EXPECT_THROW(MeasuredCall({spec, 1}, QueryCpu(), limits), Error);
  limits = {};
  limits.most_bytes = 1 << 20;
  EXPECT_THROW(MeasuredCall({spec, 1}, QueryCpu(), limits), Error);
}

TEST(Measure, WhatElseTheMachineDoesBesideMostOfTheCallsIsNotMeasured) {
  std::vector<double> calls;
  const auto work = [&](const AttentionInputs& inputs) {
    const auto start = std::chrono::steady_clock::now();
    std::this_thread::sleep_for(std::chrono::milliseconds(calls.size() == 3 ? 3 : 100));
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    calls.push_back(took.count());
    return inputs.query;
  };
  MeasureLimits limits;
  limits.enough_seconds = 3600;
  const Measured measured = MeasureTried(Spec(40, 40), work, limits);
  ASSERT_EQ(calls.size(), 6u) << "a warm-up and five samples";
  ASSERT_TRUE(measured.row) << measured.why_not;
  std::ranges::sort(calls);
  EXPECT_GE(measured.row->seconds, calls[0]);
  EXPECT_LT(measured.row->seconds, calls[1]);
}

TEST(Measure, ACallWithoutKeysIsRefused) {
  EXPECT_THROW(MeasuredCall({Spec(40, 0), 1}, QueryCpu()), Error);
  EXPECT_THROW(MeasuredCall({Spec(0, 40), 1}, QueryCpu()), Error);
}

TEST(Measure, TensorsThatWereLetGoOfAreMadeAgainWithTheSameNumbersAndTheMeasurementGoesOn) {
  std::vector<at::Tensor> queries;
  const TriedBackend tried([&](const AttentionInputs& inputs) {
    queries.push_back(inputs.query.clone());
    return inputs.query;
  });
  const ReferenceBackend reference;
  const BackendRegistry registry(
      {{kTried, &tried, "", true}, {AttnBackend::kReference, &reference, "", true}});
  MeasuredCall call({Spec(100, 100, DType::kBFloat16), 2}, QueryCpu());
  Measuring measuring(kTried, &call, registry);
  int64_t advanced = 0;
  for (std::optional<Measured> measured; !measured; ++advanced) {
    measured = measuring.Advance();
    call.LetGo();
  }
  EXPECT_EQ(advanced, 6) << "a warm-up and five samples";
  for (const at::Tensor& query : queries) EXPECT_TRUE(at::equal(query, queries.front()));
}

TEST(Measure, WhatCannotServeTheCallSaysSo) {
  MeasuredCall call({Spec(40, 40), 1}, QueryCpu());
  const Measured measured =
      Measure(AttnBackend::kVideoSparseAttn, &call, BackendRegistry::Default());
  EXPECT_FALSE(measured.row);
  EXPECT_EQ(measured.why_not, BackendRegistry::Default().WhyNot(AttnBackend::kVideoSparseAttn,
                                                                Spec(40, 40), QueryCpu()));
}

// Backends of this build, in each dtype: an exact one rounds, one with 8 bits is coarser, a sparse
// one on numbers without structure is far off.
TEST(Measure, ThisBuildsBackendsAreAsFarFromTheReferenceAsTheirKindIs) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    AttentionSpec spec = Spec(320, 320, dtype);
    spec.grid = {5, 8, 8};
    MeasuredCall call({spec, 2}, QueryCpu());
    const auto error = [&](AttnBackend id) {
      const Measured measured = Measure(id, &call, BackendRegistry::Default());
      EXPECT_TRUE(measured.row) << AttnBackendName(id) << ": " << measured.why_not;
      return measured.row ? measured.row->relative_l2 : 0;
    };
    const double rounding = dtype == DType::kFloat32 ? 1e-5 : 0x1p-8;
    for (const AttnBackend exact :
         {AttnBackend::kReference, AttnBackend::kFlashAttn, AttnBackend::kTorchSdpa}) {
      EXPECT_LE(error(exact), rounding) << AttnBackendName(exact);
    }
    EXPECT_GT(error(AttnBackend::kSageAttn), error(AttnBackend::kReference));
    EXPECT_LT(error(AttnBackend::kSageAttn), 0.1);
    EXPECT_GT(error(AttnBackend::kSlaAttn), 0.1);
  }
}

}  // namespace
}  // namespace denoised
