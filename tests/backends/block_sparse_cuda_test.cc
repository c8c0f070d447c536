// The CUDA kernels on the first device, each against the CPU kernel in float32 over the same plan:
// dense, ragged ends, orders, lists a head, row masks, queries in no block; the int8 kernel against
// float64 too. Skipped with the reason where there is no device.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "backends/block_sparse_forward.h"
#include "backends/cuda/block_sparse_launch.h"
#include "backends/error.h"
#include "backends/kernels/pool.h"
#include "backends/sparse_backend.h"
#include "backends/tiling.h"
#include "tests/backends/attention_oracle.h"

namespace denoised {
namespace {

struct Variant {
  std::string name;
  at::ScalarType dtype;
  HalfKernel kernel;
  int64_t head_size;
};

void PrintTo(const Variant& variant, std::ostream* out) { *out << variant.name; }

std::vector<Variant> Variants() {
  return {{"float32_d40", at::kFloat, HalfKernel::kMmaSync, 40},
          {"float32_d128", at::kFloat, HalfKernel::kMmaSync, 128},
          {"mma_bf16_d7", at::kBFloat16, HalfKernel::kMmaSync, 7},
          {"mma_bf16_d64", at::kBFloat16, HalfKernel::kMmaSync, 64},
          {"mma_bf16_d80", at::kBFloat16, HalfKernel::kMmaSync, 80},
          {"mma_bf16_d128", at::kBFloat16, HalfKernel::kMmaSync, 128},
          {"mma_f16_d128", at::kHalf, HalfKernel::kMmaSync, 128},
          {"wgmma_bf16_d40", at::kBFloat16, HalfKernel::kWgmma, 40},
          {"wgmma_bf16_d128", at::kBFloat16, HalfKernel::kWgmma, 128},
          {"wgmma_f16_d128", at::kHalf, HalfKernel::kWgmma, 128},
          {"int8_bf16_d7", at::kBFloat16, HalfKernel::kInt8, 7},
          {"int8_bf16_d64", at::kBFloat16, HalfKernel::kInt8, 64},
          {"int8_bf16_d80", at::kBFloat16, HalfKernel::kInt8, 80},
          {"int8_bf16_d128", at::kBFloat16, HalfKernel::kInt8, 128},
          {"int8_f16_d128", at::kHalf, HalfKernel::kInt8, 128}};
}

class BlockSparseCuda : public ::testing::TestWithParam<Variant> {
 protected:
  void SetUp() override {
    const std::string why_not = WhyNot();
    if (!why_not.empty()) GTEST_SKIP() << why_not;
  }

  // Why this machine cannot run the variant; empty where it can.
  static std::string WhyNot() {
    try {
      const DeviceInfo device = QueryCuda(0);
      if (GetParam().kernel != HalfKernel::kWgmma || device.major == 9) return "";
      return "wgmma needs compute capability 9.0, which " + device.name + " has not";
    } catch (const Error& error) {
      return error.what();
    }
  }

  static at::Device Device() { return {at::kCUDA, 0}; }

  AttentionInputs Draw(int64_t batch, int64_t q_len, int64_t kv_len, int64_t heads) const {
    at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(3);
    const auto draw = [&](int64_t length) {
      return at::randn({batch, length, heads, GetParam().head_size}, generator, at::kFloat)
          .to(GetParam().dtype);
    };
    AttentionInputs inputs;
    inputs.query = draw(q_len);
    inputs.key = draw(kv_len);
    inputs.value = draw(kv_len);
    return inputs;
  }

  at::Tensor OnDevice(const AttentionInputs& inputs, const kernels::BlockPlan& plan) const {
    AttentionInputs device = inputs;
    for (at::Tensor* x : {&device.query, &device.key, &device.value}) *x = x->to(at::kCUDA);
    const DevicePlan device_plan = UploadPlan(plan, device.query.device());
    return BlockSparseForwardCuda(device, device_plan, GetParam().kernel).cpu();
  }

  void ExpectAsOnTheCpu(const AttentionInputs& inputs, const kernels::BlockPlan& plan) const {
    AttentionInputs wide = inputs;
    for (at::Tensor* x : {&wide.query, &wide.key, &wide.value}) *x = x->to(at::kFloat);
    const at::Tensor got = OnDevice(inputs, plan);
    EXPECT_EQ(got.sizes(), inputs.query.sizes());
    ExpectClose(got, BlockSparseForward(wide, plan));
  }

  static void ExpectClose(const at::Tensor& got, const at::Tensor& want) {
    if (GetParam().kernel == HalfKernel::kInt8) {
      EXPECT_GE(CosineSimilarity(got, want), 0.999);
    } else {
      EXPECT_LE(RelativeL2(got, want), ExactTolerance(GetParam().dtype));
    }
  }
};

TEST_P(BlockSparseCuda, Dense) {
  ExpectAsOnTheCpu(Draw(2, 200, 333, 3), kernels::DensePlan(200, 333));
  ExpectAsOnTheCpu(Draw(1, 1, 1, 1), kernels::DensePlan(1, 1));
}

TEST_P(BlockSparseCuda, TheDensePlanMadeOnTheDeviceIsTheHosts) {
  for (const auto& [q_len, kv_len] : {std::pair{200, 333}, {64, 128}, {1, 1}}) {
    AttentionInputs inputs = Draw(2, q_len, kv_len, 3);
    const at::Tensor want = OnDevice(inputs, kernels::DensePlan(q_len, kv_len));
    for (at::Tensor* x : {&inputs.query, &inputs.key, &inputs.value}) *x = x->to(at::kCUDA);
    const DevicePlan plan = DensePlanOnDevice(q_len, kv_len, Device());
    EXPECT_TRUE(SameBits(BlockSparseForwardCuda(inputs, plan, GetParam().kernel).cpu(), want));
  }
}

TEST_P(BlockSparseCuda, DenseEqualsFloat64) {
  AttentionInputs inputs = Draw(2, 200, 333, 3);
  inputs.scale = 1.0 / std::sqrt(static_cast<double>(GetParam().head_size));
  ExpectClose(OnDevice(inputs, kernels::DensePlan(200, 333)), OracleAttention(inputs));
}

// A vector that all keys share changes no weight, but would take all of a byte's steps.
TEST_P(BlockSparseCuda, KeysFarFromZero) {
  AttentionInputs inputs = Draw(1, 130, 600, 2);
  inputs.scale = 1.0 / std::sqrt(static_cast<double>(GetParam().head_size));
  inputs.key = inputs.key + 20;
  const at::Tensor got = OnDevice(inputs, kernels::DensePlan(130, 600));
  EXPECT_GE(CosineSimilarity(got, OracleAttention(inputs)), 0.999);
}

TEST_P(BlockSparseCuda, RaggedTilesInAnOrderOfTheirOwnWithAListAHead) {
  const Partition tiles = TileGrid({3, 9, 11}, {2, 4, 5});
  PlanBuilder builder(tiles, tiles, 4);
  for (int64_t row = 0; row < 4 * tiles.blocks(); ++row) {
    const int32_t own = static_cast<int32_t>(row % tiles.blocks());
    std::vector<int32_t> blocks = {own};
    if (own > 2) blocks.insert(blocks.begin(), static_cast<int32_t>(row / tiles.blocks() % 3));
    builder.AddRow(own, blocks);
  }
  ExpectAsOnTheCpu(Draw(2, 297, 297, 2), builder.Take());
}

TEST_P(BlockSparseCuda, RowMasksAndRowsWithoutKeys) {
  const Partition runs = RunsOf(130, kernels::kBlock);
  PlanBuilder builder(runs, runs, 1);
  builder.AddRow(0, {0, 2}, {0x5, 0xffffffff00000000});
  builder.AddRow(1, {1}, {~uint64_t{2}});
  builder.AddRow(2, {}, {});
  const kernels::BlockPlan plan = builder.Take();
  const AttentionInputs inputs = Draw(1, 130, 130, 2);
  ExpectAsOnTheCpu(inputs, plan);
  EXPECT_EQ(OnDevice(inputs, plan).narrow(1, 128, 2).abs().sum().item<double>(), 0);
}

TEST_P(BlockSparseCuda, QueriesInNoBlockAreZeros) {
  kernels::BlockPlan plan = kernels::DensePlan(64, 100);
  plan.covers_queries = false;
  const AttentionInputs inputs = Draw(1, 90, 100, 1);
  EXPECT_EQ(OnDevice(inputs, plan).narrow(1, 64, 26).abs().sum().item<double>(), 0);
}

TEST_P(BlockSparseCuda, TheSameBitsEveryTimeAndAloneInTheBatch) {
  const AttentionInputs inputs = Draw(3, 150, 150, 2);
  const kernels::BlockPlan plan = kernels::DensePlan(150, 150);
  const at::Tensor together = OnDevice(inputs, plan);
  EXPECT_TRUE(SameBits(OnDevice(inputs, plan), together));
  AttentionInputs alone = inputs;
  for (at::Tensor* x : {&alone.query, &alone.key, &alone.value}) *x = x->narrow(0, 2, 1);
  EXPECT_TRUE(SameBits(OnDevice(alone, plan), together.narrow(0, 2, 1)));
}

TEST_P(BlockSparseCuda, MeansOfBlocksHaveTheHostsBits) {
  const Partition tiles = TileGrid({3, 9, 11}, {2, 4, 5});
  const at::Tensor x = Draw(2, 297, 1, 3).query;
  const at::Tensor got = BlockMeansCuda(x.to(at::kCUDA), DevicePartition(tiles, Device())).cpu();
  const at::Tensor wide = x.to(at::kFloat);
  for (int64_t head = 0; head < 6; ++head) {
    const kernels::View view{wide.const_data_ptr(), wide.stride(0), wide.stride(1), wide.stride(2)};
    const auto rows =
        kernels::HeadOf(view, kernels::Element::kFloat32, GetParam().head_size, head / 3, head % 3);
    std::vector<float> want = kernels::BlockMeans(rows, tiles.order, tiles.lengths);
    EXPECT_TRUE(SameBits(got[head].flatten(), at::tensor(at::ArrayRef<float>(want))));
  }
}

std::vector<float> Values(const at::Tensor& x) {
  const at::Tensor flat = x.contiguous();
  return {flat.const_data_ptr<float>(), flat.const_data_ptr<float>() + flat.numel()};
}

TEST_P(BlockSparseCuda, ScoresOfBlocksHaveTheHostsBits) {
  const int64_t size = GetParam().head_size;
  const at::Tensor queries = Draw(3, 21, 1, 1).query.to(at::kFloat).view({3, 21, size});
  const at::Tensor keys = Draw(3, 1, 35, 1).key.to(at::kFloat).view({3, 35, size});
  const float root = std::sqrt(static_cast<float>(size));
  for (bool bfloat16 : {false, true}) {
    const at::Tensor got =
        BlockScoresCuda(queries.to(at::kCUDA), keys.to(at::kCUDA), root, bfloat16).cpu();
    for (int64_t head = 0; head < 3; ++head) {
      std::vector<float> want = kernels::Products(Values(queries[head]), Values(keys[head]), size);
      if (bfloat16) kernels::RoundAllToBFloat16(&want);
      for (float& x : want) x /= root;
      if (bfloat16) kernels::RoundAllToBFloat16(&want);
      EXPECT_EQ(Values(got[head]), want) << "head " << head << ", rounded: " << bfloat16;
    }
  }
}

// Many equal scores, both zeros, infinities and a NaN; query blocks longer than the kernel's.
TEST_P(BlockSparseCuda, TheLargestScoresAreTheHostsChoice) {
  const Partition queries = RunsOf(300, 128), keys = RunsOf(70 * 33 - 5, 33);
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(5);
  const at::Tensor scores =
      at::randint(-2, 3, {2, queries.blocks(), keys.blocks()}, generator, at::kFloat);
  scores[0][0][3] = -0.0f;
  scores[0][1][7] = std::nanf("");
  scores[1][2][9] = INFINITY;
  scores[1][2].narrow(0, 20, 30).fill_(-INFINITY);
  const DeviceGeometry geometry(queries, keys, Device());
  for (int64_t count : {int64_t{1}, int64_t{9}, int64_t{33}, keys.blocks()}) {
    const DevicePlan plan = LargestPlanCuda(scores.to(at::kCUDA), geometry, count);
    const at::Tensor columns = plan.columns.cpu(), begins = plan.row_begin.cpu();
    ASSERT_EQ(plan.view.query_blocks, 5);  // 64 + 64, 64 + 64, 44
    for (int64_t row = 0; row < 10; ++row) {
      const int64_t head = row / 5, block = row % 5 / 2;
      const std::vector<int32_t> want =
          LargestIndices(Values(scores[head][block]).data(), keys.blocks(), count);
      const int32_t* first = columns.const_data_ptr<int32_t>() + row * count;
      EXPECT_EQ(std::vector<int32_t>(first, first + count), want) << "row " << row;
      EXPECT_EQ(begins[row].item<int64_t>(), row * count);
    }
  }
}

TEST_P(BlockSparseCuda, TheCoarseBranchIsGatedAndAddedInFloat32) {
  const int64_t size = GetParam().head_size;
  const AttentionInputs inputs = Draw(2, 150, 150, 3);
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(6);
  const at::Tensor coarse = at::randn({6, 11, size}, generator, at::kFloat);
  const at::Tensor block_of = at::randint(0, 11, {150}, generator, at::kInt);
  const at::Tensor spread = coarse.view({2, 3, 11, size}).index_select(2, block_of).transpose(1, 2);
  for (const at::Tensor& gate : {at::Tensor(), inputs.key}) {
    const at::Tensor added = gate.defined() ? spread * gate.to(at::kFloat) : spread;
    const at::Tensor want = (inputs.query.to(at::kFloat) + added).to(GetParam().dtype);
    const at::Tensor got =
        AddCoarseCuda(inputs.query.to(at::kCUDA), coarse.to(at::kCUDA),
                      gate.defined() ? gate.to(at::kCUDA) : gate, block_of.to(at::kCUDA));
    EXPECT_TRUE(SameBits(got.cpu(), want.contiguous()));
  }
}

INSTANTIATE_TEST_SUITE_P(Device, BlockSparseCuda, ::testing::ValuesIn(Variants()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace denoised
