// Costs told before a call: parameters that explode are refused, and real calls take what was told.
#include "backends/attention_cost.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>

#include "backends/attention_backend.h"
#include "backends/error.h"
#include "backends/registry.h"
#include "backends/sparse_backend.h"
#include "tests/peak_memory.h"

namespace denoised {
namespace {

using testing::HasSubstr;

AttentionSpec SpecOf(const std::array<int64_t, 3>& grid) {
  AttentionSpec spec;
  spec.num_heads = 4;
  spec.head_size = 48;
  spec.grid = grid;
  spec.q_len = spec.kv_len = grid[0] * grid[1] * grid[2];
  spec.supported = AllAttnBackends();
  return spec;
}

const AttentionBackend& Backend(AttnBackend id) {
  return *BackendRegistry::Default().Find(id)->backend;
}

struct Parameters {
  AttnBackend backend;
  std::string json, named;
};

std::string NameOf(const testing::TestParamInfo<Parameters>& info) {
  return std::string(AttnBackendName(info.param.backend)) + std::to_string(info.index);
}

class Exploding : public testing::TestWithParam<Parameters> {};

TEST_P(Exploding, IsRefusedByNameBeforeAnythingIsMade) {
  const AttentionSpec spec = SpecOf({36, 16, 16});
  const int64_t before = PeakMemory::Now();
  try {
    Backend(GetParam().backend).MakeBuilder()->Build({0, 1, spec, GetParam().json});
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(error.field(), "attention.parameters." + GetParam().named);
    EXPECT_THAT(error.what(), HasSubstr("9216 tokens"));
  }
  const int64_t grown = PeakMemory::kMeasures ? PeakMemory::Now() - before : 0;
  EXPECT_LT(grown, int64_t{16} << 20);
}

INSTANTIATE_TEST_SUITE_P(
    Parameters, Exploding,
    testing::Values(Parameters{AttnBackend::kVideoSparseAttn, R"({"tile": [1, 1, 1]})", "tile"},
                    Parameters{AttnBackend::kVideoSparseAttn, R"({"tile": [1, 2, 2]})", "tile"},
                    Parameters{AttnBackend::kVideoSparseAttn, R"({"tile": [1, 1, 1], "top_k": 1})",
                               "tile"},
                    Parameters{AttnBackend::kSlaAttn, R"({"block_q": 1, "block_k": 1})", "block_k"},
                    Parameters{AttnBackend::kSlaAttn, R"({"block_q": 2, "block_k": 8})", "block_q"},
                    Parameters{AttnBackend::kVmobaAttn, R"({"chunk": [1, 1, 1]})", "chunk"},
                    Parameters{AttnBackend::kVmobaAttn, R"({"chunk": [[2], [1, 1, 2]]})", "chunk"},
                    Parameters{AttnBackend::kSlidingTileAttn,
                               R"({"tile": [1, 1, 1], "window": [99, 99, 99]})", "tile"},
                    Parameters{AttnBackend::kSlidingTileAttn,
                               R"({"tile": [1, 1, 1], "strategy": {}})", "tile"}),
    NameOf);

// Lists are made once for each window of a strategy: many windows over small tiles are too many.
TEST(Strategies, ThatKeepTooManyListsAreRefusedByName) {
  std::string table;
  for (int window = 1; window <= 400; ++window) {
    table += (window > 1 ? ", \"0_0_" : "\"0_0_") + std::to_string(window) + "\": [" +
             std::to_string(window % 12 * 2 + 1) + ", " + std::to_string(window / 12 % 4 * 2 + 1) +
             ", " + std::to_string(window / 48 * 2 + 1) + "]";
  }
  const AttentionSpec spec = SpecOf({36, 16, 16});
  const AttentionBackend& sta = Backend(AttnBackend::kSlidingTileAttn);
  const std::string parameters = R"({"tile": [2, 2, 2], "strategy": {)" + table + "}}";
  const int64_t before = PeakMemory::Now();
  try {
    sta.MakeBuilder()->Build({0, 1, spec, parameters});
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(error.field(), "attention.parameters.strategy");
    EXPECT_THAT(error.what(), HasSubstr("MiB"));
  }
  EXPECT_LT(PeakMemory::kMeasures ? PeakMemory::Now() - before : 0, int64_t{16} << 20);
}

TEST(Strategies, ListsAreMadeOnceForAllStepsOfAJob) {
  const AttentionSpec spec = SpecOf({6, 16, 16});
  const auto builder = Backend(AttnBackend::kSlidingTileAttn).MakeBuilder();
  const std::string parameters = R"({"tile": [2, 4, 4], "strategy": {"1_0_0": [1, 1, 1]}})";
  const auto first = builder->Build({0, 3, spec, parameters});
  const auto second = builder->Build({1, 3, spec, parameters});
  EXPECT_EQ(static_cast<const SparseMetadata&>(*first).setting,
            static_cast<const SparseMetadata&>(*second).setting);
}

// VMoBA told and took 13 bytes for each query and chunk: now nothing grows with their product.
TEST(PlanBytes, OfVmobaGrowWithTokensNotWithTheirProductByChunks) {
  const auto& vmoba = static_cast<const SparseBackend&>(Backend(AttnBackend::kVmobaAttn));
  const auto bytes = [&](const std::array<int64_t, 3>& grid) {
    AttentionSpec spec = SpecOf(grid);
    spec.num_heads = 40;
    spec.head_size = 128;
    denoised::Parameters parameters("");
    const auto setting = vmoba.ReadSetting(parameters, {0, 1, spec, ""});
    return vmoba.PlanBytes(spec, *setting, 1);
  };
  const int64_t hd = bytes({21, 45, 80}), quarter = bytes({21, 24, 40});
  EXPECT_LT(hd, int64_t{160} << 20) << "75,600 tokens, 40 heads: 38 GB once";
  EXPECT_LT(hd, 5 * quarter);
}

class Sensible : public testing::TestWithParam<Parameters> {};

TEST_P(Sensible, IsTaken) {
  for (const auto& grid :
       {std::array<int64_t, 3>{36, 16, 16}, {5, 8, 8}, {21, 30, 52}, {1, 9, 7}}) {
    EXPECT_NO_THROW(
        Backend(GetParam().backend).MakeBuilder()->Build({0, 1, SpecOf(grid), GetParam().json}));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Parameters, Sensible,
    testing::Values(Parameters{AttnBackend::kVideoSparseAttn, "", ""},
                    Parameters{AttnBackend::kVideoSparseAttn, R"({"tile": [2, 4, 4]})", ""},
                    Parameters{AttnBackend::kSlaAttn, "", ""},
                    Parameters{AttnBackend::kSlaAttn, R"({"block_q": 64, "block_k": 16})", ""},
                    Parameters{AttnBackend::kVmobaAttn, "", ""},
                    Parameters{AttnBackend::kSlidingTileAttn, "", ""},
                    Parameters{AttnBackend::kSlidingTileAttn, R"({"strategy": {}})", ""},
                    Parameters{AttnBackend::kBsaAttn, "", ""},
                    Parameters{AttnBackend::kNablaAttn, "", ""}),
    NameOf);

// ---- what calls really take --------------------------------------------------------------------

AttentionInputs Inputs(const AttentionSpec& spec) {
  const auto random = [&] {
    return at::randn({1, spec.q_len, spec.num_heads, spec.head_size}, at::kFloat);
  };
  AttentionInputs inputs{random(), random(), random(), {}, {}};
  inputs.scale = 1.0 / std::sqrt(static_cast<double>(spec.head_size));
  return inputs;
}

int64_t MeasuredBytes(const AttentionBackend& backend, const AttentionSpec& spec,
                      const std::string& json) {
  std::shared_ptr<const AttentionMetadata> metadata;
  if (const auto builder = backend.MakeBuilder()) metadata = builder->Build({0, 1, spec, json});
  const AttentionInputs small = Inputs(SpecOf({4, 8, 8}));
  std::shared_ptr<const AttentionMetadata> small_metadata;
  if (const auto builder = backend.MakeBuilder()) {
    small_metadata = builder->Build({0, 1, SpecOf({4, 8, 8}), json});
  }
  backend.Forward(small, small_metadata.get());  // threads and code are there
  const AttentionInputs inputs = Inputs(spec);
  PeakMemory peak;
  const at::Tensor out = backend.Forward(inputs, metadata.get());
  return peak.Bytes() - static_cast<int64_t>(out.nbytes());
}

class Cost : public testing::TestWithParam<Parameters> {};

TEST_P(Cost, CoversWhatACallTakes) {
  if (!PeakMemory::kMeasures) GTEST_SKIP() << "a sanitizer's memory is not the program's";
  const AttentionBackend& backend = Backend(GetParam().backend);
  const AttentionSpec spec = SpecOf({16, 16, 16});
  if (const auto why_not = backend.Supports(spec, QueryCpu())) GTEST_SKIP() << *why_not;
  const int64_t told = backend.Estimate(spec, GetParam().json, 1).bytes;
  const int64_t taken = MeasuredBytes(backend, spec, GetParam().json);
  constexpr int64_t kSlack = int64_t{2} << 20;
  std::printf("  %-20s told %6.1f MiB, taken %6.1f MiB\n",
              std::string(AttnBackendName(GetParam().backend)).c_str(),
              static_cast<double>(told) / (1 << 20), static_cast<double>(taken) / (1 << 20));
  EXPECT_LE(taken, told + told / 20 + kSlack);
  EXPECT_LE(told, 4 * taken + (int64_t{48} << 20)) << "far too much is refused in vain";
}

INSTANTIATE_TEST_SUITE_P(
    Parameters, Cost,
    testing::Values(
        Parameters{AttnBackend::kReference, "", ""}, Parameters{AttnBackend::kTorchSdpa, "", ""},
        Parameters{AttnBackend::kFlashAttn, "", ""}, Parameters{AttnBackend::kSageAttn, "", ""},
        Parameters{AttnBackend::kSageAttnThree, "", ""},
        Parameters{AttnBackend::kVideoSparseAttn, "", ""},
        Parameters{AttnBackend::kVideoSparseAttn, R"({"tile": [2, 2, 2]})", ""},
        Parameters{AttnBackend::kVideoSparseAttn, R"({"coarse": true})", ""},
        Parameters{AttnBackend::kSlidingTileAttn, "", ""},
        Parameters{AttnBackend::kVmobaAttn, "", ""},
        Parameters{AttnBackend::kVmobaAttn, R"({"chunk": [2, 4, 4]})", ""},
        Parameters{AttnBackend::kVmobaAttn, R"({"chunk": [2, 4, 3]})", ""},
        Parameters{AttnBackend::kVmobaAttn, R"({"chunk": [2, 4, 4], "select_type": "block"})", ""},
        Parameters{AttnBackend::kVmobaAttn, R"({"chunk": [2, 4, 4], "select_type": "overall"})",
                   ""},
        Parameters{AttnBackend::kSlidingTileAttn,
                   R"({"tile": [2, 4, 4], "strategy": {"0_0_0": [1, 1, 1]}})", ""},
        Parameters{AttnBackend::kSlaAttn, R"({"block_q": 16, "block_k": 4})", ""},
        Parameters{AttnBackend::kBsaAttn, "", ""},
        Parameters{AttnBackend::kNablaAttn, R"({"P": 1})", ""}),
    NameOf);

}  // namespace
}  // namespace denoised
