// The steps by which a server that runs short of memory does less, so that it is never killed for
// it. As Envoy's overload manager: a resource's pressure between 0 and 1, and actions at
// thresholds. A value without a clock or a thread; torch-free.
//
// Pressure is not how full memory is. Loaded models are there on purpose, and work that runs was
// let in by its estimate, which may be all the room that there is: neither is a reason to send
// anybody away. What presses is memory that nobody planned: waiting requests, kept results,
// watchers, connections, messages on their way. It is measured against the room that is left for
// it, the limit less what was loaded and what running work was promised.
//
// What the kernel says cannot be told apart by owner. Growth while work runs counts as that work's,
// as far as its promise goes, and beyond that as other; what was other when the work began stays
// so until as much is given back. So a job that takes its whole estimate, or none of it yet,
// presses nobody, and watchers that were there before it press it from its first moment.
#ifndef DENOISED_RUNTIME_ENGINE_MEMORY_LADDER_H_
#define DENOISED_RUNTIME_ENGINE_MEMORY_LADDER_H_

#include <array>
#include <cstdint>
#include <string>

#include "runtime/memory_pressure.h"

namespace denoised {

struct MemoryReading {
  int64_t limit = 0;     // what the process may take
  int64_t loaded = 0;    // what it took once its models were loaded
  int64_t grown = 0;     // what it took since that the kernel cannot take back; may be below 0
  int64_t promised = 0;  // to work that has begun, by estimate, and to what models keep since then
  int64_t counted = 0;   // requests that wait and results that must stay: known, not measured
};

// "memory is short: ...", with both numbers.
std::string ShortText(const MemoryPressure& pressure);

class MemoryLadder {
 public:
  // A step is taken when so many looks in a row ask for it: between a job's end and the moment when
  // its memory is given back, its promise is gone and its memory is not.
  static constexpr int kLooks = 3;
  // Where each step begins, and below what it ends, so that it does not flutter. By the step.
  static constexpr std::array<double, 4> kFrom = {0, 0.85, 0.92, 0.95};
  static constexpr std::array<double, 4> kUntil = {0, 0.80, 0.87, 0.90};

  // What the reading would be called, without its consequences.
  MemoryPressure Judge(const MemoryReading& reading) const;
  // One look: the steps follow it.
  const MemoryPressure& Take(const MemoryReading& reading);
  const MemoryPressure& now() const { return now_; }

  // Whether it asks for a further step.
  static bool WouldClimb(const MemoryPressure& pressure);
  // Of a judgement: whether that look, if it were taken, would be the last before the first step,
  // or the first step stands: time to let go of what may go.
  bool Insists(const MemoryPressure& judged) const;

  void CountRefusal() { ++now_.refused_works; }

  // What would have to go for the first step to end, or not to begin.
  static int64_t Excess(const MemoryPressure& pressure);

 private:
  int64_t Others(const MemoryReading& reading) const;

  MemoryPressure now_;
  int64_t grown_ = 0;  // at the last look
  std::array<double, kLooks> recent_{};
  size_t looks_ = 0;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_MEMORY_LADDER_H_
