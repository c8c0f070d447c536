// A receipt as the ledger keeps it.
#include "runtime/store/json_fields.h"
#include "runtime/store/receipt_row.h"
#include "tests/fuzz/fuzz_samples.h"
#include "tests/fuzz/fuzz_target.h"

namespace denoised {

std::vector<std::string> FuzzSeeds() {
  return {stored::Dump(stored::WriteReceipt({})),
          stored::Dump(stored::WriteReceipt(SampleReceipt()))};
}

}  // namespace denoised

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  namespace stored = denoised::stored;
  denoised::FuzzRoundTrip(
      denoised::StatusCode::kDataLoss, std::string(reinterpret_cast<const char*>(data), size),
      [](const std::string& text) { return stored::Parse(text, stored::ReadReceipt); },
      [](const denoised::Receipt& receipt) { return stored::Dump(stored::WriteReceipt(receipt)); });
  return 0;
}
