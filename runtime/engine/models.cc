#include "runtime/engine/models.h"

#include <algorithm>
#include <iterator>
#include <set>

#include "runtime/caught.h"

namespace denoised {
namespace {

// Looks at layers that a force is for until one is found that it can serve.
class ForceCheck {
 public:
  explicit ForceCheck(const LeaseRequest& request) : request_(request) {}

  bool CanServe(const Pipeline& pipeline, const AttentionSpec& spec) {
    const std::optional<AttentionRole>& role = request_.scope.where.role;
    if (role && *role != spec.role) return false;
    if (IsBeyondLayers(pipeline, spec)) return false;
    const auto why_not = WhyUnusable(request_.backend, pipeline, spec);
    if (!why_not) return FitsParameters(pipeline, spec);
    Say(*why_not, "backend");
    for (AttnBackend other : spec.supported) {
      if (!WhyUnusable(other, pipeline, spec)) usable_.emplace(AttnBackendName(other));
    }
    return false;
  }

  // Where nothing was found.
  Error Refusal() const {
    if (unfit_) return *unfit_;
    std::string names;
    for (const std::string& name : usable_) names += " " + name;
    return Error(StatusCode::kFailedPrecondition,
                 std::string(AttnBackendName(request_.backend)) + " can serve no layer in scope (" +
                     ToText(request_.scope) +
                     "): " + (sentence_.empty() ? "no model has any" : sentence_) +
                     (names.empty() ? "" : ". Usable:" + names),
                 field_, "BACKEND_UNUSABLE");
  }

 private:
  static std::string Named(const Pipeline& pipeline, const AttentionSpec& spec) {
    return std::string(AttentionRoleName(spec.role)) + "-attention of " + pipeline.info().name;
  }

  static std::optional<std::string> WhyUnusable(AttnBackend backend, const Pipeline& pipeline,
                                                const AttentionSpec& spec) {
    if (!spec.Lists(backend)) {
      return Named(pipeline, spec) + " does not list it";
    }
    const PlannerSetting& setting = pipeline.planner_setting();
    return setting.registry->WhyNot(backend, spec, setting.device);
  }

  bool IsBeyondLayers(const Pipeline& pipeline, const AttentionSpec& spec) {
    const int64_t layers = pipeline.planner_setting().LayersOf(spec.role);
    const std::optional<Interval>& wanted = request_.scope.where.layers;
    if (!wanted || wanted->first < layers) return false;
    Say(Named(pipeline, spec) + " has " + std::to_string(layers) + " layers, which count from 0",
        "scope.layers");
    return true;
  }

  // As the request of a force names it: "parameters.<key>", where jobs have "attention.parameters".
  bool FitsParameters(const Pipeline& pipeline, const AttentionSpec& spec) {
    try {
      pipeline.planner_setting().registry->CanonicalParameters(request_.backend, spec,
                                                               request_.parameters);
      return true;
    } catch (const Error& error) {
      if (!unfit_) unfit_ = Renamed(error, "attention.", "");
      return false;
    }
  }

  // The first one counts.
  void Say(const std::string& sentence, const std::string& field) {
    if (!sentence_.empty()) return;
    sentence_ = sentence;
    field_ = field;
  }

  const LeaseRequest& request_;
  std::string sentence_, field_ = "scope";
  std::set<std::string> usable_;
  std::optional<Error> unfit_;  // the backend could serve, but not with these parameters
};

AttentionSpec SelfOf(const Pipeline& pipeline) {
  AttentionSpec self;
  for (const AttentionSpec& spec : pipeline.DenoiseSpecs(pipeline.info().defaults)) {
    if (spec.role == AttentionRole::kSelf) self = spec;
  }
  return self;
}

std::string NamesOf(const std::vector<PipelinePtr>& pipelines) {
  std::string names;
  for (const PipelinePtr& pipeline : pipelines) names += " " + pipeline->info().name;
  return names.empty() ? " none" : names;
}

}  // namespace

Models::Models(LoadedRepository* loaded)
    : default_(std::move(loaded->default_model)),
      registry_(loaded->pipelines.at(0)->planner_setting().registry),
      failed_(std::move(loaded->failed)) {
  for (auto& pipeline : loaded->pipelines) {
    serving_.push_back(Keep(std::move(pipeline)));
  }
}

PipelinePtr Models::Find(const std::string& name) const {
  const std::vector<PipelinePtr> all = All();
  for (const PipelinePtr& pipeline : all) {
    if (pipeline->info().name == (name.empty() ? default_ : name)) return pipeline;
  }
  const std::string why = name.empty() ? "the default, " + default_ + ", is not loaded"
                                       : "no model is called \"" + name + "\"";
  throw Error(StatusCode::kNotFound, "model: " + why + "; there is:" + NamesOf(all), "model",
              "MODEL_NOT_FOUND");
}

std::weak_ptr<const void> Models::PresenceOf(const PipelinePtr& pipeline) {
  return std::get_deleter<Deleter>(pipeline)->presence;
}

bool Models::Serves(const Pipeline& pipeline) const {
  const std::lock_guard lock(mutex_);
  return std::ranges::any_of(
      serving_, [&](const EntryPtr& entry) { return entry->pipeline.get() == &pipeline; });
}

std::vector<PipelinePtr> Models::All() const {
  const std::lock_guard lock(mutex_);
  std::vector<PipelinePtr> all;
  for (const EntryPtr& entry : serving_) all.push_back(PipelineOf(entry));
  return all;
}

std::vector<ModelInfo> Models::List() const {
  std::vector<ModelInfo> models;
  for (const PipelinePtr& pipeline : All()) {
    models.push_back(pipeline->info());
    models.back().is_default = models.back().name == default_;
  }
  return models;
}

std::optional<ModelInfo> Models::Served(const std::string& name) const {
  std::vector<ModelInfo> all = List();
  const auto found = std::ranges::find(all, name, &ModelInfo::name);
  return found == all.end() ? std::nullopt : std::optional(std::move(*found));
}

std::vector<FailedModel> Models::ListFailed() const {
  const std::lock_guard lock(mutex_);
  return failed_;
}

int64_t Models::MadeBytes() const {
  const std::lock_guard lock(mutex_);
  int64_t bytes = 0;
  for (const EntryPtr& entry : serving_) bytes += entry->pipeline->MadeBytes();
  return bytes;
}

// ---- models come and go ------------------------------------------------------------------------

// Under mutex_. What it holds counts as passing until its last work has ended.
Models::EntryPtr Models::Take(const std::string& name) {
  const auto found = std::ranges::find_if(
      serving_, [&](const EntryPtr& entry) { return entry->pipeline->info().name == name; });
  if (found == serving_.end()) return nullptr;
  EntryPtr entry = std::move(*found);
  serving_.erase(found);
  const int64_t weights = entry->pipeline->info().weight_bytes;
  bytes_->serving -= weights;
  entry->passing = std::make_unique<PassingBytes>(bytes_);
  entry->passing->Set(weights + entry->pipeline->MadeBytes());
  return entry;
}

PipelinePtr Models::Serve(std::unique_ptr<Pipeline> pipeline,
                          std::unique_ptr<PassingBytes> passing) {
  const std::lock_guard lock(mutex_);
  const ModelInfo& info = pipeline->info();
  bytes_->serving += info.weight_bytes;
  passing.reset();
  const EntryPtr before = Take(info.name);
  const auto place = std::ranges::find_if(
      serving_, [&](const EntryPtr& other) { return other->pipeline->info().name > info.name; });
  serving_.insert(place, Keep(std::move(pipeline)));
  return before ? PipelineOf(before) : nullptr;
}

void Models::RequireRemovable(const std::string& name) const {
  const PipelinePtr pipeline = Find(name);
  if (pipeline->info().name != default_ || All().size() == 1) return;
  throw Error(StatusCode::kFailedPrecondition,
              "name: " + default_ +
                  " is the default: requests that name no model go to it, and to no other. It can "
                  "be unloaded when it is the only one that serves",
              "name", "MODEL_IS_DEFAULT");
}

PipelinePtr Models::Remove(const std::string& name) {
  const std::lock_guard lock(mutex_);
  const EntryPtr before = Take(name);
  return before ? PipelineOf(before) : nullptr;
}

void Models::NoteFailed(FailedModel failed) {
  ForgetFailed(failed.name);
  const std::lock_guard lock(mutex_);
  const auto place = std::ranges::find_if(
      failed_, [&](const FailedModel& other) { return other.name > failed.name; });
  failed_.insert(place, std::move(failed));
}

void Models::ForgetFailed(const std::string& name) {
  const std::lock_guard lock(mutex_);
  std::erase_if(failed_, [&](const FailedModel& other) { return other.name == name; });
}

// ---- attention ---------------------------------------------------------------------------------

std::optional<Error> Models::CheckForce(const LeaseRequest& request, const Subject* work) const {
  const LeaseScope& scope = request.scope;
  if (auto error = Caught([&] { CheckScope(scope, "scope"); })) return error;
  const auto is_in_scope = [&](const auto& pipeline) {
    return !scope.model || pipeline->info().name == *scope.model;
  };
  std::vector<PipelinePtr> all = All();
  const bool own = work != nullptr && is_in_scope(work->pipeline);
  if (scope.model && !own && std::ranges::none_of(all, is_in_scope)) {
    return Error(StatusCode::kNotFound,
                 "scope.model: no model is called \"" + scope.model->substr(0, 64) +
                     "\"; there is:" + NamesOf(all),
                 "scope.model", "MODEL_NOT_FOUND");
  }
  if (work != nullptr) all = {work->pipeline};
  ForceCheck check(request);
  for (const PipelinePtr& pipeline : all) {
    if (!is_in_scope(pipeline)) continue;
    const ResolvedParameters& sizes =
        work != nullptr ? work->parameters : pipeline->info().defaults;
    for (const AttentionSpec& spec : pipeline->DenoiseSpecs(sizes)) {
      if (check.CanServe(*pipeline, spec)) return std::nullopt;
    }
  }
  return check.Refusal();
}

std::vector<BackendInfo> Models::ListBackends() const {
  const std::vector<PipelinePtr> all = All();
  const auto chosen = std::ranges::find_if(
      all, [&](const PipelinePtr& pipeline) { return pipeline->info().name == default_; });
  const PipelinePtr pipeline = chosen != all.end() ? *chosen : all.empty() ? nullptr : all.front();
  const AttentionSpec self = pipeline ? SelfOf(*pipeline) : AttentionSpec();
  const auto why_not = [&](AttnBackend backend) -> std::optional<std::string> {
    if (!pipeline) return "no model is loaded";
    return registry_->WhyNot(backend, self, pipeline->planner_setting().device);
  };
  const std::vector<BreakerInfo> breakers = Breakers();
  std::vector<BackendInfo> backends;
  for (const BackendRegistry::Entry& entry : registry_->entries()) {
    backends.push_back({entry.id,
                        std::string(registry_->Summary(entry.id)),
                        entry.automatic && entry.backend != nullptr,
                        why_not(entry.id),
                        {}});
    std::ranges::copy_if(breakers, std::back_inserter(backends.back().breakers),
                         [&](const BreakerInfo& open) { return open.backend == entry.id; });
  }
  return backends;
}

std::vector<BreakerInfo> Models::Breakers() const {
  std::vector<BreakerInfo> open;
  for (const PipelinePtr& pipeline : All()) {
    for (BreakerInfo breaker : pipeline->planner_setting().guard->breakers().List()) {
      breaker.model = pipeline->info().name;
      open.push_back(std::move(breaker));
    }
  }
  return open;
}

}  // namespace denoised
