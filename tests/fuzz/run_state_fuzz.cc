// The latents of a run between two steps.
#include "runtime/pipelines/run_state.h"
#include "tests/fuzz/fuzz_target.h"

namespace denoised {

std::vector<std::string> FuzzSeeds() {
  const HostTensor tensor{DType::kFloat32, {1, 2, 1, 1, 2}, std::string(16, 'x')};
  return {SerializeRunState({"request", "embeddings", 7, tensor, "a solver", {{"last", tensor}}}),
          SerializeRunState({"request", "", 0, tensor, "", {}})};
}

}  // namespace denoised

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using denoised::RunState;
  denoised::FuzzRoundTrip(
      denoised::StatusCode::kInvalidArgument,
      std::string(reinterpret_cast<const char*>(data), size),
      [](const std::string& bytes) { return denoised::ParseRunState(bytes); },
      [](const RunState& state) { return denoised::SerializeRunState(state); });
  return 0;
}
