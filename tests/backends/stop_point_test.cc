// Stop points: scopes, shared work, and that every backend has some.
#include "backends/stop_point.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <memory>
#include <string>
#include <thread>

#include "backends/attention_backend.h"
#include "backends/intra_op.h"
#include "backends/registry.h"

namespace denoised {
namespace {

Error Stopped(const std::string& name) { return Error(StatusCode::kCancelled, name); }

std::string WhatStops() {
  const auto why = WhyStop();
  return why ? why->what() : "";
}

TEST(StopPoint, WithoutACheckWorkGoesOn) {
  EXPECT_FALSE(WhyStop());
  EXPECT_NO_THROW(StopPoint());
}

TEST(StopPoint, TheInnermostScopeAnswersAndTheOuterOneComesBack) {
  const ScopedStopCheck outer([] { return std::optional(Stopped("outer")); });
  EXPECT_EQ(WhatStops(), "outer");
  {
    const ScopedStopCheck inner([] { return std::optional<Error>(); });
    EXPECT_EQ(WhatStops(), "");
  }
  EXPECT_EQ(WhatStops(), "outer");
  EXPECT_THROW(StopPoint(), Error);
}

TEST(StopPoint, AScopeIsItsOwnThreads) {
  const ScopedStopCheck scope([] { return std::optional(Stopped("here")); });
  std::string elsewhere = "not asked";
  std::thread([&] { elsewhere = WhatStops(); }).join();
  EXPECT_EQ(elsewhere, "");
}

TEST(SharedStop, HelpersLeaveWhenTheCallersCheckSaysSo) {
  SharedStop stop;
  const auto on_helper = [&] {
    bool asked = false;
    std::thread([&] { asked = stop.Asked(); }).join();
    return asked;
  };
  bool stops = false;
  const ScopedStopCheck scope([&] { return stops ? std::optional(Stopped("x")) : std::nullopt; });
  EXPECT_FALSE(stop.Asked() || on_helper());
  EXPECT_NO_THROW(stop.ThrowIfAsked());
  stops = true;
  EXPECT_FALSE(on_helper()) << "a helper has no check of its own";
  EXPECT_TRUE(stop.Asked() && on_helper());
  stops = false;
  EXPECT_TRUE(stop.Asked()) << "work that was left stays left";
  EXPECT_THROW(stop.ThrowIfAsked(), Error);
}

// ---- backends ----------------------------------------------------------------------------------

constexpr std::array<int64_t, 3> kGrid = {4, 16, 16};

AttentionSpec Spec() {
  AttentionSpec spec;
  spec.num_heads = 2;
  spec.head_size = 32;
  spec.q_len = spec.kv_len = kGrid[0] * kGrid[1] * kGrid[2];
  spec.grid = kGrid;
  spec.supported = AllAttnBackends();
  return spec;
}

AttentionInputs Inputs(const AttentionSpec& spec) {
  const auto random = [&] {
    return at::randn({1, spec.q_len, spec.num_heads, spec.head_size}, at::kFloat);
  };
  AttentionInputs inputs{random(), random(), random(), {}, {}};
  inputs.scale = 1.0 / std::sqrt(static_cast<double>(spec.head_size));
  return inputs;
}

// Stop points of one call; the `last` of them stops it.
int64_t Ask(const AttentionBackend& backend, const AttentionSpec& spec, int64_t last) {
  std::shared_ptr<const AttentionMetadata> metadata;
  if (const auto builder = backend.MakeBuilder()) metadata = builder->Build({0, 1, spec, ""});
  int64_t asked = 0;
  const ScopedStopCheck scope(
      [&] { return ++asked >= last ? std::optional(Stopped("stopped")) : std::nullopt; });
  backend.Forward(Inputs(spec), metadata.get());
  return asked;
}

TEST(StopPoint, EveryBackendCanBeLeftInsideOneCall) {
  SetIntraOpThreads(1);  // else a helper may take every piece before the caller comes to one
  const AttentionSpec spec = Spec();
  int served = 0;
  for (const BackendRegistry::Entry& entry : BackendRegistry::Default().entries()) {
    if (BackendRegistry::Default().WhyNot(entry.id, spec, QueryCpu())) continue;
    if (entry.id == AttnBackend::kTorchSdpa) continue;  // only long calls, below
    SCOPED_TRACE(AttnBackendName(entry.id));
    ++served;
    const int64_t points = Ask(*entry.backend, spec, INT64_MAX);
    EXPECT_GE(points, 2);
    EXPECT_THROW(Ask(*entry.backend, spec, 1), Error);
    EXPECT_THROW(Ask(*entry.backend, spec, 2), Error);
  }
  EXPECT_GE(served, 8);
}

// Whichever point it is that stops it, the caller's or one that its helper takes first.
TEST(StopPoint, ACallOnTwoThreadsCanBeLeftAnywhereAndTheNextIsWhole) {
  SetIntraOpThreads(2);
  const AttentionSpec spec = Spec();
  const AttentionBackend& flash =
      *BackendRegistry::Default().Find(AttnBackend::kFlashAttn)->backend;
  const AttentionInputs inputs = Inputs(spec);
  const at::Tensor wanted = flash.Forward(inputs, nullptr);
  int left = 0;
  for (int64_t last = 1; last <= 60; ++last) {
    try {
      Ask(flash, spec, last);
    } catch (const Error&) {
      ++left;
    }
    EXPECT_TRUE(at::equal(flash.Forward(inputs, nullptr), wanted)) << last;
  }
  EXPECT_GE(left, 1);
}

TEST(StopPoint, ALongCallOfLibTorchGoesHeadByHeadWithTheSameBits) {
  AttentionSpec spec = Spec();
  spec.num_heads = 4;
  spec.head_size = 64;
  spec.q_len = spec.kv_len = 2100;
  spec.grid = {0, 0, 0};
  const AttentionBackend& sdpa = *BackendRegistry::Default().Find(AttnBackend::kTorchSdpa)->backend;
  EXPECT_EQ(Ask(sdpa, spec, INT64_MAX), spec.num_heads);
  EXPECT_THROW(Ask(sdpa, spec, 3), Error);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    AttentionInputs inputs = Inputs(spec);
    for (at::Tensor* tensor : {&inputs.query, &inputs.key, &inputs.value}) {
      *tensor = tensor->to(dtype);
    }
    const auto heads_first = [](const at::Tensor& x) { return x.permute({0, 2, 1, 3}); };
    const at::Tensor whole = at::scaled_dot_product_attention(
        heads_first(inputs.query), heads_first(inputs.key), heads_first(inputs.value));
    EXPECT_TRUE(at::equal(sdpa.Forward(inputs, nullptr), heads_first(whole))) << dtype;
  }
}

}  // namespace
}  // namespace denoised
