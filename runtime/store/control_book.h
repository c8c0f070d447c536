// Leases, audit and documents in memory, where readers see them, and on the ledger where there is
// one. Torch-free, any thread.
//
// The ledger is told to make its tables what the book says, never what to change: a write that the
// disk did not take is made good by the next, whatever came between.
#ifndef DENOISED_RUNTIME_STORE_CONTROL_BOOK_H_
#define DENOISED_RUNTIME_STORE_CONTROL_BOOK_H_

#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "runtime/control_store.h"
#include "runtime/store/control_tables.h"
#include "runtime/store/hooks.h"

namespace denoised {

class Ledger;
class LedgerFile;

class ControlBook : public ControlStore {
 public:
  // Both borrowed, or null: without a ledger nothing outlives the process. The ledger may still
  // have to be made, and ends before the book.
  ControlBook(Ledger* ledger, StoreHooks* hooks) : ledger_(ledger), hooks_(hooks) {}

  // Once, before the ledger has a thread: what an earlier process left.
  void Load(LedgerFile& file);

  KeptLeases LoadLeases() const override;
  uint64_t AppendAudit(std::vector<AuditRecord> records) override;
  std::vector<AuditEntry> ReadAudit(uint64_t after, size_t limit) const override;
  void Keep(const std::string& name, std::string text) override;
  std::optional<std::string> Find(const std::string& name) const override;

 private:
  // What the tables are to hold, of the audit the entries above a number.
  struct Content {
    ControlRows leases, documents;
    std::vector<ControlRow> audit;
  };

  ClockReading Now() const;
  void Apply(const LeaseChange& change, const ClockReading& now);  // under mutex_
  void Put(const std::string& name, std::string text);             // under mutex_
  const ControlRow* Document(const std::string& name) const;       // under mutex_
  void Sync();
  void WriteTo(LedgerFile& file) const;  // ledger's thread
  Content ContentAfter(uint64_t number) const;

  Ledger* const ledger_;
  StoreHooks* const hooks_;
  mutable std::mutex mutex_;  // guards all below
  ControlRows leases_, documents_;
  std::deque<AuditEntry> audit_;  // the newest, by their numbers
  uint64_t last_number_ = 0;
  uint64_t tried_ = 0;  // entries up to this one are on disk, or the disk did not take them
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_STORE_CONTROL_BOOK_H_
