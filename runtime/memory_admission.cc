#include "runtime/memory_admission.h"

#include <malloc.h>

#include "backends/error.h"

namespace denoised {
namespace {

int64_t BytesOf(const HostTensor& tensor) { return static_cast<int64_t>(tensor.data.size()); }

int64_t BytesOf(const std::optional<HostTensor>& tensor) { return tensor ? BytesOf(*tensor) : 0; }

}  // namespace

void MemoryAdmission::Require(const std::string& what, const WorkEstimate& estimate,
                              int64_t held) const {
  const auto limit = budget_.Now();
  const int64_t before = loaded_ + held, needed = before + estimate.peak_bytes;
  if (!limit || needed <= limit->bytes) return;
  throw Error(StatusCode::kResourceExhausted,
              what + " needs " + BytesText(needed) + " of memory (" +
                  BytesText(estimate.peak_bytes) + " beside the " + BytesText(before) +
                  " that are in use), and there are " + BytesText(limit->bytes) + ": " +
                  limit->source,
              "", "MEMORY");
}

void MemoryAdmission::ReturnUnused(int64_t held) const {
  constexpr int64_t kMuch = int64_t{512} << 20;  // less is kept: pages that are there cost nothing
  if (ResidentBytes() > loaded_ + held + kMuch) malloc_trim(0);
}

int64_t BytesOf(const GenerationRequest& request) {
  return BytesOf(request.latents) + static_cast<int64_t>(request.prompt.size());
}

int64_t BytesOf(const DenoiseRequest& request) {
  return BytesOf(request.latents) + BytesOf(request.timestep) +
         BytesOf(request.encoder_hidden_states) + BytesOf(request.negative_encoder_hidden_states);
}

}  // namespace denoised
