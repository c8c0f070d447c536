#include "backends/kernels/thread_buffer.h"

#include <gtest/gtest.h>

#include <cstring>
#include <thread>
#include <vector>

namespace denoised::kernels {
namespace {

constexpr int64_t kLarge = int64_t{8} << 20;  // more than a thread keeps

bool IsAll(const ThreadBuffer<char>& buffer, int64_t count, char value) {
  for (int64_t i = 0; i < count; ++i) {
    if (buffer[i] != value) return false;
  }
  return true;
}

// Rounds of buffers within buffers, small and large, first when nothing is kept and then from what
// is: none has a byte of another.
void UseMany(char seed) {
  for (int round = 0; round < 3; ++round) {
    const ThreadBuffer<char> first(100);
    std::memset(first.get(), seed, 100);
    for (const int64_t count : {int64_t{1}, int64_t{64}, int64_t{5000}, kLarge, int64_t{300}}) {
      const ThreadBuffer<char> second(count);
      std::memset(second.get(), seed + 1, static_cast<size_t>(count));
      const ThreadBuffer<char> third(2 * count);
      std::memset(third.get(), seed + 2, static_cast<size_t>(2 * count));
      EXPECT_TRUE(IsAll(second, count, static_cast<char>(seed + 1))) << count;
      EXPECT_TRUE(IsAll(third, 2 * count, static_cast<char>(seed + 2))) << count;
      for (const void* at : {second.get(), third.get()}) {
        EXPECT_EQ(reinterpret_cast<uintptr_t>(at) % 64, 0u) << count;
      }
    }
    EXPECT_TRUE(IsAll(first, 100, seed)) << round;
  }
}

TEST(ThreadBuffer, HasItsBytesForItself) { UseMany(1); }

TEST(ThreadBuffer, EachThreadHasItsOwn) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back(UseMany, static_cast<char>(10 * i));
  for (std::thread& thread : threads) thread.join();
}

TEST(ThreadBuffer, OfNothingIsThere) {
  const ThreadBuffer<float> none(0), one(1);
  EXPECT_NE(none.get(), nullptr);
  EXPECT_NE(none.get(), one.get());
}

#if !defined(__SANITIZE_ADDRESS__)
TEST(ThreadBuffer, IsTheSameMemoryTheNextTime) {
  std::thread([] {
    const auto at = [](int64_t count) { return ThreadBuffer<char>(count).get(); };
    at(4096);
    void* const kept = at(4096);
    EXPECT_EQ(at(1), kept);
    EXPECT_EQ(at(4096), kept);
    const ThreadBuffer<char> first(4096);
    EXPECT_EQ(first.get(), kept);
    EXPECT_NE(at(4096), kept) << "while it is taken";
  }).join();
}
#endif

}  // namespace
}  // namespace denoised::kernels
