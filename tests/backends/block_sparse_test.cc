// The CPU kernel under every instruction set that this machine has: dense, lists of blocks, orders,
// row masks, ragged ends; against float64 with the same mask.
#include "backends/kernels/block_sparse.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "tests/backends/attention_oracle.h"
#include "tests/backends/on_threads.h"
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

// Exact or int8; AMX emulated as well, by AVX-512 VNNI and BF16. Those that `cpu` lacks are in the
// list: their tests skip.
std::vector<Variant> Variants(bool int8) {
  std::vector<Variant> variants;
  for (Isa isa : kAllIsas) {
    if (IsInt8(isa) != int8) continue;
    const bool pairs_only = isa == Isa::kAvx512Bf16 || isa == Isa::kAmxBf16;
    if (!pairs_only) variants.push_back({isa, Element::kFloat32});
    variants.push_back({isa, Element::kBFloat16});
  }
  if (int8) {
    variants.push_back({Isa::kAmxInt8, Element::kFloat32, TileAmxInt8Emulated});
    variants.push_back({Isa::kAmxInt8, Element::kBFloat16, TileAmxInt8Emulated});
  } else {
    variants.push_back({Isa::kAmxBf16, Element::kBFloat16, TileAmxEmulated});
  }
  return variants;
}

bool CanRun(const Variant& variant) {
  const Isa needs = variant.kernel != nullptr ? Isa::kVnniBf16Int8 : variant.isa;
  return HasIsa(needs, QueryCpu());
}

std::string VariantName(const Variant& variant) {
  std::string name = IsaName(variant.isa);
  std::erase_if(name, [](char c) { return !std::isalnum(c); });
  if (variant.kernel != nullptr) name += "Emulated";
  return name + (variant.element == Element::kFloat32 ? "_f32" : "_bf16");
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

at::Tensor Attend(const AttentionInputs& in, const BlockPlan& plan, Variant variant,
                  const RunWorkers& run_workers = RunHere) {
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
  BlockSparseAttention(call, plan, variant.isa, run_workers, variant.kernel);
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

double Tolerance(Element element) {
  return ExactTolerance(element == Element::kFloat32 ? at::kFloat : at::kBFloat16);
}

class BlockSparse : public ::testing::TestWithParam<Variant> {
 protected:
  void SetUp() override {
    if (!CanRun(GetParam())) {
      GTEST_SKIP() << QueryCpu().name << " has no " << IsaName(GetParam().isa)
                   << ", or it is pinned below it";
    }
  }
};
using Int8Scores = BlockSparse;

TEST_P(BlockSparse, DenseEqualsFloat64ForEveryWidthAndHeadSize) {
  for (const Shape& shape : std::vector<Shape>{{1, 1, 1, 1, 1},
                                               {1, 16, 64, 1, 4},
                                               {2, 17, 63, 3, 40},
                                               {1, 33, 65, 2, 64},
                                               {1, 64, 300, 2, 80},
                                               {1, 130, 513, 2, 128},
                                               {1, 70, 100, 1, 255},
                                               {1, 70, 100, 1, 256},
                                               {1, 20, 100, 1, 384},
                                               {1, 20, 100, 1, 1024}}) {
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

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Three workers one after the other, as where fewer threads come than were asked for; the last of
// three alone, as where the others never come.
void RunInTurns(int64_t, const std::function<void(const Worker&)>& work) {
  for (int64_t i = 0; i < 3; ++i) work({i, 3});
}
void RunTheLast(int64_t, const std::function<void(const Worker&)>& work) { work({2, 3}); }

// Heads so large that one or two fit a turn.
void ExpectHeadsOfManyTurnsAlike(const Variant& variant) {
  const Shape shape{1, 70, 4200, 3, 512};
  AttentionInputs inputs = Draw(shape, variant.element);
  inputs.value[0][37][0][5] = kInfinity;  // of the first head alone
  const BlockPlan plan = DensePlan(shape.q_len, shape.kv_len);
  std::vector<at::Tensor> alone;
  for (int64_t head = 0; head < shape.heads; ++head) {
    AttentionInputs one = inputs;
    for (at::Tensor* x : {&one.query, &one.key, &one.value}) *x = x->narrow(2, head, 1);
    alone.push_back(Attend(one, plan, variant));
    EXPECT_EQ(alone[head].isfinite().all().item<bool>(), head > 0);
  }
  const at::Tensor wanted = at::cat(alone, 2);
  for (const RunWorkers& run_workers : {RunWorkers(RunHere), OnThreads(2), OnThreads(3),
                                        RunWorkers(RunInTurns), RunWorkers(RunTheLast)}) {
    EXPECT_TRUE(SameBits(Attend(inputs, plan, variant, run_workers), wanted));
  }
}

TEST_P(BlockSparse, HeadsOfManyTurnsHaveTheirBitsAloneWhoeverComes) {
  ExpectHeadsOfManyTurnsAlike(GetParam());
}

TEST_P(Int8Scores, HeadsOfManyTurnsHaveTheirBitsAloneWhoeverComesInInt8) {
  ExpectHeadsOfManyTurnsAlike(GetParam());
}

const std::vector<float> kNotFinite = {std::nanf(""), kInfinity, -kInfinity};

// Token 37's keys or values of head 1 with one element that is not finite.
at::Tensor With(const at::Tensor& x, float bad) {
  at::Tensor changed = x.clone();
  changed[0][37][1][5] = bad;
  return changed;
}

TEST_P(BlockSparse, AValueThatIsNotFiniteReachesExactlyTheRowsThatAttendIt) {
  const Shape shape{1, 200, 333, 2, 40};
  const BlockPlan plan = RandomPlan(shape, 2, true);
  AttentionInputs inputs = Draw(shape, GetParam().element);
  const at::Tensor before = Attend(inputs, plan, GetParam());
  const at::Tensor attends = MaskOf(plan, shape)[0][1].select(1, 37);  // [S_q]
  ASSERT_TRUE(attends.any().item<bool>() && !attends.all().item<bool>());
  for (float bad : kNotFinite) {
    inputs.value = With(Draw(shape, GetParam().element).value, bad);
    const at::Tensor got = Attend(inputs, plan, GetParam());
    const at::Tensor column = got[0].select(1, 1).select(1, 5).to(at::kFloat);
    EXPECT_TRUE(column.isfinite().logical_not().equal(attends)) << bad;
    EXPECT_EQ(column.isnan().any().item<bool>(), std::isnan(bad));
    at::Tensor rest = got.clone();
    rest[0].select(1, 1).select(1, 5).copy_(before[0].select(1, 1).select(1, 5));
    EXPECT_LE(RelativeL2(rest, before), Tolerance(GetParam().element));
  }
}

TEST_P(BlockSparse, AKeyThatIsNaNReachesExactlyTheRowsThatAttendIt) {
  const Shape shape{1, 200, 333, 2, 40};
  const BlockPlan plan = RandomPlan(shape, 2, true);
  AttentionInputs inputs = Draw(shape, GetParam().element);
  inputs.key = With(inputs.key, std::nanf(""));
  const at::Tensor nan = Attend(inputs, plan, GetParam()).isnan()[0];
  const at::Tensor attends = MaskOf(plan, shape)[0][1].select(1, 37).unsqueeze(1);
  EXPECT_FALSE(nan.select(1, 0).any().item<bool>());
  EXPECT_TRUE(nan.select(1, 1).equal(attends.expand({shape.q_len, shape.head_size})));
}

TEST_P(BlockSparse, ScoresThatAreAllMinusInfinityAreNaNAndNotHidden) {
  AttentionInputs inputs = Draw({1, 3, 1, 1, 4}, GetParam().element);
  inputs.query.fill_(1);
  inputs.key.fill_(-kInfinity);
  EXPECT_TRUE(Attend(inputs, DensePlan(3, 1), GetParam()).isnan().all().item<bool>());
}

TEST_P(BlockSparse, ScoresThatAreAllMinusInfinityAreNaNUnderAMaskAndNothingAttendedIsZeros) {
  AttentionInputs inputs = Draw({1, 3, 1, 1, 4}, GetParam().element);
  inputs.query.fill_(1);
  inputs.key.fill_(-kInfinity);
  BlockPlan plan = DensePlan(3, 1);
  plan.lists = 1;
  plan.row_begin = {0, 1};
  plan.columns = {0};
  plan.row_masks = {~uint64_t{0} << 1};
  const at::Tensor got = Attend(inputs, plan, GetParam());
  EXPECT_TRUE(got.select(1, 0).eq(0).all().item<bool>());
  EXPECT_TRUE(got.narrow(1, 1, 2).isnan().all().item<bool>());
}

// Scores in small steps around the least exponent, values that show each weight.
TEST_P(BlockSparse, NoWeightIsADenormalNumber) {
  const Shape shape{1, 16, 64, 1, 64};
  AttentionInputs inputs = Draw(shape, GetParam().element);
  const at::Tensor nats = -80 - 0.5 * at::arange(64, at::kFloat);
  inputs.query.zero_().select(3, 0).fill_(1);
  inputs.key.zero_().select(3, 0).copy_(nats.view({1, 64, 1}));
  inputs.key.select(1, 0).zero_();  // the largest score is 0
  inputs.value = at::eye(64, inputs.value.options()).view({1, 64, 1, 64});
  inputs.scale = 1;
  const at::Tensor weights = Attend(inputs, DensePlan(16, 64), GetParam()).to(at::kFloat);
  EXPECT_TRUE(weights.gt(0).logical_and(weights.lt(0x1p-100)).any().item<bool>());
  EXPECT_TRUE(weights.eq(0).any().item<bool>());
  const at::Tensor denormal = weights.gt(0).logical_and(weights.lt(std::ldexp(1.0, -126)));
  EXPECT_FALSE(denormal.any().item<bool>());
}

// All scores are level, so that all keys weigh the same, however many passes came after them.
void ExpectEarlyKeysWeighAsLateOnes(const Variant& variant) {
  const Shape shape{1, 16, 4096, 1, 64};
  AttentionInputs inputs = Draw(shape, variant.element);
  inputs.query.zero_();
  inputs.value.narrow(1, 0, 2048).fill_(1);
  inputs.value.narrow(1, 2048, 2048).fill_(-1);
  const at::Tensor got = Attend(inputs, DensePlan(shape.q_len, shape.kv_len), variant);
  EXPECT_EQ(got.abs().max().item<double>(), 0.0);
}

TEST_P(BlockSparse, EarlyKeysWeighAsMuchAsLateOnes) { ExpectEarlyKeysWeighAsLateOnes(GetParam()); }

TEST_P(Int8Scores, EarlyKeysWeighAsMuchAsLateOnes) { ExpectEarlyKeysWeighAsLateOnes(GetParam()); }

TEST_P(Int8Scores, KeepTheDirectionAndForgetTheMeanKey) {
  for (const Shape& shape : std::vector<Shape>{
           {2, 130, 513, 3, 128}, {1, 20, 70, 2, 40}, {1, 40, 33, 1, 96}, {1, 1, 1, 1, 3}}) {
    AttentionInputs inputs = Draw(shape, GetParam().element);
    const BlockPlan plan = DensePlan(shape.q_len, shape.kv_len);
    EXPECT_GE(CosineSimilarity(Attend(inputs, plan, GetParam()), OracleAttention(inputs)), 0.999);
    inputs.key = inputs.key + 3;
    EXPECT_GE(CosineSimilarity(Attend(inputs, plan, GetParam()), OracleAttention(inputs)), 0.999);
  }
}

// Whole numbers up to 127, which 8 bits hold: then int8 scores are the exact ones.
TEST_P(Int8Scores, AreWholeNumbersWithoutSaturation) {
  const Shape shape{1, 64, 128, 1, 256};
  AttentionInputs inputs = Draw(shape, GetParam().element);
  const auto sign = [](const at::Tensor& x) { return at::where(x.gt(0), 127.0, -127.0); };
  inputs.query = sign(inputs.query).to(inputs.value.scalar_type());
  inputs.key = sign(inputs.key).to(inputs.value.scalar_type());
  inputs.key.narrow(1, 64, 64).copy_(-inputs.key.narrow(1, 0, 64));  // the mean is 0
  inputs.scale = 1e-5;
  const at::Tensor got = Attend(inputs, DensePlan(shape.q_len, shape.kv_len), GetParam());
  EXPECT_LE(RelativeL2(got, OracleAttention(inputs)), ExactTolerance(at::kBFloat16));
}

TEST_P(Int8Scores, AQueryThatIsNotFiniteMakesItsRowNaNAndAKeyItsHead) {
  const Shape shape{1, 70, 90, 2, 40};
  const AttentionInputs inputs = Draw(shape, GetParam().element);
  for (float bad : kNotFinite) {
    AttentionInputs changed = inputs;
    changed.query = With(inputs.query, bad);
    at::Tensor nan = Attend(changed, DensePlan(70, 90), GetParam()).isnan()[0];
    EXPECT_TRUE(nan[37][1].all().item<bool>());
    EXPECT_EQ(nan.sum().item<int64_t>(), shape.head_size);
    changed = inputs;
    changed.key = With(inputs.key, bad);
    nan = Attend(changed, DensePlan(70, 90), GetParam()).isnan()[0];
    EXPECT_TRUE(nan.select(1, 1).all().item<bool>());
    EXPECT_FALSE(nan.select(1, 0).any().item<bool>());
  }
}

INSTANTIATE_TEST_SUITE_P(EveryIsa, BlockSparse, ::testing::ValuesIn(Variants(/*int8=*/false)),
                         [](const auto& info) { return VariantName(info.param); });
INSTANTIATE_TEST_SUITE_P(EveryIsa, Int8Scores, ::testing::ValuesIn(Variants(/*int8=*/true)),
                         [](const auto& info) { return VariantName(info.param); });

// The promise of kernels/block_sparse.h: what has no products of bfloat16 has one set of bits.
void ExpectSameBits(const std::vector<Isa>& isas) {
  for (Element element : {Element::kFloat32, Element::kBFloat16}) {
    const Shape shape{2, 130, 513, 3, 72};
    const AttentionInputs inputs = Draw(shape, element);
    const BlockPlan plan = RandomPlan(shape, 6, true);
    const at::Tensor floor = Attend(inputs, plan, {isas.front(), element});
    for (Isa isa : isas) {
      if (!HasIsa(isa, QueryCpu())) continue;
      EXPECT_TRUE(SameBits(Attend(inputs, plan, {isa, element}), floor)) << IsaName(isa);
    }
  }
}

TEST(BlockSparseBits, AreTheSameOnAvx2AndAvx512) { ExpectSameBits({Isa::kAvx2, Isa::kAvx512}); }

TEST(BlockSparseBits, OfInt8ScoresAreTheSameUpToVnni) {
  ExpectSameBits({Isa::kAvx2Int8, Isa::kAvx512Int8, Isa::kVnniInt8});
}

TEST(BestIsa, IsTheWidestThatTheCpuHas) {
  DeviceInfo cpu;
  cpu.avx2 = true;
  EXPECT_EQ(BestIsa(Element::kBFloat16, cpu), Isa::kAvx2);
  EXPECT_EQ(Int8Isa(cpu), Isa::kAvx2Int8);
  cpu.avx512 = true;
  EXPECT_EQ(BestIsa(Element::kBFloat16, cpu), Isa::kAvx512);
  EXPECT_EQ(Int8Isa(cpu), Isa::kAvx512Int8);
  cpu.avx512_vnni = true;
  EXPECT_EQ(BestIsa(Element::kBFloat16, cpu), Isa::kAvx512);
  EXPECT_EQ(Int8Isa(cpu), Isa::kVnniInt8);
  cpu.avx512_bf16 = true;
  EXPECT_EQ(BestIsa(Element::kBFloat16, cpu), Isa::kAvx512Bf16);
  EXPECT_EQ(BestIsa(Element::kFloat32, cpu), Isa::kAvx512);
  EXPECT_EQ(Int8Isa(cpu), Isa::kVnniBf16Int8);
  cpu.amx_bf16 = cpu.amx_int8 = true;
  EXPECT_EQ(BestIsa(Element::kBFloat16, cpu), Isa::kAmxBf16);
  EXPECT_EQ(BestIsa(Element::kFloat32, cpu), Isa::kAvx512);
  EXPECT_EQ(Int8Isa(cpu), Isa::kAmxInt8);
}

}  // namespace
}  // namespace denoised::kernels
