// The copies and sums that lead a transformer's rows from latents to latents, against the chains of
// ATen ops that they stand for.
#include <gtest/gtest.h>

#include "runtime/models/fused.h"
#include "runtime/models/patches.h"
#include "runtime/models/row_kernels.h"

namespace denoised {
namespace {

struct Cut {
  int64_t batch, channels;
  std::array<int64_t, 3> grid, patch;
};

const Cut kCuts[] = {{1, 16, {2, 6, 8}, {1, 2, 2}},
                     {3, 5, {1, 3, 1}, {1, 1, 1}},
                     {2, 3, {3, 2, 5}, {2, 1, 3}},
                     {1, 48, {5, 22, 40}, {1, 2, 2}}};

at::Tensor LatentsOf(const Cut& c, at::ScalarType dtype) {
  return at::randn({c.batch, c.channels, c.grid[0] * c.patch[0], c.grid[1] * c.patch[1],
                    c.grid[2] * c.patch[2]})
      .to(dtype);
}

// [B, T, H, W, C, pt, ph, pw].
at::Tensor Apart(const Cut& c, const at::Tensor& x) {
  return x
      .view({c.batch, c.channels, c.grid[0], c.patch[0], c.grid[1], c.patch[1], c.grid[2],
             c.patch[2]})
      .permute({0, 2, 4, 6, 1, 3, 5, 7});
}

TEST(PatchesTest, AreCopiesOfWhatEachTokenCovers) {
  for (const Cut& c : kCuts) {
    for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat, at::kDouble}) {
      const at::Tensor x = LatentsOf(c, dtype);
      const int64_t tokens = c.grid[0] * c.grid[1] * c.grid[2];
      const at::Tensor want = Apart(c, x).reshape({c.batch, tokens, -1});
      // Into the middle of a larger batch.
      const at::Tensor all = at::zeros({c.batch + 2, tokens, want.size(2)}, x.options());
      TokensFromLatents(x, c.patch, all.narrow(0, 1, c.batch));
      EXPECT_TRUE(at::equal(all.narrow(0, 1, c.batch), want));
      EXPECT_EQ(
          all[0].count_nonzero().item<int64_t>() + all[c.batch + 1].count_nonzero().item<int64_t>(),
          0);
      const at::Tensor innermost =
          Apart(c, x).permute({0, 1, 2, 3, 5, 6, 7, 4}).reshape({c.batch, tokens, -1});
      EXPECT_TRUE(at::equal(LatentsFromTokens(innermost, c.grid, c.patch), x));
    }
  }
}

TEST(ModulationTest, IsTableAndTimeAndOneMoreInScales) {
  for (const int64_t width : {4, 60, 1536}) {
    for (const int64_t times : {1, 5}) {
      const at::Tensor table = at::randn({1, 6, width});
      at::Tensor time = at::randn({times, 1, 6, width});
      at::Tensor want = table.unsqueeze(1) + time;
      want.select(2, 1).add_(1);
      want.select(2, 4).add_(1);
      EXPECT_TRUE(at::equal(Modulation(table, time, {1, 4}), want));
      time = at::randn({times, 1, 1, width}).to(at::kBFloat16);
      EXPECT_TRUE(at::equal(Modulation(table, time, {}), table.unsqueeze(1) + time));
    }
  }
}

TEST(NormRmsRotateTest, TakesQueriesAndKeysAtOnceWithTheBitsThatTheyHaveAlone) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const RopeTables rope = RopeCache(20, 16, at::kCPU).Get({2, 3, 4});
    const auto draw = [&] { return at::randn({3, 24, 60}).to(dtype); };
    const at::Tensor q = draw(), k = draw();
    const at::Tensor gain_q = at::randn({60}).to(dtype), gain_k = at::randn({60}).to(dtype);
    const auto both = NormRmsRotate({{q, gain_q}, {k, gain_k}}, 1e-6, rope, 3);
    const auto alone = [&](const at::Tensor& x, const at::Tensor& gain) {
      return Rotate(NormRms(x, gain, 1e-6).view({3, 24, 3, 20}), rope.cos, rope.sin);
    };
    EXPECT_TRUE(at::equal(both[0], alone(q, gain_q)));
    EXPECT_TRUE(at::equal(both[1], alone(k, gain_k)));
    // A few rows, in place, and no others.
    const at::Tensor some = q.clone();
    NormRmsRotateRows(some, gain_q, 1e-6, rope, 3, 20, 30);
    const at::Tensor flat = both[0].view({72, 60}), before = q.view({72, 60});
    EXPECT_TRUE(at::equal(
        some.view({72, 60}),
        at::cat({before.narrow(0, 0, 20), flat.narrow(0, 20, 30), before.narrow(0, 50, 22)})));
  }
}

}  // namespace
}  // namespace denoised
