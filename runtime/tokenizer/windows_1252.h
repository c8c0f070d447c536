// Windows-1252, with the five bytes that it leaves open read as C1 controls (as browsers do).
// Torch-free.
#ifndef DENOISED_RUNTIME_TOKENIZER_WINDOWS_1252_H_
#define DENOISED_RUNTIME_TOKENIZER_WINDOWS_1252_H_

#include <array>
#include <cstdint>
#include <optional>

namespace denoised {

// Bytes 0x80 to 0x9F; the others are Latin-1.
inline constexpr std::array<char32_t, 32> kWindows1252 = {
    0x20AC, 0x0081, 0x201A, 0x0192, 0x201E, 0x2026, 0x2020, 0x2021, 0x02C6, 0x2030, 0x0160,
    0x2039, 0x0152, 0x008D, 0x017D, 0x008F, 0x0090, 0x2018, 0x2019, 0x201C, 0x201D, 0x2022,
    0x2013, 0x2014, 0x02DC, 0x2122, 0x0161, 0x203A, 0x0153, 0x009D, 0x017E, 0x0178};

inline char32_t FromWindows1252(uint8_t byte) {
  return byte >= 0x80 && byte <= 0x9F ? kWindows1252[byte - 0x80] : byte;
}

inline std::optional<uint8_t> ToWindows1252(char32_t c) {
  for (size_t i = 0; i < kWindows1252.size(); ++i) {
    if (kWindows1252[i] == c) return static_cast<uint8_t>(0x80 + i);
  }
  if (c < 0x80 || (c >= 0xA0 && c <= 0xFF)) return static_cast<uint8_t>(c);
  return std::nullopt;
}

}  // namespace denoised

#endif  // DENOISED_RUNTIME_TOKENIZER_WINDOWS_1252_H_
