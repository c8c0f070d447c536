// The loaded models by name, and the questions about attention that need no running work.
#ifndef DENOISED_RUNTIME_ENGINE_MODELS_H_
#define DENOISED_RUNTIME_ENGINE_MODELS_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/engine.h"
#include "runtime/pipelines/pipeline.h"

namespace denoised {

// Any thread.
class Models {
 public:
  // Exactly one is the default.
  explicit Models(std::vector<std::unique_ptr<Pipeline>> all) : all_(std::move(all)) {}

  // "" = the default. Throws NOT_FOUND naming what there is.
  Pipeline* Find(const std::string& name) const;
  std::vector<ModelInfo> List() const;
  int64_t MadeBytes() const;
  // Before any work: of the calls of all of them.
  void SetGuards(const Drills* drills, Shadows* shadows) const;

  // As Engine has it. `job`: what the one job in scope became; null where the scope names none.
  std::optional<Error> CheckForce(const LeaseRequest& request, const ResolvedParameters* job) const;
  std::vector<BackendInfo> ListBackends() const;
  std::vector<BreakerInfo> Breakers() const;

 private:
  std::string Names() const;

  const std::vector<std::unique_ptr<Pipeline>> all_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_MODELS_H_
