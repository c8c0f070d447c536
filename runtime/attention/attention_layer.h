// A model's attention, between the projections: hands q, k, v to the backend that the current
// ForwardContext names for the layer and its role, and tallies the call.
#ifndef DENOISED_RUNTIME_ATTENTION_ATTENTION_LAYER_H_
#define DENOISED_RUNTIME_ATTENTION_ATTENTION_LAYER_H_

#include <vector>

#include "backends/attention_backend.h"
#include "runtime/attention/forward_context.h"

namespace denoised {

// What some backends take beside q, k and v; each may be undefined.
struct AttentionExtras {
  at::Tensor gate = {};        // [B, S_q, H, D]
  at::Tensor mask = {};        // broadcastable to [B, H, S_q, S_kv]
  at::Tensor projection = {};  // [D, D], with its bias [D]
  at::Tensor projection_bias = {};
  std::vector<int64_t> alike_from = {};  // AttentionInputs::alike_from
};

// Copyable value; one per attention of a model. Used by the engine thread.
class AttentionLayer {
 public:
  // `scale` <= 0 means head_size^-0.5.
  AttentionLayer(AttentionRole role, int layer_index, double scale = 0, bool causal = false)
      : role_(role), layer_index_(layer_index), scale_(scale), causal_(causal) {}

  AttentionRole role() const { return role_; }

  // query [B, S_q, H, D], key/value [B, S_kv, H, D]. Returns [B, S_q, H, D].
  // Throws FAILED_PRECONDITION outside of a forward context, or where it names no backend for the
  // role.
  at::Tensor Forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const AttentionExtras& extras = {}) const;

 private:
  AttentionRole role_;
  int layer_index_;
  double scale_;
  bool causal_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ATTENTION_ATTENTION_LAYER_H_
