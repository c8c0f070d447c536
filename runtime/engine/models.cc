#include "runtime/engine/models.h"

#include <algorithm>
#include <set>

#include "runtime/caught.h"

namespace denoised {
namespace {

std::optional<std::string> WhyUnusable(AttnBackend backend, const Pipeline& pipeline,
                                       const AttentionSpec& spec) {
  if (std::find(spec.supported.begin(), spec.supported.end(), backend) == spec.supported.end()) {
    return "self-attention of " + pipeline.info().name + " does not list it";
  }
  const PlannerSetting& setting = pipeline.planner_setting();
  return setting.registry->WhyNot(backend, spec, setting.device);
}

// As the request of a force names it: "parameters.<key>", where jobs have "attention.parameters".
std::optional<Error> WhyParametersUnfit(AttnBackend backend, const Pipeline& pipeline,
                                        const AttentionSpec& spec,
                                        const std::string& parameters_json) {
  try {
    pipeline.planner_setting().registry->CanonicalParameters(backend, spec, parameters_json);
    return std::nullopt;
  } catch (const Error& error) {
    return Renamed(error, "attention.", "");
  }
}

Explanation ExplainSpec(const PlannerSetting& setting, const AttentionSpec& spec,
                        const PlannerSubject& subject) {
  Explanation explanation;
  explanation.role = spec.role;
  explanation.spec = spec;
  const auto error = Caught([&] {
    explanation.selection = ChooseNow(setting, subject, spec, {0, std::nullopt}).front().selection;
  });
  // What is wrong with the query itself is the caller's to mend, as at Submit.
  if (error && error->code() == StatusCode::kInvalidArgument) throw *error;
  if (error) explanation.error = ToJobError(*error);
  for (const BackendRegistry::Entry& entry : setting.registry->entries()) {
    const bool listed =
        std::find(spec.supported.begin(), spec.supported.end(), entry.id) != spec.supported.end();
    explanation.candidates.push_back(
        {entry.id, listed, setting.registry->WhyNot(entry.id, spec, setting.device)});
  }
  return explanation;
}

}  // namespace

Pipeline* Models::Find(const std::string& name) const {
  for (const auto& pipeline : all_) {
    if (pipeline->info().name == name || (name.empty() && pipeline->info().is_default)) {
      return pipeline.get();
    }
  }
  std::string known;
  for (const auto& pipeline : all_) known += " " + pipeline->info().name;
  throw Error(StatusCode::kNotFound,
              "model: no model is called \"" + name + "\"; there is:" + known, "model",
              "MODEL_NOT_FOUND");
}

std::vector<ModelInfo> Models::List() const {
  std::vector<ModelInfo> models;
  for (const auto& pipeline : all_) models.push_back(pipeline->info());
  return models;
}

int64_t Models::MadeBytes() const {
  int64_t bytes = 0;
  for (const auto& pipeline : all_) bytes += pipeline->MadeBytes();
  return bytes;
}

std::optional<Error> Models::CheckForce(AttnBackend backend,
                                        const std::string& parameters_json) const {
  std::string sentence = "no model has self-attention";
  std::set<std::string> usable;
  std::optional<Error> unfit;  // the backend could serve, but not with these parameters
  for (const auto& pipeline : all_) {
    for (const AttentionSpec& spec : pipeline->DenoiseSpecs(pipeline->info().defaults)) {
      if (spec.role != AttentionRole::kSelf) continue;
      const auto why_not = WhyUnusable(backend, *pipeline, spec);
      if (!why_not) {
        unfit = WhyParametersUnfit(backend, *pipeline, spec, parameters_json);
        if (!unfit) return std::nullopt;
        continue;
      }
      sentence = *why_not;
      for (AttnBackend other : spec.supported) {
        if (!WhyUnusable(other, *pipeline, spec)) usable.emplace(AttnBackendName(other));
      }
    }
  }
  if (unfit) return unfit;
  std::string names;
  for (const std::string& name : usable) names += " " + name;
  return Error(StatusCode::kFailedPrecondition,
               std::string(AttnBackendName(backend)) +
                   " cannot serve any loaded model: " + sentence + ". Usable:" + names,
               "backend", "BACKEND_UNUSABLE");
}

std::vector<BackendInfo> Models::ListBackends() const {
  const Pipeline& pipeline = *Find("");
  const PlannerSetting& setting = pipeline.planner_setting();
  AttentionSpec self;
  for (const AttentionSpec& spec : pipeline.DenoiseSpecs(pipeline.info().defaults)) {
    if (spec.role == AttentionRole::kSelf) self = spec;
  }
  std::vector<BackendInfo> backends;
  for (const BackendRegistry::Entry& entry : setting.registry->entries()) {
    backends.push_back({entry.id, std::string(setting.registry->Summary(entry.id)),
                        entry.automatic && entry.backend != nullptr,
                        setting.registry->WhyNot(entry.id, self, setting.device)});
  }
  return backends;
}

std::vector<Explanation> Models::Explain(const ExplainQuery& query) const {
  const Pipeline& pipeline = *Find(query.model);
  GenerationRequest request;
  request.height = query.height;
  request.width = query.width;
  request.num_frames = query.num_frames;
  const ResolvedParameters parameters =
      ResolveRequest(request, pipeline.info().defaults, pipeline.rules());
  std::vector<Explanation> explanations;
  for (const AttentionSpec& spec : pipeline.DenoiseSpecs(parameters)) {
    explanations.push_back(ExplainSpec(pipeline.planner_setting(), spec, {query.attention}));
  }
  return explanations;
}

}  // namespace denoised
