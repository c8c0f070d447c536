// Refuses work that would not fit beside what the process holds. Torch-free; any thread.
#ifndef DENOISED_RUNTIME_ENGINE_MEMORY_ADMISSION_H_
#define DENOISED_RUNTIME_ENGINE_MEMORY_ADMISSION_H_

#include <cstdint>
#include <string>

#include "runtime/engine/memory_budget.h"
#include "runtime/job.h"
#include "runtime/pipelines/estimate.h"

namespace denoised {

class MemoryAdmission {
 public:
  // `max_memory` as MemoryBudget takes it. What the process holds at this moment, its loaded
  // models, counts from now on.
  explicit MemoryAdmission(const std::string& max_memory)
      : budget_(max_memory), loaded_(ResidentBytes()) {}

  // Throws RESOURCE_EXHAUSTED, reason MEMORY, with both numbers where `what` (a noun) does not fit.
  // `held` = results, waiting requests and whatever else lies beside it.
  void Require(const std::string& what, const WorkEstimate& estimate, int64_t held) const;

  // What work may take beside `held`; the largest number where nothing limits it.
  int64_t Available(int64_t held) const;

  // Bytes by which it does not fit; 0 where it does.
  int64_t Lacking(const WorkEstimate& estimate, int64_t held) const;

  // Between two jobs: gives what the heap keeps (threads.h) back to the system where it is much, so
  // that the gaps of one job do not add to the next one's. `held` as above.
  void ReturnUnused(int64_t held) const;

 private:
  const MemoryBudget budget_;
  const int64_t loaded_;
};

// Bytes of the tensors and texts that a request holds while it waits.
int64_t BytesOf(const GenerationRequest& request);
int64_t BytesOf(const DenoiseRequest& request);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_MEMORY_ADMISSION_H_
