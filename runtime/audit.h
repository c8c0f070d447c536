// Who changed what on this server: one line in the log, one entry in the store, a bell for streams
// that follow. Torch-free.
#ifndef DENOISED_RUNTIME_AUDIT_H_
#define DENOISED_RUNTIME_AUDIT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "runtime/control_store.h"
#include "runtime/log.h"

namespace denoised {

// The line of the log; Audit::Write has it written.
void LogAudit(const AuditEntry& entry, Logger* logger);

// Any thread.
class Audit {
 public:
  // Both borrowed.
  Audit(ControlStore* store, Logger* logger) : store_(store), logger_(logger) {}

  // Gives the entry its time and number; texts that are too long to be read are cut. Returns once
  // it is kept (control_store.h): as long as a job waits for the disk, never longer.
  void Write(AuditEntry entry);
  void Write(std::vector<AuditRecord> records);
  // At most `limit` entries with numbers above `number`, oldest first.
  std::vector<AuditEntry> ReadAfter(uint64_t number, size_t limit) const;
  // As JobStore::Watch, after each Write.
  std::shared_ptr<void> Watch(std::function<void()> wake);

 private:
  struct Watcher {
    std::function<void()> wake;
  };

  void WakeAll();

  ControlStore* const store_;
  Logger* const logger_;
  std::mutex mutex_;
  std::vector<std::weak_ptr<Watcher>> watchers_;  // guarded by mutex_
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_AUDIT_H_
