// A forward of many row sets: each row has the bits that it has alone, whatever the others are.
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <array>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backends/intra_op.h"
#include "backends/stop_point.h"
#include "runtime/attention/call_guard.h"
#include "runtime/attention/forward_context.h"
#include "runtime/attention/shadows.h"
#include "runtime/models/wan_transformer.h"
#include "tests/runtime/random_transformer.h"

namespace denoised {
namespace {

using Axes = std::array<int64_t, 3>;

struct Backend {
  AttnBackend id;
  std::string parameters;
};

// All that a CPU has for self-attention, some of them in two settings.
const std::vector<Backend>& Backends() {
  static const std::vector<Backend> backends = {
      {AttnBackend::kFlashAttn, ""},
      {AttnBackend::kSageAttn, ""},
      {AttnBackend::kReference, ""},
      {AttnBackend::kVideoSparseAttn, R"({"tile":[1,2,4],"sparsity":0.5})"},
      {AttnBackend::kVideoSparseAttn, R"({"tile":[1,2,4],"sparsity":0.5,"dense_layers":[0]})"},
      {AttnBackend::kSlidingTileAttn, R"({"tile":[1,2,4]})"},
      {AttnBackend::kVmobaAttn, ""},
      {AttnBackend::kSlaAttn, R"({"ratio":0.5})"},
      {AttnBackend::kNablaAttn, ""},
      {AttnBackend::kBsaAttn, ""}};
  return backends;
}

// One set with all that it points to.
struct Set {
  at::Tensor latents, timestep;
  TextContext text;
  AttentionPlan plan;
};

// Rows [first, first + count) of a set.
Set RowsOf(const Set& set, int64_t first, int64_t count) {
  Set rows = set;
  rows.latents = set.latents.narrow(0, first, count);
  rows.timestep = set.timestep.narrow(0, first, count);
  for (TextContext::KeyValue& block : rows.text.blocks) {
    for (at::Tensor* x : {&block.key, &block.value}) *x = x->narrow(0, first, count);
  }
  const std::vector<int64_t>& alike = set.text.alike_from;
  rows.text.alike_from.assign(alike.begin() + first, alike.begin() + first + count);
  return rows;
}

class RowSets : public testing::TestWithParam<std::tuple<at::ScalarType, LinearNumerics>> {
 protected:
  RowSets()
      : folder_(std::filesystem::temp_directory_path() / ("row_sets_" + std::to_string(getpid()))) {
  }
  ~RowSets() override { std::filesystem::remove_all(folder_); }

  // LibTorch's products: their bits depend on the number of threads.
  static bool exact() { return std::get<1>(GetParam()) == LinearNumerics::kExact; }

  void Load(const RandomShape& shape) {
    shape_ = shape;
    const auto [dtype, linear] = GetParam();
    const LinearNumerics kept = exact() ? linear : LinearNumerics::kPacked;
    model_ = WanTransformer::Load(ModelFolder(WriteRandomTransformer(folder_, shape, 5).string()),
                                  dtype, at::kCPU, kept);
  }

  // Of a set of latents of this size, random but for what it is told.
  Set Make(const Axes& size, const Backend& backend, int64_t rows, int64_t text_length,
           bool per_token) {
    const c10::InferenceMode inference;
    const ScopedLinearNumerics numerics(std::get<1>(GetParam()));
    const auto random = [&](std::vector<int64_t> shape) {
      return at::randn(shape, generator_, at::TensorOptions(at::kFloat));
    };
    Set set;
    set.latents = random({rows, shape_.channels, size[0], size[1], size[2]});
    const Axes grid = model_->TokenGrid(set.latents.sizes());
    const int64_t tokens = grid[0] * grid[1] * grid[2];
    // Few values, so that some are met again in this set and in others.
    const auto shape = per_token ? std::vector<int64_t>{rows, tokens} : std::vector<int64_t>{rows};
    set.timestep = at::randint(0, 4, shape, generator_, at::TensorOptions(at::kFloat)).mul_(249.75);
    at::Tensor embeds = random({rows, text_length, shape_.text});
    for (int64_t row = 0; row < rows; ++row) {  // a prompt of 1 to all tokens, and padding
      const int64_t real = 1 + static_cast<int64_t>(random_() % text_length);
      embeds[row].narrow(0, real, text_length - real).zero_();
    }
    set.text = model_->EncodeText(embeds);
    set.plan = PlanFor(*model_, grid, text_length, backend.id, backend.parameters);
    return set;
  }

  std::vector<at::Tensor> Forward(const std::vector<const Set*>& sets) {
    const c10::InferenceMode inference;
    const ScopedLinearNumerics numerics(std::get<1>(GetParam()));
    std::vector<RowSet> rows;
    for (const Set* set : sets)
      rows.push_back({set->latents, set->timestep, &set->text, &set->plan});
    const ScopedForwardContext scope(ForwardContext{});
    return model_->Forward(rows);
  }

  void ExpectBitsOfTheirOwn(const std::vector<Set>& sets) {
    std::vector<const Set*> all;
    for (const Set& set : sets) all.push_back(&set);
    std::vector<at::Tensor> first;
    for (const int threads : {1, 2}) {
      SetIntraOpThreads(threads);
      const std::vector<at::Tensor> together = Forward(all);
      ASSERT_EQ(together.size(), sets.size());
      if (first.empty() || exact()) first = together;
      for (size_t i = 0; i < sets.size(); ++i) {
        EXPECT_TRUE(at::equal(together[i], first[i])) << "set " << i << ", " << threads;
        EXPECT_TRUE(at::equal(Forward({all[i]}).front(), together[i]))
            << "set " << i << ", " << threads;
      }
    }
  }

  const std::filesystem::path folder_;
  RandomShape shape_;
  std::unique_ptr<WanTransformer> model_;
  at::Generator generator_ = at::detail::createCPUGenerator(3);
  std::mt19937 random_{7};
};

TEST_P(RowSets, OfAnyBackendsTextsAndTimestepsHaveTheBitsThatTheyHaveAlone) {
  for (const RandomShape& shape : {RandomShape{}, RandomShape{3, 64, 520}}) {
    Load(shape);
    for (const Axes& size : {Axes{6, 8, 8}, Axes{1, 10, 14}}) {  // 96 and 35 tokens
      std::vector<Set> sets;
      for (const Backend& backend : Backends()) {
        sets.push_back(Make(size, backend, 1 + random_() % 2, 1 + random_() % 40, false));
      }
      if (exact()) sets.push_back(Make(size, {AttnBackend::kTorchSdpa, ""}, 1, 7, false));
      std::shuffle(sets.begin(), sets.end(), random_);
      ExpectBitsOfTheirOwn(sets);
    }
  }
}

// As wide as the smallest Wan, whose feed-forward sums over 8,960 numbers: many pieces of K.
TEST_P(RowSets, OfAWideModelHaveTheirBitsAloneAndInBatchesOfTwoAndFour) {
  if (exact()) GTEST_SKIP() << "LibTorch's products have their own bits in a batch";
  Load({.heads = 12,
        .head_size = 128,
        .ffn = 8960,
        .layers = 1,
        .gated = false,
        .projection = false});
  const Set four = Make({1, 20, 26}, Backends()[0], 4, 12, false);  // 130 tokens a row
  const auto forward = [&](int64_t first, int64_t count) {
    const c10::InferenceMode inference;
    const Set rows = RowsOf(four, first, count);
    return Forward({&rows}).front();
  };
  SetIntraOpThreads(2);
  const at::Tensor wanted = Forward({&four}).front();
  for (const int threads : {1, 2}) {
    SetIntraOpThreads(threads);
    EXPECT_TRUE(at::equal(forward(0, 4), wanted)) << threads;
    EXPECT_TRUE(at::equal(forward(1, 2), wanted.narrow(0, 1, 2))) << threads;
    EXPECT_TRUE(at::equal(forward(3, 1), wanted.narrow(0, 3, 1))) << threads;
  }
}

TEST_P(RowSets, PaddingIsComputedOnceAndCountsInFull) {
  if (exact()) GTEST_SKIP() << "as diffusers, computes it as it comes";
  Load({});
  const c10::InferenceMode inference;
  const ScopedLinearNumerics numerics(std::get<1>(GetParam()));
  const Set all = Make({1, 8, 8}, Backends()[0], 3, 20, false);
  at::Tensor embeds = at::randn({3, 20, shape_.text}, generator_, at::TensorOptions(at::kFloat));
  const std::array<int64_t, 3> real = {5, 20, 11};
  for (int64_t row = 0; row < 3; ++row) embeds[row].narrow(0, real[row], 20 - real[row]).zero_();
  Set together = all;
  together.text = model_->EncodeText(embeds);
  EXPECT_EQ(together.text.alike_from, (std::vector<int64_t>{5, 19, 11}));

  // One more token that is no padding: all are computed.
  const TextContext longer =
      model_->EncodeText(at::cat({embeds, at::ones_like(embeds[0][0]).expand({3, 1, -1})}, 1));
  for (size_t i = 0; i < longer.blocks.size(); ++i) {
    EXPECT_TRUE(at::equal(longer.blocks[i].key.narrow(1, 0, 20), together.text.blocks[i].key));
    EXPECT_TRUE(at::equal(longer.blocks[i].value.narrow(1, 0, 20), together.text.blocks[i].value));
  }
  const at::Tensor got = Forward({&together}).front();
  for (int64_t row = 0; row < 3; ++row) {
    Set one = together;
    one.latents = all.latents.narrow(0, row, 1);
    one.timestep = all.timestep.narrow(0, row, 1);
    one.text = model_->EncodeText(embeds.narrow(0, row, 1));
    EXPECT_TRUE(at::equal(Forward({&one}).front(), got.narrow(0, row, 1))) << row;
    // Of it alone padding is one token, and stands in all its places for whoever reads them.
    for (size_t i = 0; i < one.text.blocks.size(); ++i) {
      const TextContext::KeyValue& of_all = together.text.blocks[i];
      EXPECT_TRUE(at::equal(one.text.blocks[i].key, of_all.key.narrow(0, row, 1))) << row;
      EXPECT_TRUE(at::equal(one.text.blocks[i].value, of_all.value.narrow(0, row, 1))) << row;
    }
  }
  Set untold = together;
  untold.text.alike_from.clear();
  const at::Tensor wanted = Forward({&untold}).front().to(at::kFloat);
  const bool rounds =
      std::get<0>(GetParam()) != at::kFloat || std::get<1>(GetParam()) == LinearNumerics::kInt8;
  const double tolerance = rounds ? 0.02 : 1e-5;
  EXPECT_LE((got.to(at::kFloat) - wanted).norm().item<double>(),
            tolerance * wanted.norm().item<double>());
}

TEST_P(RowSets, MayHaveATimestepForEachToken) {
  Load({});
  std::vector<Set> sets;
  for (int i = 0; i < 3; ++i) sets.push_back(Make({2, 8, 12}, Backends()[i], 1 + i % 2, 9, true));
  ExpectBitsOfTheirOwn(sets);
  if (exact()) return;
  // One value a row, said for every token, is the value of the row.
  Set row = Make({2, 8, 12}, Backends()[0], 2, 9, false);
  const at::Tensor wanted = Forward({&row}).front();
  row.timestep = row.timestep.unsqueeze(1).expand({2, 48}).contiguous();
  EXPECT_TRUE(at::equal(Forward({&row}).front(), wanted));
}

// Whole times, as a solver's int64 ones are: in any dtype, strided too, a set's beside others'.
TEST_P(RowSets, MayHaveTimestepsOfAnyDtype) {
  Load({});
  std::vector<Set> sets;
  for (int i = 0; i < 3; ++i) {
    sets.push_back(Make({2, 8, 12}, Backends()[i], 1 + i % 2, 9, false));
    sets[i].timestep = at::arange(250, 250 + 1 + i % 2, at::kFloat);
  }
  const std::vector<const Set*> all = {&sets[0], &sets[1], &sets[2]};
  const std::vector<at::Tensor> wanted = Forward(all);
  const at::Tensor times = sets[1].timestep;
  for (const at::ScalarType dtype : {at::kLong, at::kInt, at::kDouble, at::kBFloat16}) {
    const at::Tensor strided = at::zeros({2, 3}, dtype).select(1, 1).copy_(times);
    for (const at::Tensor& of : {times.to(dtype), strided}) {
      sets[1].timestep = of;
      const std::vector<at::Tensor> got = Forward(all);
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_TRUE(at::equal(got[i], wanted[i])) << dtype << ", set " << i;
      }
    }
  }
}

TEST_P(RowSets, ThatAgreeInBackendMetadataAndTallyShareTheCallsOfSelfAttention) {
  Load({});
  AttentionTally mine, other;
  std::vector<Set> sets;
  for (int i = 0; i < 5; ++i) sets.push_back(Make({1, 8, 8}, Backends()[3], 1, 9, false));
  const auto self = static_cast<size_t>(AttentionRole::kSelf);
  for (Set& set : sets) set.plan[self] = sets[0].plan[self];
  for (int i : {0, 1, 3}) sets[i].plan[self].slots[0].tally = &mine;
  for (int i : {2, 4}) sets[i].plan[self].slots[0].tally = &other;
  Forward({&sets[0], &sets[1], &sets[3], &sets[2], &sets[4]});
  EXPECT_EQ(mine.Of(AttnBackend::kVideoSparseAttn).calls, 2u) << "one a layer";
  EXPECT_EQ(other.Of(AttnBackend::kVideoSparseAttn).calls, 2u);
  Forward({&sets[0], &sets[2], &sets[1]});
  EXPECT_EQ(mine.Of(AttnBackend::kVideoSparseAttn).calls, 6u) << "only neighbours";
}

// FLASH_ATTN, which tells the rows of its calls by layer.
class ToldCalls : public AttentionBackend {
 public:
  using Rows = std::vector<std::pair<int, int64_t>>;
  ToldCalls(const AttentionBackend* with, Rows* rows) : with_(*with), rows_(*rows) {}
  AttnBackend id() const override { return with_.id(); }
  std::string_view summary() const override { return with_.summary(); }
  std::optional<std::string> Supports(const AttentionSpec& spec,
                                      const DeviceInfo& device) const override {
    return with_.Supports(spec, device);
  }
  AttentionCost Estimate(const AttentionSpec& spec, const std::string& parameters,
                         int64_t rows) const override {
    return with_.Estimate(spec, parameters, rows);
  }
  at::Tensor Forward(const AttentionInputs& inputs,
                     const AttentionMetadata* metadata) const override {
    rows_.emplace_back(inputs.layer_index, inputs.query.size(0));
    return with_.Forward(inputs, metadata);
  }

 private:
  const AttentionBackend& with_;
  Rows& rows_;
};

// The passes of guidance: the same latents and timesteps, and other texts.
TEST_P(RowSets, OfTheSameLatentsAreComputedOnceUpToTheirTexts) {
  Load({3, 64, 520});
  const auto self = static_cast<size_t>(AttentionRole::kSelf);
  ToldCalls::Rows rows;
  Set a = Make({1, 8, 8}, Backends()[0], 2, 9, false);
  const ToldCalls told(a.plan[self].slots[0].backend, &rows);
  a.plan[self].slots[0].backend = &told;
  const auto like = [&](const Set& set) {
    Set other = Make({1, 8, 8}, Backends()[0], 2, 9, false);
    other.latents = set.latents;
    other.timestep = set.timestep;
    other.plan[self] = a.plan[self];
    return other;
  };
  const Set b = like(a);
  Set c = Make({1, 8, 8}, Backends()[0], 1, 30, false);
  c.plan[self] = a.plan[self];
  const auto ran = [&](const std::vector<const Set*>& sets) {
    rows.clear();
    Forward(sets);
    return rows;
  };
  EXPECT_EQ(ran({&a, &b, &c}), (ToldCalls::Rows{{0, 3}, {1, 5}}));
  EXPECT_EQ(ran({&a, &c, &b}), (ToldCalls::Rows{{0, 5}, {1, 5}})) << "only neighbours";
  Set later = b, copied = b, elsewhere = b;
  later.timestep = a.timestep.clone().add_(1);
  copied.latents = a.latents.clone();
  AttentionTally tally;
  elsewhere.plan[self].slots[0].tally = &tally;
  EXPECT_EQ(ran({&a, &later}), (ToldCalls::Rows{{0, 4}, {1, 4}}));
  EXPECT_EQ(ran({&a, &copied}), (ToldCalls::Rows{{0, 4}, {1, 4}}));
  EXPECT_EQ(ran({&a, &elsewhere}), (ToldCalls::Rows{{0, 2}, {0, 2}, {1, 2}, {1, 2}}));
  // Where somebody compares the rows of a call, all are in it.
  Observer nobody;
  Shadows shadows(0.02, 1 << 20, std::chrono::steady_clock::now, &nobody);
  CallGuard guard;
  guard.set_shadows(&shadows);
  Set watched = a;
  AttentionSlot& slot = watched.plan[self].slots[0];
  slot.guard = &guard;
  slot.watched = {{std::make_shared<WatchedCalls>(), 2, 2}};
  EXPECT_EQ(ran({&watched, &b}), (ToldCalls::Rows{{0, 4}, {1, 4}}));
}

TEST_P(RowSets, OfTheSameLatentsHaveTheBitsThatTheyHaveAlone) {
  for (const bool per_token : {false, true}) {
    Load({3, 64, 520});
    for (const Axes& size : {Axes{6, 8, 8}, Axes{1, 10, 14}}) {
      std::vector<Set> sets;
      for (const Backend& backend : Backends()) {
        sets.push_back(Make(size, backend, 1 + random_() % 2, 1 + random_() % 40, per_token));
        const Set of = sets.back();
        for (uint64_t more = random_() % 3; more > 0; --more) {
          sets.push_back(Make(size, backend, of.latents.size(0), 1 + random_() % 40, per_token));
          sets.back().latents = of.latents;
          sets.back().timestep = of.timestep;
          sets.back().plan = of.plan;
        }
      }
      ExpectBitsOfTheirOwn(sets);
    }
  }
}

// `first` up to a layer, `rest` behind it.
RolePlan SplitAfter(int64_t layer, const AttentionPlan& first, const AttentionPlan& rest) {
  const auto self = static_cast<size_t>(AttentionRole::kSelf);
  RolePlan plan = first[self];
  plan.slots[0].last_layer = layer;
  plan.slots.push_back(rest[self].slots[0]);
  return plan;
}

// A sparse backend whose first layer is dense says so by itself: two ways to one forward.
TEST_P(RowSets, EachLayerRunsTheBackendOfItsOwnSlot) {
  Load({3, 64, 520});
  const auto self = static_cast<size_t>(AttentionRole::kSelf);
  const Set sparse = Make({6, 8, 8}, Backends()[3], 1, 9, false);
  Set by_itself = sparse, split = sparse;
  by_itself.plan = Make({6, 8, 8}, Backends()[4], 1, 9, false).plan;
  const Set dense = Make({6, 8, 8}, Backends()[0], 1, 9, false);
  split.plan[self] = SplitAfter(0, dense.plan, sparse.plan);
  const at::Tensor wanted = Forward({&by_itself}).front();
  EXPECT_TRUE(at::equal(Forward({&split}).front(), wanted));
  EXPECT_FALSE(at::equal(Forward({&sparse}).front(), wanted));
}

TEST_P(RowSets, WithOtherBackendsInOtherLayersHaveTheBitsThatTheyHaveAlone) {
  Load({3, 64, 520});
  const auto self = static_cast<size_t>(AttentionRole::kSelf);
  std::vector<Set> sets;
  for (int i = 0; i < 6; ++i) {
    sets.push_back(Make({6, 8, 8}, Backends()[random_() % 10], 1 + i % 2, 9, false));
    const Set other = Make({6, 8, 8}, Backends()[random_() % 10], 1, 9, false);
    if (i % 3) sets[i].plan[self] = SplitAfter(i % 3 - 1, sets[i].plan, other.plan);
  }
  ExpectBitsOfTheirOwn(sets);
}

TEST_P(RowSets, OfAnotherShapeOrFormAreRefused) {
  Load({});
  const Set a = Make({1, 8, 8}, Backends()[0], 1, 9, false),
            b = Make({2, 8, 8}, Backends()[0], 1, 9, false);
  const Set c = Make({1, 8, 8}, Backends()[0], 1, 9, true);
  EXPECT_THROW(Forward({&a, &b}), Error);
  EXPECT_THROW(Forward({&a, &c}), Error);
}

TEST_P(RowSets, AStopPointLeavesTheForward) {
  Load({});
  const Set a = Make({1, 8, 8}, Backends()[0], 1, 9, false),
            b = Make({1, 8, 8}, Backends()[3], 1, 7, false);
  const at::Tensor wanted = Forward({&a, &b}).back();
  {
    int asked = 0;
    const ScopedStopCheck stop([&]() -> std::optional<Error> {
      if (++asked < 20) return std::nullopt;
      return Error(StatusCode::kCancelled, "stop");
    });
    EXPECT_THROW(Forward({&a, &b}), Error);
  }
  EXPECT_FALSE(HasForwardContext());
  EXPECT_TRUE(at::equal(Forward({&a, &b}).back(), wanted));
}

INSTANTIATE_TEST_SUITE_P(Of, RowSets,
                         testing::Values(std::tuple(at::kFloat, LinearNumerics::kPacked),
                                         std::tuple(at::kBFloat16, LinearNumerics::kPacked),
                                         std::tuple(at::kFloat, LinearNumerics::kInt8),
                                         std::tuple(at::kFloat, LinearNumerics::kExact),
                                         std::tuple(at::kBFloat16, LinearNumerics::kExact)),
                         [](const auto& info) {
                           return std::string(at::toString(std::get<0>(info.param))) +
                                  std::string(LinearNumericsName(std::get<1>(info.param)));
                         });

}  // namespace
}  // namespace denoised
