// What the engine reports while it runs; server/metrics turns it into Prometheus series.
// Torch-free.
#ifndef DENOISED_RUNTIME_OBSERVER_H_
#define DENOISED_RUNTIME_OBSERVER_H_

#include <optional>
#include <string>
#include <string_view>

#include "backends/attention_spec.h"
#include "backends/selector.h"
#include "runtime/job.h"

namespace denoised {

// Every method has an empty default, must not throw and must not block. Called on the engine thread
// unless the comment says otherwise. Times are seconds.
class Observer {
 public:
  virtual ~Observer() = default;

  // One transformer forward: the seed's batch-size / forward-time table.
  virtual void OnForward(const std::string& model, AttnBackend self_attention, Branch branch,
                         int64_t batch_size, int64_t batch_tokens, double seconds) {}
  virtual void OnStep(const std::string& model, double seconds) {}
  virtual void OnStage(const std::string& model, JobStage stage, double seconds) {}
  // A prompt's embeddings were wanted: whether the cache had them, and the cache's bytes after it.
  virtual void OnPrompt(const std::string& model, bool cached, int64_t cache_bytes) {}
  // Attention of one forward by one backend's kernel, summed over its layers. No seconds where they
  // are not known.
  virtual void OnAttention(AttnBackend backend, AttentionRole role, uint64_t calls,
                           std::optional<double> seconds) {}
  // A wish was refused and something else serves the layer. Not where the layer's role lists few
  // backends by design: nobody could act on that.
  virtual void OnFallback(AttnBackend from, AttnBackend to, SelectionSource source) {}
  // The self-attention backend changed between two steps of a job.
  virtual void OnBackendSwitch(SelectionSource cause) {}
  // A unit was undone and done again without this backend. The cause is LeaseEndName's of a lease
  // that ended for it ("not_finite", "degenerate", "budget"), or "failed": the backend threw.
  virtual void OnRollback(AttnBackend backend, std::string_view cause) {}
  // A call was given to another backend too, and their outputs were held against each other.
  virtual void OnShadow(AttnBackend baseline, AttnBackend candidate, AttentionRole role,
                        std::string_view sigma_band, double relative_l2) {}
  // So long have comparisons held work up.
  virtual void OnShadowSeconds(double seconds) {}
  // Its first unit is next, or the first one after it was put aside or its server ended.
  virtual void OnJobStarted(const std::string& model, Priority priority,
                            double queue_wait_seconds) {}
  // Any thread (a queued job may be cancelled from outside).
  virtual void OnJobFinished(const std::string& model, JobState outcome) {}
  // A job's state was handed to the store; seconds that it held the engine thread.
  virtual void OnCheckpoint(const std::string& model, double seconds) {}
  // A job that had begun was passed over for another one.
  virtual void OnPreemption(const std::string& model) {}
  // A job that had begun was moved to its checkpoint to make room; seconds that it held the engine
  // thread.
  virtual void OnPutAway(const std::string& model, double seconds) {}
  // A job goes on from a checkpoint, or from its beginning after another attempt.
  virtual void OnJobResumed(const std::string& model, bool from_checkpoint) {}
  // Any thread, as the next two.
  virtual void OnModelLoaded(const std::string& model, double seconds) {}
  // A folder that could not be loaded; the values are FailedModel's.
  virtual void OnModelFailed(const std::string& model, const std::string& reason) {}
  // Its folder is well again, or gone.
  virtual void OnModelFailureGone(const std::string& model) {}
  virtual void OnModelUnloaded(const std::string& model) {}
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_OBSERVER_H_
