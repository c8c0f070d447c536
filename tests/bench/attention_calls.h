// Attention calls as the bench programs make them, and what they cost.
#ifndef DENOISED_TESTS_BENCH_ATTENTION_CALLS_H_
#define DENOISED_TESTS_BENCH_ATTENTION_CALLS_H_

#include <ATen/ATen.h>

#include <memory>
#include <string>

#include "backends/attention_backend.h"
#include "backends/tiling.h"
#include "tests/bench/timing.h"

namespace denoised {

inline constexpr int64_t kBenchHeads = 12;
inline constexpr int64_t kBenchHeadSize = 128;

// [1, tokens, heads, 128], the same numbers for the same tokens.
AttentionInputs RandomInputs(int64_t tokens, at::ScalarType dtype, int64_t heads = kBenchHeads);

AttentionSpec BenchSpec(const Axes& grid, at::ScalarType dtype, int64_t heads = kBenchHeads);

// A backend with the metadata for one shape, ready to run. FAILED_PRECONDITION where it is not in
// this build or on this machine.
class Attention {
 public:
  Attention(AttnBackend id, const AttentionSpec& spec, const std::string& parameters = "");
  at::Tensor operator()(const AttentionInputs& inputs) const {
    return backend_->Forward(inputs, metadata_.get());
  }
  // AttendedPairs and AddedBranch of such a call.
  at::Tensor PairsOf(const AttentionInputs& inputs) const {
    return backend_->AttendedPairs(inputs, metadata_.get());
  }
  at::Tensor BranchOf(const AttentionInputs& inputs) const {
    return backend_->AddedBranch(inputs, metadata_.get());
  }
  Numerics numerics() const { return backend_->numerics(); }
  const AttentionBackend& backend() const { return *backend_; }
  const AttentionMetadata* metadata() const { return metadata_.get(); }

 private:
  const AttentionBackend* backend_ = nullptr;
  std::shared_ptr<const AttentionMetadata> metadata_;
};

at::Tensor LibTorchSdpa(const AttentionInputs& inputs);

// Against float64, for a sample of the queries; all of them would take minutes.
double ErrorToFloat64(const at::Tensor& out, const AttentionInputs& inputs);
// The limit of that: three quarters of bfloat16's unit roundoff, at any length
// (tests/backends/attention_oracle.h). Of 32,760 level keys one block of 64 is a 500th, and a
// result without it is off by its square root, fifteen times the limit.
double DenseErrorLimit(at::ScalarType dtype);

// "12x1560x128, float32"
std::string ShapeName(int64_t tokens, at::ScalarType dtype, int64_t heads = kBenchHeads);

double AttentionMultiplyAdds(int64_t tokens);

// The rows E1 E2 E3 E11 E17 H1: how costs grow (attention_growth.cc).
Rows GrowthRows();

}  // namespace denoised

#endif  // DENOISED_TESTS_BENCH_ATTENTION_CALLS_H_
