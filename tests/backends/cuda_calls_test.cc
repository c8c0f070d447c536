// What a call on a CUDA device may not do once its job has begun: wait for the device. A stream
// that is being captured refuses every wait, every copy from or to pageable memory and every
// upload.
#include <ATen/ATen.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <gtest/gtest.h>

#include "backends/attention_backend.h"
#include "backends/error.h"
#include "backends/registry.h"
#include "tests/backends/attention_oracle.h"

namespace denoised {
namespace {

class CudaCalls : public ::testing::TestWithParam<AttnBackend> {
 protected:
  void SetUp() override {
    try {
      QueryCuda(0);
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
  }

  static AttentionSpec Spec() {
    AttentionSpec spec;
    spec.num_heads = 2;
    spec.head_size = 128;
    spec.dtype = DType::kBFloat16;
    spec.grid = {4, 8, 20};
    spec.q_len = spec.kv_len = 640;
    spec.has_gate = true;
    spec.supported = {GetParam()};
    return spec;
  }

  static AttentionInputs Inputs() {
    AttentionInputs inputs;
    for (at::Tensor* x : {&inputs.query, &inputs.key, &inputs.value, &inputs.gate}) {
      *x = at::randn({1, 640, 2, 128}, at::TensorOptions(at::kBFloat16).device(at::kCUDA));
    }
    return inputs;
  }
};

TEST_P(CudaCalls, WaitForNothingAfterTheFirst) {
  const BackendRegistry& registry = BackendRegistry::WithUnmeasured();
  const AttentionBackend& backend = *registry.Find(GetParam())->backend;
  const auto builder = backend.MakeBuilder();
  const auto metadata = builder ? builder->Build({0, 1, Spec(), ""}) : nullptr;
  const AttentionInputs inputs = Inputs();
  at::cuda::CUDAGraph graph;
  const c10::cuda::CUDAStreamGuard guard(c10::cuda::getStreamFromPool());
  const at::Tensor first = backend.Forward(inputs, metadata.get());
  c10::cuda::getCurrentCUDAStream().synchronize();
  graph.capture_begin();
  const at::Tensor captured = backend.Forward(inputs, metadata.get());
  graph.capture_end();
  graph.replay();
  EXPECT_TRUE(SameBits(captured.cpu(), first.cpu()));
}

using LearntOnCuda = CudaCalls;

// With a map, and with a bias alone. Either may be as far from float64 as is allowed.
TEST_P(LearntOnCuda, TheBranchIsWhatItIsOnTheCpu) {
  const AttentionBackend& backend = *BackendRegistry::WithUnmeasured().Find(GetParam())->backend;
  const auto metadata = backend.MakeBuilder()->Build({0, 1, Spec(), ""});
  AttentionInputs inputs = Inputs();
  inputs.projection_bias = at::randn({128}, inputs.query.options());
  for (const bool map : {false, true}) {
    if (map) inputs.projection = at::randn({128, 128}, inputs.query.options());
    AttentionInputs on_cpu = inputs;
    for (at::Tensor* x : {&on_cpu.query, &on_cpu.key, &on_cpu.value, &on_cpu.gate,
                          &on_cpu.projection, &on_cpu.projection_bias}) {
      if (x->defined()) *x = x->cpu();
    }
    EXPECT_LE(RelativeL2(backend.Forward(inputs, metadata.get()).cpu(),
                         backend.Forward(on_cpu, metadata.get())),
              2 * ExactTolerance(at::kBFloat16));
  }
}

INSTANTIATE_TEST_SUITE_P(Device, LearntOnCuda, ::testing::Values(AttnBackend::kSlaAttn));
INSTANTIATE_TEST_SUITE_P(Device, CudaCalls,
                         ::testing::Values(AttnBackend::kCudnnAttn, AttnBackend::kFlashAttn,
                                           AttnBackend::kTorchSdpa, AttnBackend::kSageAttn,
                                           AttnBackend::kVideoSparseAttn,
                                           AttnBackend::kSlidingTileAttn, AttnBackend::kSlaAttn,
                                           AttnBackend::kSageSlaAttn),
                         [](const auto& info) { return std::string(AttnBackendName(info.param)); });

}  // namespace
}  // namespace denoised
