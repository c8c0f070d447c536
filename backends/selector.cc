#include "backends/selector.h"

#include <algorithm>

#include "backends/error.h"

namespace denoised {
namespace {

// In the enum's order.
constexpr std::array<std::string_view, kSelectionSources.size()> kSourceNames = {
    "force", "request", "environment", "model_default", "automatic"};

std::string NamesOf(const std::vector<AttnBackend>& ids) {
  std::string names;
  for (AttnBackend id : ids)
    names += (names.empty() ? "" : ", ") + std::string(AttnBackendName(id));
  return names;
}

std::optional<std::string> WhyUnfit(AttnBackend id, const AttentionSpec& spec,
                                    const BackendRegistry& registry, const DeviceInfo& device) {
  if (!spec.Lists(id)) {
    return std::string(AttentionRoleName(spec.role)) + " attention of this model takes only " +
           NamesOf(spec.supported);
  }
  return registry.WhyNot(id, spec, device);
}

bool FailsStrict(const Wish& wish, const AttentionSpec& spec, SelectionMode mode) {
  const bool typed =
      wish.source == SelectionSource::kForce || wish.source == SelectionSource::kRequest;
  return (wish.strict || (typed && mode == SelectionMode::kStrict)) &&
         IsActionable(wish.backend, spec);
}

std::string Sentences(const std::vector<Refusal>& refusals) {
  std::string text;
  for (const Refusal& refusal : refusals) {
    text += (text.empty() ? "" : "; ") + std::string(AttnBackendName(refusal.backend)) + " (" +
            std::string(SelectionSourceName(refusal.source)) + "): " + refusal.reason;
  }
  return text;
}

[[noreturn]] void FailSelection(const AttentionSpec& spec, const std::string& wanted,
                                const std::vector<Refusal>& refusals) {
  throw Error(StatusCode::kFailedPrecondition,
              wanted + " for " + std::string(AttentionRoleName(spec.role)) +
                  " attention; refused: " + Sentences(refusals),
              "attention.backend", "BACKEND_REFUSED");
}

std::string RuleField(const Wish& wish) {
  return "attention.schedule[" + std::to_string(*wish.rule) + "].";
}

void Refuse(const Wish& wish, std::string reason, Selection* selection) {
  Refusal refusal{wish.source, wish.backend, std::move(reason)};
  auto& all = selection->refusals;
  if (std::find(all.begin(), all.end(), refusal) == all.end()) all.push_back(std::move(refusal));
}

// Empty where the wish can be granted, which `canonical` then is with its parameters.
std::optional<std::string> WhyNotGranted(const Wish& wish, const AttentionSpec& spec,
                                         const BackendRegistry& registry, const DeviceInfo& device,
                                         const Objection& objection, Wish* canonical) {
  if (auto reason = WhyUnfit(wish.backend, spec, registry, device)) return reason;
  *canonical = wish;
  try {
    canonical->parameters = registry.CanonicalParameters(wish.backend, spec, wish.parameters);
  } catch (const Error& error) {
    const Error named = wish.rule ? Renamed(error, "attention.", RuleField(wish)) : error;
    if (wish.source == SelectionSource::kRequest) throw named;
    return named.what();
  }
  return objection ? objection(wish.backend) : std::nullopt;
}

// The first of `preferred` that the layer lists and that can serve.
bool SelectPreferred(const AttentionSpec& spec, std::span<const PreferredBackend> preferred,
                     const BackendRegistry& registry, const DeviceInfo& device,
                     const Objection& objection, Selection* selection) {
  for (const PreferredBackend& one : preferred) {
    if (!spec.Lists(one.backend)) continue;
    Wish wish{SelectionSource::kAutomatic, one.backend, "", ""};
    wish.measured = one.measured;
    auto reason = WhyNotGranted(wish, spec, registry, device, objection, &selection->granted);
    if (!reason) return true;
    Refuse(wish, std::move(*reason), selection);
  }
  return false;
}

// The first registered backend that the layer lists, that may be chosen unasked and that can serve.
bool SelectAutomatic(const AttentionSpec& spec, const BackendRegistry& registry,
                     const DeviceInfo& device, const Objection& objection, Selection* selection) {
  for (const BackendRegistry::Entry& entry : registry.entries()) {
    if (!entry.automatic || !spec.Lists(entry.id)) continue;
    const Wish wish{SelectionSource::kAutomatic, entry.id, "", ""};
    auto reason = WhyNotGranted(wish, spec, registry, device, objection, &selection->granted);
    if (!reason) reason = registry.WhyYields(entry.id, spec, device);
    if (!reason) return true;
    Refuse(wish, std::move(*reason), selection);
  }
  return false;
}

}  // namespace

std::string_view SelectionSourceName(SelectionSource source) {
  const auto index = static_cast<size_t>(source);
  return index < kSourceNames.size() ? kSourceNames[index] : "unknown";
}

std::optional<SelectionSource> SelectionSourceFromName(std::string_view name) {
  for (SelectionSource source : kSelectionSources) {
    if (SelectionSourceName(source) == name) return source;
  }
  return std::nullopt;
}

std::string Selection::Reason() const {
  std::string text(AttnBackendName(granted.backend));
  text += " by " + std::string(SelectionSourceName(granted.source));
  if (granted.rule) text += " rule " + std::to_string(*granted.rule);
  if (!granted.lease_id.empty()) text += " " + granted.lease_id;
  if (!granted.measured.empty()) text += ", the fastest of those measured: " + granted.measured;
  if (!refusals.empty()) text += "; refused: " + Sentences(refusals);
  return text;
}

std::optional<std::string> WhyNotGranted(const Wish& wish, const AttentionSpec& spec,
                                         const BackendRegistry& registry, const DeviceInfo& device,
                                         const Objection& objection) {
  Wish canonical;
  return WhyNotGranted(wish, spec, registry, device, objection, &canonical);
}

bool IsActionable(AttnBackend backend, const AttentionSpec& spec) {
  return spec.role == AttentionRole::kSelf || spec.Lists(backend);
}

Selection Select(const AttentionSpec& spec, std::span<const Wish> wishes,
                 const BackendRegistry& registry, const DeviceInfo& device, SelectionMode mode,
                 std::span<const PreferredBackend> preferred, const Objection& objection) {
  if (spec.supported.empty()) {
    throw Error(StatusCode::kInvalidArgument,
                "wanted a layer that lists at least one attention backend; " +
                    std::string(AttentionRoleName(spec.role)) + " attention lists none",
                "supported");
  }
  Selection selection;
  bool granted = false, strict_failure = false;
  for (const Wish& wish : wishes) {
    if (granted && wish.source != SelectionSource::kRequest) continue;
    Wish candidate;
    auto reason = WhyNotGranted(wish, spec, registry, device, objection, &candidate);
    if (granted) continue;  // it was looked at for its parameters alone
    if (reason) {
      strict_failure |= FailsStrict(wish, spec, mode);
      Refuse(wish, std::move(*reason), &selection);
      continue;
    }
    granted = true;
    selection.granted = std::move(candidate);
  }
  if (strict_failure) {
    FailSelection(spec, "wanted exactly the backend that was asked for (policy strict)",
                  selection.refusals);
  }
  if (!granted && !SelectPreferred(spec, preferred, registry, device, objection, &selection) &&
      !SelectAutomatic(spec, registry, device, objection, &selection)) {
    FailSelection(spec, "wanted any of " + NamesOf(spec.supported), selection.refusals);
  }
  return selection;
}

}  // namespace denoised
