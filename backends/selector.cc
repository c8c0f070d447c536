#include "backends/selector.h"

#include <algorithm>

#include "backends/error.h"

namespace denoised {
namespace {

struct Wish {
  SelectionSource source;
  std::optional<AttnBackend> backend;
};

std::array<Wish, 4> InOrderOfPrecedence(const SelectionWishes& wishes) {
  return {{{SelectionSource::kForce, wishes.force},
           {SelectionSource::kRequest, wishes.request},
           {SelectionSource::kEnvironment, wishes.environment},
           {SelectionSource::kModelDefault, wishes.model_default}}};
}

bool Lists(const AttentionSpec& spec, AttnBackend id) {
  return std::find(spec.supported.begin(), spec.supported.end(), id) != spec.supported.end();
}

std::string NamesOf(const std::vector<AttnBackend>& ids) {
  std::string names;
  for (AttnBackend id : ids)
    names += (names.empty() ? "" : ", ") + std::string(AttnBackendName(id));
  return names;
}

std::optional<std::string> WhyRefused(AttnBackend id, const AttentionSpec& spec,
                                      const BackendRegistry& registry, const DeviceInfo& device) {
  if (!Lists(spec, id)) {
    return std::string(AttentionRoleName(spec.role)) + " attention of this model takes only " +
           NamesOf(spec.supported);
  }
  return registry.WhyNot(id, spec, device);
}

// Cross-attention and encoders list few backends by design: that alone fails no strict job.
bool FailsStrict(SelectionSource source, AttnBackend id, const AttentionSpec& spec) {
  const bool typed = source == SelectionSource::kForce || source == SelectionSource::kRequest;
  return typed && (spec.role == AttentionRole::kSelf || Lists(spec, id));
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

// The first registered backend that the layer lists, that may be chosen unasked and that can serve.
bool SelectAutomatic(const AttentionSpec& spec, const BackendRegistry& registry,
                     const DeviceInfo& device, Selection* selection) {
  for (const BackendRegistry::Entry& entry : registry.entries()) {
    if (!entry.automatic || !Lists(spec, entry.id)) continue;
    auto reason = registry.WhyNot(entry.id, spec, device);
    if (!reason) {
      selection->backend = entry.id;
      selection->source = SelectionSource::kAutomatic;
      return true;
    }
    selection->refusals.push_back({SelectionSource::kAutomatic, entry.id, std::move(*reason)});
  }
  return false;
}

constexpr std::chrono::milliseconds kMaxTtl = std::chrono::hours(24 * 365);

int64_t Nanoseconds(std::chrono::steady_clock::time_point time) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
}

}  // namespace

std::string_view SelectionSourceName(SelectionSource source) {
  switch (source) {
    case SelectionSource::kForce:
      return "force";
    case SelectionSource::kRequest:
      return "request";
    case SelectionSource::kEnvironment:
      return "environment";
    case SelectionSource::kModelDefault:
      return "model default";
    case SelectionSource::kAutomatic:
      return "automatic";
  }
  return "unknown";
}

std::string Selection::Reason() const {
  std::string text(AttnBackendName(backend));
  text += " by " + std::string(SelectionSourceName(source));
  if (!force_id.empty()) text += " " + force_id;
  if (!refusals.empty()) text += "; refused: " + Sentences(refusals);
  return text;
}

Selection Select(const AttentionSpec& spec, const SelectionWishes& wishes,
                 const BackendRegistry& registry, const DeviceInfo& device) {
  if (spec.supported.empty()) {
    throw Error(StatusCode::kInvalidArgument,
                "wanted a layer that lists at least one attention backend; " +
                    std::string(AttentionRoleName(spec.role)) + " attention lists none",
                "supported");
  }
  Selection selection;
  bool granted = false, strict_failure = false;
  for (const Wish& wish : InOrderOfPrecedence(wishes)) {
    if (!wish.backend || granted) continue;
    auto reason = WhyRefused(*wish.backend, spec, registry, device);
    if (reason) {
      strict_failure |= FailsStrict(wish.source, *wish.backend, spec);
      selection.refusals.push_back({wish.source, *wish.backend, std::move(*reason)});
      continue;
    }
    granted = true;
    selection.backend = *wish.backend;
    selection.source = wish.source;
    if (wish.source == SelectionSource::kForce) selection.force_id = wishes.force_id;
  }
  if (strict_failure && wishes.mode == SelectionMode::kStrict) {
    FailSelection(spec, "wanted exactly the backend that was asked for (policy strict)",
                  selection.refusals);
  }
  if (!granted && !SelectAutomatic(spec, registry, device, &selection)) {
    FailSelection(spec, "wanted any of " + NamesOf(spec.supported), selection.refusals);
  }
  return selection;
}

SelectionPolicy::SelectionPolicy(std::optional<AttnBackend> environment, Clock clock)
    : environment_(environment), clock_(std::move(clock)) {}

Force SelectionPolicy::AddForce(AttnBackend backend, std::optional<std::chrono::milliseconds> ttl,
                                std::string reason, std::string holder) {
  return Add(backend, ttl, std::move(reason), std::move(holder));
}

Force SelectionPolicy::Add(std::optional<AttnBackend> backend,
                           std::optional<std::chrono::milliseconds> ttl, std::string reason,
                           std::string holder) {
  if (ttl && (*ttl <= std::chrono::milliseconds::zero() || *ttl > kMaxTtl)) {
    throw InvalidField("ttl", "wanted more than 0 and at most 365 days; got " +
                                  std::to_string(ttl->count()) + " ms");
  }
  const auto now = clock_();
  const std::lock_guard lock(mutex_);
  DropExpired(now);
  Entry entry;
  entry.lifts = !backend.has_value();
  entry.force.backend = backend.value_or(AttnBackend::kNoAttention);
  entry.force.sequence = next_sequence_++;
  entry.force.id = "force-" + std::to_string(entry.force.sequence);
  entry.force.reason = std::move(reason);
  entry.force.holder = std::move(holder);
  entry.force.created_at = std::chrono::system_clock::now();
  if (ttl) entry.force.ends_at = now + *ttl;
  entries_.push_back(entry);
  Changed();
  return entry.force;
}

bool SelectionPolicy::Release(const std::string& id) {
  const auto now = clock_();
  const std::lock_guard lock(mutex_);
  DropExpired(now);
  const bool found =
      std::erase_if(entries_, [&](const Entry& entry) { return entry.force.id == id; }) > 0;
  if (found) Changed();
  return found;
}

void SelectionPolicy::Clear() {
  const std::lock_guard lock(mutex_);
  entries_.clear();
  Changed();
}

std::optional<AttnBackend> SelectionPolicy::forced() const {
  SelectionWishes wishes;
  Apply(&wishes);
  return wishes.force;
}

std::vector<Force> SelectionPolicy::List() const {
  const auto now = clock_();
  const std::lock_guard lock(mutex_);
  DropExpired(now);
  std::vector<Force> newest_first;
  for (auto it = entries_.rbegin(); it != entries_.rend(); ++it) {
    if (!it->lifts) newest_first.push_back(it->force);
  }
  return newest_first;
}

void SelectionPolicy::Apply(SelectionWishes* wishes) const {
  const auto now = clock_();
  wishes->environment = environment_;
  wishes->force.reset();
  wishes->force_id.clear();
  const std::lock_guard lock(mutex_);
  DropExpired(now);
  if (entries_.empty() || entries_.back().lifts) return;
  wishes->force = entries_.back().force.backend;
  wishes->force_id = entries_.back().force.id;
}

uint64_t SelectionPolicy::version() const {
  const int64_t expiry = next_expiry_ns_.load(std::memory_order_acquire);
  if (expiry != INT64_MAX) {
    const auto now = clock_();
    if (Nanoseconds(now) >= expiry) {
      const std::lock_guard lock(mutex_);
      DropExpired(now);
    }
  }
  return version_.load(std::memory_order_acquire);
}

void SelectionPolicy::DropExpired(std::chrono::steady_clock::time_point now) const {
  const size_t dropped = std::erase_if(entries_, [&](const Entry& entry) {
    return entry.force.ends_at && *entry.force.ends_at <= now;
  });
  if (dropped > 0) Changed();
}

void SelectionPolicy::Changed() const {
  int64_t next = INT64_MAX;
  for (const Entry& entry : entries_) {
    if (entry.force.ends_at) next = std::min(next, Nanoseconds(*entry.force.ends_at));
  }
  next_expiry_ns_.store(next, std::memory_order_release);
  version_.fetch_add(1, std::memory_order_acq_rel);
}

ScopedForce::ScopedForce(SelectionPolicy& policy, std::optional<AttnBackend> backend,
                         std::string holder)
    : policy_(policy), id_(policy.Add(backend, std::nullopt, "", std::move(holder)).id) {}

ScopedForce::~ScopedForce() { policy_.Release(id_); }

}  // namespace denoised
