#include "runtime/engine/ids.h"

#include <random>
#include <string_view>

namespace denoised {
namespace {

uint64_t RandomWord() {
  thread_local std::random_device device;
  return uint64_t{device()} << 32 | device();
}

}  // namespace

std::string NewId() {
  std::string id(32, '0');
  constexpr std::string_view kHex = "0123456789abcdef";
  for (size_t word = 0; word < 2; ++word) {
    uint64_t bits = RandomWord();
    for (size_t i = 0; i < 16; ++i, bits >>= 4) id[word * 16 + i] = kHex[bits & 15];
  }
  return id;
}

int64_t DrawSeed() { return static_cast<int64_t>(RandomWord() >> 32); }

}  // namespace denoised
