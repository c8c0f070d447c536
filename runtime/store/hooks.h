// What a test may do to the durable store: stand at its edges, end the process there, play the
// disk. The server hands none in.
#ifndef DENOISED_RUNTIME_STORE_HOOKS_H_
#define DENOISED_RUNTIME_STORE_HOOKS_H_

#include <cstdint>
#include <string_view>

#include "runtime/store/clocks.h"

namespace denoised {

// Called from the threads of the store and of its callers, without its locks.
class StoreHooks {
 public:
  virtual ~StoreHooks() = default;

  // The store is at this edge: VERB.before_commit and VERB.after_commit of the ledger's verbs
  // (accept, start, change, finish, forget, recover, control, probe); artifact. and
  // checkpoint.half_written, .before_rename and .after_rename of its files. An Error thrown there
  // is the disk's answer.
  virtual void At(std::string_view edge) {}
  // Bytes that are free, where the file system says `said`.
  virtual uint64_t FreeBytes(uint64_t said) { return said; }
  // What the clocks show, where the system says `said`. Also called with locks held.
  virtual ClockReading Clocks(const ClockReading& said) { return said; }
};

// The clocks as they are, or as a test has them.
inline ClockReading ReadClocks(StoreHooks* hooks) {
  const ClockReading said = ReadClocks();
  return hooks == nullptr ? said : hooks->Clocks(said);
}

}  // namespace denoised

#endif  // DENOISED_RUNTIME_STORE_HOOKS_H_
