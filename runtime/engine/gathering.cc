// EngineImpl: calls that wait for each other (company.h).
#include <algorithm>

#include "runtime/engine/engine_impl.h"

namespace denoised {

using SteadyClock = std::chrono::steady_clock;

// Where nothing but calls waits: for those that are on their way back, for as long as one forward
// of all spares.
void EngineImpl::AwaitCompany(std::unique_lock<std::mutex>* lock) {
  const auto only_calls = [this] {
    return table_.waiting_calls() > 0 && table_.waiting_calls() == table_.queue.size();
  };
  while (options_.batching && only_calls() && asked_.empty() && !session_news_ && !stopping_) {
    const int64_t calls = table_.waiting_calls(), missing = company_.callers() - calls;
    const WorkPtr lead = NextLead();
    if (missing <= 0 || lead == nullptr) return;
    const Unit step = StepUnitOf(*lead);
    const auto of = [&](int64_t some) {
      return cost_.Seconds(KeyOf(*lead, step), some * step.rows);
    };
    const double gain = of(calls) + of(missing) - of(calls + missing);
    const auto until = company_.WaitUntil(calls, gain, SteadyClock::now());
    if (!until) return;
    wake_.wait_until(*lock, *until);
  }
}

// Whoever was answered just now comes back perhaps, to those who wait by now; up to as many as a
// forward takes.
void EngineImpl::ExpectCompany(const std::vector<WorkPtr>& works, const UnitKey& key, int64_t rows,
                               double seconds) {
  const bool only_calls = std::ranges::none_of(
      works, [](const WorkPtr& work) { return work->is_job() || work->is_session(); });
  const int64_t calls = std::ssize(works), worth = cost_.WorthRows(key, options_.max_batch_rows);
  const std::lock_guard lock(mutex_);
  if (!only_calls) return company_.Leave();
  const int64_t callers = std::min(calls + table_.waiting_calls(), worth * calls / rows);
  company_.Answered(callers, seconds, SteadyClock::now());
}

}  // namespace denoised
