// Which backend serves a layer, and why. Torch-free.
//
// Re-creates FastVideo's fastvideo/attention/selector.py: get_attn_backend and the force API. Two
// things differ on purpose: a force takes effect at once (everything that changes the answer is an
// input of Select, nothing is cached behind its back), and the automatic answer is checked against
// the layer's list and the backend's limits like any other.
//
// Order of precedence, strongest first: force (newest) > request > environment > model default >
// automatic (registry order). A source that cannot serve the layer is refused with a sentence.
#ifndef DENOISED_BACKENDS_SELECTOR_H_
#define DENOISED_BACKENDS_SELECTOR_H_

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "backends/attention_spec.h"
#include "backends/registry.h"

namespace denoised {

enum class SelectionSource : uint8_t { kForce, kRequest, kEnvironment, kModelDefault, kAutomatic };
std::string_view SelectionSourceName(SelectionSource source);  // "force", "request", ...

enum class SelectionMode : uint8_t {
  kPrefer,  // a refused choice falls to the next source; the receipt says so
  kStrict,  // a refused force or request fails the job: FAILED_PRECONDITION with every refusal
};

// One source's wish that could not be granted.
struct Refusal {
  SelectionSource source;
  AttnBackend backend;
  std::string reason;
  bool operator==(const Refusal&) const = default;
};

struct Selection {
  AttnBackend backend = AttnBackend::kReference;
  SelectionSource source = SelectionSource::kAutomatic;
  std::string force_id;  // set when source is kForce
  std::vector<Refusal>
      refusals;                // stronger wishes first, then the automatic candidates passed over
  std::string Reason() const;  // one sentence for receipts and logs
};

// What the sources want for one job's layers at one moment; plain value.
struct SelectionWishes {
  std::optional<AttnBackend> force;
  std::string force_id;
  std::optional<AttnBackend> request;
  std::optional<AttnBackend> environment;
  std::optional<AttnBackend> model_default;
  SelectionMode mode = SelectionMode::kPrefer;
  bool operator==(const SelectionWishes&) const = default;
};

// FastVideo's get_attn_backend. Pure and thread-safe.
// Throws INVALID_ARGUMENT where spec.supported is empty (always, even when forced), and
// FAILED_PRECONDITION where nothing on the list can serve the spec or where mode is kStrict and a
// force or request was refused. A backend that the layer does not list is not a strict failure for
// roles other than self-attention: cross-attention and encoders keep their short lists.
Selection Select(const AttentionSpec& spec, const SelectionWishes& wishes,
                 const BackendRegistry& registry, const DeviceInfo& device);

// A force by the operator. Server-wide; ends at `ends_at`, on release, or with its holder.
struct Force {
  std::string id;
  AttnBackend backend;
  std::string reason;  // what the operator gave
  std::string holder;  // peer or "stream"
  std::chrono::system_clock::time_point created_at;
  std::optional<std::chrono::steady_clock::time_point> ends_at;
  uint64_t sequence = 0;
};

// The operator's side of selection: FastVideo's forced_attn_backend, global_force_attn_backend and
// get_global_forced_attn_backend as a thread-safe object. Newest live force wins. Any thread.
class SelectionPolicy {
 public:
  using Clock = std::function<std::chrono::steady_clock::time_point()>;
  explicit SelectionPolicy(std::optional<AttnBackend> environment = std::nullopt,
                           Clock clock = std::chrono::steady_clock::now);

  // Adds a force and returns it with its id. An unset ttl has no end. Throws INVALID_ARGUMENT
  // naming "ttl" where it is not in (0, 365 days].
  Force AddForce(AttnBackend backend, std::optional<std::chrono::milliseconds> ttl,
                 std::string reason, std::string holder);
  bool Release(const std::string& id);        // false: no such force (already ended or never was)
  void Clear();                               // global_force_attn_backend(None)
  std::optional<AttnBackend> forced() const;  // get_global_forced_attn_backend()
  std::vector<Force> List() const;            // live ones, newest first
  std::optional<AttnBackend> environment() const { return environment_; }

  // Fills force and environment of `wishes`.
  void Apply(SelectionWishes* wishes) const;

  // Grows whenever the forced backend may have changed; an expiry counts from the moment it is
  // due. Cheap (two atomic loads and, with an expiring force, one clock read): the engine compares
  // it each step and selects anew only when it moved.
  uint64_t version() const;

 private:
  friend class ScopedForce;

  // A force, or (lifts) the absence of one: global_force_attn_backend(None) inside of a force.
  struct Entry {
    Force force;
    bool lifts = false;
  };

  Force Add(std::optional<AttnBackend> backend, std::optional<std::chrono::milliseconds> ttl,
            std::string reason, std::string holder);
  void DropExpired(std::chrono::steady_clock::time_point now) const;  // under mutex_
  void Changed() const;                                               // under mutex_

  const std::optional<AttnBackend> environment_;
  const Clock clock_;
  mutable std::mutex mutex_;
  mutable std::vector<Entry> entries_;  // oldest first
  uint64_t next_sequence_ = 1;
  mutable std::atomic<uint64_t> version_{0};
  mutable std::atomic<int64_t> next_expiry_ns_{INT64_MAX};
};

// global_force_attn_backend_context_manager: a force that ends with the scope, on every exit path.
// An empty backend lifts every older force for as long as the scope lasts.
class ScopedForce {
 public:
  ScopedForce(SelectionPolicy& policy, std::optional<AttnBackend> backend,
              std::string holder = "scope");
  ~ScopedForce();
  ScopedForce(const ScopedForce&) = delete;
  ScopedForce& operator=(const ScopedForce&) = delete;
  const std::string& id() const { return id_; }

 private:
  SelectionPolicy& policy_;
  std::string id_;
};

}  // namespace denoised

#endif  // DENOISED_BACKENDS_SELECTOR_H_
