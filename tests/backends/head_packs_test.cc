// Heads that several threads ask for at once are packed as by one.
#include "backends/kernels/head_packs.h"

#include <gtest/gtest.h>

#include <latch>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "backends/kernels/variants.h"

namespace denoised::kernels {
namespace {

// So many keys of so wide heads that two fit a turn, of three.
constexpr int64_t kHeads = 3, kKeys = 2044, kHeadSize = 512;

struct Numbers {
  Numbers() : keys(kHeads * kKeys * kHeadSize), values(keys.size()) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    for (float& x : keys) x = normal(random);
    for (float& x : values) x = normal(random);
    // Of the last head alone, the first of the second turn.
    values[700 * kHeads * kHeadSize + 2 * kHeadSize + 5] = std::numeric_limits<float>::infinity();
    const auto view = [](const std::vector<float>& of) {
      return View{of.data(), 0, kHeads * kHeadSize, kHeadSize};
    };
    call.batch = 1;
    call.heads = kHeads;
    call.head_size = kHeadSize;
    call.kv_len = kKeys;
    call.key = view(keys);
    call.value = view(values);
  }
  std::vector<float> keys, values;
  BlockSparseCall call;
};

struct Packed {
  std::vector<uint32_t> units;   // of keys and values
  std::vector<float> key_scale;  // int8
  std::vector<bool> odd;         // [block]
  bool operator==(const Packed&) const = default;
};

Packed CopyOf(HeadPacks& packs, int64_t slot) {
  const PackedHead head = packs.At(slot);
  const UnitFormat& format = packs.format();
  const int64_t keys = kKeys * format.score_units();
  const int64_t values = kKeys / format.keys_per_unit() * format.padded_size();
  Packed packed;
  packed.units.assign(head.keys, head.keys + keys);
  packed.units.insert(packed.units.end(), head.values, head.values + values);
  if (format.int8()) packed.key_scale.assign(head.key_scale, head.key_scale + kKeys);
  for (size_t block = 0; block < packs.key_blocks().size(); ++block) {
    packed.odd.push_back(packs.IsOdd(slot, static_cast<int64_t>(block)));
  }
  return packed;
}

// What each of so many threads sees of each head, all of them asking at once.
std::vector<std::vector<Packed>> SeenBy(int threads, const Numbers& numbers, Isa isa) {
  const std::vector<int32_t> order;
  const std::vector<Span> blocks = CutEvenly(kKeys);
  HeadPacks packs(numbers.call, order, blocks, FormatOf(VariantOf(isa), numbers.call));
  std::vector<std::vector<Packed>> seen(threads);
  packs.ForEachTurn(RunHere, [&](int64_t, int64_t heads) {
    std::latch all(threads);
    std::vector<std::jthread> asking;
    for (std::vector<Packed>& of_one : seen) {
      asking.emplace_back([&] {
        all.arrive_and_wait();
        for (int64_t slot = 0; slot < heads; ++slot) of_one.push_back(CopyOf(packs, slot));
      });
    }
  });
  return seen;
}

TEST(HeadPacks, ThreadsThatAskAtOnceSeeWhatOneAloneSees) {
  const Numbers numbers;
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx2Int8}) {
    const std::vector<Packed> alone = SeenBy(1, numbers, isa).front();
    ASSERT_EQ(alone.size(), kHeads);
    EXPECT_TRUE(alone[2].odd[700 / kBlock]);
    EXPECT_EQ(alone[0].odd, std::vector<bool>(alone[0].odd.size(), false));
    EXPECT_EQ(alone[1].odd, alone[0].odd);
    for (const std::vector<Packed>& of_one : SeenBy(6, numbers, isa)) {
      EXPECT_TRUE(of_one == alone) << IsaName(isa);
    }
  }
}

}  // namespace
}  // namespace denoised::kernels
