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

// [heads][query][key]: what the plan lets through, entry by entry.
at::Tensor PairsOfPlan(const BlockPlan& plan, int64_t heads, int64_t q_len, int64_t kv_len) {
  at::Tensor pairs = at::zeros({heads, q_len, kv_len}, at::kBool);
  auto cell = pairs.accessor<bool, 3>();
  const int64_t blocks = static_cast<int64_t>(plan.query_blocks.size());
  const auto token = [](const std::vector<int32_t>& order, int64_t position) {
    return order.empty() ? position : order[position];
  };
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t row = plan.lists == 0 ? 0 : head % plan.lists * blocks + block;
      const int64_t begin = plan.lists == 0 ? 0 : plan.row_begin[row];
      const int64_t end =
          plan.lists == 0 ? static_cast<int64_t>(plan.key_blocks.size()) : plan.row_begin[row + 1];
      for (int64_t entry = begin; entry < end; ++entry) {
        const kernels::Span queries = plan.query_blocks[block];
        const kernels::Span keys = plan.key_blocks[plan.lists == 0 ? entry : plan.columns[entry]];
        for (int64_t q = 0; q < queries.length; ++q) {
          if (!plan.row_masks.empty() && ((plan.row_masks[entry] >> q) & 1) == 0) continue;
          for (int64_t k = 0; k < keys.length; ++k) {
            cell[head][token(plan.query_order, queries.first + q)]
                [token(plan.key_order, keys.first + k)] = true;
          }
        }
      }
    }
  }
  return pairs;
}

void ExpectSamePairs(const BlockPlan& plan, int64_t heads, int64_t q_len, int64_t kv_len) {
  const Copied copied(plan);
  EXPECT_TRUE(at::equal(PairsOfWalk(copied.view(), heads, q_len, kv_len),
                        PairsOfPlan(plan, heads, q_len, kv_len)));
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
  PlanBuilder builder(tiles, tiles, 2);
  for (int32_t head = 0; head < 2; ++head) {
    for (int32_t tile = 0; tile < tiles.blocks(); ++tile) {
      builder.AddRow(tile,
                     tile <= head ? std::vector<int32_t>{head} : std::vector<int32_t>{head, tile});
    }
  }
  ExpectSamePairs(builder.Take(), 2, 297, 297);
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
