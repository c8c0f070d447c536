// A request as the ledger keeps it: four bytes of the text's length, the text, the latents.
#include <cstring>

#include "runtime/store/request_row.h"
#include "tests/fuzz/fuzz_samples.h"
#include "tests/fuzz/fuzz_target.h"

namespace denoised {
namespace {

std::string AsBytes(const RequestRow& row) {
  const auto length = static_cast<uint32_t>(row.text.size());
  std::string bytes(sizeof length, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  return bytes + row.text + row.latents;
}

RequestRow FromBytes(const std::string& bytes) {
  uint32_t length = 0;
  if (bytes.size() < sizeof length) return {bytes, ""};
  std::memcpy(&length, bytes.data(), sizeof length);
  const std::string rest = bytes.substr(sizeof length);
  const size_t split = std::min<size_t>(length, rest.size());
  return {rest.substr(0, split), rest.substr(split)};
}

}  // namespace

std::vector<std::string> FuzzSeeds() {
  GenerationRequest bare;
  bare.prompt = "a";
  return {AsBytes(WriteRequest(bare, ReadClocks())),
          AsBytes(WriteRequest(SampleRequest(), ReadClocks()))};
}

}  // namespace denoised

// A deadline is a moment of this process's clock once it is read, so that the request is compared,
// and not the row.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using denoised::GenerationRequest;
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  const denoised::ClockReading now = denoised::ReadClocks();
  GenerationRequest request;
  const bool taken = denoised::TakesOrRefuses(denoised::StatusCode::kDataLoss, [&] {
    request = denoised::ReadRequest(denoised::FromBytes(bytes), now);
  });
  if (!taken) return 0;
  const GenerationRequest again = denoised::ReadRequest(denoised::WriteRequest(request, now), now);
  denoised::FuzzRequire(denoised::RequestDigest(again) == denoised::RequestDigest(request),
                        "what was written is read as it was");
  return 0;
}
