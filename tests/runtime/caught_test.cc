// Exceptions as values. What LibTorch throws is thrown by LibTorch here.
#include "runtime/caught.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <new>
#include <vector>

namespace denoised {
namespace {

void ExpectOutOfMemory(const std::function<void()>& work) {
  const auto error = Caught(work);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), StatusCode::kResourceExhausted) << error->what();
  EXPECT_EQ(error->reason(), "MEMORY");
  EXPECT_EQ(std::string(error->what()).find('\n'), std::string::npos);
}

TEST(Caught, AnAllocationThatCannotBeIsOutOfMemoryWhoeverMadeIt) {
  constexpr int64_t kTooMuch = int64_t{1} << 50;
  ExpectOutOfMemory([] { at::empty({kTooMuch}, at::kByte); });
  ExpectOutOfMemory([] { const std::vector<char> bytes(kTooMuch); });
}

TEST(Caught, OtherFailuresOfLibTorchAreInternalAndOneLine) {
  const auto error = Caught([] { at::mm(at::zeros({2, 3}), at::zeros({2, 3})); });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), StatusCode::kInternal);
  EXPECT_EQ(std::string(error->what()).find('\n'), std::string::npos);
}

TEST(Caught, WorkThatEndsGivesNothing) {
  EXPECT_FALSE(Caught([] {}));
}

}  // namespace
}  // namespace denoised
