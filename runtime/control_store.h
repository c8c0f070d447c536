// What operators changed and must find again: leases, the audit of their changes, small documents.
// Torch-free. A part of the job store (job_store.h): one folder, one file, one lock; in memory
// where the store is.
//
// A change takes effect whether or not the disk takes it: an operator who forces a backend while
// the disk is full has an emergency. What the disk does not take is warned of once, makes the
// server unready (JobStore::WhyNotReady), is there for every reader, and is written as soon as the
// disk takes it. Only a server that dies before that has forgotten it, and then the numbers of such
// audit entries are given again.
#ifndef DENOISED_RUNTIME_CONTROL_STORE_H_
#define DENOISED_RUNTIME_CONTROL_STORE_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/selection_policy.h"

namespace denoised {

// One change that an operator made, or the server by itself.
struct AuditEntry {
  uint64_t number = 0;  // from 1, in order of their making; the store's
  std::chrono::system_clock::time_point time = {};
  std::string who = {};   // a peer, or "server"
  std::string what = {};  // "force", "renew", "release", "expire", "end", "drain", "log_level", ...
  std::string subject = {};  // a lease's id, a backend, ...
  std::string old_value = {}, new_value = {};
  std::string reason = {};
  std::optional<std::chrono::system_clock::time_point> ends_at = {};  // of what was changed
  bool operator==(const AuditEntry&) const = default;
};

// What a change made of one lease. Of a held one, which ends with its server, only the generation
// is kept.
struct LeaseChange {
  Lease lease;
  bool live = true;  // false: it has ended
  uint64_t generation = 0;
};

// An entry, and the change that it tells of where that is one of a lease: kept together or not at
// all.
struct AuditRecord {
  AuditEntry entry;
  std::optional<LeaseChange> change = std::nullopt;
};

// Leases of an earlier process. Those with an end have it on this process's steady clock: in the
// same boot of the machine what was left goes on running, whatever became of the time of day; after
// another boot the time of day counts, and never leaves more than was left when it was stored.
struct KeptLeases {
  std::vector<Lease> live;  // oldest first, as the next
  std::vector<Lease> over;  // that ended while no server ran; their ends are unset
  uint64_t generation = 0;
};

// Any thread. What changes something returns once it is on disk, or the disk did not take it.
class ControlStore {
 public:
  // Entries of audit that are kept: the newest.
  static constexpr size_t kMaxAudit = 10000;

  virtual ~ControlStore() = default;

  virtual KeptLeases LoadLeases() const = 0;
  // Numbers the entries in this order, behind all that there are; nobody sees them before they were
  // tried on disk. Returns the number of the last.
  virtual uint64_t AppendAudit(std::vector<AuditRecord> records) = 0;
  // At most `limit` entries with numbers above `after`, oldest first.
  virtual std::vector<AuditEntry> ReadAudit(uint64_t after, size_t limit) const = 0;

  // A document, in place of an older one of this name. Up to some MiB: it is held in memory.
  virtual void Keep(const std::string& name, std::string text) = 0;
  virtual std::optional<std::string> Find(const std::string& name) const = 0;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_CONTROL_STORE_H_
