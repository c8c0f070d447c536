// EngineImpl: calls that wait for each other (company.h).
#include <algorithm>

#include "runtime/engine/engine_impl.h"

namespace denoised {

using SteadyClock = std::chrono::steady_clock;

// Where nothing waits but calls that can share one forward: for those that are on their way back,
// as long as one forward of all spares and no deadline is near.
void EngineImpl::AwaitCompany(std::unique_lock<std::mutex>* lock) {
  const auto only_calls = [this] {
    return table_.waiting_calls() > 0 && table_.waiting_calls() == table_.queue.size();
  };
  while (only_calls() && asked_.empty() && !session_news_ && !stopping_) {
    const WorkPtr lead = NextLead();
    if (lead == nullptr) return;
    const std::string batch = table_.queue.BatchOf(lead->number);
    const int64_t calls = table_.queue.InBatch(batch), missing = company_.Missing(batch, calls);
    if (missing == 0 || calls != table_.queue.size()) return;
    const Unit step = StepUnitOf(*lead);
    const auto of = [&](int64_t some) {
      return cost_.Seconds(KeyOf(*lead, step), some * step.rows);
    };
    const double all = of(calls + missing);
    const auto now = SteadyClock::now();
    auto latest = SteadyClock::time_point::max();
    if (const auto deadline = table_.queue.NextDeadline()) {
      constexpr double kSure = 2;  // predictions err
      const std::chrono::duration<double> left =
          *deadline - clock_() - std::chrono::duration<double>(kSure * all);
      if (left < std::chrono::hours(1)) {
        latest = now + std::chrono::duration_cast<SteadyClock::duration>(left);
      }
    }
    const auto until = company_.WaitUntil(of(calls) + of(missing) - all, latest, now);
    if (!until) return;
    wake_.wait_until(*lock, *until);
  }
}

// Of a forward of calls: whoever shares it, and whoever came while it ran; as many as one forward
// takes.
Company::Callers EngineImpl::CallersOf(const std::vector<WorkPtr>& works, const UnitKey& key,
                                       int64_t rows) const {
  for (const WorkPtr& work : works) {
    if (work->is_job() || work->is_session()) return {};
  }
  const EngineWork& lead = *works.front();
  const std::lock_guard lock(mutex_);
  const int64_t worth = cost_.WorthRows(key, std::min(options_.max_batch_rows, RowsThatFit(lead)));
  std::string batch = table_.queue.BatchOf(lead.number);
  const int64_t all = table_.queue.InBatch(batch);
  const int64_t most = std::max(std::ssize(works), worth * std::ssize(works) / rows);
  return {std::move(batch), std::min(all, most)};
}

}  // namespace denoised
