// The ledger's file: its tables, and reading it back whatever happened to it. Torch-free; one
// thread.
//
// A row is believed where its digest says so. One that is not goes into the table `quarantine`,
// with a line in the log, and its neighbours are read. A file whose pages are damaged is set aside
// under another name, and what can be read of it goes into a new one.
#ifndef DENOISED_RUNTIME_STORE_LEDGER_FILE_H_
#define DENOISED_RUNTIME_STORE_LEDGER_FILE_H_

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "runtime/log.h"
#include "runtime/store/control_tables.h"
#include "runtime/store/job_row.h"
#include "runtime/store/request_row.h"
#include "runtime/store/sqlite.h"

namespace denoised {

struct StoredJob {
  JobRow row;
  std::optional<GenerationRequest> request;  // of one that has not ended
};

class LedgerFile {
 public:
  // Throws FAILED_PRECONDITION naming the file where it is of a newer version, is no ledger, or
  // another program has it open.
  LedgerFile(const std::filesystem::path& file, Logger* logger);

  Database& database() { return *database_; }
  // Every job, by order of arrival, as of now.
  std::vector<StoredJob> ReadJobs(const ClockReading& now);
  // Ids of jobs that were put aside.
  std::set<std::string> QuarantinedIds();
  // As control_tables.h.
  std::vector<ControlRow> ReadControl(ControlTable table,
                                      const std::function<void(const ControlRow&)>& read) {
    return ReadControlTable(database_.get(), table, read, logger_);
  }

  // Inside a transaction.
  void InsertJob(const JobRow& row);
  void InsertRequest(uint64_t number, const RequestRow& request);
  void UpdateJob(const JobRow& row);
  void RemoveRequest(uint64_t number);
  void RemoveJob(uint64_t number);
  void Touch();  // a write, to see whether the disk takes one

 private:
  void Open();
  void Prepare();
  void Salvage();
  std::optional<GenerationRequest> ReadRequestOf(uint64_t number, const ClockReading& now);
  void Quarantine(uint64_t number, const std::string& id, const std::string& why);

  const std::filesystem::path file_;
  Logger* const logger_;
  std::unique_ptr<Database> database_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_STORE_LEDGER_FILE_H_
