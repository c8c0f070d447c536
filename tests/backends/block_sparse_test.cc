// The CPU kernel under every instruction set that this machine has: dense, lists of blocks, orders,
// row masks, ragged ends; against float64 with the same mask.
#include "backends/kernels/block_sparse.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "tests/backends/attention_oracle.h"
#include "tests/backends/tile_amx_emulated.h"

namespace denoised::kernels {
namespace {

struct Shape {
  int64_t batch, q_len, kv_len, heads, head_size;
};

struct Variant {
  Isa isa;
  Element element;
  TileKernel kernel = nullptr;  // null: the instruction set's own
};

std::vector<Variant> VariantsOfThisCpu() {
  const DeviceInfo cpu = QueryCpu();
  std::vector<Variant> variants = {{Isa::kAvx2, Element::kFloat32},
                                   {Isa::kAvx2, Element::kBFloat16}};
  if (cpu.avx512) {
    variants.push_back({Isa::kAvx512, Element::kFloat32});
    variants.push_back({Isa::kAvx512, Element::kBFloat16});
  }
  if (cpu.avx512_bf16) {
    variants.push_back({Isa::kAvx512Bf16, Element::kBFloat16});
    variants.push_back({Isa::kAmxBf16, Element::kBFloat16, TileAmxEmulated});
  }
  if (cpu.avx512_bf16 && cpu.amx_bf16) variants.push_back({Isa::kAmxBf16, Element::kBFloat16});
  return variants;
}

AttentionInputs Draw(const Shape& shape, Element element) {
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(7);
  const auto dtype = element == Element::kFloat32 ? at::kFloat : at::kBFloat16;
  const auto draw = [&](int64_t length) {
    return at::randn({shape.batch, length, shape.heads, shape.head_size}, generator, at::kFloat)
        .to(dtype);
  };
  AttentionInputs inputs;
  inputs.query = draw(shape.q_len);
  inputs.key = draw(shape.kv_len);
  inputs.value = draw(shape.kv_len);
  inputs.scale = 1.0 / std::sqrt(static_cast<double>(shape.head_size));
  return inputs;
}

View ViewOf(const at::Tensor& x) {
  return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
}

at::Tensor Attend(const AttentionInputs& in, const BlockPlan& plan, Variant variant) {
  at::Tensor out = at::zeros(in.query.sizes(), in.query.options());
  BlockSparseCall call;
  call.element = variant.element;
  call.batch = in.query.size(0);
  call.heads = in.query.size(2);
  call.head_size = in.query.size(3);
  call.q_len = in.query.size(1);
  call.kv_len = in.key.size(1);
  call.query = ViewOf(in.query);
  call.key = ViewOf(in.key);
  call.value = ViewOf(in.value);
  call.out = out.mutable_data_ptr();
  call.scale = static_cast<float>(in.scale);
  BlockSparseAttention(
      call, plan, variant.isa, [](int64_t, const std::function<void()>& worker) { worker(); },
      variant.kernel);
  return out;
}

// [B, H, S_q, S_kv] of what the plan lets through, written out entry by entry.
at::Tensor MaskOf(const BlockPlan& plan, const Shape& shape) {
  at::Tensor mask = at::zeros({shape.batch, shape.heads, shape.q_len, shape.kv_len}, at::kBool);
  auto at_mask = mask.accessor<bool, 4>();
  const auto token = [](const std::vector<int32_t>& order, int position) {
    return order.empty() ? position : order[position];
  };
  const int64_t query_blocks = static_cast<int64_t>(plan.query_blocks.size());
  for (int64_t head = 0; head < shape.batch * shape.heads; ++head) {
    for (int64_t block = 0; block < query_blocks; ++block) {
      const int64_t row = (head % plan.lists) * query_blocks + block;
      for (int64_t entry = plan.row_begin[row]; entry < plan.row_begin[row + 1]; ++entry) {
        const Span keys = plan.key_blocks[plan.columns[entry]], queries = plan.query_blocks[block];
        for (int q = 0; q < queries.length; ++q) {
          if (!plan.row_masks.empty() && ((plan.row_masks[entry] >> q) & 1) == 0) continue;
          for (int k = 0; k < keys.length; ++k) {
            at_mask[head / shape.heads][head % shape.heads][token(
                plan.query_order, queries.first + q)][token(plan.key_order, keys.first + k)] = true;
          }
        }
      }
    }
  }
  return mask;
}

std::vector<int32_t> Shuffled(int64_t length, int seed) {
  std::vector<int32_t> order(length);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(seed));
  return order;
}

// Blocks of lengths 1 to kBlock in turn.
std::vector<Span> CutUnevenly(int64_t length, int seed) {
  std::mt19937 random(seed);
  std::vector<Span> blocks;
  for (int64_t first = 0; first < length;) {
    const int64_t wanted = 1 + static_cast<int64_t>(random() % kBlock);
    const int64_t size = std::min(wanted, length - first);
    blocks.push_back({static_cast<int32_t>(first), static_cast<int32_t>(size)});
    first += size;
  }
  return blocks;
}

// Random lists; every query block keeps at least one key block.
BlockPlan RandomPlan(const Shape& shape, int64_t lists, bool row_masks) {
  BlockPlan plan;
  plan.query_order = Shuffled(shape.q_len, 1);
  plan.key_order = Shuffled(shape.kv_len, 2);
  plan.query_blocks = CutUnevenly(shape.q_len, 3);
  plan.key_blocks = CutUnevenly(shape.kv_len, 4);
  plan.lists = lists;
  plan.row_begin = {0};
  std::mt19937_64 random(5);
  for (size_t row = 0; row < lists * plan.query_blocks.size(); ++row) {
    for (size_t key = 0; key < plan.key_blocks.size(); ++key) {
      const bool first = plan.columns.size() == static_cast<size_t>(plan.row_begin.back());
      if (random() % 3 != 0 && !(first && key + 1 == plan.key_blocks.size())) continue;
      plan.columns.push_back(static_cast<int32_t>(key));
      if (row_masks) plan.row_masks.push_back(first ? ~uint64_t{0} : random());
    }
    plan.row_begin.push_back(static_cast<int64_t>(plan.columns.size()));
  }
  return plan;
}

double Tolerance(Element element) { return element == Element::kFloat32 ? 1e-5 : 1e-2; }

class BlockSparse : public ::testing::TestWithParam<Variant> {};

TEST_P(BlockSparse, DenseEqualsFloat64ForEveryWidthAndHeadSize) {
  for (const Shape& shape : std::vector<Shape>{{1, 1, 1, 1, 1},
                                               {1, 16, 64, 1, 4},
                                               {2, 17, 63, 3, 40},
                                               {1, 33, 65, 2, 64},
                                               {1, 64, 300, 2, 80},
                                               {1, 130, 513, 2, 128},
                                               {1, 70, 100, 1, 255},
                                               {1, 70, 100, 1, 256}}) {
    const AttentionInputs inputs = Draw(shape, GetParam().element);
    const at::Tensor got = Attend(inputs, DensePlan(shape.q_len, shape.kv_len), GetParam());
    EXPECT_LE(RelativeL2(got, OracleAttention(inputs)), Tolerance(GetParam().element))
        << shape.q_len << " x " << shape.kv_len << " x " << shape.head_size;
  }
}

TEST_P(BlockSparse, ListsEqualFloat64WithTheSameMask) {
  const Shape shape{2, 300, 411, 3, 64};
  for (int64_t lists : {1, 3, 6}) {
    const BlockPlan plan = RandomPlan(shape, lists, false);
    AttentionInputs inputs = Draw(shape, GetParam().element);
    const at::Tensor got = Attend(inputs, plan, GetParam());
    inputs.mask = MaskOf(plan, shape);
    EXPECT_LE(RelativeL2(got, OracleAttention(inputs)), Tolerance(GetParam().element)) << lists;
  }
}

TEST_P(BlockSparse, RowMasksHideBlocksFromSingleQueries) {
  const Shape shape{1, 200, 333, 2, 40};
  const BlockPlan plan = RandomPlan(shape, 2, true);
  AttentionInputs inputs = Draw(shape, GetParam().element);
  const at::Tensor got = Attend(inputs, plan, GetParam());
  inputs.mask = MaskOf(plan, shape);
  EXPECT_LE(RelativeL2(got, OracleAttention(inputs)), Tolerance(GetParam().element));
}

TEST_P(BlockSparse, AQueryWithoutAnyKeyGivesZeros) {
  const Shape shape{1, 64, 64, 1, 64};
  BlockPlan plan = DensePlan(shape.q_len, shape.kv_len);
  plan.lists = 1;
  plan.row_begin = {0, 1};
  plan.columns = {0};
  plan.row_masks = {~uint64_t{0} << 1};
  const at::Tensor got = Attend(Draw(shape, GetParam().element), plan, GetParam());
  EXPECT_EQ(got.select(1, 0).abs().max().item<double>(), 0.0);
  EXPECT_GT(got.select(1, 1).abs().max().item<double>(), 0.0);
  EXPECT_TRUE(got.isfinite().all().item<bool>());
}

TEST_P(BlockSparse, ARowsBitsDoNotDependOnTheOtherRowsOfItsBlock) {
  const Shape shape{1, 64, 200, 1, 64};
  AttentionInputs inputs = Draw(shape, GetParam().element);
  const BlockPlan plan = DensePlan(shape.q_len, shape.kv_len);
  const at::Tensor before = Attend(inputs, plan, GetParam());
  inputs.query = inputs.query.clone();
  inputs.query.narrow(1, 1, 63).mul_(-50);
  const at::Tensor after = Attend(inputs, plan, GetParam());
  EXPECT_TRUE(SameBits(before.select(1, 0), after.select(1, 0)));
  EXPECT_FALSE(SameBits(before.select(1, 1), after.select(1, 1)));
}

TEST_P(BlockSparse, LargeScoresDoNotOverflow) {
  const Shape shape{1, 64, 200, 1, 64};
  AttentionInputs inputs = Draw(shape, GetParam().element);
  inputs.query = inputs.query * 1e15;
  inputs.key = inputs.key * 1e15;
  const at::Tensor got = Attend(inputs, DensePlan(shape.q_len, shape.kv_len), GetParam());
  EXPECT_TRUE(got.isfinite().all().item<bool>());
}

// int8 scores: close in direction, and the mean of the keys must not matter.
void ExpectDirectionKept(Isa isa, TileKernel kernel, Element element, const Shape& shape) {
  const Variant variant{isa, element, kernel};
  AttentionInputs inputs = Draw(shape, element);
  const BlockPlan plan = DensePlan(shape.q_len, shape.kv_len);
  EXPECT_GE(CosineSimilarity(Attend(inputs, plan, variant), OracleAttention(inputs)), 0.999);
  inputs.key = inputs.key + 3;
  EXPECT_GE(CosineSimilarity(Attend(inputs, plan, variant), OracleAttention(inputs)), 0.999);
}

TEST(Int8Scores, KeepTheDirectionAndForgetTheMeanKey) {
  const DeviceInfo cpu = QueryCpu();
  if (!cpu.avx512_vnni || !cpu.avx512_bf16) GTEST_SKIP() << cpu.name << " has no AVX-512 VNNI";
  for (Element element : {Element::kFloat32, Element::kBFloat16}) {
    for (const Shape& shape : std::vector<Shape>{
             {2, 130, 513, 3, 128}, {1, 20, 70, 2, 40}, {1, 40, 33, 1, 96}, {1, 1, 1, 1, 3}}) {
      ExpectDirectionKept(Isa::kAvx512Vnni, nullptr, element, shape);
      ExpectDirectionKept(Isa::kAmxInt8, TileAmxInt8Emulated, element, shape);
      if (cpu.amx_int8) ExpectDirectionKept(Isa::kAmxInt8, nullptr, element, shape);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(EveryIsa, BlockSparse, ::testing::ValuesIn(VariantsOfThisCpu()),
                         [](const auto& info) {
                           std::string name = IsaName(info.param.isa);
                           std::erase_if(name, [](char c) { return !std::isalnum(c); });
                           return name +
                                  (info.param.element == Element::kFloat32 ? "_f32" : "_bf16");
                         });

TEST(BestIsa, IsTheWidestThatTheCpuHas) {
  DeviceInfo cpu;
  cpu.avx2 = true;
  EXPECT_EQ(BestIsa(Element::kBFloat16, cpu), Isa::kAvx2);
  cpu.avx512 = true;
  EXPECT_EQ(BestIsa(Element::kBFloat16, cpu), Isa::kAvx512);
  cpu.avx512_bf16 = true;
  EXPECT_EQ(BestIsa(Element::kBFloat16, cpu), Isa::kAvx512Bf16);
  EXPECT_EQ(BestIsa(Element::kFloat32, cpu), Isa::kAvx512);
  cpu.amx_bf16 = true;
  EXPECT_EQ(BestIsa(Element::kBFloat16, cpu), Isa::kAvx512Bf16) << "it was never measured";
  EXPECT_EQ(BestIsa(Element::kBFloat16, cpu, /*unmeasured=*/true), Isa::kAmxBf16);
  EXPECT_EQ(BestIsa(Element::kFloat32, cpu, /*unmeasured=*/true), Isa::kAvx512);
}

TEST(Int8Isa, IsVnniUntilAmxWasMeasured) {
  DeviceInfo cpu;
  cpu.amx_bf16 = cpu.amx_int8 = true;
  EXPECT_EQ(Int8Isa(cpu), Isa::kAvx512Vnni);
  EXPECT_EQ(Int8Isa(cpu, /*unmeasured=*/true), Isa::kAmxInt8);
}

}  // namespace
}  // namespace denoised::kernels
