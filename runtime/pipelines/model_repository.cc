#include <algorithm>
#include <chrono>
#include <filesystem>
#include <set>

#include "runtime/caught.h"
#include "runtime/loaders/digest_cache.h"
#include "runtime/loaders/model_folder.h"
#include "runtime/loaders/visible_text.h"
#include "runtime/pipelines/device.h"
#include "runtime/pipelines/model_folders.h"
#include "runtime/pipelines/pipeline.h"
#include "runtime/pipelines/wan_pipeline.h"

namespace denoised {
namespace {

// What kind of failure it is, for programs: a closed set, so that it can be a metric's label.
std::string ReasonOf(const Error& error) {
  if (!error.reason().empty()) return error.reason();
  switch (error.code()) {
    case StatusCode::kNotFound:
      return "MISSING_FILE";
    case StatusCode::kDataLoss:
      return "FILE_CHANGED";
    case StatusCode::kResourceExhausted:
      return "MEMORY";
    case StatusCode::kUnimplemented:
      return "UNSUPPORTED_MODEL";
    default:
      return "INVALID_MODEL";
  }
}

class RepositoryLoader : public ModelSource {
 public:
  RepositoryLoader(const RepositoryOptions& options, const SelectionPolicy* policy,
                   Observer* observer, Logger* logger)
      : options_(options),
        policy_(policy),
        observer_(observer),
        logger_(logger),
        cache_(options.state_dir.empty()
                   ? std::filesystem::path()
                   : std::filesystem::path(options.state_dir) / "file_digests") {}

  // Once; without the source itself.
  LoadedRepository LoadAll() {
    ParseDevice(options_.device);  // what is wrong with the options is wrong with no folder
    for (const FoundModel& model : FindModels(options_.repository)) TryModel(model);
    SaveDigests();
    if (models_.empty()) throw AllFailed();
    CheckVariant();
    std::string chosen = ChooseDefault();
    return {std::move(models_), std::move(chosen), std::move(failed_), nullptr};
  }

  std::unique_ptr<Pipeline> Load(const std::string& name, const AdmitWeights& admit) override {
    const FoundModel model = FindModel(name);
    if (model.problem) throw *model.problem;
    std::unique_ptr<Pipeline> pipeline = LoadModel(model, admit);
    SaveDigests();
    return pipeline;
  }

 private:
  void TryModel(const FoundModel& model) {
    const auto error = Caught([&] {
      if (model.problem) throw *model.problem;
      models_.push_back(LoadModel(model, {}));
    });
    if (error) Keep(model, *error);
  }

  // Of those that are there now, also where others came and went since the start.
  FoundModel FindModel(const std::string& name) const {
    std::string names;
    for (FoundModel& model : FindThem()) {
      if (model.name == name) return std::move(model);
      names += " " + VisibleText(model.name);
    }
    throw Error(StatusCode::kNotFound,
                "name: " + options_.repository + " has no model folder \"" + VisibleText(name) +
                    "\"; there is:" + (names.empty() ? " none" : names),
                "name", "MODEL_NOT_FOUND");
  }

  // Where nothing there is a model: none.
  std::vector<FoundModel> FindThem() const {
    std::vector<FoundModel> found;
    const auto error = Caught([&] { found = FindModels(options_.repository); });
    if (error && error->code() != StatusCode::kNotFound) {
      throw Error(error->code(), error->what(), error->field(), "REPOSITORY_UNREADABLE");
    }
    return found;
  }

  std::unique_ptr<Pipeline> LoadModel(const FoundModel& model, const AdmitWeights& admit) {
    const auto start = std::chrono::steady_clock::now();
    const ModelFolder folder(model.folder, {options_.variant, &cache_});
    std::unique_ptr<WanPipeline> pipeline;
    const auto error = Caught([&] {
      pipeline = WanPipeline::Load(folder, model.name, options_, policy_, logger_, admit);
    });
    for (const std::string& text : folder.TakeWarnings()) {
      logger_->Warning("model_files", {{"model", model.name}, {"text", text}});
    }
    NoteVariants(folder);
    if (error) throw folder.Explain(*error);
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    observer_->OnModelLoaded(pipeline->info().name, seconds);
    logger_->Info("model_loaded", {{"model", pipeline->info().name},
                                   {"dtype", pipeline->info().dtype},
                                   {"device", pipeline->info().device},
                                   {"model_digest", pipeline->info().model_digest},
                                   {"seconds", std::to_string(seconds)}});
    return pipeline;
  }

  void NoteVariants(const ModelFolder& folder) {
    variant_taken_ = variant_taken_ || folder.variant_taken();
    const auto seen = folder.variants_seen();
    variants_.insert(seen.begin(), seen.end());
  }

  // A model without the variant serves its plain files; that none has it must be a slip.
  void CheckVariant() const {
    if (options_.variant.empty() || variant_taken_) return;
    std::string text = "--variant: no model has weights of variant '" + options_.variant + "'";
    for (const std::string& variant : variants_) text += "; there is " + variant;
    throw Error(StatusCode::kNotFound, text, "variant");
  }

  void SaveDigests() {
    try {
      cache_.Save();
    } catch (const Error& error) {
      logger_->Warning("digests_not_kept", {{"text", error.what()}});
    }
  }

  // The others still serve, unless the operator wants all or nothing.
  void Keep(const FoundModel& model, const Error& error) {
    if (options_.strict) throw Error(error.code(), VisibleText(error.what()), error.field());
    failed_.push_back(FailureOf(model.name, error));
    const FailedModel& failed = failed_.back();
    observer_->OnModelFailed(failed.name, failed.reason);
    logger_->Error(
        "model_failed",
        {{"model", failed.name}, {"reason", failed.reason}, {"message", failed.message}});
    last_code_ = error.code();
  }

  Error AllFailed() const {
    if (failed_.size() == 1) return Error(last_code_, failed_[0].message, "", failed_[0].reason);
    std::string text = options_.repository + ": none of its " + std::to_string(failed_.size()) +
                       " models can be loaded";
    for (const FailedModel& model : failed_) {
      text += "\n  " + model.name + ": " + model.message;
    }
    return Error(last_code_, text, "model_repository");
  }

  // "shapes" where it was loaded, else the first that was.
  std::string ChooseDefault() const {
    auto chosen = std::find_if(models_.begin(), models_.end(),
                               [](const auto& model) { return model->info().name == "shapes"; });
    if (chosen == models_.end()) chosen = models_.begin();
    const std::string& name = (*chosen)->info().name;
    WarnOfDefault(name);
    return name;
  }

  // Requests that name no model go elsewhere than they would.
  void WarnOfDefault(const std::string& chosen) const {
    for (const FailedModel& model : failed_) {
      const bool missed = chosen != "shapes" && (model.name == "shapes" || model.name < chosen);
      if (!missed) continue;
      logger_->Warning("default_model",
                       {{"model", chosen}, {"text", "the default instead of " + model.name}});
      return;
    }
  }

  const RepositoryOptions options_;
  const SelectionPolicy* const policy_;
  Observer* const observer_;
  Logger* const logger_;
  DigestCache cache_;
  std::set<std::string> variants_;
  bool variant_taken_ = false;
  std::vector<std::unique_ptr<Pipeline>> models_;  // until LoadAll is done, as what follows
  std::vector<FailedModel> failed_;
  StatusCode last_code_ = StatusCode::kNotFound;
};

}  // namespace

FailedModel FailureOf(const std::string& name, const Error& error) {
  return {VisibleText(name), ReasonOf(error), VisibleText(error.what())};
}

LoadedRepository LoadPipelines(const RepositoryOptions& options, const SelectionPolicy* policy,
                               Observer* observer, Logger* logger) {
  auto loader = std::make_unique<RepositoryLoader>(options, policy, observer, logger);
  LoadedRepository loaded = loader->LoadAll();
  loaded.source = std::move(loader);
  return loaded;
}

}  // namespace denoised
