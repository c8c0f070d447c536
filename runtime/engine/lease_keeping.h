// Keeps the policy's leases across restarts, and writes what became of each into the audit.
// Torch-free.
#ifndef DENOISED_RUNTIME_ENGINE_LEASE_KEEPING_H_
#define DENOISED_RUNTIME_ENGINE_LEASE_KEEPING_H_

#include <chrono>
#include <map>
#include <string>

#include "runtime/audit.h"
#include "runtime/control_store.h"
#include "runtime/selection_policy.h"

namespace denoised {

class LeaseKeeping {
 public:
  // Gives the policy the leases and the generation of an earlier process, says which ended
  // meanwhile, and listens to the policy from then on. All borrowed; the clock is the policy's.
  LeaseKeeping(SelectionPolicy* policy, const ControlStore& store, Audit* audit,
               SelectionPolicy::Clock clock = std::chrono::steady_clock::now);
  // The policy has no listener then: leases that live stay kept.
  ~LeaseKeeping();
  LeaseKeeping(const LeaseKeeping&) = delete;
  LeaseKeeping& operator=(const LeaseKeeping&) = delete;

 private:
  void Restore(KeptLeases kept);
  void Hear(const LeaseEvent& event);  // one at a time

  SelectionPolicy* const policy_;
  Audit* const audit_;
  const SelectionPolicy::Clock clock_;
  std::map<std::string, Lease> live_;  // as they were last heard of
};

// For people: "REFERENCE, model=shapes share=20%, strict, with {"window": 3}, relative_l2 p99 <
// 0.02 over 200".
std::string Described(const Lease& lease);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_LEASE_KEEPING_H_
