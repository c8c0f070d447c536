// What a fuzz target is: bytes that a disk or a peer may give, and what must hold whatever they
// are. Built twice: by clang into libFuzzer (preset fuzz), and by any compiler with replay.cc,
// which runs the seeds, the kept inputs of inputs/ and deterministic mutations of both in every
// test run.
#ifndef DENOISED_TESTS_FUZZ_FUZZ_TARGET_H_
#define DENOISED_TESTS_FUZZ_FUZZ_TARGET_H_

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "backends/error.h"

// Of each target. Returns 0; what must not be ends the process.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace denoised {

// Of each target: what its writers write.
std::vector<std::string> FuzzSeeds();

inline void FuzzRequire(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::abort();
}

// Runs `read`. True: it took the bytes. False: it refused them as it should. Anything else that it
// throws ends the process.
template <class Read>
bool TakesOrRefuses(StatusCode code, const Read& read) {
  try {
    read();
    return true;
  } catch (const Error& error) {
    FuzzRequire(error.code() == code, error.what());
    return false;
  }
}

// What was read is written and read again without a change.
template <class Read, class Write>
void FuzzRoundTrip(StatusCode refusal, const std::string& bytes, const Read& read,
                   const Write& write) {
  std::string once;
  if (!TakesOrRefuses(refusal, [&] { once = write(read(bytes)); })) return;
  FuzzRequire(write(read(once)) == once, "what was written is read as it was");
}

}  // namespace denoised

#endif  // DENOISED_TESTS_FUZZ_FUZZ_TARGET_H_
