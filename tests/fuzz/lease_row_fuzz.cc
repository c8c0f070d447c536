// A lease as the ledger keeps it, with its end.
#include "runtime/store/lease_row.h"
#include "tests/fuzz/fuzz_samples.h"
#include "tests/fuzz/fuzz_target.h"

namespace denoised {
namespace {

// When rows are written and read.
ClockReading Now() {
  ClockReading now;
  now.boot_id = "a boot";
  now.since_boot = std::chrono::hours(1);
  now.wall += std::chrono::hours(400'000);
  now.steady += std::chrono::hours(1);
  return now;
}

}  // namespace

std::vector<std::string> FuzzSeeds() {
  return {WriteLeaseRow({}, Now()), WriteLeaseRow(SampleLease(), Now())};
}

}  // namespace denoised

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using denoised::LeaseRow;
  using denoised::Now;
  denoised::FuzzRoundTrip(
      denoised::StatusCode::kDataLoss, std::string(reinterpret_cast<const char*>(data), size),
      [](const std::string& text) { return denoised::ReadLeaseRow(text, Now()); },
      [](const LeaseRow& row) { return denoised::WriteLeaseRow(row.lease, Now()); });
  return 0;
}
