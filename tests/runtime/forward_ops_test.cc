// Which of LibTorch's operations a forward of many rows uses: a new one is looked at before it may
// come, for whether a row's bits depend on the rows beside it.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/record_function.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "runtime/attention/forward_context.h"
#include "runtime/models/wan_transformer.h"
#include "tests/runtime/random_transformer.h"

namespace denoised {
namespace {

// How often each operation is called on this thread while it lives, without those that operations
// call in their turn: these differ from one make of CPU to the other.
class CountedCalls {
 public:
  CountedCalls() {
    counts().clear();
    handle_ = at::addThreadLocalCallback(at::RecordFunctionCallback(&Begin, &End));
  }
  ~CountedCalls() { at::removeCallback(handle_); }
  CountedCalls(const CountedCalls&) = delete;
  CountedCalls& operator=(const CountedCalls&) = delete;

  static std::map<std::string, int>& counts() {
    static thread_local std::map<std::string, int> counts;
    return counts;
  }

 private:
  struct Context : at::ObserverContext {};

  static std::unique_ptr<at::ObserverContext> Begin(const at::RecordFunction& function) {
    if (depth()++ == 0) ++counts()[function.name()];
    return std::make_unique<Context>();
  }
  static void End(const at::RecordFunction&, at::ObserverContext*) { --depth(); }
  static int& depth() {
    static thread_local int depth = 0;
    return depth;
  }

  at::CallbackHandle handle_;
};

// They make room, move numbers or look at them otherwise, and compute none.
const std::set<std::string> kMoves = {
    "aten::cat",       "aten::clone",     "aten::contiguous", "aten::copy_",
    "aten::empty",     "aten::expand",    "aten::fill_",      "aten::flatten",
    "aten::narrow",    "aten::permute",   "aten::select",     "aten::split_with_sizes",
    "aten::to",        "aten::transpose", "aten::type_as",    "aten::unflatten",
    "aten::unsqueeze", "aten::view",      "aten::reshape"};
// A number of the result comes from numbers at the same place.
const std::set<std::string> kElementwise = {"aten::add",  "aten::add_",  "aten::cos",
                                            "aten::div_", "aten::gelu_", "aten::mul",
                                            "aten::silu", "aten::silu_", "aten::sin"};
// And from those of its own token, in an order that their number alone says.
const std::set<std::string> kOfAToken = {"aten::layer_norm", "aten::rms_norm"};
// And from its own row, each head alone.
const std::set<std::string> kOfARow = {"aten::scaled_dot_product_attention"};
// Whether a row is a call of its own (TORCH_SDPA's where not all are numbers).
const std::set<std::string> kLooks = {"aten::aminmax", "aten::item", "aten::sum"};
// The order of their sums may depend on how many rows there are: a call for each row set.
const std::set<std::string> kProducts = {"aten::conv3d", "aten::linear",
                                         "mkldnn::_linear_pointwise"};

using Setting = std::tuple<at::ScalarType, LinearNumerics>;

class ForwardOps : public testing::TestWithParam<Setting> {
 protected:
  ForwardOps() {
    const auto folder =
        std::filesystem::temp_directory_path() / ("ops_" + std::to_string(getpid()));
    const auto [dtype, linear] = GetParam();
    model_ = WanTransformer::Load(ModelFolder(WriteRandomTransformer(folder, shape_, 5).string()),
                                  dtype, at::kCPU, linear);
    std::filesystem::remove_all(folder);
  }

  bool exact() const { return std::get<1>(GetParam()) == LinearNumerics::kExact; }

  // Of a forward of so many row sets, what is made once left out.
  std::map<std::string, int> CountsOf(int sets) {
    const c10::InferenceMode inference;
    const ScopedLinearNumerics numerics(std::get<1>(GetParam()));
    const AttentionPlan plan =
        PlanFor(*model_, {2, 4, 5}, 9, exact() ? AttnBackend::kTorchSdpa : AttnBackend::kFlashAttn);
    std::vector<at::Tensor> latents, timesteps;
    std::vector<TextContext> texts;
    std::vector<RowSet> rows;
    for (int i = 0; i < sets; ++i) {
      latents.push_back(at::randn({1, shape_.channels, 2, 8, 10}));
      timesteps.push_back(at::full({1}, 999.0F - static_cast<float>(10 * i)));
      texts.push_back(model_->EncodeText(at::randn({1, 9, shape_.text})));
    }
    for (int i = 0; i < sets; ++i) rows.push_back({latents[i], timesteps[i], &texts[i], &plan});
    const ScopedForwardContext scope(ForwardContext{});
    model_->Forward(rows);
    const CountedCalls counted;
    model_->Forward(rows);
    return CountedCalls::counts();
  }

  const RandomShape shape_;
  std::unique_ptr<WanTransformer> model_;
};

TEST_P(ForwardOps, AreThoseThatAreKnownToLeaveEachRowItsBits) {
  for (const auto& [name, count] : CountsOf(3)) {
    const bool computes = !kMoves.contains(name);
    if (!exact()) {
      EXPECT_FALSE(computes) << name << ": kernels of our own compute all";
    }
    EXPECT_TRUE(!computes || kElementwise.contains(name) || kOfAToken.contains(name) ||
                kOfARow.contains(name) || kLooks.contains(name) || kProducts.contains(name))
        << name << " is new in a forward: may a row's bits depend on the rows beside it?";
  }
}

TEST_P(ForwardOps, OfLibTorchThatMultiplyAreCalledForEachRowSet) {
  std::map<std::string, int> of_one = CountsOf(1), of_three = CountsOf(3);
  int products = 0;
  for (const std::string& name : kProducts) {
    EXPECT_EQ(of_three[name], 3 * of_one[name]) << name;
    products += of_one[name];
  }
  EXPECT_EQ(products > 0, exact());
}

INSTANTIATE_TEST_SUITE_P(All, ForwardOps,
                         testing::Combine(testing::Values(at::kFloat, at::kBFloat16),
                                          testing::Values(LinearNumerics::kExact,
                                                          LinearNumerics::kPacked,
                                                          LinearNumerics::kInt8)));

}  // namespace
}  // namespace denoised
