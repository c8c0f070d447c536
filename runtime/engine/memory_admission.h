// Refuses work that would not fit beside what the process holds. Torch-free; any thread.
#ifndef DENOISED_RUNTIME_ENGINE_MEMORY_ADMISSION_H_
#define DENOISED_RUNTIME_ENGINE_MEMORY_ADMISSION_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "runtime/engine/memory_budget.h"
#include "runtime/engine/memory_ladder.h"
#include "runtime/engine/model_bytes.h"
#include "runtime/job.h"
#include "runtime/pipelines/estimate.h"
#include "runtime/session.h"

namespace denoised {

// What calls that are kept for a comparison may take: little beside what work may.
int64_t MostShadowBytes(const std::string& max_memory);
// Likewise what is remembered of ended jobs, of those that made results and of those that did not.
uint64_t MostRowBytes(const std::string& max_memory);

class MemoryAdmission {
 public:
  // `max_memory` as MemoryBudget takes it. What the process holds at this moment, its loaded
  // models, counts from now on, and what `models` say of those that come and go.
  // `unreclaimable` stands for UnreclaimableBytes in tests.
  MemoryAdmission(const std::string& max_memory, std::shared_ptr<const ModelBytes> models,
                  std::function<int64_t()> unreclaimable = {});

  // Throws RESOURCE_EXHAUSTED, reason MEMORY, with both numbers where `what` (a noun) does not fit.
  // `held` = results, waiting requests and whatever else lies beside it.
  void Require(const std::string& what, const WorkEstimate& estimate, int64_t held) const;

  // What work may take beside `held`; the largest number where nothing limits it. All three take a
  // limit that was read within the last second.
  int64_t Available(int64_t held) const;

  // Bytes by which it does not fit; 0 where it does.
  int64_t Lacking(const WorkEstimate& estimate, int64_t held) const;

  // After a job: gives what the heap keeps (threads.h) back to the system where it is much, so
  // that the gaps of one job do not add to the next one's. `held` as above.
  void ReturnUnused(int64_t held) const;

  // For the ladder, as it is now; empty where nothing limits it. `promised` and `counted` as it has
  // them.
  std::optional<MemoryReading> Read(int64_t promised, int64_t counted) const;
  // Gives back all that the heap keeps, so that a reading is of what is in use.
  void ReturnAllUnused() const;

  // Of models that are loaded, or still used, beside those that serve: room that there will be.
  int64_t passing() const { return models_->passing; }

 private:
  int64_t loaded() const { return at_start_ + models_->serving + models_->passing; }

  std::optional<MemoryBudget::Limit> RecentLimit() const;

  const MemoryBudget budget_;
  const std::shared_ptr<const ModelBytes> models_;
  const std::function<int64_t()> unreclaimable_;
  const int64_t at_start_, unreclaimable_at_start_;
  mutable std::mutex mutex_;  // guards what follows
  mutable std::optional<MemoryBudget::Limit> limit_;
  mutable std::optional<std::chrono::steady_clock::time_point> read_at_;
};

// Bytes of the tensors and texts that a request holds while it waits.
int64_t BytesOf(const GenerationRequest& request);
int64_t BytesOf(const DenoiseRequest& request);
int64_t BytesOf(const SessionGiven& given);
int64_t BytesOf(const SessionVerb& verb);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_MEMORY_ADMISSION_H_
