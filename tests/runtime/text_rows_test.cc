// A text encoder whose products sum over more than one piece of K: a prompt has its bits alone, in
// company, and on any number of threads.
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>

#include "backends/intra_op.h"
#include "backends/registry.h"
#include "runtime/attention/forward_context.h"
#include "runtime/loaders/safetensors.h"
#include "runtime/models/umt5.h"
#include "tests/temporary_folder.h"

namespace denoised {
namespace {

// Wider than a piece in any form that weights are packed in, and a multiple of none.
constexpr int64_t kWidth = 1032, kHeads = 17, kHeadSize = 64, kFfn = 1064, kWords = 50,
                  kBuckets = 32;
constexpr int64_t kLength = 40;
const std::vector<int64_t> kReal = {1, 7, 40, 33};  // tokens of each prompt

class Writer {
 public:
  void Add(const std::string& name, const std::vector<int64_t>& shape, double fan) {
    const at::Tensor x =
        at::randn(shape, generator_, at::TensorOptions(at::kFloat)).div_(std::sqrt(fan));
    tensors_[name] = {"F32", shape,
                      std::string(static_cast<const char*>(x.const_data_ptr()), x.nbytes())};
  }
  void Linear(const std::string& name, int64_t in, int64_t out) {
    Add(name + ".weight", {out, in}, static_cast<double>(in));
  }
  void Save(const std::filesystem::path& path) const { WriteSafetensors(path, tensors_); }

 private:
  at::Generator generator_ = at::detail::createCPUGenerator(6);
  std::map<std::string, RawTensor> tensors_;
};

void WriteEncoder(const std::filesystem::path& folder) {
  std::ofstream(folder / "config.json")
      << R"({"model_type":"umt5","architectures":["UMT5EncoderModel"],)"
         R"("feed_forward_proj":"gated-gelu","vocab_size":)"
      << kWords << ",\"d_model\":" << kWidth << ",\"d_kv\":" << kHeadSize << ",\"d_ff\":" << kFfn
      << ",\"num_layers\":1,\"num_heads\":" << kHeads << "}";
  const std::string attention = "encoder.block.0.layer.0.SelfAttention.";
  const std::string dense = "encoder.block.0.layer.1.DenseReluDense.";
  const int64_t inner = kHeads * kHeadSize;
  Writer w;
  w.Add("shared.weight", {kWords, kWidth}, 1);
  w.Add("encoder.block.0.layer.0.layer_norm.weight", {kWidth}, 1);
  w.Add("encoder.block.0.layer.1.layer_norm.weight", {kWidth}, 1);
  w.Add("encoder.final_layer_norm.weight", {kWidth}, 1);
  w.Add(attention + "relative_attention_bias.weight", {kBuckets, kHeads}, 1);
  w.Linear(attention + "q", kWidth, inner);
  w.Linear(attention + "k", kWidth, inner);
  w.Linear(attention + "v", kWidth, inner);
  w.Linear(attention + "o", inner, kWidth);
  w.Linear(dense + "wi_0", kWidth, kFfn);
  w.Linear(dense + "wi_1", kWidth, kFfn);
  w.Linear(dense + "wo", kFfn, kWidth);
  w.Save(folder / "model.safetensors");
}

class TextRows : public testing::TestWithParam<at::ScalarType> {
 protected:
  TextRows() {
    WriteEncoder(folder_.path());
    encoder_ = Umt5Encoder::Load(ModelFolder(folder_.path()), GetParam(), at::kCPU);
    at::Generator generator = at::detail::createCPUGenerator(2);
    const auto prompts = static_cast<int64_t>(kReal.size());
    ids_ = at::randint(2, kWords, {prompts, kLength}, generator, at::TensorOptions(at::kLong));
    mask_ = at::arange(kLength).unsqueeze(0).lt(at::tensor(kReal).unsqueeze(1)).to(at::kLong);
  }

  // Prompts [first, first + count).
  at::Tensor Encode(int64_t first, int64_t count) const {
    const c10::InferenceMode inference;
    AttentionPlan plan;
    AttentionSlot& slot =
        plan[static_cast<size_t>(AttentionRole::kTextEncoder)].slots.emplace_back();
    slot.id = AttnBackend::kFlashAttn;
    slot.backend = BackendRegistry::Default().Find(slot.id)->backend;
    ForwardContext context;
    context.attn_metadata = &plan;
    const ScopedForwardContext scope(context);
    return encoder_->Forward(ids_.narrow(0, first, count), mask_.narrow(0, first, count));
  }

  const TemporaryFolder folder_;
  std::unique_ptr<Umt5Encoder> encoder_;
  at::Tensor ids_, mask_;
};

TEST_P(TextRows, ThatSumOverSeveralPiecesHaveTheirBitsInAnyCompanyOnAnyThreads) {
  const auto prompts = static_cast<int64_t>(kReal.size());
  SetIntraOpThreads(2);
  const at::Tensor wanted = Encode(0, prompts);
  ASSERT_TRUE(wanted.isfinite().all().item<bool>());
  for (const int threads : {1, 2}) {
    SetIntraOpThreads(threads);
    EXPECT_TRUE(at::equal(Encode(0, prompts), wanted)) << threads;
    EXPECT_TRUE(at::equal(Encode(1, 2), wanted.narrow(0, 1, 2))) << threads;
    for (int64_t prompt = 0; prompt < prompts; ++prompt) {
      EXPECT_TRUE(at::equal(Encode(prompt, 1), wanted.narrow(0, prompt, 1)))
          << threads << " " << prompt;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Of, TextRows, testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& info) { return std::string(at::toString(info.param)); });

}  // namespace
}  // namespace denoised
