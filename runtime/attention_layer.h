// A model's attention, between the projections: hands q, k, v to the backend that the current
// ForwardContext names for the layer's role, and tallies the call.
#ifndef DENOISED_RUNTIME_ATTENTION_LAYER_H_
#define DENOISED_RUNTIME_ATTENTION_LAYER_H_

#include "backends/attention_backend.h"
#include "runtime/forward_context.h"

namespace denoised {

// Copyable value; one per attention of a model. Used by the engine thread.
class AttentionLayer {
 public:
  // `scale` <= 0 means head_size^-0.5.
  AttentionLayer(AttentionRole role, int layer_index, double scale = 0, bool causal = false)
      : role_(role), layer_index_(layer_index), scale_(scale), causal_(causal) {}

  AttentionRole role() const { return role_; }

  // query [B, S_q, H, D], key/value [B, S_kv, H, D], optional gate like query, optional mask
  // broadcastable to [B, H, S_q, S_kv]. Returns [B, S_q, H, D].
  // Throws FAILED_PRECONDITION outside of a forward context, or where it names no backend for the
  // role.
  at::Tensor Forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const at::Tensor& gate = {}, const at::Tensor& mask = {}) const;

 private:
  AttentionRole role_;
  int layer_index_;
  double scale_;
  bool causal_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ATTENTION_LAYER_H_
