// What every service needs of the server around it. All borrowed; outlives the services.
#ifndef DENOISED_SERVER_CALL_CONTEXT_H_
#define DENOISED_SERVER_CALL_CONTEXT_H_

#include "runtime/log.h"
#include "runtime/task_thread.h"
#include "server/engine_gate.h"
#include "server/job_watches.h"
#include "server/metrics.h"
#include "server/open_calls.h"
#include "server/watchers.h"
#include "server/work_pool.h"

namespace denoised {

struct CallContext {
  EngineGate* gate;
  TaskThread* dispatcher;  // wakes streams
  JobWatches* watches;     // ... that follow a job
  WorkPool* pool;          // long checks
  WorkPool* answers;      // that take long to write: apart, so that none waits for checks and disks
  OpenCalls* open_calls;  // streams and steps
  Watchers* watchers;
  Metrics* metrics;
  Logger* logger;
};

}  // namespace denoised

#endif  // DENOISED_SERVER_CALL_CONTEXT_H_
