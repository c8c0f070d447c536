// SHA-256 (FIPS 180-4), for digests of model files and artifacts. Torch-free, no secrets: not
// constant time.
#ifndef DENOISED_RUNTIME_LOADERS_SHA256_H_
#define DENOISED_RUNTIME_LOADERS_SHA256_H_

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace denoised {

// Which code mixes the blocks; the digest is the same. kAuto is the CPU's SHA extensions where it
// has them.
enum class Sha256Kernel : uint8_t { kAuto, kScalar, kShaNi };

bool HasShaInstructions();

// Feed bytes in any pieces, then take the digest once. One thread.
class Sha256 {
 public:
  // kShaNi only where HasShaInstructions().
  explicit Sha256(Sha256Kernel kernel = Sha256Kernel::kAuto);

  void Update(std::string_view bytes);
  std::array<uint8_t, 32> Finish();

 private:
  using Compress = void (*)(uint32_t* state, const uint8_t* blocks, size_t count);

  const Compress compress_;
  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> block_{};
  size_t filled_ = 0;  // bytes waiting in block_
  uint64_t total_ = 0;
};

std::string ToHex(const std::array<uint8_t, 32>& digest);
std::string Sha256Hex(std::string_view bytes);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_LOADERS_SHA256_H_
