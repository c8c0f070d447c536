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
      want = table.unsqueeze(1) + time;
      want.select(2, 0).add_(1);
      EXPECT_TRUE(at::equal(Modulation(table, time, {0}), want));
    }
  }
}

TEST(ModulationTest, KeepsTheSignsOfZeros) {
  const at::Tensor zeros = at::full({1, 2, 12}, -0.0);
  EXPECT_TRUE(Modulation(zeros, zeros.unsqueeze(0), {1}).select(2, 0).signbit().all().item<bool>());
}

TEST(SiluTest, IsThatOfEveryNumberWhateverTheWidth) {
  for (const int64_t width : {1, 60, 1536}) {
    const at::Tensor x = at::randn({3, width}) * 5;
    EXPECT_TRUE(at::allclose(Silu(x), at::silu(x), 2e-6, 0)) << width;
    const at::Tensor half = x.to(at::kBFloat16);
    EXPECT_TRUE(at::allclose(Silu(half), at::silu(half), 0x1p-7, 0)) << width;
  }
  EXPECT_TRUE(Silu(at::full({2, 3}, NAN)).isnan().all().item<bool>());
}

TEST(NormRowsTest, OfSomeRowsAreTheOnesOfAllAndTouchNoOthers) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const RopeTables rope = RopeCache(20, 16, at::kCPU).Get({2, 3, 4});
    const at::Tensor x = at::randn({3, 24, 60}).to(dtype), gain = at::randn({60}).to(dtype);
    const at::Tensor normed = NormRms(x, gain, 1e-6);
    const at::Tensor rotated = Rotate(normed.view({3, 24, 3, 20}), rope.cos, rope.sin);
    const auto in_the_middle = [&](const at::Tensor& of) {
      const at::Tensor before = x.view({72, 60});
      return at::cat(
          {before.narrow(0, 0, 20), of.view({72, 60}).narrow(0, 20, 30), before.narrow(0, 50, 22)});
    };
    at::Tensor some = x.clone();
    NormRmsRows(some, gain, 1e-6, 20, 30);
    EXPECT_TRUE(at::equal(some.view({72, 60}), in_the_middle(normed)));
    some = x.clone();
    NormRmsRotateRows(some, gain, 1e-6, rope, 3, 20, 30);
    EXPECT_TRUE(at::equal(some.view({72, 60}), in_the_middle(rotated)));
  }
}

// By batch row, by token and by index; whole, and from the middle of a batch row on into the next.
TEST(NormModulateTest, MakesAnyRowsOfTheWhole) {
  const int64_t batch = 3, tokens = 400, width = 60;
  const at::Tensor x = at::randn({batch, tokens, width});
  const at::Tensor norm = at::layer_norm(x, {width}, {}, {}, 1e-6);
  const at::Tensor index = at::randint(0, 5, {batch, tokens}, at::kInt);
  for (const int64_t kind : {0, 1, 2}) {
    const std::vector<int64_t> shape = {kind == 2 ? 5 : batch, kind == 1 ? tokens : 1, width};
    const at::Tensor scale = at::randn(shape), shift = at::randn(shape);
    const auto each = [&](const at::Tensor& of) {
      return kind == 2 ? of.squeeze(1).index_select(0, index.view(-1)).view(x.sizes()) : of;
    };
    const LinearInput made =
        NormModulate(x, scale, shift, 1e-6, at::kFloat, kind == 2 ? index : at::Tensor());
    const at::Tensor whole = made.Whole();
    EXPECT_TRUE(at::allclose(whole, norm * each(scale) + each(shift), 1e-5, 1e-5)) << kind;
    const at::Tensor some = at::empty({250, width});
    (*made.rows())(300, 250, some.mutable_data_ptr());
    EXPECT_TRUE(at::equal(some, whole.view({-1, width}).narrow(0, 300, 250))) << kind;
  }
}

TEST(NormModulateTest, ARowHasItsBitsWhicheverAreMadeWithIt) {
  const int64_t rows = 23;
  for (const int64_t width : {1, 5, 8, 27, 60, 1536}) {
    const at::Tensor x = at::randn({1, rows, width}), scale = at::randn({1, 1, width});
    const at::Tensor shift = at::randn({1, 1, width});
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      const LinearInput made = NormModulate(x, scale, shift, 1e-6, dtype);
      const auto of = [&](int64_t first, int64_t count) {
        const at::Tensor some = at::empty({count, width}, dtype);
        (*made.rows())(first, count, some.mutable_data_ptr());
        return some;
      };
      std::vector<at::Tensor> alone;
      for (int64_t row = 0; row < rows; ++row) alone.push_back(of(row, 1));
      const at::Tensor wanted = at::cat(alone);
      for (const int64_t first : {0, 1, 2, 3}) {
        for (const int64_t count : {2, 3, 4, 5, 12, 19}) {
          EXPECT_TRUE(at::equal(of(first, count), wanted.narrow(0, first, count)))
              << width << " " << dtype << ": " << first << " + " << count;
        }
      }
    }
  }
}

}  // namespace
}  // namespace denoised
