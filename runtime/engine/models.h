// The loaded models by name, and the questions about attention that need no running work.
#ifndef DENOISED_RUNTIME_ENGINE_MODELS_H_
#define DENOISED_RUNTIME_ENGINE_MODELS_H_

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "runtime/engine.h"
#include "runtime/engine/model_bytes.h"
#include "runtime/pipelines/pipeline.h"

namespace denoised {

// Of models that no longer serve: each expires when the model and what is counted for it are gone,
// a little later than the last pointer to it.
using Going = std::vector<std::weak_ptr<const void>>;

// Any thread. A model that is taken away lives on for as long as work has it.
class Models {
 public:
  // Takes the models of `loaded`, one at least.
  explicit Models(LoadedRepository* loaded);

  // "" = the default. Throws NOT_FOUND naming what there is.
  PipelinePtr Find(const std::string& name) const;
  // Whether it is what its name stands for now.
  bool Serves(const Pipeline& pipeline) const;
  std::vector<PipelinePtr> All() const;
  static std::weak_ptr<const void> PresenceOf(const PipelinePtr& pipeline);
  std::vector<ModelInfo> List() const;
  std::optional<ModelInfo> Served(const std::string& name) const;  // of List()
  std::vector<FailedModel> ListFailed() const;
  int64_t MadeBytes() const;
  const std::shared_ptr<ModelBytes>& bytes() const { return bytes_; }

  // The model that the next work of its name gets; `passing` is what was counted for it until now.
  // What served in that name, null where nothing did.
  PipelinePtr Serve(std::unique_ptr<Pipeline> pipeline, std::unique_ptr<PassingBytes> passing);
  // Throws NOT_FOUND, and FAILED_PRECONDITION (reason MODEL_IS_DEFAULT) for the default among
  // others.
  void RequireRemovable(const std::string& name) const;
  // Its name stands for nothing from now on.
  PipelinePtr Remove(const std::string& name);
  // What a folder's last loading failed with; and that it went well, or the folder is gone.
  void NoteFailed(FailedModel failed);
  void ForgetFailed(const std::string& name);

  // Work that a question is about, with the model that it has: perhaps no longer one that serves.
  struct Subject {
    PipelinePtr pipeline;
    ResolvedParameters parameters;
  };
  // As Engine has it. `work`: the one in scope; null where the scope names none.
  std::optional<Error> CheckForce(const LeaseRequest& request, const Subject* work) const;
  std::vector<BackendInfo> ListBackends() const;
  std::vector<BreakerInfo> Breakers() const;

 private:
  struct Entry {
    std::unique_ptr<PassingBytes> passing;  // of one that serves: none
    std::unique_ptr<Pipeline> pipeline;     // goes first
  };
  using EntryPtr = std::shared_ptr<Entry>;
  struct Deleter {
    void operator()(Entry* entry) {
      delete entry;
      presence.reset();
    }
    std::shared_ptr<const void> presence = std::make_shared<int>();
  };

  static EntryPtr Keep(std::unique_ptr<Pipeline> pipeline) {
    return EntryPtr(new Entry{nullptr, std::move(pipeline)}, Deleter());
  }
  static PipelinePtr PipelineOf(const EntryPtr& entry) {
    return PipelinePtr(entry, entry->pipeline.get());
  }
  EntryPtr Take(const std::string& name);

  const std::string default_;
  const BackendRegistry* const registry_;  // of all models
  const std::shared_ptr<ModelBytes> bytes_ = std::make_shared<ModelBytes>();
  mutable std::mutex mutex_;       // guards what follows
  std::vector<EntryPtr> serving_;  // by name
  std::vector<FailedModel> failed_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_MODELS_H_
