#include "tests/bench/attention_calls.h"

#include <algorithm>
#include <cmath>

#include "backends/error.h"
#include "backends/intra_op.h"
#include "backends/registry.h"

namespace denoised {

AttentionInputs RandomInputs(int64_t tokens, at::ScalarType dtype, int64_t heads) {
  at::manual_seed(tokens);
  AttentionInputs inputs;
  for (at::Tensor* tensor : {&inputs.query, &inputs.key, &inputs.value}) {
    *tensor = at::randn({1, tokens, heads, kBenchHeadSize}, at::kFloat).to(dtype);
  }
  inputs.scale = 1 / std::sqrt(static_cast<double>(kBenchHeadSize));
  return inputs;
}

AttentionSpec BenchSpec(const Axes& grid, at::ScalarType dtype, int64_t heads) {
  AttentionSpec spec;
  spec.num_heads = heads;
  spec.head_size = kBenchHeadSize;
  spec.dtype = dtype == at::kFloat ? DType::kFloat32 : DType::kBFloat16;
  spec.q_len = spec.kv_len = Product(grid);
  spec.grid = grid;
  return spec;
}

Attention::Attention(AttnBackend id, const AttentionSpec& spec, const std::string& parameters) {
  const BackendRegistry& registry = BackendRegistry::Default();
  if (const auto reason = registry.WhyNot(id, spec, QueryCpu())) {
    throw Error(StatusCode::kFailedPrecondition, std::string(AttnBackendName(id)) + ": " + *reason);
  }
  backend_ = registry.Find(id)->backend;
  MetadataRequest request;
  request.spec = spec;
  request.parameters_json = parameters;
  if (const auto builder = backend_->MakeBuilder()) metadata_ = builder->Build(request);
}

at::Tensor LibTorchSdpa(const AttentionInputs& inputs) {
  const ScopedLibTorchThreads threads;
  return at::scaled_dot_product_attention(inputs.query.transpose(1, 2), inputs.key.transpose(1, 2),
                                          inputs.value.transpose(1, 2), {}, 0, false, inputs.scale)
      .transpose(1, 2);
}

double ErrorToFloat64(const at::Tensor& out, const AttentionInputs& inputs) {
  const int64_t stride = std::max<int64_t>(1, inputs.query.size(1) / 64);
  const auto rows = [&](const at::Tensor& x) { return x.slice(1, 0, c10::nullopt, stride); };
  AttentionInputs few = inputs;
  few.query = rows(inputs.query).to(at::kDouble);
  few.key = inputs.key.to(at::kDouble);
  few.value = inputs.value.to(at::kDouble);
  return RelativeError(rows(out), LibTorchSdpa(few));
}

double DenseErrorLimit(at::ScalarType dtype) { return dtype == at::kFloat ? 1e-5 : 0.75 * 0x1p-8; }

std::string ShapeName(int64_t tokens, at::ScalarType dtype, int64_t heads) {
  return std::to_string(heads) + "x" + std::to_string(tokens) + "x" +
         std::to_string(kBenchHeadSize) + ", " + DTypeName(dtype);
}

double AttentionMultiplyAdds(int64_t tokens) {
  const double n = static_cast<double>(tokens);
  return 2.0 * kBenchHeads * n * n * kBenchHeadSize;
}

}  // namespace denoised
