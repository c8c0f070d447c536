// Invented backends and registries for tests of selection.
#ifndef DENOISED_TESTS_BACKENDS_FAKE_BACKENDS_H_
#define DENOISED_TESTS_BACKENDS_FAKE_BACKENDS_H_

#include <functional>
#include <string>
#include <utility>

#include "backends/attention_backend.h"
#include "backends/registry.h"

namespace denoised {

// Serves what `limit` lets through; Forward returns the query.
class FakeBackend : public AttentionBackend {
 public:
  using Limit = std::function<std::optional<std::string>(const AttentionSpec&, const DeviceInfo&)>;
  explicit FakeBackend(AttnBackend id, Limit limit = {}) : id_(id), limit_(std::move(limit)) {}

  AttentionCost cost;                 // of every call
  std::optional<std::string> yields;  // to the next ones in automatic selection
  std::function<void(const AttentionInputs&)> on_forward;

  AttnBackend id() const override { return id_; }
  std::string_view summary() const override { return "invented"; }
  std::optional<std::string> Supports(const AttentionSpec& spec,
                                      const DeviceInfo& device) const override {
    return limit_ ? limit_(spec, device) : std::nullopt;
  }
  std::optional<std::string> Yields(const AttentionSpec&, const DeviceInfo&) const override {
    return yields;
  }
  AttentionCost Estimate(const AttentionSpec&, const std::string&, int64_t) const override {
    return cost;
  }
  at::Tensor Forward(const AttentionInputs& inputs, const AttentionMetadata*) const override {
    if (on_forward) on_forward(inputs);
    return inputs.query;
  }

 private:
  AttnBackend id_;
  Limit limit_;
};

}  // namespace denoised

#endif  // DENOISED_TESTS_BACKENDS_FAKE_BACKENDS_H_
