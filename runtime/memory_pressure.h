// How short of memory the process is, and what follows. Torch-free plain value.
#ifndef DENOISED_RUNTIME_MEMORY_PRESSURE_H_
#define DENOISED_RUNTIME_MEMORY_PRESSURE_H_

#include <cstdint>

namespace denoised {

// What is done, each beside those before it: new jobs, calls and sessions are refused; watchers are
// asked to come back later, the oldest first; new connections are closed. Work that was taken goes
// on at every step.
enum class MemoryStep : uint8_t { kNone, kNoNewWork, kShedWatchers, kRefuseConnections };

struct MemoryPressure {
  MemoryStep step = MemoryStep::kNone;
  // What requests, results, watchers and connections take, of what running work leaves them
  // (engine/memory_ladder.h); 0 where memory has no limit.
  double fraction = 0;
  int64_t taken_bytes = 0, room_bytes = 0;
  int64_t refused_works = 0;  // since the start
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_MEMORY_PRESSURE_H_
