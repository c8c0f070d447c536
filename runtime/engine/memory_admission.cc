#include "runtime/engine/memory_admission.h"

#include <malloc.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "backends/error.h"

namespace denoised {
namespace {

int64_t BytesOf(const HostTensor& tensor) { return static_cast<int64_t>(tensor.data.size()); }

int64_t BytesOf(const std::optional<HostTensor>& tensor) { return tensor ? BytesOf(*tensor) : 0; }

// So many bytes, or a part of what there is where that is less.
int64_t PartOf(const std::string& max_memory, int64_t part, int64_t most) {
  const auto limit = MemoryBudget(max_memory).Now();
  return limit ? std::min(most, limit->bytes / part) : most;
}

}  // namespace

int64_t MostShadowBytes(const std::string& max_memory) {
  return PartOf(max_memory, 32, int64_t{512} << 20);
}

uint64_t MostRowBytes(const std::string& max_memory) {
  return static_cast<uint64_t>(PartOf(max_memory, 64, int64_t{128} << 20));
}

MemoryAdmission::MemoryAdmission(const std::string& max_memory,
                                 std::shared_ptr<const ModelBytes> models,
                                 std::function<int64_t()> unreclaimable)
    : budget_(max_memory),
      models_(std::move(models)),
      unreclaimable_(unreclaimable ? std::move(unreclaimable) : UnreclaimableBytes),
      at_start_(ResidentBytes()),
      unreclaimable_at_start_(unreclaimable_()) {}

void MemoryAdmission::Require(const std::string& what, const WorkEstimate& estimate,
                              int64_t held) const {
  const auto limit = RecentLimit();
  const int64_t before = loaded() + held, needed = before + estimate.peak_bytes;
  if (!limit || needed <= limit->bytes) return;
  // Where both round to one figure, exactly.
  const bool close = BytesText(needed) == BytesText(limit->bytes);
  const auto text = [close](int64_t bytes) {
    return close ? std::to_string(bytes) + " bytes" : BytesText(bytes);
  };
  throw Error(StatusCode::kResourceExhausted,
              what + " needs " + text(needed) + " of memory (" + BytesText(estimate.peak_bytes) +
                  " beside the " + BytesText(before) + " that are in use), and there are " +
                  text(limit->bytes) + ": " + limit->source,
              "", "MEMORY");
}

// The engine asks at every submit, begin and step; files of the kernel need not be read for that.
std::optional<MemoryBudget::Limit> MemoryAdmission::RecentLimit() const {
  constexpr std::chrono::seconds kRecent(1);
  const std::lock_guard lock(mutex_);
  const auto now = std::chrono::steady_clock::now();
  if (!read_at_ || now - *read_at_ >= kRecent) {
    limit_ = budget_.Now();
    read_at_ = now;
  }
  return limit_;
}

int64_t MemoryAdmission::Available(int64_t held) const {
  const auto limit = RecentLimit();
  return limit ? limit->bytes - loaded() - held : std::numeric_limits<int64_t>::max();
}

int64_t MemoryAdmission::Lacking(const WorkEstimate& estimate, int64_t held) const {
  const auto limit = RecentLimit();
  return limit ? std::max<int64_t>(0, loaded() + held + estimate.peak_bytes - limit->bytes) : 0;
}

void MemoryAdmission::ReturnUnused(int64_t held) const {
  constexpr int64_t kMuch = int64_t{512} << 20;  // less is kept: pages that are there cost nothing
  if (ResidentBytes() > loaded() + held + kMuch) ReturnAllUnused();
}

std::optional<MemoryReading> MemoryAdmission::Read(int64_t promised, int64_t counted) const {
  const auto limit = RecentLimit();
  if (!limit) return std::nullopt;
  // Models that came since the start were let in by their size, as work is.
  const int64_t came = std::max<int64_t>(0, models_->serving + models_->passing);
  return MemoryReading{limit->bytes, at_start_, unreclaimable_() - unreclaimable_at_start_,
                       promised + came, counted};
}

void MemoryAdmission::ReturnAllUnused() const { malloc_trim(0); }

int64_t BytesOf(const GenerationRequest& request) {
  return BytesOf(request.latents) + static_cast<int64_t>(request.prompt.size());
}

int64_t BytesOf(const DenoiseRequest& request) {
  return BytesOf(request.latents) + BytesOf(request.timestep) +
         BytesOf(request.encoder_hidden_states) + BytesOf(request.negative_encoder_hidden_states);
}

int64_t BytesOf(const SessionGiven& given) {
  return BytesOf(given.encoder_hidden_states) + BytesOf(given.negative_encoder_hidden_states);
}

int64_t BytesOf(const SessionVerb& verb) {
  const auto* write = std::get_if<SessionWrite>(&verb);
  return write == nullptr ? 0 : BytesOf(write->latents);
}

}  // namespace denoised
