// What the ledger keeps of a job beside its request, and how that is written: one JSON text.
// Torch-free.
#ifndef DENOISED_RUNTIME_STORE_JOB_ROW_H_
#define DENOISED_RUNTIME_STORE_JOB_ROW_H_

#include <cstdint>
#include <optional>
#include <string>

#include "runtime/job.h"
#include "runtime/store/clocks.h"

namespace denoised {

struct JobRow {
  uint64_t number = 0;  // order of arrival, from 1
  JobSnapshot job;
  std::string key;             // of idempotency; "" = none
  std::string request_digest;  // of the request that made the job (request_row.h)
  int64_t crashes = 0;         // servers that died while it ran
  // Since when it is, and has ended; unset in rows of servers that did not keep them.
  std::optional<PastMoment> accepted, ended;
  uint64_t end_number = 0;  // order of ends, from 1; 0 where it is not known
};

// Everything but `number`, and back. Reading throws DATA_LOSS for what WriteRow cannot have
// written.
std::string WriteRow(const JobRow& row);
JobRow ReadRow(uint64_t number, const std::string& text);

// Whether an id may be part of a file's name: letters, digits, '_' and '-', at most 64.
bool IsPlainId(const std::string& id);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_STORE_JOB_ROW_H_
