// What a job has reached, as the engine keeps it.
#include "runtime/engine/checkpoint.h"
#include "tests/fuzz/fuzz_samples.h"
#include "tests/fuzz/fuzz_target.h"

namespace denoised {

std::vector<std::string> FuzzSeeds() {
  Checkpoint bare, whole;
  bare.step = 1;
  whole.step = 12;
  whole.identity = "model=abc\nkernels=avx2\nbackend of self=TORCH_SDPA\n";
  whole.order = "a kind of call\t1700000000 SAGE_ATTN 0.25 0.001\n";
  whole.entries = SampleReceipt().entries;
  whole.notes = {"a note", "begun again from step 0, not from step 3: it was damaged"};
  whole.pinned = std::make_shared<const LeaseList>(LeaseList{SampleLease(), SampleLease()});
  whole.run = std::string("latents\0\n\xff", 10);
  return {"", bare.Serialise(), whole.Serialise()};
}

}  // namespace denoised

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using denoised::Checkpoint;
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  denoised::FuzzRoundTrip(
      denoised::StatusCode::kDataLoss, bytes, [](const auto& b) { return Checkpoint::Parse(b); },
      [](const Checkpoint& checkpoint) { return checkpoint.Serialise(); });
  denoised::WhatDiffers(bytes, "model=abc\n");
  return 0;
}
