#include "server/open_calls.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "backends/error.h"

namespace denoised {
namespace {

using Clock = std::chrono::steady_clock;

TEST(OpenCalls, OneConnectionCannotTakeTheStreamsOfItsOtherCalls) {
  OpenCalls calls(16);
  std::vector<OpenCalls::Ticket> tickets;
  for (int i = 0; i < 14; ++i) tickets.push_back(calls.Enter("a"));
  try {
    calls.Enter("a");
    ADD_FAILURE() << "two streams are for others";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kResourceExhausted);
    EXPECT_EQ(error.reason(), "TOO_MANY_STREAMS");
    EXPECT_THAT(error.what(), testing::HasSubstr("--max_streams_per_connection"));
  }
  EXPECT_EQ(calls.count(), 14);
  calls.Enter("b");  // another connection
  tickets.pop_back();
  tickets.push_back(calls.Enter("a"));
  tickets.clear();
  EXPECT_EQ(calls.count(), 0);
}

TEST(OpenCalls, WaitsUntilTheLastOneIsGone) {
  OpenCalls calls(8);
  EXPECT_TRUE(calls.WaitNone(Clock::now()));
  OpenCalls::Ticket ticket = calls.Enter("a");
  EXPECT_FALSE(calls.WaitNone(Clock::now()));
  std::thread leaving([&] { ticket.reset(); });
  EXPECT_TRUE(calls.WaitNone(Clock::now() + std::chrono::seconds(20)));
  leaving.join();
}

}  // namespace
}  // namespace denoised
