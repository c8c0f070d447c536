// The interface of one attention implementation.
//
// A backend is stateless and shared by all layers and jobs; what it precomputes for a kind of step
// is its AttentionMetadata, made by its builder and shared by jobs too. One layout at this border:
// [B, S, H, D] contiguous. Follows FastVideo's fastvideo/attention/backends/abstract.py, with the
// limits asked *before* a call (Supports) instead of failing inside it.
#ifndef DENOISED_BACKENDS_ATTENTION_BACKEND_H_
#define DENOISED_BACKENDS_ATTENTION_BACKEND_H_

#include <ATen/ATen.h>

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backends/attention_cost.h"
#include "backends/attention_spec.h"

namespace denoised {

// The tensors of one call. S_q and S_kv may differ. Owned by the caller; never written to.
struct AttentionInputs {
  at::Tensor query;  // [B, S_q, H, D]
  at::Tensor key;    // [B, S_kv, H, D]
  at::Tensor value;  // [B, S_kv, H, D]
  at::Tensor gate;   // [B, S_q, H, D] or undefined: VSA's learned gate of the coarse branch
  at::Tensor mask;   // undefined, or broadcastable to [B, H, S_q, S_kv]: bool (true = attend) or
                     // additive float
  double scale = 0;  // softmax scale, usually D^-0.5
  bool causal = false;
  int layer_index = 0;         // block number in the model; some backends treat layers differently
  at::Tensor projection = {};  // [D, D] or undefined: SLA's learned map of the linear branch
  at::Tensor projection_bias = {};  // [D] or undefined
  // [B] or empty, where nothing is known: from this key of a row on all are alike, and their
  // values, bit for bit, as a padded prompt's are; the last one always is. A backend may take one
  // of them for all.
  std::vector<int64_t> alike_from = {};
};

// What a backend precomputed for one step (tile order, window table, sparsity). Immutable.
class AttentionMetadata {
 public:
  virtual ~AttentionMetadata() = default;
};

// What a builder may use. Plain values of the step that is about to run.
struct MetadataRequest {
  int64_t step_index = 0;  // 0-based; FastVideo's current_timestep
  int64_t num_steps = 1;
  AttentionSpec spec;
  std::string parameters_json;  // the backend's own parameters, a JSON object; "" = its defaults
  bool allow_files = false;     // parameters may name files: local tools only, never a request
};

class AttentionMetadataBuilder {
 public:
  virtual ~AttentionMetadataBuilder() = default;
  // The request's parameters as Build reads them for its spec: a JSON object of every key, defaults
  // filled in, keys sorted, numbers in one spelling (Parameters::Canonical). Build takes it in
  // their place. Throws as Build does.
  virtual std::string Canonical(const MetadataRequest& request) = 0;
  // Requests that are alike but for step_index and num_steps and have one kind may have one
  // metadata. Nothing: each step has its own. Throws as Build does.
  virtual std::optional<int64_t> StepKind(const MetadataRequest& request) { return std::nullopt; }
  // Called by the engine thread, once for each kind of step that is in use. Throws INVALID_ARGUMENT
  // naming the parameter that does not fit. May return null where a backend needs nothing.
  virtual std::shared_ptr<const AttentionMetadata> Build(const MetadataRequest& request) = 0;
};

// How close a backend comes to softmax over the pairs that it attends.
enum class Numerics : uint8_t {
  kExact,  // rounding of the dtype only
  kInt8,   // queries and keys in 8 bits
  kFp4,    // operands in 4 bits
};

class AttentionBackend {
 public:
  virtual ~AttentionBackend() = default;

  virtual AttnBackend id() const = 0;
  virtual std::string_view summary() const = 0;  // one line for ListBackends and --help

  // Empty when this backend can serve the spec on the device; else one sentence that says why not,
  // naming what was wanted and what came.
  virtual std::optional<std::string> Supports(const AttentionSpec& spec,
                                              const DeviceInfo& device) const = 0;

  // Where it supports the spec but automatic selection had better take a backend further down the
  // table: the sentence that says why. Wishes by name do not ask this.
  virtual std::optional<std::string> Yields(const AttentionSpec& spec,
                                            const DeviceInfo& device) const {
    return std::nullopt;
  }

  // A builder for one spec and its parameters (it may cache geometry between steps and jobs). Null:
  // no metadata.
  virtual std::unique_ptr<AttentionMetadataBuilder> MakeBuilder() const { return nullptr; }

  // A sentence for the receipt where a part of this backend stays off for want of weights; else "".
  virtual std::string Note(const AttentionSpec& spec, const AttentionMetadata* metadata) const {
    return "";
  }

  // Whose bits Forward gives for such a call: its own, or those of the backend that it hands the
  // call over to. Receipts name this one.
  virtual AttnBackend Runs(const AttentionInputs& inputs, const AttentionMetadata* metadata) const {
    return id();
  }

  // Of a call of `rows` batch rows with such parameters (JSON, "" = the defaults), which this
  // backend serves and its builder takes. Any thread; nothing of the call is made.
  virtual AttentionCost Estimate(const AttentionSpec& spec, const std::string& parameters_json,
                                 int64_t rows) const = 0;

  // Attention over `inputs`; a fresh contiguous [B, S_q, H, D] tensor of the inputs' dtype.
  // Thread-safe. `metadata` is what this backend's builder made for the step, or null.
  virtual at::Tensor Forward(const AttentionInputs& inputs,
                             const AttentionMetadata* metadata) const = 0;

  virtual Numerics numerics() const { return Numerics::kExact; }

  // For tools and tests, slow: which (query, key) pairs such a call attends, bool and broadcastable
  // to [B, H, S_q, S_kv]. Undefined: all that mask and causal allow.
  virtual at::Tensor AttendedPairs(const AttentionInputs& inputs,
                                   const AttentionMetadata* metadata) const {
    return {};
  }

  // For tools and tests: what Forward adds to attention over those pairs (a coarse or a linear
  // branch), float32 [B, S_q, H, D]. Undefined: nothing.
  virtual at::Tensor AddedBranch(const AttentionInputs& inputs,
                                 const AttentionMetadata* metadata) const {
    return {};
  }
};

}  // namespace denoised

#endif  // DENOISED_BACKENDS_ATTENTION_BACKEND_H_
