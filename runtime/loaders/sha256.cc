#include "runtime/loaders/sha256.h"

#include <cpuid.h>
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstring>

namespace denoised {
namespace {

alignas(16) constexpr std::array<uint32_t, 64> kRound = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t BigEndian32(const uint8_t* p) {
  uint32_t word = 0;
  std::memcpy(&word, p, sizeof(word));
  return __builtin_bswap32(word);
}

// The message schedule of round i, in place of that of round i - 16.
inline uint32_t NextWord(uint32_t* w, int i) {
  const uint32_t w15 = w[(i + 1) & 15], w2 = w[(i + 14) & 15];
  const uint32_t s0 = std::rotr(w15, 7) ^ std::rotr(w15, 18) ^ (w15 >> 3);
  const uint32_t s1 = std::rotr(w2, 17) ^ std::rotr(w2, 19) ^ (w2 >> 10);
  return w[i & 15] += s0 + w[(i + 9) & 15] + s1;
}

// One round with the eight words where they stand; the caller turns their names instead.
inline void Round(uint32_t a, uint32_t b, uint32_t c, uint32_t& d, uint32_t e, uint32_t f,
                  uint32_t g, uint32_t& h, uint32_t word) {
  const uint32_t s1 = std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25);
  const uint32_t t1 = h + s1 + (g ^ (e & (f ^ g))) + word;
  const uint32_t s0 = std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22);
  d += t1;
  h = t1 + s0 + ((a & b) | (c & (a | b)));
}

void CompressScalar(uint32_t* state, const uint8_t* blocks, size_t count) {
  for (; count > 0; --count, blocks += 64) {
    uint32_t w[16];
    for (int i = 0; i < 16; ++i) w[i] = BigEndian32(blocks + 4 * i);
    uint32_t s[8];
    std::copy_n(state, 8, s);
    for (int i = 0; i < 64; i += 8) {
      const auto word = [&](int k) {
        return kRound[i + k] + (i < 16 ? w[i + k] : NextWord(w, i + k));
      };
      Round(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], word(0));
      Round(s[7], s[0], s[1], s[2], s[3], s[4], s[5], s[6], word(1));
      Round(s[6], s[7], s[0], s[1], s[2], s[3], s[4], s[5], word(2));
      Round(s[5], s[6], s[7], s[0], s[1], s[2], s[3], s[4], word(3));
      Round(s[4], s[5], s[6], s[7], s[0], s[1], s[2], s[3], word(4));
      Round(s[3], s[4], s[5], s[6], s[7], s[0], s[1], s[2], word(5));
      Round(s[2], s[3], s[4], s[5], s[6], s[7], s[0], s[1], word(6));
      Round(s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[0], word(7));
    }
    for (int i = 0; i < 8; ++i) state[i] += s[i];
  }
}

const __m128i* Vector(const void* p) { return static_cast<const __m128i*>(p); }

// Four rounds an iteration; the instructions want the state as ABEF and CDGH
// (Intel, "Intel SHA Extensions", 2013).
__attribute__((target("sha,sse4.1"))) void CompressShaNi(uint32_t* state, const uint8_t* blocks,
                                                         size_t count) {
  const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  const __m128i cdab = _mm_shuffle_epi32(_mm_loadu_si128(Vector(state)), 0xB1);
  const __m128i efgh = _mm_shuffle_epi32(_mm_loadu_si128(Vector(state + 4)), 0x1B);
  __m128i abef = _mm_alignr_epi8(cdab, efgh, 8);
  __m128i cdgh = _mm_blend_epi16(efgh, cdab, 0xF0);
  for (; count > 0; --count, blocks += 64) {
    const __m128i abef_before = abef, cdgh_before = cdgh;
    __m128i w[4];
    for (int i = 0; i < 4; ++i) {
      w[i] = _mm_shuffle_epi8(_mm_loadu_si128(Vector(blocks + 16 * i)), big_endian);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      const __m128i words = _mm_add_epi32(w[i & 3], _mm_load_si128(Vector(kRound.data() + 4 * i)));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, words);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(words, 0x0E));
      if (i >= 12) continue;
      const __m128i last = w[(i + 3) & 3];
      const __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(w[i & 3], w[(i + 1) & 3]),
                                        _mm_alignr_epi8(last, w[(i + 2) & 3], 4));
      w[i & 3] = _mm_sha256msg2_epu32(sum, last);
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  const __m128i feba = _mm_shuffle_epi32(abef, 0x1B);
  const __m128i dchg = _mm_shuffle_epi32(cdgh, 0xB1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state), _mm_blend_epi16(feba, dchg, 0xF0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

}  // namespace

bool HasShaInstructions() {
  // Asked once: virtual machines trap the question.
  static const bool has = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & bit_SHA) != 0;
  }();
  return has;
}

Sha256::Sha256(Sha256Kernel kernel)
    : compress_(kernel == Sha256Kernel::kShaNi ||
                        (kernel == Sha256Kernel::kAuto && HasShaInstructions())
                    ? CompressShaNi
                    : CompressScalar) {}

void Sha256::Update(std::string_view bytes) {
  total_ += bytes.size();
  const auto* at = reinterpret_cast<const uint8_t*>(bytes.data());
  size_t left = bytes.size();
  if (filled_ > 0) {
    const size_t take = std::min(left, block_.size() - filled_);
    std::copy_n(at, take, block_.data() + filled_);
    filled_ += take;
    at += take;
    left -= take;
    if (filled_ < block_.size()) return;
    compress_(state_.data(), block_.data(), 1);
    filled_ = 0;
  }
  compress_(state_.data(), at, left / 64);
  filled_ = left % 64;
  std::copy_n(at + left - filled_, filled_, block_.data());
}

std::array<uint8_t, 32> Sha256::Finish() {
  const uint64_t bits = total_ * 8;
  Update(std::string_view("\x80", 1));
  const size_t zeros = (filled_ <= 56 ? 56 : 120) - filled_;
  std::string tail(zeros, '\0');
  for (int shift = 56; shift >= 0; shift -= 8) tail.push_back(static_cast<char>(bits >> shift));
  Update(tail);
  std::array<uint8_t, 32> digest;
  for (int i = 0; i < 32; ++i)
    digest[i] = static_cast<uint8_t>(state_[i / 4] >> (24 - 8 * (i % 4)));
  return digest;
}

std::string ToHex(const std::array<uint8_t, 32>& digest) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  for (uint8_t byte : digest) {
    hex.push_back(kDigits[byte >> 4]);
    hex.push_back(kDigits[byte & 15]);
  }
  return hex;
}

std::string Sha256Hex(std::string_view bytes) {
  Sha256 hash;
  hash.Update(bytes);
  return ToHex(hash.Finish());
}

}  // namespace denoised
