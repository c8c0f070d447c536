// Wishes by place: laid out over layers, and how long they stay. Against a layer by layer, step by
// step oracle.
#include "runtime/attention/place_wishes.h"

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <vector>

namespace denoised {
namespace {

constexpr AttnBackend kBackends[] = {AttnBackend::kReference, AttnBackend::kTorchSdpa,
                                     AttnBackend::kFlashAttn};

ScopedWish Forced(PlaceScope where, AttnBackend backend) {
  return {where, {SelectionSource::kForce, backend, "", "lease"}};
}

// What the header promises, said for one layer at a time.
std::vector<AttnBackend> Oracle(const std::vector<ScopedWish>& wishes, const Place& place) {
  std::vector<AttnBackend> backends;
  std::set<SelectionSource> ruled;
  for (const ScopedWish& scoped : wishes) {
    if (!scoped.where.Holds(place)) continue;
    if (scoped.wish.rule && !ruled.insert(scoped.wish.source).second) continue;
    backends.push_back(scoped.wish.backend);
  }
  return backends;
}

std::vector<AttnBackend> BackendsOf(const std::vector<Wish>& wishes) {
  std::vector<AttnBackend> backends;
  for (const Wish& wish : wishes) backends.push_back(wish.backend);
  return backends;
}

const LayerWishes& At(const RoleWishes& wishes, int64_t layer) {
  for (const LayerWishes& here : wishes.by_layers) {
    if (here.layers.Has(layer)) return here;
  }
  throw std::out_of_range("no layer " + std::to_string(layer));
}

class Wild {
 public:
  explicit Wild(uint64_t seed) : random_(seed) {}

  std::vector<ScopedWish> Wishes() {
    std::vector<ScopedWish> wishes;
    const size_t count = Below(8);
    for (size_t i = 0; i < count; ++i) wishes.push_back(Forced(Where(), Backend()));
    const size_t rules = Below(4);
    for (size_t i = 0; i < rules; ++i) {
      Wish wish{SelectionSource::kRequest, Backend(), "", ""};
      wish.rule = static_cast<int>(i);
      wishes.push_back({Where(), wish});
    }
    wishes.push_back({{}, {SelectionSource::kModelDefault, Backend(), "", ""}});
    return wishes;
  }
  size_t Below(size_t n) { return random_() % n; }
  Interval Within(int64_t n) {
    const auto first = static_cast<int64_t>(Below(static_cast<size_t>(n)));
    return {first, first + static_cast<int64_t>(Below(static_cast<size_t>(n)))};
  }

 private:
  AttnBackend Backend() { return kBackends[Below(3)]; }
  PlaceScope Where() {
    PlaceScope where;
    if (Below(3) == 0) where.role = Below(2) ? AttentionRole::kSelf : AttentionRole::kCross;
    if (Below(2) == 0) where.layers = Within(9);
    if (Below(2) == 0) where.steps = Within(12);
    if (Below(3) == 0) {
      const double low = static_cast<double>(Below(10)) / 10;
      where.sigma = SigmaRange{low, low + static_cast<double>(Below(5)) / 10};
    }
    return where;
  }

  std::mt19937_64 random_;
};

TEST(PlaceWishes, EveryLayerHasWhatHoldsThere) {
  Wild wild(1);
  for (int round = 0; round < 2000; ++round) {
    const auto wishes = wild.Wishes();
    const auto layers = static_cast<int64_t>(1 + wild.Below(9));
    const StepPlace place{static_cast<int64_t>(wild.Below(12)),
                          static_cast<double>(wild.Below(11)) / 10};
    const AttentionRole role = wild.Below(2) ? AttentionRole::kSelf : AttentionRole::kCross;
    const RoleWishes at = WishesAt(wishes, role, layers, place);
    int64_t next = 0;
    for (const LayerWishes& here : at.by_layers) {
      EXPECT_EQ(here.layers.first, next) << "no gap, no overlap";
      next = here.layers.last + 1;
    }
    EXPECT_EQ(next, layers);
    for (int64_t layer = 0; layer < layers; ++layer) {
      EXPECT_EQ(BackendsOf(At(at, layer).wishes),
                Oracle(wishes, {role, layer, place.step, place.sigma}));
    }
  }
}

TEST(PlaceWishes, NeighboursThatWishAlikeAreOne) {
  const RoleWishes at = WishesAt({Forced({.layers = Interval{0, 2}}, AttnBackend::kReference),
                                  Forced({.layers = Interval{3, 7}}, AttnBackend::kReference)},
                                 AttentionRole::kSelf, 8, {0, 1.0});
  ASSERT_EQ(at.by_layers.size(), 1u);
  EXPECT_EQ(at.by_layers[0].layers, (Interval{0, 7}));
}

// Every step and noise level that it says is the same.
TEST(PlaceWishes, WhatIsSaidToStayStays) {
  Wild wild(2);
  for (int round = 0; round < 500; ++round) {
    const auto wishes = wild.Wishes();
    const StepPlace place{static_cast<int64_t>(wild.Below(12)),
                          static_cast<double>(wild.Below(101)) / 100};
    const RoleWishes at = WishesAt(wishes, AttentionRole::kSelf, 9, place);
    EXPECT_TRUE(at.HoldsAt(place));
    for (int64_t step = 0; step < 26; ++step) {
      for (int i = 0; i <= 100; ++i) {
        const StepPlace other{step, static_cast<double>(i) / 100};
        if (!at.HoldsAt(other)) continue;
        ASSERT_EQ(WishesAt(wishes, AttentionRole::kSelf, 9, other).by_layers, at.by_layers)
            << "step " << step << ", sigma " << i;
      }
    }
  }
}

TEST(PlaceWishes, WithoutScopesNothingEverChanges) {
  const RoleWishes at =
      WishesAt({Forced({}, AttnBackend::kReference)}, AttentionRole::kSelf, 4, {3, 0.5});
  EXPECT_TRUE(at.HoldsAt({0, 1.0}));
  EXPECT_TRUE(at.HoldsAt({1'000'000, 0.0}));
}

}  // namespace
}  // namespace denoised
