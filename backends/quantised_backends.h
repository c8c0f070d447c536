// Backends that compute with fewer bits than their inputs have. None is chosen automatically.
#ifndef DENOISED_BACKENDS_QUANTISED_BACKENDS_H_
#define DENOISED_BACKENDS_QUANTISED_BACKENDS_H_

#include "backends/sparse_backends.h"

namespace denoised {

// SAGE_ATTN (SageAttention, arXiv 2410.02367): q k^T in int8, one scale a token, keys less their
// mean; probabilities and values in bfloat16 where the CPU multiplies it, else in float32, and on
// CUDA in the inputs' dtype.
class SageBackend final : public AttentionBackend {
 public:
  explicit SageBackend(Admission admission = Admission::kMeasured) : admission_(admission) {}
  AttnBackend id() const override { return AttnBackend::kSageAttn; }
  std::string_view summary() const override {
    return "Sage: q k^T in int8, p v in 16 bits or more";
  }
  Numerics numerics() const override { return Numerics::kInt8; }
  std::optional<std::string> Supports(const AttentionSpec& spec,
                                      const DeviceInfo& device) const override;
  AttentionCost Estimate(const AttentionSpec& spec, const std::string& parameters_json,
                         int64_t rows) const override;
  at::Tensor Forward(const AttentionInputs& inputs,
                     const AttentionMetadata* metadata) const override;

 private:
  const Admission admission_;
};

// SAGE_SLA_ATTN: SLA whose sparse part is Sage's.
class SageSlaBackend final : public SlaBackend {
 public:
  using SlaBackend::SlaBackend;
  AttnBackend id() const override { return AttnBackend::kSageSlaAttn; }
  std::string_view summary() const override { return "SLA with q k^T in int8"; }
  Numerics numerics() const override { return Numerics::kInt8; }
  std::optional<std::string> Supports(const AttentionSpec& spec,
                                      const DeviceInfo& device) const override;

 protected:
  double DefaultRatio() const override { return 0.5; }
  BandScores scores() const override { return BandScores::kInt8; }
};

// NVFP4 numerics in float64 arithmetic: what a 4-bit kernel would answer, at no speed. Blackwell's
// own kernels are not in this build.
class Fp4Backend : public AttentionBackend {
 public:
  Numerics numerics() const override { return Numerics::kFp4; }
  std::optional<std::string> Supports(const AttentionSpec& spec,
                                      const DeviceInfo& device) const override;
  AttentionCost Estimate(const AttentionSpec& spec, const std::string& parameters_json,
                         int64_t rows) const override;
  at::Tensor Forward(const AttentionInputs& inputs,
                     const AttentionMetadata* metadata) const override;

 protected:
  // SageAttention3 smooths queries and keys and scales probabilities by row first.
  virtual bool Smooths() const = 0;
};

// SAGE_ATTN_THREE (SageAttention3, arXiv 2505.11594).
class SageThreeBackend final : public Fp4Backend {
 public:
  AttnBackend id() const override { return AttnBackend::kSageAttnThree; }
  std::string_view summary() const override { return "Sage3's FP4 numerics, emulated; slow"; }

 protected:
  bool Smooths() const override { return true; }
};

// ATTN_QAT_INFER: inference of models trained for FP4 attention.
class AttnQatInferBackend final : public Fp4Backend {
 public:
  AttnBackend id() const override { return AttnBackend::kAttnQatInfer; }
  std::string_view summary() const override { return "QAT's FP4 numerics, emulated; slow"; }

 protected:
  bool Smooths() const override { return false; }
};

}  // namespace denoised

#endif  // DENOISED_BACKENDS_QUANTISED_BACKENDS_H_
