// What backends' builders make, shared: pieces of work that ask for one backend with one spec and
// parameters get one and the same metadata, by which a forward sees that their rows can be one
// call, and geometry is made once for all of them.
#ifndef DENOISED_RUNTIME_ATTENTION_PLAN_CACHE_H_
#define DENOISED_RUNTIME_ATTENTION_PLAN_CACHE_H_

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backends/attention_backend.h"
#include "backends/attention_spec.h"

namespace denoised {

// The metadata of one backend, spec and parameters. Engine thread.
class MetadataMaker {
 public:
  MetadataMaker(const AttentionBackend& backend, AttentionSpec spec, std::string parameters)
      : backend_(backend),
        spec_(std::move(spec)),
        parameters_(std::move(parameters)),
        builder_(backend.MakeBuilder()) {}

  // Equal pointers for steps that the builder does not tell apart, for as long as anybody holds
  // one. Null where the backend needs none. Throws what Build throws.
  std::shared_ptr<const AttentionMetadata> Make(int64_t step, int64_t num_steps);

  bool Serves(const AttentionBackend& backend, const AttentionSpec& spec,
              const std::string& parameters) const {
    return &backend == &backend_ && parameters == parameters_ && spec == spec_;
  }

 private:
  const AttentionBackend& backend_;
  const AttentionSpec spec_;
  const std::string parameters_;  // canonical
  const std::unique_ptr<AttentionMetadataBuilder> builder_;
  std::map<int64_t, std::weak_ptr<const AttentionMetadata>>
      made_;  // by AttentionMetadataBuilder::StepKind
};

// Of one model; engine thread.
class PlanCache {
 public:
  // The makers of the last few, and of all that are in use.
  std::shared_ptr<MetadataMaker> Find(const AttentionBackend& backend, const AttentionSpec& spec,
                                      const std::string& parameters);

 private:
  // As many as a few jobs of different sizes need; each holds its geometry.
  static constexpr size_t kKept = 8;

  std::list<std::shared_ptr<MetadataMaker>> recent_;  // the latest first
  std::vector<std::weak_ptr<MetadataMaker>> known_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ATTENTION_PLAN_CACHE_H_
