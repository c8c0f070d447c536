// A request as the ledger keeps it, and what tells two of them apart. Torch-free.
#ifndef DENOISED_RUNTIME_STORE_REQUEST_ROW_H_
#define DENOISED_RUNTIME_STORE_REQUEST_ROW_H_

#include <string>

#include "runtime/job.h"
#include "runtime/store/clocks.h"
#include "runtime/store/job_row.h"

namespace denoised {

struct RequestRow {
  std::string text;     // JSON: everything but the tensor's bytes and the idempotency key
  std::string latents;  // the bytes of `latents`; "" where there are none
};

// The deadline is kept as a lease's end is (moment_row.h), and on reading a moment of this
// process's steady clock again: what is left of it neither grows nor goes where the time of day is
// set. Reading throws DATA_LOSS for what WriteRequest cannot have written.
RequestRow WriteRequest(const GenerationRequest& request, const ClockReading& now);
GenerationRequest ReadRequest(const RequestRow& row, const ClockReading& now);

// SHA-256, hex, over all that the request asks for: not the key, and of the deadline only whether
// there is one, since a client that asks again counts its time anew.
std::string RequestDigest(const GenerationRequest& request);
// Of a job that just comes in; its number is the store's to give.
JobRow NewRow(const JobSnapshot& job, const GenerationRequest& request);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_STORE_REQUEST_ROW_H_
