// What the CUDA kernels read, walked on the host as they walk it, against the plan it was made
// from.
#include "backends/kernels/flat_plan.h"

#include <gtest/gtest.h>

#include <cstring>

#include "backends/sparse_backend.h"

namespace denoised {
namespace {

using kernels::BlockPlan;
using kernels::FlatPlan;
using kernels::FlatPlanView;
using kernels::kBlock;

// As a device holds it: copied elsewhere, at an aligned address.
class Copied {
 public:
  explicit Copied(const BlockPlan& plan) : flat_(FlatPlan::Flatten(plan)) {
    memory_.resize(flat_.bytes().size() / sizeof(Aligned) + 1);
    std::memcpy(memory_.data(), flat_.bytes().data(), flat_.bytes().size());
  }
  FlatPlanView view() const { return flat_.ViewAt(memory_.data()); }

 private:
  struct alignas(16) Aligned {
    std::byte bytes[16];
  };
  FlatPlan flat_;
  std::vector<Aligned> memory_;
};

// The walk of one thread block: every key block of its list, every query of its block.
void Walk(const FlatPlanView& plan, int64_t head, int64_t query_block,
          at::TensorAccessor<bool, 2> pairs) {
  int64_t begin = 0, count = plan.key_blocks;
  if (plan.lists > 0) {
    const int64_t* row = plan.row_begin + head % plan.lists * plan.query_blocks + query_block;
    begin = row[0];
    count = row[1] - row[0];
  }
  for (int64_t entry = 0; entry < count; ++entry) {
    const int64_t block = plan.lists > 0 ? plan.columns[begin + entry] : entry;
    const uint64_t rows = plan.row_masks != nullptr ? plan.row_masks[begin + entry] : ~uint64_t{0};
    for (int q = 0; q < kBlock; ++q) {
      const int32_t query = plan.query_tokens[query_block * kBlock + q];
      if (query < 0 || ((rows >> q) & 1) == 0) continue;
      for (int k = 0; k < plan.key_lengths[block]; ++k) {
        pairs[query][plan.key_tokens[block * kBlock + k]] = true;
      }
    }
  }
}

at::Tensor PairsOfWalk(const FlatPlanView& plan, int64_t heads, int64_t q_len, int64_t kv_len) {
  const at::Tensor pairs = at::zeros({heads, q_len, kv_len}, at::kBool);
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t block = 0; block < plan.query_blocks; ++block) {
      Walk(plan, head, block, pairs.accessor<bool, 3>()[head]);
    }
  }
  return pairs;
}

void ExpectSamePairs(const BlockPlan& plan, int64_t heads, int64_t q_len, int64_t kv_len) {
  const Copied copied(plan);
  const at::Tensor want =
      PairsOfPlan(plan, 1, heads, q_len, kv_len).expand({1, heads, q_len, kv_len}).squeeze(0);
  EXPECT_TRUE(at::equal(PairsOfWalk(copied.view(), heads, q_len, kv_len), want));
}

TEST(FlatPlan, DenseWithRaggedEnds) {
  ExpectSamePairs(kernels::DensePlan(150, 70), 2, 150, 70);
  ExpectSamePairs(kernels::DensePlan(1, 1), 1, 1, 1);
}

TEST(FlatPlan, OneListForAllHeads) {
  ExpectSamePairs(kernels::DensePlan(200, 200, /*causal=*/true), 3, 200, 200);
}

TEST(FlatPlan, TilesInAnOrderOfTheirOwnAndAListAHead) {
  const Partition tiles = TileGrid({3, 9, 11}, {2, 4, 5});
  ExpectSamePairs(PlanPerHead(tiles, tiles, 2,
                              [&](int64_t head) {
                                std::vector<std::vector<int32_t>> rows;
                                for (int32_t tile = 0; tile < tiles.blocks(); ++tile) {
                                  rows.push_back({static_cast<int32_t>(head), tile});
                                  if (tile <= head) rows.back().pop_back();
                                }
                                return rows;
                              }),
                  2, 297, 297);
}

TEST(FlatPlan, RowMasksAndAnEmptyList) {
  const Partition runs = RunsOf(130, kBlock);
  PlanBuilder builder(runs, runs, 1);
  builder.AddRow(0, {0, 2}, {0x5, ~uint64_t{0}});
  builder.AddRow(1, {1}, {uint64_t{1} << 63});
  builder.AddRow(2, {}, {});
  ExpectSamePairs(builder.Take(), 1, 130, 130);
}

TEST(FlatPlan, ArraysStartAtAlignedAddressesAndSlotsPastAnEndAreMarked) {
  const Copied copied(kernels::DensePlan(65, 3, /*causal=*/true));
  const FlatPlanView view = copied.view();
  for (const void* array :
       {static_cast<const void*>(view.query_tokens), static_cast<const void*>(view.key_tokens),
        static_cast<const void*>(view.key_lengths), static_cast<const void*>(view.row_begin),
        static_cast<const void*>(view.columns)}) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(array) % 16, 0u);
  }
  EXPECT_EQ(view.row_masks, nullptr);
  EXPECT_EQ(view.query_tokens[kBlock], 64);
  EXPECT_EQ(view.query_tokens[kBlock + 1], -1);
  EXPECT_EQ(view.key_tokens[2], 2);
  EXPECT_EQ(view.key_tokens[3], -1);
}

}  // namespace
}  // namespace denoised
