// A job as the ledger keeps it.
#include "runtime/store/job_row.h"
#include "tests/fuzz/fuzz_samples.h"
#include "tests/fuzz/fuzz_target.h"

namespace denoised {

std::vector<std::string> FuzzSeeds() {
  JobRow bare, whole;
  bare.job.id = "a";
  whole.job = SampleJob();
  whole.key = "order 7";
  whole.request_digest = std::string(64, 'a');
  whole.crashes = 1;
  whole.accepted = PastMoment{"a boot", std::chrono::hours(1), {}};
  whole.ended = PastMoment{"a boot", std::chrono::hours(2), {}};
  whole.end_number = 3;
  return {WriteRow(bare), WriteRow(whole)};
}

}  // namespace denoised

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using denoised::JobRow;
  denoised::FuzzRoundTrip(
      denoised::StatusCode::kDataLoss, std::string(reinterpret_cast<const char*>(data), size),
      [](const std::string& text) { return denoised::ReadRow(1, text); },
      [](const JobRow& row) { return denoised::WriteRow(row); });
  return 0;
}
