#include "runtime/attention/plan_cache.h"

#include <utility>

namespace denoised {

std::shared_ptr<const AttentionMetadata> MetadataMaker::Make(int64_t step, int64_t num_steps) {
  if (!builder_) return nullptr;
  const MetadataRequest request{step, num_steps, spec_, parameters_};
  const std::optional<int64_t> kind = builder_->StepKind(request);
  if (!kind) return builder_->Build(request);
  std::weak_ptr<const AttentionMetadata>& place = made_[*kind];
  auto metadata = place.lock();
  if (!metadata) {
    metadata = builder_->Build(request);
    place = metadata;
    std::erase_if(made_, [](const auto& entry) { return entry.second.expired(); });
  }
  return metadata;
}

std::shared_ptr<MetadataMaker> PlanCache::Find(const AttentionBackend& backend,
                                               const AttentionSpec& spec,
                                               const std::string& parameters) {
  std::shared_ptr<MetadataMaker> maker;
  std::erase_if(known_, [&](const std::weak_ptr<MetadataMaker>& known) {
    const auto one = known.lock();
    if (one && one->Serves(backend, spec, parameters)) maker = one;
    return !one;
  });
  if (!maker) {
    maker = std::make_shared<MetadataMaker>(backend, spec, parameters);
    known_.push_back(maker);
  }
  recent_.remove(maker);
  recent_.push_front(maker);
  if (recent_.size() > kKept) recent_.pop_back();
  return maker;
}

}  // namespace denoised
