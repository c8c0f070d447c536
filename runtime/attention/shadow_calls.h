// A call of attention that is compared with what another backend gives for it.
#ifndef DENOISED_RUNTIME_ATTENTION_SHADOW_CALLS_H_
#define DENOISED_RUNTIME_ATTENTION_SHADOW_CALLS_H_

#include <ATen/ATen.h>

#include <memory>

#include "backends/attention_backend.h"
#include "runtime/attention/error_statistics.h"
#include "runtime/attention/watched_calls.h"

namespace denoised {

struct ShadowCall {
  std::shared_ptr<const WatchedCalls> watched;
  const Comparison* comparison;  // one of them
  AttentionInputs inputs;
  at::Tensor out;   // what ran gave
  AttnBackend ran;  // and its name

  AttnBackend candidate() const { return IdOf(comparison->candidate); }
  AttnBackend baseline() const { return IdOf(comparison->baseline); }

  int64_t Bytes() const;  // of its tensors
  // From now on it has copies that nothing else writes to.
  void Keep();

 private:
  AttnBackend IdOf(const ComparedBackend& side) const {
    return side.backend == nullptr ? ran : side.id;
  }
};

// (query, key) pairs of all heads and rows: what time is reckoned by.
double PairsOf(const AttentionInputs& inputs);

// Of batch rows [first, first + rows) of a call; rows < 0: all.
AttentionInputs RowsOf(const AttentionInputs& inputs, int64_t first, int64_t rows);

// Runs what has not run. Throws what a backend throws.
CallError Compare(const ShadowCall& call);

// As runtime/budget.h has the metrics; infinity where one of them is not finite. Takes little
// memory of its own.
CallError ErrorBetween(const at::Tensor& candidate, const at::Tensor& baseline);

// Until the device has done what it was given, so that what follows can be timed.
void WaitFor(at::Device device);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ATTENTION_SHADOW_CALLS_H_
