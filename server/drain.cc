#include "server/drain.h"

#include <algorithm>
#include <string>
#include <thread>

#include "runtime/caught.h"

namespace denoised {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// Results are looked at this often: nobody wakes us when one is fetched or grows old.
constexpr milliseconds kLook{50};
// How long a cancelled step may take to reach its next cancel point, and how long the streams of
// the jobs may take to say so.
constexpr milliseconds kCancelWait{1000};
constexpr milliseconds kStreamWait{400};

milliseconds Left(Clock::time_point deadline) {
  return std::chrono::ceil<milliseconds>(std::max(deadline - Clock::now(), Clock::duration(0)));
}

void DeclareCancelled(JobSnapshot& job) {
  job.state = JobState::kCancelled;
  job.finished_at = std::chrono::system_clock::now();
  job.error = JobError{StatusCode::kCancelled, "the server stopped", "", "CANCELLED"};
}

// Jobs that did not reach a stop point in time: cancelled, or begun again by the next server, also
// where the disk does not take that.
void Abandon(JobStore* jobs, Logger* logger) {
  for (const JobSnapshot& job : jobs->List(JobState::kRunning, 1000, "").jobs) {
    logger->Warning("job_abandoned", {{"job", job.id}});
    const auto error = Caught([&] {
      jobs->durable() ? jobs->Interrupt(job.id) : void(jobs->Update(job.id, DeclareCancelled));
    });
    if (error) logger->Warning("job_not_parked", {{"job", job.id}, {"message", error->what()}});
  }
}

}  // namespace

bool WaitQuiet(Engine* engine, const OpenCalls& calls, milliseconds grace) {
  const auto deadline = Clock::now() + grace;
  for (;;) {
    if (!engine->WaitIdle(Left(deadline)) || !calls.WaitNone(deadline)) return false;
    const bool fetched =
        engine->jobs().durable() || engine->jobs().CountUnfetched(kResultWait) == 0;
    if (fetched && calls.count() == 0) return true;
    if (Clock::now() >= deadline) return false;
    std::this_thread::sleep_for(std::min(kLook, Left(deadline)));
  }
}

void EndWork(Engine* engine, const OpenCalls& calls, Logger* logger) {
  engine->Stop();
  if (!engine->WaitIdle(kCancelWait)) Abandon(&engine->jobs(), logger);
  calls.WaitNone(Clock::now() + kStreamWait);
}

}  // namespace denoised
