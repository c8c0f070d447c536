// The operator's side of selection: leases, what they hold for, when they end and who hears of it.
// Torch-free.
//
// Re-creates FastVideo's forced_attn_backend, global_force_attn_backend,
// get_global_forced_attn_backend and the context manager around them as a thread-safe object.
#ifndef DENOISED_RUNTIME_SELECTION_POLICY_H_
#define DENOISED_RUNTIME_SELECTION_POLICY_H_

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "backends/selector.h"
#include "runtime/budget.h"
#include "runtime/scope.h"

namespace denoised {

// What an operator asks for.
struct LeaseRequest {
  AttnBackend backend = AttnBackend::kReference;
  std::string parameters = {};  // a JSON object; "" = none were given
  LeaseScope scope = {};
  // Strict: work with a layer in scope that it cannot serve fails.
  SelectionMode mode = SelectionMode::kPrefer;
  std::optional<Budget> budget = std::nullopt;
  std::optional<std::chrono::milliseconds> ttl = std::nullopt;  // unset: no end
  std::string reason = {};
  std::string holder = {};  // who asks: a peer, or "scope"
  // The generation that the operator has seen; another one refuses the request.
  std::optional<uint64_t> expected_generation = std::nullopt;
  bool held = false;  // ends with its holder's stream, and with the server
};

// A forced backend with its scope and end.
struct Lease {
  std::string id;
  AttnBackend backend = AttnBackend::kReference;
  std::string parameters;
  LeaseScope scope;
  SelectionMode mode = SelectionMode::kPrefer;
  std::optional<Budget> budget;
  std::string reason, holder;
  bool held = false;
  std::chrono::system_clock::time_point created_at;
  std::optional<std::chrono::steady_clock::time_point> ends_at;
  uint64_t sequence = 0;    // of its making: larger is newer
  uint64_t generation = 0;  // of the policy, after it was made or last renewed
};

// Why a lease ended.
enum class LeaseEnd : uint8_t {
  kReleased,
  kExpired,
  kHolderLeft,
  kBudget,
  kNotFinite,
  kDegenerate
};
// "released", "expired", "holder_left", "budget", "not_finite", "degenerate".
std::string_view LeaseEndName(LeaseEnd end);

// A change of what is leased.
struct LeaseEvent {
  enum class Kind : uint8_t { kMade, kRenewed, kEnded };
  Kind kind = Kind::kMade;
  Lease lease;  // as it is now, or was last
  uint64_t generation = 0;
  LeaseEnd end = LeaseEnd::kReleased;  // of kEnded
  std::string by;                      // who did it: a peer; "" = the server itself
  std::string why;                     // of what the server ended by itself: a sentence
};

// What one piece of work brings to a selection: its own wishes and its model's. Of a schedule the
// first rule that holds for a place counts.
struct SelectionSubject {
  WorkIdentity work;
  std::optional<Wish> request, model_default;
  std::vector<AttentionRule> request_rules, model_rules;
};

// A wish with the places that it is for.
struct ScopedWish {
  PlaceScope where;
  Wish wish;
};

// Live leases in the order in which they decide: narrowest first, then newest. Immutable.
using LeaseList = std::vector<Lease>;

// Any thread.
class SelectionPolicy {
 public:
  using Clock = std::function<std::chrono::steady_clock::time_point()>;
  // Called once when a lease ends, however it ends; by who ended it, or by the policy's own thread
  // where its time was over. Under no lock: it may call the policy. Not called for leases that are
  // alive when the policy dies.
  using OnEnd = std::function<void(const Lease&)>;
  // Hears of every change, in order, one at a time, before the call that made it returns; under
  // no lock that a reader needs. It may not change the policy.
  using Listener = std::function<void(const LeaseEvent&)>;
  // Live leases at one time; as many as an operator could mean, and no memory for a flood.
  static constexpr size_t kMaxLeases = 1024;

  // With a clock of its own (tests) the policy has no thread: leases whose time is over are gone
  // from every answer, and their OnEnd waits for EndDue().
  explicit SelectionPolicy(std::optional<AttnBackend> environment = std::nullopt, Clock clock = {});
  ~SelectionPolicy();
  SelectionPolicy(const SelectionPolicy&) = delete;
  SelectionPolicy& operator=(const SelectionPolicy&) = delete;

  // Makes a lease. Throws INVALID_ARGUMENT naming "ttl" where it is not in (0, 365 days], or a
  // field of the scope or the budget; ABORTED (reason GENERATION_MISMATCH) where the generation is
  // not the expected one; RESOURCE_EXHAUSTED (reason TOO_MANY_FORCES).
  Lease Force(LeaseRequest request, OnEnd on_end = {});
  // Gives a lease a new end, `ttl` from now (unset: none). Throws NOT_FOUND (reason
  // LEASE_NOT_FOUND), and as Force.
  Lease Renew(const std::string& id, std::optional<std::chrono::milliseconds> ttl,
              const std::string& by, std::optional<uint64_t> expected_generation = std::nullopt);
  // Ends one; false: no such lease (already ended or never was). Throws ABORTED as Force.
  bool Release(const std::string& id, const std::string& by = "",
               std::optional<uint64_t> expected_generation = std::nullopt);
  // As Release, by the server itself or a holder that left: `why` says it in a sentence.
  bool End(const std::string& id, LeaseEnd end, const std::string& why = "",
           const std::string& by = "");
  // global_force_attn_backend(None); how many ended. Throws ABORTED as Force.
  int Clear(const std::string& by = "", std::optional<uint64_t> expected_generation = std::nullopt);
  // get_global_forced_attn_backend(): what the newest lease without a scope forces.
  std::optional<AttnBackend> forced() const;
  std::vector<Lease> List() const;  // live ones, newest first
  std::optional<Lease> Find(const std::string& id) const;
  std::optional<AttnBackend> environment() const { return environment_; }
  // Grows by one with every lease that is made, renewed or ended.
  uint64_t generation() const;

  // Before anything else: leases of an earlier process, and the generation that it had reached.
  void Restore(std::vector<Lease> leases, uint64_t generation);
  void SetListener(Listener listener);

  // What decides now.
  std::shared_ptr<const LeaseList> leases() const;
  // What everybody wishes for this work, strongest first: `leases` that hold for it, the request's
  // rules and backend, the environment, the model's rules and default.
  std::vector<ScopedWish> WishesFor(const SelectionSubject& subject, const LeaseList& leases) const;

  // Grows whenever an answer of WishesFor may have changed; an expiry counts from the moment it is
  // due. Cheap (two atomic loads and, with an expiring lease, one clock read): the engine compares
  // it each step and selects anew only when it moved.
  uint64_t version() const;

  // Runs OnEnd of the leases whose time is over.
  void EndDue();

 private:
  friend class ScopedForce;

  // A lease, or (lifts) the absence of one: global_force_attn_backend(None) inside of a force.
  struct Entry {
    Lease lease;
    OnEnd on_end;
    bool lifts = false;
  };

  Lease Add(Entry entry, std::optional<std::chrono::milliseconds> ttl,
            std::optional<uint64_t> expected_generation);
  std::vector<Entry> Take(const std::function<bool(const Entry&)>& which, LeaseEnd end,
                          const std::string& why, const std::string& by,
                          std::optional<uint64_t> expected_generation = std::nullopt);
  void TellEvents();       // the listener; under no lock
  void KeepTime();         // the thread
  void CheckRoom() const;  // under mutex_, as all below
  void CheckGeneration(std::optional<uint64_t> expected) const;
  void StartTimer();
  void Note(LeaseEvent event) const;  // the next generation
  void DropExpired(std::chrono::steady_clock::time_point now) const;
  void Changed() const;

  const std::optional<AttnBackend> environment_;
  const bool own_clock_;
  const Clock clock_;
  std::mutex telling_;                             // one telling at a time; before mutex_
  Listener listener_;                              // guarded by telling_
  mutable std::mutex mutex_;                       // guards all below
  mutable std::vector<Entry> entries_;             // oldest first
  mutable std::vector<Entry> expired_;             // whose OnEnd has yet to run
  mutable std::deque<LeaseEvent> events_;          // that the listener has yet to hear of
  mutable std::shared_ptr<const LeaseList> list_;  // of entries_; null: to be made
  mutable uint64_t generation_ = 0;
  uint64_t next_sequence_ = 1;
  bool closing_ = false;
  mutable std::condition_variable changed_;
  mutable std::atomic<uint64_t> version_{0};
  mutable std::atomic<int64_t> next_expiry_ns_{INT64_MAX};
  std::thread timer_;  // starts with the first lease that has an end
};

// global_force_attn_backend_context_manager: a force that ends with the scope, on every exit path.
// An empty backend lifts every older lease for as long as the scope lasts.
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

#endif  // DENOISED_RUNTIME_SELECTION_POLICY_H_
