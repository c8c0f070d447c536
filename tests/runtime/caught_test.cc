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

std::string ReasonOf(const std::function<void()>& work) { return Caught(work)->reason(); }

TEST(Caught, WhatNoFurtherCallOfCudaSurvivesIsALostDeviceWhoeverSaysIt) {
  constexpr int kIllegalAddress = 700, kInvalidConfiguration = 9;
  const auto torch = [](const std::string& text, int code) {
    throw c10::AcceleratorError({__func__, __FILE__, __LINE__}, code, text);
  };
  for (const char* words :
       {"an illegal memory access was encountered", "unspecified launch failure",
        "device-side assert triggered", "uncorrectable ECC error encountered",
        "hardware stack error", "misaligned address"}) {
    const std::string text = "CUDA error: " + std::string(words) + "\nSearch for it";
    EXPECT_EQ(ReasonOf([&] { torch(text, kIllegalAddress); }), "DEVICE_LOST") << words;
    EXPECT_EQ(ReasonOf([&] {
                throw Error(StatusCode::kInternal,
                            "a kernel was not launched; CUDA says: " + std::string(words));
              }),
              "DEVICE_LOST")
        << words;
  }
  EXPECT_EQ(
      ReasonOf([&] { torch("CUDA error: invalid configuration argument", kInvalidConfiguration); }),
      "INTERNAL");
  EXPECT_EQ(ReasonOf([&] { torch("CUDA out of memory. Tried to allocate 2 GiB", 2); }), "MEMORY");
  EXPECT_EQ(ReasonOf([] { throw std::runtime_error("a misaligned address"); }), "INTERNAL")
      << "CUDA does not say it";
  EXPECT_EQ(ReasonOf([] { throw InvalidField("prompt", "CUDA: misaligned address"); }),
            "INVALID_FIELD")
      << "a request's own words";
}

TEST(Caught, WorkThatEndsGivesNothing) {
  EXPECT_FALSE(Caught([] {}));
}

}  // namespace
}  // namespace denoised
