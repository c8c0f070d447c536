// The operator's side of selection: forces, when they end and who hears of it. Torch-free.
//
// Re-creates FastVideo's forced_attn_backend, global_force_attn_backend,
// get_global_forced_attn_backend and the context manager around them as a thread-safe object.
#ifndef DENOISED_BACKENDS_SELECTION_POLICY_H_
#define DENOISED_BACKENDS_SELECTION_POLICY_H_

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "backends/selector.h"

namespace denoised {

// A force by the operator. Server-wide; ends at `ends_at`, on release, or with its holder.
struct Force {
  std::string id;
  AttnBackend backend;
  std::string parameters;  // a JSON object; "" = none were given
  std::string reason;      // what the operator gave
  std::string holder;      // peer or "scope"
  std::chrono::system_clock::time_point created_at;
  std::optional<std::chrono::steady_clock::time_point> ends_at;
  uint64_t sequence = 0;
};

// What one piece of work brings to a selection: its own wish and its model's.
struct SelectionSubject {
  std::optional<Wish> request, model_default;
};

// Any thread.
class SelectionPolicy {
 public:
  using Clock = std::function<std::chrono::steady_clock::time_point()>;
  // Called once when a force ends, however it ends; by who ended it, or by the policy's own thread
  // where its time was over. Under no lock: it may call the policy. Not called for forces that are
  // alive when the policy dies.
  using OnEnd = std::function<void(const Force&)>;
  // Live forces at one time; as many as an operator could mean, and no memory for a flood.
  static constexpr size_t kMaxForces = 1024;

  // With a clock of its own (tests) the policy has no thread: forces whose time is over are gone
  // from every answer, and their OnEnd waits for EndDue().
  explicit SelectionPolicy(std::optional<AttnBackend> environment = std::nullopt, Clock clock = {});
  ~SelectionPolicy();
  SelectionPolicy(const SelectionPolicy&) = delete;
  SelectionPolicy& operator=(const SelectionPolicy&) = delete;

  // Adds a force and returns it with its id. An unset ttl has no end. Throws INVALID_ARGUMENT
  // naming "ttl" where it is not in (0, 365 days], RESOURCE_EXHAUSTED where kMaxForces are alive.
  Force AddForce(AttnBackend backend, std::optional<std::chrono::milliseconds> ttl,
                 std::string reason, std::string holder, std::string parameters = "",
                 OnEnd on_end = {});
  bool Release(const std::string& id);        // false: no such force (already ended or never was)
  int Clear();                                // global_force_attn_backend(None); how many ended
  std::optional<AttnBackend> forced() const;  // get_global_forced_attn_backend(): the newest
  std::vector<Force> List() const;            // live ones, newest first
  std::optional<AttnBackend> environment() const { return environment_; }

  // What everybody wishes, strongest first: forces (newest first), the request, the environment,
  // the model's default. A wish without parameters has those of the next weaker one for the same
  // backend: naming a backend never loses what was set for it, and `{}` asks for its own defaults.
  std::vector<Wish> WishesFor(const SelectionSubject& subject) const;

  // Grows whenever an answer of WishesFor may have changed; an expiry counts from the moment it is
  // due. Cheap (two atomic loads and, with an expiring force, one clock read): the engine compares
  // it each step and selects anew only when it moved.
  uint64_t version() const;

  // Runs OnEnd of the forces whose time is over.
  void EndDue();

 private:
  friend class ScopedForce;

  // A force, or (lifts) the absence of one: global_force_attn_backend(None) inside of a force.
  struct Entry {
    Force force;
    OnEnd on_end;
    bool lifts = false;
  };

  Force Add(Entry entry, std::optional<std::chrono::milliseconds> ttl);
  std::vector<Entry> Take(const std::function<bool(const Entry&)>& which);
  void CheckRoom() const;                                             // under mutex_
  void DropExpired(std::chrono::steady_clock::time_point now) const;  // under mutex_
  void Changed() const;                                               // under mutex_
  void KeepTime();                                                    // the thread

  const std::optional<AttnBackend> environment_;
  const bool own_clock_;
  const Clock clock_;
  mutable std::mutex mutex_;
  mutable std::vector<Entry> entries_;  // oldest first
  mutable std::vector<Entry> expired_;  // whose OnEnd has yet to run
  uint64_t next_sequence_ = 1;
  bool closing_ = false;
  mutable std::condition_variable changed_;
  mutable std::atomic<uint64_t> version_{0};
  mutable std::atomic<int64_t> next_expiry_ns_{INT64_MAX};
  std::thread timer_;  // starts with the first force that has an end
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

#endif  // DENOISED_BACKENDS_SELECTION_POLICY_H_
